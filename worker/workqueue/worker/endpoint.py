"""The worker's HTTP endpoint: /metrics, /livez, /readyz, /status and /retire on one port.

It runs in threads of its own, so that it answers whatever the handlers do.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from workqueue import __version__
from workqueue.contract import signing, worker_api
from workqueue.contract.errors import BindingError
from workqueue.contract.limits import CONNECTIONS, REQUEST_BYTES, REQUEST_SECONDS
from workqueue.contract.signing import Purpose
from workqueue.contract.worker_api import StatusField
from workqueue.worker.metrics import Exposition
from workqueue.worker.retirement import LEASE_SECONDS, Retirement
from workqueue.worker.runtime import Runtime

LIVE_SECONDS: Final = 30.0
"""The I/O loop turns at least every 5 s. One that has not turned for this long is stuck."""

IDLE_SECONDS: Final = 75.0
"""How long a connection may stay open between two requests."""

logger = logging.getLogger(__name__)


class Endpoint:
    """The HTTP server.

    Args:
        runtime: the worker to report on.
        listener: a socket that listens.
        metrics_folder: where the processes of the handler write its metrics; None without such processes.
    """

    def __init__(self, runtime: Runtime, listener: socket.socket, metrics_folder: str | None = None) -> None:
        self.runtime = runtime
        self._metrics_folder = metrics_folder
        config = runtime.config
        self.retirement = (
            Retirement(runtime.consumer, config.read_retirement_key, config.pod_uid)
            if config.pod_uid
            else None
        )
        self._exposition: Exposition | None = None
        self._lock = threading.Lock()
        self._server = _Server(listener, _Request)
        self._server.endpoint = self

    def serve(self) -> None:
        """Answer requests until `close()` is called in another thread."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        if self._exposition is not None:
            self._exposition.close()

    @property
    def exposition(self) -> Exposition:
        """The metrics, created at the first use."""
        with self._lock:
            if self._exposition is None:
                self._exposition = Exposition(self.runtime, self._metrics_folder)
            return self._exposition

    def dead_because(self) -> str | None:
        """Return why only a restart helps, or None. A missing broker is no reason: a restart does not help."""
        age = self.runtime.tick_age
        if age > LIVE_SECONDS:
            return f"an I/O loop has not turned for {age:.0f} s"
        consumer = self.runtime.consumer
        if consumer.slots and self.runtime.deliveries.stuck == consumer.slot_count:
            return "every slot is held by a handler that ignores its cancellation"
        return None

    def status(self) -> dict[str, Any]:
        """Return the answer to /status."""
        runtime, now = self.runtime, time.monotonic()
        consumer, rates = runtime.consumer, runtime.deliveries.rates
        # Without the lock of the connection, so that the answer does not depend on what the connection does.
        return {
            StatusField.QUEUE: runtime.config.queue,
            StatusField.SLOTS: consumer.slot_count,
            StatusField.BUSY: consumer.busy(),
            StatusField.BUSY_SECONDS: consumer.busy_seconds(now),
            StatusField.WAITING_FOR_TOKEN: consumer.waiting_for_token,
            StatusField.CONSUMING: consumer.consuming,
            StatusField.QUEUE_ANSWERS: consumer.queue_answers,
            StatusField.RETIRED: self.retirement is not None and self.retirement.active,
            StatusField.HANDLED: rates.total_count,
            StatusField.RECEIVED: rates.received,
            StatusField.HANDLER_TIMES: rates.times(),
            StatusField.MEAN_HANDLER_SECONDS: rates.mean_seconds(),
            StatusField.RECENT_HANDLER_SECONDS: rates.recent_seconds(now),
            StatusField.ARRIVAL_PER_SECOND: rates.arrivals_per_second(now),
            StatusField.CONNECTED: consumer.connection.is_open,
            StatusField.LAST_ERROR: consumer.last_error,
            StatusField.DELAY_QUEUES: runtime.deliveries.delay_queues,
            StatusField.UPTIME_SECONDS: round(now - runtime.started, 3),
            StatusField.VERSION: __version__,
        }


class _Server(ThreadingHTTPServer):
    """One thread per connection. The number of connections is limited."""

    daemon_threads = True
    block_on_close = False
    endpoint: Endpoint

    def __init__(self, listener: socket.socket, handler: type[_Request]) -> None:
        self._lock = threading.Lock()
        self._waits: dict[socket.socket, float] = {}
        self._all: set[socket.socket] = set()
        super().__init__(listener.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def process_request(self, request: Any, client_address: Any) -> None:
        """Accept a connection. Beyond the limit, close the longest idle one, so that the kubelet gets an answer."""
        with self._lock:
            if len(self._all) >= CONNECTIONS:
                # A connection with a request in progress stays open.
                longest = min(self._waits, key=self._waits.__getitem__, default=request)
                with contextlib.suppress(OSError):
                    longest.shutdown(socket.SHUT_RDWR)
                self._waits.pop(longest, None)
            self._all.add(request)
            self._waits[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that ends."""
        with self._lock:
            self._all.discard(request)
            self._waits.pop(request, None)
        super().shutdown_request(request)

    def waits(self, request: socket.socket, *, waiting: bool) -> None:
        """Note whether a connection waits for its next request (idle) or for an answer."""
        with self._lock:
            if not waiting:
                self._waits.pop(request, None)
            elif request in self._all:
                self._waits[request] = time.monotonic()

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """Log a broken connection. The base class would print a traceback beside the log."""
        logger.debug("A request failed.", exc_info=sys.exception(), extra={"client": str(client_address)})


class _Requests(io.RawIOBase):
    """The input of a connection, with a limit in seconds and in bytes for each request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0
        self._bytes_left = 0
        self._begun = False

    def readable(self) -> bool:
        return True

    def expect(self, seconds: float) -> None:
        """Require that the next request begins within `seconds`."""
        self._deadline = time.monotonic() + seconds
        self._bytes_left = REQUEST_BYTES
        self._begun = False

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0 or not self._bytes_left:
            raise TimeoutError("the request took too long or was too large")
        self._connection.settimeout(left)
        count = self._connection.recv_into(memoryview(buffer)[: self._bytes_left])
        self._bytes_left -= count
        if not self._begun:
            self._begun = True
            self._deadline = time.monotonic() + REQUEST_SECONDS
        return count


class _Request(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = f"workqueue-worker/{__version__}"
    sys_version = ""
    # Headers and body are two writes. With Nagle's algorithm, the second waits for the peer's delayed
    # acknowledgement.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._requests = _Requests(self.connection)
        self._patience = REQUEST_SECONDS
        self.rfile = io.BufferedReader(self._requests)

    def handle_one_request(self) -> None:
        self._requests.expect(self._patience)
        self._patience = IDLE_SECONDS
        self.server.waits(self.request, waiting=True)
        super().handle_one_request()

    def parse_request(self) -> bool:
        good = super().parse_request()
        self.server.waits(self.request, waiting=False)
        self.connection.settimeout(REQUEST_SECONDS)
        return good

    def do_GET(self) -> None:
        endpoint = self.server.endpoint
        match self.path.partition("?")[0]:
            case worker_api.LIVE_PATH:
                reason = endpoint.dead_because()
                code = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(code, {"live": reason is None, "reason": reason})
            case worker_api.READY_PATH:
                ready = endpoint.runtime.deliveries.ready
                self._answer(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, {"ready": ready})
            case worker_api.STATUS_PATH:
                self._answer(HTTPStatus.OK, endpoint.status())
            case worker_api.METRICS_PATH:
                self._send(HTTPStatus.OK, endpoint.exposition.content_type, endpoint.exposition.render())
            case _:
                self._not_found()

    def do_POST(self) -> None:
        self._retire(Purpose.RETIRE)

    def do_DELETE(self) -> None:
        self._retire(Purpose.RESUME)

    def _retire(self, purpose: Purpose) -> None:
        self.close_connection = True  # a body, which is ignored, would be read as the next request
        retirement = self.server.endpoint.retirement
        if self.path != worker_api.RETIRE_PATH or retirement is None:
            self._not_found()
            return
        try:
            wrong = retirement.verify(self.headers.get(signing.HEADER), purpose, time.time())
        except BindingError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})
            return
        if wrong is not None:
            # The operator then does not try the password, as it does for workers without a retirement key.
            keyed = self.server.endpoint.runtime.config.retirement_key_file is not None
            said = {"error": wrong, "retirementKey": True} if keyed else {"error": wrong}
            self._answer(HTTPStatus.UNAUTHORIZED, said)
            return
        if purpose is Purpose.RESUME:
            retirement.end()
            self._answer(HTTPStatus.OK, {})
            return
        try:
            busy = retirement.begin()
        except TimeoutError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})
            return
        if busy:
            self._answer(HTTPStatus.CONFLICT, {"busy": busy})
        else:
            self._answer(HTTPStatus.OK, {"leaseSeconds": LEASE_SECONDS})

    def _not_found(self) -> None:
        self._answer(HTTPStatus.NOT_FOUND, {"error": "NotFound"})

    def _answer(self, code: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(code, "application/json", json.dumps(content).encode())

    def _send(self, code: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        logger.debug("Request.", extra={"request": format % args})
