"""A relay between clients in the cluster's network and a RabbitMQ on the machine's loopback.

It reports the writes of an operator process (declarations, deletions, consumers, requeues) to
`CrashPoints`; connections of pods pass unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network
from typing import Final

from hack.cluster.daemons import POD_NETWORK
from tests.support.crash import CrashPoints

_HEADER: Final = 8
_METHOD: Final = 1
_PODS: Final = ip_network(POD_NETWORK)

WRITES: Final = {
    (40, 10): "exchange.declare",
    (50, 10): "queue.declare",
    (50, 20): "queue.bind",
    (50, 40): "queue.delete",
    (60, 20): "basic.consume",
    (60, 30): "basic.cancel",
    (60, 120): "basic.nack",
}
"""The methods of AMQP 0-9-1 that change something, by class and method number."""

_UNANSWERED: Final = {"basic.nack"}
_PASSIVE: Final = {"exchange.declare", "queue.declare"}


class Relay:
    """The relay, in a thread with a loop of its own.

    Args:
        listener: where clients come.
        port: of the server on loopback.
    """

    def __init__(self, listener: socket.socket, port: int, crash: CrashPoints | None = None) -> None:
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._target = port
        self._crash = crash
        self._open: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), daemon=True
        )

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()
        assert self._up.wait(60), "the relay did not start"

    def stop(self) -> None:
        """End every connection."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Reset all connections and all new ones while the context lasts."""
        self._refusing = True
        self._loop.call_soon_threadsafe(self._reset)
        try:
            yield
        finally:
            self._refusing = False

    def _reset(self) -> None:
        for writer in list(self._open):
            _abort(writer)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._listener)
        self._up.set()
        await self._stop.wait()
        server.close()
        self._reset()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _abort(writer)
            return
        self._open.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            self._open.discard(writer)
            _abort(writer)
            return
        self._open.add(back)
        of_pod = ip_address(writer.get_extra_info("peername")[0]) in _PODS
        crash = None if of_pod else self._crash
        awaited: dict[int, tuple[str, int]] = {}
        pumps = (
            [_copy(reader, back), _copy(there, writer)]
            if crash is None
            else [_requests(reader, back, crash, awaited), _answers(there, writer, crash, awaited)]
        )
        try:
            await asyncio.gather(*pumps)
        finally:
            self._open -= {writer, back}
            for one in (writer, back):
                one.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset, as a restarted machine does."""
    made = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _requests(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    crash: CrashPoints,
    awaited: dict[int, tuple[str, int]],
) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        writer.write(await reader.readexactly(_HEADER))
        while True:
            frame = await _frame(reader)
            write = _write(frame)
            if write is not None:
                number = crash.begins(write)
                if number is None:
                    break
                channel = int.from_bytes(frame[1:3])
                if write in _UNANSWERED:
                    writer.write(frame)
                    await writer.drain()
                    crash.ended(write, number)
                    continue
                awaited[channel] = write, number
            writer.write(frame)
            await writer.drain()
    writer.close()


async def _answers(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    crash: CrashPoints,
    awaited: dict[int, tuple[str, int]],
) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        while True:
            frame = await _frame(reader)
            if frame[0] == _METHOD and (write := awaited.pop(int.from_bytes(frame[1:3]), None)) is not None:
                crash.ended(*write)
            writer.write(frame)
            await writer.drain()
    writer.close()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(7)
    return head + await reader.readexactly(int.from_bytes(head[3:]) + 1)


def _write(frame: bytes) -> str | None:
    if frame[0] != _METHOD:
        return None
    name = WRITES.get((int.from_bytes(frame[7:9]), int.from_bytes(frame[9:11])))
    return None if name in _PASSIVE and _is_passive(name, frame) else name


def _is_passive(name: str, frame: bytes) -> bool:
    """Passive is the first bit after the names: queue, or exchange and type."""
    at = 13
    for _ in range(1 if name == "queue.declare" else 2):
        at += 1 + frame[at]
    return bool(frame[at] & 1)


@contextmanager
def relay_to(listener: socket.socket, port: int, crash: CrashPoints | None = None) -> Iterator[Relay]:
    """A relay while the context lasts; see `Relay`."""
    made = Relay(listener, port, crash)
    made.start()
    try:
        yield made
    finally:
        made.stop()
