"""A foreign or hostile server on RabbitMQ's port, which can become a real RabbitMQ.

Each connection runs a script, which gets a `Peer`. When the server is `healed`, new connections lead to a real
RabbitMQ.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from pika import frame, spec

CHANNELS: Final = 2047
FRAME: Final = 131_072


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket, ended: threading.Event) -> None:
        self.connection = connection
        self._ended = ended
        self._received = b""

    def send(self, *pieces: bytes) -> None:
        """Send bytes.

        Raises:
            OSError: the client is gone.
        """
        self.connection.sendall(b"".join(pieces))

    def endlessly(self, piece: bytes) -> None:
        """Repeat the same bytes until the client disconnects."""
        while not self._ended.is_set():
            self.send(piece)

    def linger(self) -> None:
        """Send nothing until the client disconnects."""
        with contextlib.suppress(OSError):
            while not self._ended.is_set() and self.connection.recv(65_536):
                pass

    def method(self, kind: type[Any]) -> tuple[int, Any]:
        """Wait for a method from the client; return (channel, method)."""
        while True:
            size, found = frame.decode_frame(self._received)
            if found is None:
                self._receive()
                continue
            self._received = self._received[size:]
            if isinstance(found, frame.Method) and isinstance(found.method, kind):
                return found.channel_number, found.method

    def say(self, channel: int, method: Any) -> None:
        """Send a method."""
        self.send(frame.Method(channel, method).marshal())

    def start(self, properties: bytes | None = None) -> None:
        """Greet; `properties` is an encoded table."""
        self._received = b""
        while len(self._received) < 8:
            self._receive()
        self._received = self._received[8:]
        table = properties if properties is not None else struct.pack(">I", 0)
        fields = b"\x00\x09" + table + long_string(b"PLAIN EXTERNAL") + long_string(b"en_US")
        self.send(raw_method(0, spec.Connection.Start.INDEX, fields))
        self.method(spec.Connection.StartOk)

    def _receive(self) -> None:
        more = self.connection.recv(65_536)
        if not more:
            raise ConnectionError("the client is gone")
        self._received += more

    def open(self, channels: int = CHANNELS, largest: int = FRAME, heartbeat: int = 0) -> None:
        """Go on until the connection is open."""
        self.start()
        self.say(0, spec.Connection.Tune(channels, largest, heartbeat))
        self.method(spec.Connection.Open)
        self.say(0, spec.Connection.OpenOk())

    def open_channel(self) -> int:
        """Go on until the client has its first channel."""
        self.open()
        channel, _ = self.method(spec.Channel.Open)
        self.say(channel, spec.Channel.OpenOk())
        return channel


def long_string(text: bytes) -> bytes:
    """Encoded as in AMQP."""
    return struct.pack(">I", len(text)) + text


def raw_frame(kind: int, channel: int, content: bytes, end: bytes = b"\xce") -> bytes:
    """A frame of any kind."""
    return struct.pack(">BHI", kind, channel, len(content)) + content + end


def raw_method(channel: int, index: int, fields: bytes) -> bytes:
    """A method's frame with any fields."""
    return raw_frame(spec.FRAME_METHOD, channel, struct.pack(">I", index) + fields)


class HostileBroker:
    """The server.

    Attributes:
        connections: how many there were.
        passed_on: how many of them led to the real RabbitMQ.
    """

    def __init__(self, script: Callable[[Peer], None], real_port: int) -> None:
        self.connections = 0
        self.passed_on = 0
        self._script = script
        self._real_port = real_port
        self._healed = threading.Event()
        self._ended = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def heal(self) -> None:
        """Forward new connections to RabbitMQ."""
        self._healed.set()
        self._hang_up()

    def close(self) -> None:
        """End everything."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._hang_up()
        for thread in self._threads:
            thread.join(10)
        self._listening.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _hang_up(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                connection, _ = self._listening.accept()
                self.connections += 1
                self._open.append(connection)
                self._start(self._pass_on if self._healed.is_set() else self._misbehave, connection)

    def _misbehave(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            peer = Peer(connection, self._ended)
            self._script(peer)
            peer.linger()

    def _pass_on(self, connection: socket.socket) -> None:
        with (
            connection,
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._real_port)) as real,
        ):
            self._open.append(real)
            self.passed_on += 1
            back = threading.Thread(target=_pump, args=(real, connection), daemon=True)
            back.start()
            _pump(connection, real)
            back.join(10)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextmanager
def hostile_broker(script: Callable[[Peer], None], real_port: int) -> Iterator[HostileBroker]:
    """The server while the context lasts."""
    made = HostileBroker(script, real_port)
    try:
        yield made
    finally:
        made.close()
