"""Shorter paths through pika for what happens with each message: a delivery arrives, and is acknowledged.

pika makes an object of each of the three frames of a delivery, and asks the event loop for a writable socket before
it sends an acknowledgement. Whatever is not exactly as expected takes pika's own path.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pika import data, spec

from workqueue.amqp import field_table
from workqueue.amqp.frame_limits import BoundedFrames

_FRAME: Final = struct.Struct(">BHI")
"""Kind, channel, size of the payload. One byte follows the payload."""

_HEADER: Final = struct.Struct(">BHIxxxxQ")
"""The same of a header frame, and the size of the body. Then come the properties."""

_DELIVER: Final = struct.pack(">I", spec.Basic.Deliver.INDEX)
_CONSUMER_TAG: Final = _FRAME.size + len(_DELIVER)
_TAG: Final = struct.Struct(">QB")
"""The delivery tag, and whether the message was delivered before."""

_ACK: Final = struct.Struct(">BHIIQ?B")

SMALL_BYTES: Final = 4096
MOST_PIECES: Final = 64
"""Pieces of at most this size, and at most so many, are sent with one call to the system."""


class Delivery(NamedTuple):
    """The three frames of a delivery. pika takes it for one frame."""

    channel: Any
    callback: Any
    method: spec.Basic.Deliver
    properties: spec.BasicProperties
    body: bytes

    @property
    def frame_type(self) -> int:
        """As of pika's frames."""
        return int(spec.FRAME_METHOD)


class ShortPaths(BoundedFrames):
    """A mixin before pika's connection class, for a connection that reads properties and keeps bodies."""

    _transport: Any
    _send_later: Callable[[Callable[[], None]], None] | None = None
    _socket: socket.socket | None = None
    _unsent: list[bytes]

    def send_together(self, send_later: Callable[[Callable[[], None]], None], *, tls: bool) -> None:
        """Send what is written under one lock together, once the connection is open.

        Args:
            send_later: calls a function before the lock is released.
        """
        self._unsent = []
        self._send_later = send_later
        if not tls:
            self._socket = self._transport._sock  # noqa: SLF001 - pika offers no other way

    def _read_frame(self) -> tuple[int, Any]:
        received = self._frame_buffer
        if received[_FRAME.size : _CONSUMER_TAG] == _DELIVER and received[0] == spec.FRAME_METHOD:
            try:
                found = self._delivery(received)
            except Exception:  # noqa: BLE001 - no consumer, or no AMQP: pika's own path finds the same, and says it
                found = None
            if found is not None:
                return found
        return super()._read_frame()

    def _process_callbacks(self, value: Any) -> bool:
        if type(value) is Delivery:
            value.callback(value.channel, value.method, value.properties, value.body)
            return True
        return super()._process_callbacks(value)

    def _delivery(self, received: bytes) -> tuple[int, Delivery] | None:
        """Decode a delivery; None if it has not arrived as a whole, or if no consumer waits for it."""
        _, number, size = _FRAME.unpack_from(received)
        header = _FRAME.size + size + 1
        if len(received) < header + _HEADER.size:
            return None
        kind, header_number, size, body_size = _HEADER.unpack_from(received, header)
        body = header + _FRAME.size + size + 1
        end = body + _FRAME.size + body_size + 1
        if (
            not body_size
            or len(received) < end
            or (kind, header_number) != (spec.FRAME_HEADER, number)
            or _FRAME.unpack_from(received, body) != (spec.FRAME_BODY, number, body_size)
            or not received[header - 1] == received[body - 1] == received[end - 1] == spec.FRAME_END
        ):
            return None
        tag_end = _CONSUMER_TAG + 1 + received[_CONSUMER_TAG]
        consumer_tag = received[_CONSUMER_TAG + 1 : tag_end].decode()
        channel: Any = self._channels[number]
        callback = channel._consumers[consumer_tag]  # noqa: SLF001 - as pika's own path
        # Part of another message before it is an error of the broker, which pika finds.
        if consumer_tag in channel._cancelled or channel._content_assembler._seen_so_far:  # noqa: SLF001
            return None
        delivery_tag, flags = _TAG.unpack_from(received, tag_end)
        exchange, routing_key = _route(received[tag_end + _TAG.size : header - 1])
        return end, Delivery(
            channel,
            callback,
            spec.Basic.Deliver(consumer_tag, delivery_tag, flags & 1 != 0, exchange, routing_key),
            field_table.properties(received[header + _HEADER.size : body - 1]),
            received[body + _FRAME.size : end - 1],
        )

    def _send_method(self, channel_number: int, method: Any, content: Any = None) -> None:
        if type(method) is spec.Basic.Ack and not self.is_closed:  # type: ignore[attr-defined]
            packed = _ACK.pack(
                spec.FRAME_METHOD,
                channel_number,
                _ACK.size - _FRAME.size - 1,
                method.INDEX,
                method.delivery_tag,
                method.multiple,
                spec.FRAME_END,
            )
            self._output_marshaled_frames([packed])  # type: ignore[attr-defined]
            return
        super()._send_method(channel_number, method, content)  # type: ignore[misc]

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._send_later is None:
            super()._adapter_emit_data(data)  # type: ignore[misc]
        elif len(data) > SMALL_BYTES or len(self._unsent) >= MOST_PIECES:
            self._pass_on(self._take_unsent())
            self._pass_on(data)
        else:
            if not self._unsent:
                self._send_later(self._send_unsent)
            self._unsent.append(data)

    def _take_unsent(self) -> bytes:
        data = b"".join(self._unsent)
        self._unsent.clear()
        return data

    def _send_unsent(self) -> None:
        data = self._take_unsent()
        # What pika has not sent yet must be sent first.
        if (
            self._socket is not None
            and self._transport is not None
            and not self._transport.get_write_buffer_size()
        ):
            # If it is not writable or broken, pika finds the same, and waits or reports it.
            with suppress(OSError):
                data = data[self._socket.send(data) :]
        self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        if data and self._transport is not None:  # otherwise the connection is lost
            super()._adapter_emit_data(data)  # type: ignore[misc]


@lru_cache(maxsize=256)
def _route(encoded: bytes) -> tuple[str, str]:
    exchange, offset = data.decode_short_string(encoded, 0)
    routing_key, _ = data.decode_short_string(encoded, offset)
    return exchange, routing_key
