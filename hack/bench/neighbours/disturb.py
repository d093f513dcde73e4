"""The tools of the rows: threads that publish, edit, listen and requeue while a context lasts.

Each is bounded: in number, in rate, and by its context.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from typing import Any, Final
from weakref import WeakSet

import pika
import pika.exceptions

from hack.bench.neighbours.lab import Lab
from tests.support.controlplane import ApiError

LOOPBACK: Final = "127.0.0.1"
JOIN_SECONDS: Final = 60.0
HEAD_END: Final = b"\r\n\r\n"


@contextmanager
def repeatedly(step: Callable[[int], object], seconds: float) -> Iterator[None]:
    """Call `step` with 0, 1, ... in a thread while the context lasts, each time after a pause."""

    def run(ended: threading.Event) -> None:
        for number in itertools.count():
            if ended.wait(seconds):
                return
            # The neighbour is broken, so some of its requests are refused.
            with suppress(ApiError, OSError, pika.exceptions.AMQPError):
                step(number)

    with _thread_of(run):
        yield


@contextmanager
def _thread_of(run: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a function in a thread. When the context ends, its event is set and the thread joined."""
    ended = threading.Event()
    thread = threading.Thread(target=run, args=[ended], daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(JOIN_SECONDS)


@contextmanager
def editing(lab: Lab, namespace: str, names: Sequence[str], per_second: float) -> Iterator[None]:
    """Change the spec of one WorkQueue after another, so that passes over all of them keep beginning."""

    def edit(number: int) -> None:
        scaling = {"maxReplicas": 5 + number // len(names) % 2}
        lab.change(namespace, names[number % len(names)], {"scaling": scaling})

    with repeatedly(edit, 1 / per_second):
        yield


@contextmanager
def publishing(lab: Lab, names: Sequence[str], per_second: float) -> Iterator[None]:
    """Publish to one queue after another, and take the message again half a round later: the depths always change."""
    with connection_to(lab.broker.url) as connection:
        channel = connection.channel()

        def publish(number: int) -> None:
            channel.basic_publish("", names[number % len(names)], b"x", pika.BasicProperties(delivery_mode=2))
            channel.basic_get(names[(number + len(names) // 2) % len(names)], auto_ack=True)

        with repeatedly(publish, 1 / per_second):
            yield


@contextmanager
def connection_to(url: str) -> Iterator[Any]:
    """A plain connection."""
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection
    finally:
        if connection.is_open:
            connection.close()


@contextmanager
def serving_events(connection: Any) -> Iterator[None]:
    """Call the consumers of a connection, in a thread."""

    def run(ended: threading.Event) -> None:
        while not ended.is_set():
            connection.process_data_events(0.1)

    with _thread_of(run):
        yield


@contextmanager
def consumers(lab: Lab, names: Sequence[str]) -> Iterator[None]:
    """One consumer for each queue, which acknowledges every message immediately, as an idle worker does."""

    def take(channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        channel.basic_ack(method.delivery_tag)

    with connection_to(lab.broker.url) as connection:
        channel = connection.channel()
        for name in names:
            channel.basic_consume(name, take)
        with serving_events(connection):
            yield


@contextmanager
def with_workers(lab: Lab, namespace: str, names: Sequence[str]) -> Iterator[None]:
    """Wake these idle WorkQueues and consume their messages: each then has a worker and an empty queue."""
    with ExitStack() as stack:
        lab.wait_asleep(names, namespace)
        with connection_to(lab.broker.url) as connection:
            channel = connection.channel()
            for name in names:
                channel.basic_publish("", name, b"x", pika.BasicProperties(delivery_mode=2))
        lab.wait_workers(namespace, names)
        stack.enter_context(consumers(lab, names))
        yield


@contextmanager
def requeueing(url: str, queue: str) -> Iterator[None]:
    """A consumer that gives each message back immediately."""

    def give_back(channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        channel.basic_nack(method.delivery_tag, requeue=True)

    with connection_to(url) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(queue, give_back)
        with serving_events(connection):
            yield


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def serving(*kinds: Answer) -> Iterator[list[int]]:
    """A TCP server for each kind of answer, in one thread. Yields their ports on loopback."""
    loop, ended, ports, up = asyncio.new_event_loop(), asyncio.Event(), list[int](), threading.Event()
    tasks: set[asyncio.Task[None]] = set()
    transports: WeakSet[asyncio.WriteTransport] = WeakSet()

    def guarded(answer: Answer) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with suppress(OSError, asyncio.IncompleteReadError):
                    await answer(reader, writer)
            finally:
                writer.close()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            transports.add(writer.transport)
            task = loop.create_task(serve_one(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        return begin

    async def serve() -> None:
        async with AsyncExitStack() as servers:
            for kind in kinds:
                server = await asyncio.start_server(guarded(kind), LOOPBACK, 0, backlog=1024)
                servers.callback(server.close)
                ports.append(server.sockets[0].getsockname()[1])
            up.set()
            await ended.wait()
        await _cancel(tasks)
        # `close` waits until the client has read what an endless answer has buffered.
        for transport in list(transports):
            transport.abort()
        await asyncio.sleep(0)

    with _in_thread(loop, serve(), ended):
        up.wait(JOIN_SECONDS)
        yield ports


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in set(tasks):
        task.cancel()
    await asyncio.gather(*set(tasks), return_exceptions=True)
    # A closed connection is gone one turn of the loop later.
    await asyncio.sleep(0)


@contextmanager
def _in_thread(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None], ended: asyncio.Event
) -> Iterator[None]:
    """Run a coroutine in a thread with a loop of its own, and set its event at the end of the context."""
    thread = threading.Thread(target=loop.run_until_complete, args=(work,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(JOIN_SECONDS)
        loop.close()


async def mute(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Accept a connection, read everything, and never answer."""
    while await reader.read(65_536):
        pass


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with one byte a second."""
    await reader.readuntil(HEAD_END)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(1)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with JSON that never ends."""
    await reader.readuntil(HEAD_END)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n[")
    while not writer.is_closing():
        writer.write(b"1, " * 20_000)
        await writer.drain()


async def garbled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with something else than expected."""
    for body in itertools.cycle((b"[[[[", b'{"messages_unacknowledged": "x"}', b"\xff\xfe", b"{}")):
        await reader.readuntil(HEAD_END)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()


class _SlowClient:
    """One connection. An odd one never finishes its request, an even one never reads its answer."""

    def __init__(self, port: int, number: int) -> None:
        self._writes = bool(number % 2)
        head = b"GET /metrics HTTP/1.1\r\nHost: operator\r\n"
        self._socket = socket.create_connection((LOOPBACK, port), timeout=1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self._socket.sendall(head if self._writes else head + b"\r\n")
        self._socket.setblocking(False)

    def alive(self) -> bool:
        """Return whether the server has not closed the connection. Write one more header, or read nothing."""
        try:
            if self._writes:
                self._socket.send(b"X-Slow: 1\r\n")
            return self._socket.recv(1, 0 if self._writes else socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


@contextmanager
def slow_clients(port: int, count: int) -> Iterator[None]:
    """Slow HTTP clients, which connect again when the server closes their connection, 50 a second at most."""
    clients: dict[int, _SlowClient] = {}

    def connect(number: int) -> None:
        with suppress(OSError):
            clients[number] = _SlowClient(port, number)

    def look(turn: int) -> None:
        if turn % 50 == 0:
            for number in [number for number, client in clients.items() if not client.alive()]:
                clients.pop(number).close()
        missing = next((number for number in range(count) if number not in clients), None)
        if missing is not None:
            connect(missing)

    for number in range(count):
        connect(number)
    try:
        with repeatedly(look, 0.02):
            yield
    finally:
        for client in clients.values():
            client.close()


@contextmanager
def viewers(port: int, token: str, count: int) -> Iterator[list[int]]:
    """Browsers that follow the overview. Yields a list that gets the size of each part that arrives."""
    loop, ended, seen = asyncio.new_event_loop(), asyncio.Event(), list[int]()

    async def view() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(LOOPBACK, port)
                try:
                    head = f"GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
                    writer.write(head.encode())
                    while data := await reader.read(65_536):
                        seen.append(len(data))
                finally:
                    writer.close()
            await asyncio.sleep(0.5)

    async def view_all() -> None:
        tasks = {loop.create_task(view()) for _ in range(count)}
        await ended.wait()
        await _cancel(tasks)

    with _in_thread(loop, view_all(), ended):
        yield seen
