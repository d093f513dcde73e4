"""Frames are read with bounds: what answers on RabbitMQ's port need not be RabbitMQ.

Place in the flow: mixed into pika's connection, by the worker and by the operator. pika believes what a frame
says of its own size, and waits for it, so that whoever answers could fill the memory. And what it cannot read
it raises into the event loop, where nobody knows any more which connection that concerns.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar, Final

from pika import exceptions, frame, spec

LARGEST_FRAME: Final = spec.FRAME_MAX_SIZE
"""Bytes. The largest that pika ever agrees to; before the agreement RabbitMQ sends smaller ones still."""

LARGEST_BODY: Final = 512 * 1024 * 1024
"""Bytes. RabbitMQ's own upper bound for its setting max_message_size."""

_START: Final = struct.Struct(">BHI")
_CONTENT: Final = struct.Struct(">HHQ")


class BoundedFrames:
    """To be mixed in before a pika connection. A connection that brings nonsense is closed, with the reason.

    Attributes:
        reads_properties: whether the properties of messages are read. Who does not need them leaves them, so
            that nothing in them can do harm.
    """

    reads_properties: ClassVar[bool] = True

    _frame_buffer: bytes
    _channels: dict[int, Any]

    def _read_frame(self) -> tuple[int, Any]:
        try:
            return self._bounded()
        except Exception as error:  # noqa: BLE001 - whatever pika makes of bytes that are no frame
            self._break_off(f"what was received is no AMQP: {error!r}")
            return 0, None

    def _deliver_frame_to_channel(self, value: Any) -> None:
        # pika logs each of them, as fast as they come.
        if value.channel_number in self._channels:
            super()._deliver_frame_to_channel(value)  # type: ignore[misc]
        else:
            self._break_off(f"a frame came for channel {value.channel_number}, which is not open")

    def _break_off(self, reason: str) -> None:
        self._frame_buffer = b""
        self._terminate_stream(exceptions.StreamLostError(reason))  # type: ignore[attr-defined]

    def _bounded(self) -> tuple[int, Any]:
        received = self._frame_buffer
        if len(received) < _START.size or received.startswith(b"AMQP"):
            return frame.decode_frame(received)  # type: ignore[no-any-return]
        kind, channel, size = _START.unpack_from(received)
        if size > LARGEST_FRAME:
            raise exceptions.InvalidFrameError(f"a frame of {size} bytes")
        if kind != spec.FRAME_HEADER or len(received) < _START.size + _CONTENT.size:
            return frame.decode_frame(received)  # type: ignore[no-any-return]
        body_size = _CONTENT.unpack_from(received, _START.size)[2]
        if body_size > LARGEST_BODY:
            raise exceptions.InvalidFrameError(f"a message of {body_size} bytes")
        if self.reads_properties:
            return frame.decode_frame(received)  # type: ignore[no-any-return]
        end = _START.size + size + 1
        if len(received) < end:
            return 0, None
        return end, frame.Header(channel, body_size, spec.BasicProperties())
