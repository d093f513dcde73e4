"""A message to publish, and its encoding as AMQP frames.

A publisher spends most of its time here, so the frames are built by hand instead of through four objects of pika, and
one message is one piece of bytes, so that many messages need one write. A test compares the bytes with pika's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pika import frame, spec

from workqueue.amqp.field_table import short_string, table
from workqueue.contract import headers, topology
from workqueue.contract.properties import Properties

PERSISTENT: Final = b"\x02"
TRANSIENT: Final = b"\x01"

_FRAME_OVERHEAD: Final = 8
_PROPERTIES_OVERHEAD: Final = _FRAME_OVERHEAD + 14
_FRAME_END: Final = b"\xce"
_CLASS_BASIC: Final = 60
_CONTENT_HEADER: Final = struct.Struct(">BHIHHQH")
_CONTENT_BODY: Final = struct.Struct(">BHI")


class Outgoing(NamedTuple):
    """One message. All fields except destination and body are optional properties of AMQP 0-9-1.

    Attributes:
        exchange: empty for the default exchange, whose routing keys are queue names.
        headers: values may be None, bool, int, float, str, bytes, datetime, Decimal, lists and mappings.
        message_id: if missing, the publisher sets one, so that a retry is recognisable.
        priority: 0 to 255.
        expiration: milliseconds, as text.
        timestamp: Unix seconds; if missing, the publisher sets the current time.
        persistent: whether it survives a restart of RabbitMQ. False only to repeat a message that does not.
    """

    routing_key: str
    body: bytes
    exchange: str = ""
    headers: Mapping[str, Any] | None = None
    message_id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    persistent: bool = True

    @classmethod
    def with_properties(
        cls, properties: Properties, routing_key: str, body: bytes, headers: Mapping[str, Any] | None
    ) -> Outgoing:
        """Return a persistent message with the properties of another one.

        The user id is omitted, since RabbitMQ accepts only the connection's own.
        """
        return cls(
            routing_key,
            body,
            headers=headers,
            message_id=properties.message_id,
            content_type=properties.content_type,
            content_encoding=properties.content_encoding,
            priority=properties.priority,
            correlation_id=properties.correlation_id,
            reply_to=properties.reply_to,
            expiration=properties.expiration,
            timestamp=properties.timestamp,
            type=properties.type,
            app_id=properties.app_id,
        )

    def delayed(self, route: topology.DelayRoute, due_at: float) -> Outgoing:
        """Return this message on its way to a work queue.

        A priority for which the route has no steps becomes a header. Handlers see it restored.

        Args:
            due_at: Unix seconds.
        """
        kept = {**(self.headers or {}), headers.DUE_AT: round(due_at * 1000)}
        if not route.keeps_priority:
            kept[headers.ORIGINAL_PRIORITY] = self.priority
        return self._replace(
            exchange=route.exchange,
            routing_key=route.routing_key,
            priority=self.priority if route.keeps_priority else None,
            headers=kept,
        )

    def encode(self, channel: int, frame_max: int, message_id: str, now: int) -> bytes:
        """Return the frames of basic.publish with the mandatory flag.

        Args:
            channel: number of the channel.
            frame_max: the largest frame that the connection may send, in bytes.
            message_id: used instead of the message's own.
            now: Unix seconds, for a message without a timestamp.

        Raises:
            ValueError, TypeError, AttributeError, struct.error, AMQPError: a header or property cannot be
                encoded.
        """
        # In the order of the flags' bits, as in the protocol.
        flags, pieces = 0x10C0, []
        if self.content_type is not None:
            flags |= 0x8000
            pieces.append(short_string(self.content_type))
        if self.content_encoding is not None:
            flags |= 0x4000
            pieces.append(short_string(self.content_encoding))
        if self.headers is not None:
            flags |= 0x2000
            pieces.append(table(self.headers))
        pieces.append(PERSISTENT if self.persistent else TRANSIENT)
        if self.priority is not None:
            flags |= 0x0800
            pieces.append(struct.pack("B", self.priority))
        if self.correlation_id is not None:
            flags |= 0x0400
            pieces.append(short_string(self.correlation_id))
        if self.reply_to is not None:
            flags |= 0x0200
            pieces.append(short_string(self.reply_to))
        if self.expiration is not None:
            flags |= 0x0100
            pieces.append(short_string(self.expiration))
        pieces.append(short_string(message_id))
        pieces.append(struct.pack(">Q", now if self.timestamp is None else self.timestamp))
        if self.type is not None:
            flags |= 0x0020
            pieces.append(short_string(self.type))
        if self.user_id is not None:
            flags |= 0x0010
            pieces.append(short_string(self.user_id))
        if self.app_id is not None:
            flags |= 0x0008
            pieces.append(short_string(self.app_id))
        properties = b"".join(pieces)
        _require_room(len(properties), frame_max - _PROPERTIES_OVERHEAD)
        body = self.body
        size = len(body)
        header = _CONTENT_HEADER.pack(2, channel, 14 + len(properties), _CLASS_BASIC, 0, size, flags)
        frames = [_publish(channel, self.exchange, self.routing_key), header, properties, _FRAME_END]
        most = frame_max - _FRAME_OVERHEAD
        for start in range(0, size, most):
            part = body if size <= most else body[start : start + most]
            frames += (_CONTENT_BODY.pack(3, channel, len(part)), part, _FRAME_END)
        return b"".join(frames)


def milliseconds(seconds: float) -> str:
    """Return the text of an expiration, at least one millisecond."""
    return str(max(1, round(seconds * 1000)))


def _require_room(size: int, room: int) -> None:
    # RabbitMQ would close the connection.
    if size > room:
        raise ValueError(f"headers and properties have {size} bytes, and a frame has room for {room}")


@lru_cache(maxsize=1024)
def _publish(channel: int, exchange: str, routing_key: str) -> bytes:
    method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    marshalled: bytes = frame.Method(channel, method).marshal()
    return marshalled
