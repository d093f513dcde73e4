"""The port of the worker's endpoint: it listens from the start, and the HTTP server is imported at the first request.

The import takes as long as connecting to RabbitMQ, and no message waits for it.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from workqueue.worker.endpoint import Endpoint
    from workqueue.worker.runtime import Runtime

BACKLOG: Final = 128
LOOK_SECONDS: Final = 1.0
"""How long closing may go unnoticed before the first request."""

logger = logging.getLogger(__name__)


def listen(port: int, *, any_port_will_do: bool) -> socket.socket:
    """Return a socket that listens on all addresses of IPv4 and IPv6, or of IPv4 where there is no IPv6.

    Args:
        any_port_will_do: use a free port if `port` is taken.

    Raises:
        OSError: the port is taken.
    """
    has_ipv6 = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_ipv6 else socket.AF_INET

    def bind(number: int) -> socket.socket:
        return socket.create_server(("", number), family=family, backlog=BACKLOG, dualstack_ipv6=has_ipv6)

    try:
        return bind(port)
    except OSError:
        if not any_port_will_do:
            raise
        return bind(0)


class EndpointPort:
    """Listens, and starts the endpoint at the first request.

    Args:
        runtime: the worker to report on.
        port: as for `listen`.
        any_port_will_do: as for `listen`.
        metrics_folder: as for `Endpoint`.

    Attributes:
        port: its number.

    Raises:
        OSError: the port is taken.
    """

    def __init__(
        self, runtime: Runtime, port: int, *, any_port_will_do: bool, metrics_folder: str | None = None
    ) -> None:
        self._runtime = runtime
        self._metrics_folder = metrics_folder
        self._listener = listen(port, any_port_will_do=any_port_will_do)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._closed = False
        self._endpoint: Endpoint | None = None
        self._thread = threading.Thread(target=self._live, name="endpoint", daemon=True)

    def start(self) -> None:
        """Answer requests, in a thread."""
        self._thread.start()
        logger.info("The endpoint is up.", extra={"port": self.port})

    def close(self) -> None:
        """Stop listening."""
        with self._lock:
            self._closed = True
        if self._endpoint is not None:
            self._endpoint.close()
        self._listener.close()

    def _live(self) -> None:
        try:
            while not select.select([self._listener], [], [], LOOK_SECONDS)[0]:
                pass
        except (OSError, ValueError):  # it was closed
            return
        from workqueue.worker.endpoint import Endpoint

        with self._lock:
            if self._closed:
                return
            self._endpoint = Endpoint(self._runtime, self._listener, self._metrics_folder)
        self._endpoint.serve()
