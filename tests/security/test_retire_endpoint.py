"""The worker's endpoint under clients other than its operator: it refuses them and keeps working."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

import pytest

from tests.support.process import memory, threads
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import POD_UID, Worker, Workers, publish
from workqueue.contract.limits import CONNECTIONS, REQUEST_BYTES, REQUEST_SECONDS
from workqueue.contract.signing import HEADER, Purpose, sign

MORE_MEMORY: Final = 48 * 1024 * 1024
"""Bytes that a flood may add."""

ANSWER_SECONDS: Final = 5.0
"""The kubelet's timeout for a probe."""


def port_of(worker: Worker) -> int:
    worker.status()
    assert worker.port is not None
    return worker.port


def forged() -> list[tuple[str | None, str]]:
    """Invalid signatures, and the error for each."""
    now = time.time()
    good = sign(Purpose.RETIRE, POD_UID, b"guest", now)
    stamp, digest = good.split(":")
    return [
        (None, "Missing"),
        ("", "Missing"),
        ("nonsense", "Malformed"),
        (f"{stamp}:", "Wrong"),
        (f"{stamp}:{'0' * 64}", "Wrong"),
        (f"{float(stamp) + 1:.6f}:{digest}", "Wrong"),
        (f"0{stamp}:{digest}", "Wrong"),
        (f"{stamp}:{digest.upper()}", "Wrong"),
        (sign(Purpose.RETIRE, POD_UID, b"another", now), "Wrong"),
        (sign(Purpose.RETIRE, "another", b"guest", now), "Wrong"),
        (sign(Purpose.RESUME, POD_UID, b"guest", now), "Wrong"),
        (sign(Purpose.RETIRE, POD_UID, b"guest", now - 61), "Expired"),
        (sign(Purpose.RETIRE, POD_UID, b"guest", now + 3600), "Expired"),
        (sign(Purpose.RETIRE, POD_UID, b"guest", float("inf")), "Expired"),
        (sign(Purpose.RETIRE, POD_UID, b"guest", float("nan")), "Expired"),
    ]


def test_request_signed_for_other_worker_or_time_is_refused(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    for header, said in forged():
        headers = {} if header is None else {HEADER: header}
        assert worker.request("/retire", "POST", headers) == (401, {"error": said}), header
    assert worker.status()["consuming"]
    assert not worker.status()["retired"]


def test_signature_is_valid_only_once(vhost: VirtualHost, workers: Workers) -> None:
    """Also after the worker has resumed, and when the same call comes twenty times simultaneously."""
    worker = workers.start(vhost.url).wait_consuming()
    port_of(worker)
    good = sign(Purpose.RETIRE, POD_UID, b"guest", time.time())
    with ThreadPoolExecutor(20) as pool:
        said = Counter(code for code, _ in pool.map(lambda _: worker.retire(header=good), range(20)))
    assert said == {200: 1, 401: 19}
    assert worker.retire(Purpose.RESUME) == (200, {})
    assert worker.retire(header=good) == (401, {"error": "Replayed"})
    eventually(lambda: worker.status()["consuming"])


def test_forged_call_flood_stops_neither_consuming_nor_heartbeats(
    vhost: VirtualHost, workers: Workers
) -> None:
    """5,000 calls over 20 simultaneous connections, while 300 messages are handled."""
    worker = workers.start(vhost.url).wait_consuming()
    # A correctly signed call from the future becomes valid during the flood.
    headers = [header for header, said in forged() if said != "Expired"]
    port = port_of(worker)
    before = memory(worker.process.pid)

    def flood(number: int) -> Counter[int]:
        said: Counter[int] = Counter()
        for call in range(250):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection):
                header = headers[(number + call) % len(headers)]
                connection.request("POST", "/retire", b"x" * 1000, {HEADER: header or ""})
                said[connection.getresponse().status] += 1
        return said

    with ThreadPoolExecutor(20) as pool:
        floods = [pool.submit(flood, number) for number in range(20)]
        publish(vhost, *({"id": number} for number in range(300)))
        said: Counter[int] = Counter()
        for one in floods:
            said += one.result()
    assert said == {401: 5_000}
    eventually(lambda: len(worker.events_of("end")) == 300)
    assert worker.status()["consuming"]
    assert worker.count_log("Connected to RabbitMQ.") == 1
    assert memory(worker.process.pid) - before < MORE_MEMORY
    assert "Traceback" not in worker.log


class Loris:
    """Connections that send a byte now and then, and never a whole request."""

    def __init__(self, port: int, count: int, first: bytes) -> None:
        self._first = first
        self._sockets = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(count)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._dribble)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for one in self._sockets:
            one.close()

    @property
    def left(self) -> int:
        """How many connections the worker has not closed."""
        return sum(map(self._is_open, self._sockets))

    @staticmethod
    def _is_open(one: socket.socket) -> bool:
        one.setblocking(False)
        try:
            return one.recv(4096) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _dribble(self) -> None:
        piece = self._first
        while not self._ended.is_set():
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.send(piece)
            piece = b"x"
            self._ended.wait(0.5)


STARTS = {"nothing": b"", "a letter": b"G", "half a header": b"POST /retire HTTP/1.1\r\nX: "}


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_unfinished_requests_do_not_block_other_clients(
    vhost: VirtualHost, workers: Workers, start: str
) -> None:
    """Three times the limit: the kubelet keeps getting responses, and these connections are closed soon."""
    worker = workers.start(vhost.url).wait_consuming()
    port, before = port_of(worker), memory(worker.process.pid)
    with Loris(port, 3 * CONNECTIONS, STARTS[start]) as loris:
        begun = time.monotonic()
        while time.monotonic() - begun < REQUEST_SECONDS / 2:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
            with contextlib.closing(connection):
                connection.request("GET", "/livez")
                answer = connection.getresponse()
                assert (answer.status, json.loads(answer.read())["live"]) == (200, True)
            assert threads(worker.process.pid) < CONNECTIONS + 20
        assert loris.left <= CONNECTIONS
        eventually(lambda: loris.left == 0, 2 * REQUEST_SECONDS)
    publish(vhost, {"id": 1})
    eventually(lambda: worker.events_of("end") == [1])
    assert worker.count_log("Connected to RabbitMQ.") == 1
    assert memory(worker.process.pid) - before < MORE_MEMORY


def test_oversized_request_is_not_read_to_its_end(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    port, before = port_of(worker), memory(worker.process.pid)
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            while sent < 64 * 1024 * 1024:
                line = f"X-{sent}: ".encode() + b"x" * 8000 + b"\r\n"
                connection.sendall(line)
                sent += len(line)
    assert REQUEST_BYTES < sent < 32 * 1024 * 1024, (
        "what is beyond the bound lies in the buffers of the kernel"
    )
    assert memory(worker.process.pid) - before < MORE_MEMORY
    assert worker.request("/livez")[0] == 200


def test_unread_response_blocks_nothing(vhost: VirtualHost, workers: Workers) -> None:
    """Thousands of requests in one connection, with responses that are never read."""
    worker = workers.start(vhost.url).wait_consuming()
    port = port_of(worker)
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 100)
        assert worker.request("/livez")[0] == 200
        publish(vhost, {"id": 1})
        eventually(lambda: worker.events_of("end") == [1])
