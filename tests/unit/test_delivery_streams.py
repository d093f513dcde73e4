"""Streams of frames of two channels, in any pieces: the shorter path passes on what pika's own path passes on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from pika import frame, spec
from pika.channel import Channel as PikaChannel

from tests.unit.test_short_paths import Channel, PlainReader, Reader, encoded

CHANNELS = (7, 9)


class AssemblingChannel(Channel):
    """A channel that makes messages of frames with pika's own functions, and has one cancelled consumer."""

    is_open = True
    _consumers_with_noack: frozenset[str] = frozenset()
    _handle_content_frame = PikaChannel._handle_content_frame
    _on_deliver = PikaChannel._on_deliver
    _on_unexpected_frame = PikaChannel._on_unexpected_frame

    def __init__(self) -> None:
        super().__init__()
        self._consumers["cancelled"] = self.delivered
        self._cancelled.add("cancelled")

    def basic_reject(self, delivery_tag: int) -> None:
        self.deliveries.append(("rejected", delivery_tag))

    def _on_return(self, method: Any, header: Any, body: bytes) -> None:
        self.deliveries.append((repr(method.method), vars(header.properties), body))


def outcome(kind: type[Any], pieces: list[bytes]) -> Any:
    """What the channels got, and why the connection ended."""
    reader = kind()
    reader._channels = {number: AssemblingChannel() for number in CHANNELS}
    ended = ""
    try:
        for piece in pieces:
            if not reader.reasons:
                reader.receive(piece)
    except Exception as error:  # noqa: BLE001 - as pika's transport, which then closes the connection
        ended = repr(error)
    return {number: reader._channels[number].deliveries for number in CHANNELS}, reader.reasons, ended


def frames_of(data: bytes) -> list[bytes]:
    """The frames of encoded messages."""
    found = []
    while data:
        end = frame.decode_frame(data)[0]
        found.append(data[:end])
        data = data[end:]
    return found


@some.composite
def messages(draw: some.DrawFn, number: int) -> list[bytes]:
    """The frames of one message, or one other frame."""
    kind = draw(some.sampled_from(["delivery", "delivery", "delivery", "long", "return", "ack", "heartbeat"]))
    if kind == "heartbeat":
        return [frame.Heartbeat().marshal()]
    if kind == "ack":
        return [frame.Method(number, spec.Basic.Ack(1)).marshal()]
    tag = draw(some.sampled_from(["tag", "tag", "cancelled", "unknown"]))
    frames = frames_of(encoded(draw(some.binary(max_size=9)), tag=tag, number=number, message_id="a"))
    if kind == "return":
        frames[0] = frame.Method(number, spec.Basic.Return(312, "NO_ROUTE", "", "jobs")).marshal()
    if kind == "long":
        head = frame.Header(number, 6, spec.BasicProperties()).marshal()
        frames[1:] = [head, *(frame.Body(number, b"abc").marshal() for _ in range(2))]
    return frames


@some.composite
def streams(draw: some.DrawFn) -> list[bytes]:
    """The pieces in which the frames arrive: each channel's in order, perhaps without a part of a body."""
    waiting = [
        [one for frames in draw(some.lists(messages(number), max_size=5)) for one in frames]
        for number in CHANNELS
    ]
    found: list[bytes] = []
    while any(waiting):
        source = draw(some.sampled_from([frames for frames in waiting if frames]))
        found.append(source.pop(0))
    bodies = [place for place, data in enumerate(found) if data[0] == spec.FRAME_BODY]
    if bodies and draw(some.booleans()):
        del found[draw(some.sampled_from(bodies))]
    data = b"".join(found)
    cuts = sorted(draw(some.sets(some.integers(0, len(data)), max_size=6)) | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(cuts)]


@given(streams())
def test_stream_in_pieces_gives_what_pika_makes_of_it(pieces: list[bytes]) -> None:
    assert outcome(Reader, pieces) == outcome(PlainReader, [b"".join(pieces)])
