"""A message on its way to RabbitMQ, and how it is written on the wire.

Place in the flow: made by whoever publishes (a retry, a dead letter, the command line), encoded by
`publisher` when its turn has come. The frames are pika's; what is ours is that the frames of one message are
one piece of bytes, so that many messages can be sent with one write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pika import BasicProperties, frame, spec

PERSISTENT: Final = 2
TRANSIENT: Final = 1
_FRAME_OVERHEAD: Final = 8


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message. All but the place and the body are optional properties of AMQP 0-9-1.

    Attributes:
        exchange: empty for the default exchange, which takes a queue's name as routing key.
        headers: values may be None, bool, int, float, str, bytes, datetime, Decimal, lists and mappings.
        message_id: kept as it is; without one the publisher gives one, so that a retry is recognisable.
        expiration: milliseconds, as text.
        timestamp: Unix seconds; without one the publisher sets the present.
        persistent: whether it survives a restart of RabbitMQ; only False in a test of exactly that.
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

    def encode(self, channel: int, frame_max: int, message_id: str, now: int) -> bytes:
        """The frames of basic.publish, mandatory.

        Args:
            channel: number of the channel.
            frame_max: the largest frame that the connection may send, in bytes.
            message_id: used when the message has none, as is `now` (Unix seconds) for the timestamp.

        Raises:
            AMQPError, TypeError, AssertionError, struct.error: a header or property cannot be encoded.
        """
        properties = BasicProperties(
            headers=self.headers,
            message_id=self.message_id or message_id,
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            priority=self.priority,
            correlation_id=self.correlation_id,
            reply_to=self.reply_to,
            expiration=self.expiration,
            timestamp=now if self.timestamp is None else self.timestamp,
            type=self.type,
            user_id=self.user_id,
            app_id=self.app_id,
            delivery_mode=PERSISTENT if self.persistent else TRANSIENT,
        )
        publish = spec.Basic.Publish(exchange=self.exchange, routing_key=self.routing_key, mandatory=True)
        body, most = self.body, frame_max - _FRAME_OVERHEAD
        pieces = [
            frame.Method(channel, publish).marshal(),
            frame.Header(channel, len(body), properties).marshal(),
        ]
        pieces += [
            frame.Body(channel, body[start : start + most]).marshal() for start in range(0, len(body), most)
        ]
        return b"".join(pieces)
