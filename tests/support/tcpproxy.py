"""A network between a client and RabbitMQ that can be made to fail: it refuses, delays, swallows and cuts.

It parses AMQP frames, so that it can break a connection in the middle of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.support.wait import eventually

_HEADER: Final = 7
_END: Final = 1
_BODY: Final = 3
_BASIC_ACK: Final = b"\x01\x00\x3c\x00\x50"
_RESET: Final = struct.pack("ii", 1, 0)
_READ_BYTES: Final = 65536


@dataclass(frozen=True)
class Cut:
    """A place at which the connection breaks: in the middle of the next frame that fits.

    Attributes:
        to_broker: the direction of the frame.
        fits: told the frame, decides.
    """

    to_broker: bool
    fits: Callable[[bytes], bool]


def _is_body(frame: bytes) -> bool:
    return frame[0] == _BODY


def _is_ack(frame: bytes) -> bool:
    return frame[:1] + frame[_HEADER : _HEADER + 4] == _BASIC_ACK


DELIVERY: Final = Cut(to_broker=False, fits=_is_body)
"""A message on its way to the worker."""

ACKNOWLEDGEMENT: Final = Cut(to_broker=True, fits=_is_ack)
"""An acknowledgement from a worker."""

COPY: Final = Cut(to_broker=True, fits=_is_body)
"""A copy that a worker publishes, for a retry or a dead letter."""

CONFIRMATION: Final = Cut(to_broker=False, fits=_is_ack)
"""The broker's confirmation of such a copy."""


class TcpProxy:
    """The proxy, in a thread with a loop of its own.

    Args:
        target: the broker's port on loopback.

    Attributes:
        port: where clients connect.
        cuts: how often a connection was cut in the middle of a frame.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.cuts = 0
        self._target = target
        self._delay = 0.0
        self._cut: Cut | None = None
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._passes.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Listen on a free port of loopback."""
        self._thread.start()
        self._run(self._listen())

    def stop(self) -> None:
        """End every connection."""
        self._run(self._refuse())
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- faults

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Reset every connection, and refuse new ones while the context lasts."""
        self._run(self._refuse())
        try:
            yield
        finally:
            self._run(self._listen())

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Delay all data in both directions."""
        self._delay = seconds
        try:
            yield
        finally:
            self._delay = 0.0

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """Connections open and stay open, but no data passes until the context ends."""
        self._loop.call_soon_threadsafe(self._passes.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._passes.set)

    def cut(self, where: Cut, seconds: float = 20.0) -> None:
        """Reset a connection in the middle of the next matching frame, and return after the reset."""
        before = self.cuts
        self._cut = where
        eventually(lambda: self.cuts > before, seconds)

    # -- inside

    def _run(self, work: Any) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            _reset(writer)

    async def _end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
                self._writers.add(to_writer)
                await self._join(reader, writer, to_reader, to_writer)
        finally:
            self._writers.discard(writer)
            writer.close()
            self._tasks.discard(task)

    async def _join(
        self,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_broker: asyncio.StreamReader,
        to_broker: asyncio.StreamWriter,
    ) -> None:
        ends = (to_client, to_broker)
        try:
            with contextlib.suppress(OSError):
                await _first_ends(
                    self._pump(from_client, to_broker, ends, outward=True),
                    self._pump(from_broker, to_client, ends, outward=False),
                )
        finally:
            for end in ends:
                self._writers.discard(end)
                end.close()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, ...],
        *,
        outward: bool,
    ) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            buffer = bytearray()
            while data := await source.read(_READ_BYTES):
                buffer += data
                for frame in _frames(buffer):
                    late.put_nowait((time.monotonic() + self._delay, frame))

        async def write() -> None:
            while True:
                due, frame = await late.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._passes.wait()
                if self._cut is not None and self._cut.to_broker is outward and self._cut.fits(frame):
                    self._cut = None
                    target.write(frame[: len(frame) // 2])
                    await target.drain()
                    for end in ends:
                        _reset(end)
                    self.cuts += 1
                    return
                target.write(frame)
                await target.drain()

        await _first_ends(read(), write())


async def _first_ends(*work: Any) -> None:
    """Run both until one of them ends."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _frames(buffer: bytearray) -> Iterator[bytes]:
    """Take whole frames from the received data; the first data from a client is no frame."""
    while len(buffer) >= _HEADER + _END:
        size = 8 if buffer.startswith(b"AMQP") else _HEADER + int.from_bytes(buffer[3:7]) + _END
        if len(buffer) < size:
            return
        yield bytes(buffer[:size])
        del buffer[:size]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection as a crash does: with RST."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@contextmanager
def tcp_proxy(target: int) -> Iterator[TcpProxy]:
    """A proxy to a port of loopback while the context lasts."""
    proxy = TcpProxy(target)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
