"""The servers of operator and page under clients that try to exhaust them. Each runs in its own process."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.ports import free_port
from tests.support.process import memory
from tests.support.tiers import some_slow
from tests.support.wait import eventually
from workqueue.contract.limits import CONNECTIONS, REQUEST_BYTES, REQUEST_SECONDS
from workqueue_web import server

MORE_MEMORY: Final = 48 * 1024 * 1024
"""Bytes that an attack may add; the pod's limit is 512 MiB."""

PATIENCE: Final = 60.0

SERVERS: Final = """
import asyncio, json, sys
from workqueue_operator.endpoint import Endpoint
from workqueue_operator.metrics import Metrics
from workqueue_operator.kube.store import Store
from workqueue_web.server import Page, PageDependencies

async def main():
    metrics = Metrics()
    for number in range(3000):
        metrics.workqueues.of("team", f"queue-{number}").dead_letters = 1
    endpoint = Endpoint(int(sys.argv[1]), metrics.registry, lambda: None, lambda: True, lambda: None)
    page = Page(0, PageDependencies(Store(lambda key: None), *[None] * 5), host="127.0.0.1")
    await endpoint.start()
    await page.start()
    print(json.dumps({"endpoint": endpoint.port, "page": page.port}), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


SERVED: Final = {
    "endpoint": ("/livez", CONNECTIONS),
    "page": ("/static/page.css", server.CONNECTIONS),
}
"""An ordinary path of each server, and its limit of connections."""


class Target:
    """One server in another process."""

    def __init__(self, process: subprocess.Popen[str], port: int, path: str, connections: int) -> None:
        self.pid = process.pid
        self.port = port
        self.connections = connections
        self._path = path

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def ask(self) -> int:
        """The status of an ordinary request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", self._path)
            return connection.getresponse().status


@contextlib.contextmanager
def served(name: str) -> Iterator[Target]:
    command = [sys.executable, "-c", SERVERS, str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())[name]
            target = Target(process, port, *SERVED[name])
            assert target.ask() == 200
            yield target
        finally:
            process.kill()


@pytest.fixture(params=some_slow(["endpoint", "page"], {"page"}))
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    with served(request.param) as made:
        yield made


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while data := connection.recv(65536):
            assert data
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def many_headers(number: int) -> bytes:
    """Headers that aiohttp accepts, without the final empty line: 100 with 8,000 bytes each."""
    lines = b"".join(b"X-%d-%d: " % (number, line) + b"x" * 8000 + b"\r\n" for line in range(100))
    return b"GET /livez HTTP/1.1\r\nHost: x\r\n" + lines


def small_headers(number: int) -> bytes:
    """The same with the largest allowed size."""
    return many_headers(number)[: REQUEST_BYTES - 100]


@pytest.mark.parametrize(
    "request_start",
    [
        pytest.param(many_headers, id="800 KB"),
        pytest.param(small_headers, id="almost 32 KiB", marks=pytest.mark.slow),
    ],
)
def test_300_unfinished_requests_exhaust_neither_memory_nor_connections(
    target: Target, request_start: type[bytes]
) -> None:
    before, connections = memory(target.pid), []
    for number in range(300):
        connection = target.connect()
        connections.append(connection)
        with contextlib.suppress(OSError):
            connection.sendall(request_start(number))

    more = memory(target.pid, "VmHWM") - before
    print(f"{more / 2**20:.1f} MiB more at the most")
    assert more < MORE_MEMORY
    assert target.ask() == 200
    eventually(lambda: sum(map(is_open, connections)) <= target.connections)
    eventually(lambda: not any(map(is_open, connections)), 3 * REQUEST_SECONDS)
    for connection in connections:
        connection.close()


@pytest.mark.slow
def test_silent_connection_is_closed_after_ten_seconds(target: Target) -> None:
    begun = time.monotonic()
    with target.connect() as connection:
        eventually(lambda: not is_open(connection), 3 * REQUEST_SECONDS)
    assert time.monotonic() - begun > REQUEST_SECONDS - 1


@pytest.mark.slow
def test_request_body_counts_towards_the_limits(target: Target) -> None:
    with target.connect() as connection:
        connection.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        connection.sendall(b"x" * REQUEST_BYTES)
        eventually(lambda: not is_open(connection))
    with target.connect() as connection:
        connection.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
        eventually(lambda: not is_open(connection), 3 * REQUEST_SECONDS)


def test_unread_response_is_abandoned() -> None:
    """64 clients request metrics and never read them: the next client gets a response within the limit."""
    with served("endpoint") as target:
        connections = []
        for _ in range(CONNECTIONS):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", target.port))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            connections.append(connection)

        def answered() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return target.ask() == 200
            return False

        eventually(answered, 120)
        for connection in connections:
            connection.close()
