"""Frames for a channel that is not open, and frames that are sent together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pika import frame, spec
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

from workqueue.amqp.frame_limits import SEND_BYTES, BoundedFrames, send_frames_together


class Connection(BoundedFrames):
    """One without channels, which tells why it was broken off."""

    def __init__(self) -> None:
        self._channels: dict[int, Any] = {}
        self.reasons: list[str] = []

    def _terminate_stream(self, error: Exception) -> None:
        self.reasons.append(str(error))


def test_second_close_of_a_channel_does_not_cost_the_connection() -> None:
    connection = Connection()
    connection._deliver_frame_to_channel(frame.Method(1, spec.Channel.Close(406, "timed out", 0, 0)))
    assert connection.reasons == []


@pytest.mark.parametrize(
    "nonsense",
    [frame.Body(7, b"x"), frame.Method(7, spec.Basic.Deliver("tag", 1, False, "", "jobs"))],
    ids=["body", "delivery"],
)
def test_other_frames_for_no_channel_end_the_connection(nonsense: frame.Frame) -> None:
    connection = Connection()
    connection._deliver_frame_to_channel(nonsense)
    assert connection.reasons == ["a frame came for channel 7, which is not open"]


class Socket:
    """A socket that takes a few bytes at a time.

    Attributes:
        sent: what it took, call by call.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.sent: list[bytes] = []

    def fileno(self) -> int:
        return 1

    def send(self, data: bytes) -> int:
        self.sent.append(data[: self._most])
        return len(self.sent[-1])


def opened(most: int, *, tls: bool) -> tuple[Any, Socket]:
    """A transport of pika, and the socket that it writes to."""
    nothing = SimpleNamespace(set_reader=lambda *_: None, set_writer=lambda *_: None)
    socket = Socket(most)
    transport: Any = _AsyncPlaintextTransport(socket, nothing, nothing)
    send_frames_together(SimpleNamespace(_transport=transport), tls=tls)
    return transport, socket


@pytest.mark.parametrize(("tls", "calls"), [(False, 1), (True, 3)], ids=["plain", "TLS"])
def test_small_frames_are_sent_together_without_tls(calls: int, *, tls: bool) -> None:
    transport, socket = opened(1000, tls=tls)
    for one in (b"a" * 10, b"b" * 20, b"c" * 30):
        transport.write(one)

    transport._produce()

    assert len(socket.sent) == calls
    assert b"".join(socket.sent) == b"a" * 10 + b"b" * 20 + b"c" * 30
    assert transport.get_write_buffer_size() == 0


def test_frames_stay_whole_and_in_order_when_the_socket_takes_a_part() -> None:
    transport, socket = opened(7, tls=False)
    frames = [bytes([number]) * (number * 100) for number in range(1, 60)]
    for one in frames:
        transport.write(one)
        assert max(map(len, transport._tx_buffers)) <= SEND_BYTES

    transport._produce()

    assert b"".join(socket.sent) == b"".join(frames)
    assert transport.get_write_buffer_size() == 0
