"""Limits on the frames that a connection reads, since a peer on RabbitMQ's port may be something else.

pika trusts the size in a frame's header and waits for that many bytes, so that a peer could fill the memory. And pika
raises what it cannot read into the event loop, where the connection is no longer known.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, ClassVar, Final

from pika import exceptions, frame, spec
from pika.channel import Channel, ContentFrameAssembler

from workqueue.amqp import field_table

LARGEST_FRAME: Final = spec.FRAME_MAX_SIZE
"""Bytes. The largest size that pika negotiates. Frames before the negotiation are smaller."""

LARGEST_BODY: Final = 512 * 1024 * 1024
"""Bytes. RabbitMQ's own upper limit for its setting max_message_size."""

RECEIVE_BYTES: Final = 128 * 1024
"""Bytes that are read from a socket at once: the largest frame that RabbitMQ sends by default. With pika's 4 KiB,
each read would copy the part of the frame that has arrived."""

SEND_BYTES: Final = 8 * 1024
"""Bytes of frames that are joined at most. Each frame copies those before it."""

_START: Final = struct.Struct(">BHI")
_CONTENT: Final = struct.Struct(">HHQ")
_HEADER: Final = bytes([spec.FRAME_HEADER])


class UnreadProperties(spec.BasicProperties):  # type: ignore[misc]
    """The properties of a message whose connection does not decode them.

    Attributes:
        body_size: size of the message's body in bytes.
    """

    def __init__(self, body_size: int) -> None:
        super().__init__()
        self.body_size = body_size


class BoundedFrames:
    """A mixin before pika's connection class. It closes a connection that sends invalid data, and says why.

    Attributes:
        reads_properties: whether to decode the properties of messages. A connection that does not need them
            skips them, so that they can do no harm, and its messages have `UnreadProperties`.
        keeps_bodies: whether to keep the bodies of messages. Otherwise each message arrives with an empty body and
            costs at most the memory of one frame.
    """

    reads_properties: ClassVar[bool] = True
    keeps_bodies: ClassVar[bool] = True

    _frame_buffer: bytes
    _channels: dict[int, Any]

    def _read_frame(self) -> tuple[int, Any]:
        try:
            return self._content_header() if self._frame_buffer[:1] == _HEADER else self._decoded()
        except Exception as error:  # noqa: BLE001 - whatever pika makes of bytes that are no frame
            self._break_off(f"the received data is not AMQP: {error!r}")
            return 0, None

    def _process_callbacks(self, value: Any) -> bool:
        # pika looks for callbacks for each frame. The parts of a delivery have none.
        if type(value) is not frame.Method or type(value.method) is spec.Basic.Deliver:
            return False
        return super()._process_callbacks(value)  # type: ignore[misc, no-any-return]

    def _deliver_frame_to_channel(self, value: Any) -> None:
        # pika would log every frame for an unknown channel.
        channel = self._channels.get(value.channel_number)
        if channel is None:
            if type(value) is frame.Method and type(value.method) is spec.Channel.Close:
                # RabbitMQ 4.0 may close a channel twice within a millisecond, when a message exceeds the
                # consumer timeout and its consumer is cancelled (seen with a channel_tick_interval of 1 s).
                # Other channels stay.
                return
            self._break_off(f"a frame came for channel {value.channel_number}, which is not open")
        else:
            channel._handle_content_frame(value)  # noqa: SLF001 - all that pika's own does

    def _create_channel(self, *arguments: Any) -> Channel:
        channel: Channel = super()._create_channel(*arguments)  # type: ignore[misc]
        if not self.keeps_bodies:
            channel._content_assembler = _WithoutBodies()  # noqa: SLF001 - pika offers no other way
        return channel

    def _break_off(self, reason: str) -> None:
        self._frame_buffer = b""
        self._terminate_stream(exceptions.StreamLostError(reason))  # type: ignore[attr-defined]

    def _decoded(self) -> tuple[int, Any]:
        found: tuple[int, Any] = frame.decode_frame(self._frame_buffer)
        if found[1] is None:
            self._check_size()
        return found

    def _content_header(self) -> tuple[int, Any]:
        received = self._frame_buffer
        begin = _START.size + _CONTENT.size
        if len(received) < begin:
            return self._decoded()
        _, channel, size = _START.unpack_from(received)
        body_size = _CONTENT.unpack_from(received, _START.size)[2]
        _check_body_size(body_size)
        end = _START.size + size
        if len(received) <= end:
            self._check_size()
            return 0, None
        if received[end] != spec.FRAME_END:
            raise exceptions.InvalidFrameError("Invalid FRAME_END marker")
        found = (
            field_table.properties(received[begin:end])
            if self.reads_properties
            else UnreadProperties(body_size)
        )
        return end + 1, frame.Header(channel, body_size, found)

    def _check_size(self) -> None:
        """Refuse an incomplete frame that announces too many bytes."""
        received = self._frame_buffer
        if len(received) >= _START.size and not received.startswith(b"AMQP"):
            size = _START.unpack_from(received)[2]
            if size > LARGEST_FRAME:
                raise exceptions.InvalidFrameError(f"a frame of {size} bytes")


def receive_in_large_parts(opened: Any, *, tls: bool) -> None:
    """Let an open connection of pika read a frame at once, and then let other connections have their turn.

    pika reads until the socket has no more data, which costs a useless system call and an exception per message. The
    event loop reports further data. It does not know of the data that TLS has decrypted already.
    """
    opened._transport._MAX_RECV_BYTES = RECEIVE_BYTES  # noqa: SLF001 - pika offers no other way
    if not tls:
        opened._transport._MAX_CONSUME_BYTES = 1  # noqa: SLF001


def send_frames_together(opened: Any, *, tls: bool) -> None:
    """Let an open connection of pika send the frames of one turn of the event loop with one system call.

    pika makes one for each frame. With TLS it stays so: what OpenSSL could not send must be offered again unchanged.
    """
    if not tls:
        waiting = opened._transport._tx_buffers  # noqa: SLF001 - pika offers no other way
        opened._transport._tx_buffers = _Joined(waiting)  # noqa: SLF001


class _Joined(deque[bytes]):
    """What pika has not sent yet. Small frames are joined."""

    def append(self, data: bytes) -> None:
        if self and len(self[-1]) + len(data) <= SEND_BYTES:
            data = self.pop() + data
        super().append(data)


class _WithoutBodies(ContentFrameAssembler):  # type: ignore[misc]
    """pika's assembler, which counts the bytes of a body instead of collecting them."""

    def _handle_body_frame(self, body_frame: frame.Body) -> Any:
        size = len(body_frame.fragment)
        body_frame.fragment = b""
        # pika adds the size of the fragment, now 0, before it compares the total with the announced size.
        self._seen_so_far += size
        return super()._handle_body_frame(body_frame)


def _check_body_size(size: int) -> None:
    if size > LARGEST_BODY:
        raise exceptions.InvalidFrameError(f"a message of {size} bytes")
