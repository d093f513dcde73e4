"""Shorter paths through pika: they must do exactly what pika's own paths do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pika import frame, spec
from pika.channel import ContentFrameAssembler

from workqueue.amqp.frame_limits import BoundedFrames
from workqueue.amqp.short_paths import MOST_PIECES, SMALL_BYTES, ShortPaths


class Channel:
    """A channel with one consumer, which notes the frames that take pika's path, and the deliveries that do not."""

    def __init__(self) -> None:
        self._cancelled: set[str] = set()
        self._consumers = {"tag": self.delivered}
        self._content_assembler = ContentFrameAssembler()
        self.frames: list[Any] = []
        self.deliveries: list[Any] = []

    def delivered(self, _channel: object, method: Any, properties: Any, body: bytes) -> None:
        self.deliveries.append((vars(method), vars(properties), body))

    def _handle_content_frame(self, value: Any) -> None:
        self.frames.append(value)


class Pika:
    """pika's part of reading."""

    def __init__(self, *channels: int) -> None:
        self._frame_buffer = b""
        self._channels: dict[int, Any] = {number: Channel() for number in channels}
        self.reasons: list[str] = []

    def receive(self, data: bytes) -> None:
        self._frame_buffer += data
        while self._frame_buffer:
            size, value = self._read_frame()  # type: ignore[attr-defined]
            if not value:
                return
            self._frame_buffer = self._frame_buffer[size:]
            if not self._process_callbacks(value) and not isinstance(value, frame.Heartbeat):  # type: ignore[attr-defined]
                self._deliver_frame_to_channel(value)  # type: ignore[attr-defined]

    def _terminate_stream(self, error: Exception) -> None:
        self.reasons.append(str(error))


class Reader(ShortPaths, Pika):
    """A connection that reads deliveries in one go."""


class PlainReader(BoundedFrames, Pika):
    """A connection that reads one frame after the other."""


def encoded(
    body: bytes = b"body",
    *,
    tag: str = "tag",
    number: int = 7,
    redelivered: bool = False,
    exchange: str = "",
    routing_key: str = "jobs",
    **properties: Any,
) -> bytes:
    method = spec.Basic.Deliver(tag, 12, redelivered, exchange, routing_key)
    frames = [
        frame.Method(number, method),
        frame.Header(number, len(body), spec.BasicProperties(**properties)),
    ]
    if body:
        frames.append(frame.Body(number, body))
    return b"".join(one.marshal() for one in frames)


@given(
    body=some.binary(min_size=1, max_size=300),
    redelivered=some.booleans(),
    exchange=some.text(max_size=20),
    routing_key=some.text(max_size=20),
    message_id=some.none() | some.text(max_size=20),
    headers=some.none()
    | some.dictionaries(some.text(min_size=1, max_size=5), some.integers(0, 9) | some.text()),
)
def test_whole_delivery_is_read_as_pika_reads_its_frames(
    body: bytes, redelivered: bool, exchange: str, routing_key: str, message_id: str | None, headers: Any
) -> None:
    data = encoded(
        body,
        redelivered=redelivered,
        exchange=exchange,
        routing_key=routing_key,
        message_id=message_id,
        headers=headers,
    )
    short, plain = Reader(7), PlainReader(7)

    short.receive(data * 2)
    plain.receive(data)

    method, header, content = plain._channels[7].frames
    expected = (vars(method.method), vars(header.properties), content.fragment)
    assert short._channels[7].deliveries == [expected, expected]
    assert not short._channels[7].frames


@given(some.integers(1, len(encoded()) - 1))
def test_delivery_in_two_parts_takes_the_path_of_pika(size: int) -> None:
    data = encoded()
    short = Reader(7)

    short.receive(data[:size])
    short.receive(data[size:])

    channel = short._channels[7]
    assert len(channel.frames) == 3 or len(channel.deliveries) == 1
    assert len(channel.frames) != 3 or not channel.deliveries


@pytest.mark.parametrize(
    "data",
    [
        encoded(b""),
        encoded(tag="another"),
        encoded()[:-1] + b"\0",
        encoded(number=8),
        encoded()[: -len(frame.Body(7, b"body").marshal())] + frame.Body(9, b"body").marshal(),
        encoded(b"x" * 9)[: -len(frame.Body(7, b"x" * 9).marshal())]
        + frame.Body(7, b"x" * 4).marshal()
        + frame.Body(7, b"x" * 5).marshal(),
        encoded()[: len(frame.Method(7, spec.Basic.Deliver("tag", 12, False, "", "jobs")).marshal())] * 2,
    ],
    ids=[
        "no-body",
        "other-consumer",
        "bad-end",
        "closed-channel",
        "other-channel",
        "two-bodies",
        "no-header",
    ],
)
def test_anything_else_takes_the_path_of_pika(data: bytes) -> None:
    short, plain = Reader(7, 9), PlainReader(7, 9)

    short.receive(data)
    plain.receive(data)

    for number in (7, 9):
        assert not short._channels[number].deliveries
        assert list(map(repr, short._channels[number].frames)) == list(
            map(repr, plain._channels[number].frames)
        )
    assert short.reasons == plain.reasons


def test_delivery_within_another_message_takes_the_path_of_pika() -> None:
    short = Reader(7)
    short._channels[7]._content_assembler._seen_so_far = 1

    short.receive(encoded())

    assert len(short._channels[7].frames) == 3


def test_delivery_for_a_cancelled_consumer_takes_the_path_of_pika() -> None:
    short = Reader(7)
    short._channels[7]._cancelled.add("tag")

    short.receive(encoded())

    assert len(short._channels[7].frames) == 3


# Sending --------------------------------------------------------------------------------------------------


class Transport:
    """pika's transport, which keeps what it was given."""

    def __init__(self, connection: socket.socket) -> None:
        self._sock = connection
        self.waiting = b""

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)


class PikaWriter:
    """pika's part of writing."""

    is_closed = False

    def __init__(self, connection: socket.socket) -> None:
        self._transport: Transport | None = Transport(connection)

    def _output_marshaled_frames(self, frames: list[bytes]) -> None:
        for one in frames:
            self._adapter_emit_data(one)

    def _adapter_emit_data(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.waiting += data

    def _send_method(self, number: int, method: Any, _content: Any = None) -> None:
        self._output_marshaled_frames([frame.Method(number, method).marshal()])


class Writer(ShortPaths, PikaWriter):
    """A connection that sends acknowledgements on the short path."""


class Line:
    """A writer, its peer, and the calls that are due before the lock is released."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.socket = ours
        self.writer = Writer(ours)
        self.due: list[Callable[[], None]] = []
        self.writer.send_together(self.due.append, tls=False)

    @property
    def transport(self) -> Transport:
        assert self.writer._transport is not None
        return self.writer._transport

    def release(self) -> None:
        while self.due:
            self.due.pop()()

    def received(self) -> bytes:
        try:
            return self.peer.recv(2**20)
        except BlockingIOError:
            return b""


@pytest.fixture
def line() -> Any:
    line = Line()
    yield line
    line.socket.close()
    line.peer.close()


def ack(number: int, tag: int, *, multiple: bool = False) -> bytes:
    marshalled: bytes = frame.Method(number, spec.Basic.Ack(tag, multiple)).marshal()
    return marshalled


@given(number=some.integers(1, 2047), tag=some.integers(0, 2**64 - 1), multiple=some.booleans())
def test_acknowledgement_has_the_bytes_of_pika(number: int, tag: int, multiple: bool) -> None:
    sent: list[bytes] = []
    writer = Writer(socket.socket())
    writer._output_marshaled_frames = sent.extend  # type: ignore[method-assign]

    writer._send_method(number, spec.Basic.Ack(tag, multiple))

    assert sent == [ack(number, tag, multiple=multiple)]
    writer._transport._sock.close()  # type: ignore[union-attr]


def test_frames_under_one_lock_are_sent_together(line: Line) -> None:
    for tag in range(3):
        line.writer._send_method(1, spec.Basic.Ack(tag))
    assert line.received() == b""
    assert len(line.due) == 1

    line.release()

    assert line.received() == ack(1, 0) + ack(1, 1) + ack(1, 2)
    assert line.transport.waiting == b""


def test_frames_wait_behind_what_pika_has_not_sent(line: Line) -> None:
    line.transport.waiting = b"earlier"

    line.writer._send_method(1, spec.Basic.Ack(1))
    line.release()

    assert line.received() == b""
    assert line.transport.waiting == b"earlier" + ack(1, 1)


def test_large_frame_keeps_its_place(line: Line) -> None:
    large = b"x" * (SMALL_BYTES + 1)

    line.writer._send_method(1, spec.Basic.Ack(1))
    line.writer._adapter_emit_data(large)
    line.writer._send_method(1, spec.Basic.Ack(2))
    line.release()

    assert line.received() + line.transport.waiting == ack(1, 1) + large + ack(1, 2)


def test_many_frames_keep_their_order(line: Line) -> None:
    tags = range(3 * MOST_PIECES)

    for tag in tags:
        line.writer._send_method(1, spec.Basic.Ack(tag))
    line.release()

    assert line.received() + line.transport.waiting == b"".join(ack(1, tag) for tag in tags)


def test_rest_of_a_full_socket_is_left_to_pika(line: Line) -> None:
    piece = b"x" * SMALL_BYTES
    sent = 0
    while not line.transport.waiting:
        line.writer._adapter_emit_data(piece)
        sent += 1
        line.release()

    received = b""
    while part := line.received():
        received += part
    assert received + line.transport.waiting == piece * sent


def test_broken_socket_is_left_to_pika(line: Line) -> None:
    line.peer.close()

    line.writer._send_method(1, spec.Basic.Ack(1))
    line.release()

    assert line.transport.waiting == ack(1, 1)


def test_lost_connection_sends_nothing(line: Line) -> None:
    line.writer._send_method(1, spec.Basic.Ack(1))
    line.writer._transport = None

    line.release()

    assert line.received() == b""
