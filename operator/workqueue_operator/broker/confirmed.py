"""Publish a message and wait for RabbitMQ's confirm. Only for messages of the operator's own, which are few.

A publisher that ends right after the confirm leaves no trace of it. So the id of a message can go to a ledger at the
same moment: a queue that another publisher of the same messages reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from pika import BasicProperties
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.spec import Basic

from workqueue.amqp.outgoing import Outgoing
from workqueue.contract.topology import Queue
from workqueue_operator.broker.channel import (
    CALL_TIMEOUT,
    PLACE_SECONDS,
    CallChannel,
    ChannelLostError,
    ChannelRefusedError,
    NoFreeChannelError,
)

AT_ONCE: Final = 8
"""Messages that are published at the same time over a connection. Each has a channel."""

UNCONFIRMED_PER_QUEUE: Final = 4
"""Messages to a queue that may wait for their confirms. So hundreds of queues that confirm nothing leave channels to
the messages of others."""

logger = logging.getLogger(__name__)


class OwnMessage(NamedTuple):
    """A persistent message to a queue.

    Attributes:
        ledger: the queue that gets the id when RabbitMQ has confirmed the message; empty for none.
    """

    queue: str
    message_id: str
    body: bytes
    content_type: str | None
    headers: Mapping[str, str]
    ledger: str = ""


class NotPublishedError(Exception):
    """The message is in no queue. The text says why."""


class UnconfirmedError(Exception):
    """The message may be in its queue, or not. The text says why."""


class Places:
    """Lets a few messages be published at a time. One that waits for its confirm lets another one begin."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._by_queue: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def place(self, queue: str) -> AsyncIterator[None]:
        """Wait for a place, and keep it until the end, or for PLACE_SECONDS."""
        async with self._by_queue.setdefault(queue, asyncio.Semaphore(UNCONFIRMED_PER_QUEUE)):
            await self._free.acquire()
            kept = contextlib.ExitStack()
            kept.callback(self._free.release)
            timer = asyncio.get_running_loop().call_later(PLACE_SECONDS, kept.close)
            try:
                yield
            finally:
                timer.cancel()
                kept.close()


async def publish(connection: AsyncioConnection, message: OwnMessage) -> None:
    """Publish a message, and return when RabbitMQ has stored it.

    A memory alarm of RabbitMQ blocks the connection. Then this waits until the alarm ends. If the caller gives up, a
    message that was not sent until then is never sent.

    Raises:
        NotPublishedError: RabbitMQ returned or refused it, AMQP cannot carry it, or no channel is free.
        UnconfirmedError: the connection was lost.
    """
    returned: list[str] = []
    properties = BasicProperties(
        message_id=message.message_id,
        content_type=message.content_type,
        headers=dict(message.headers) or None,
        delivery_mode=2,
    )
    _require_encodable(message, connection.params.frame_max)

    def send(channel: Channel, done: Callable[[Any], None]) -> None:
        def on_ready(_: object) -> None:
            if channel.is_open:
                channel.basic_publish("", message.queue, message.body, properties, mandatory=True)

        def on_confirm(confirm: Any) -> None:
            if confirm.method.delivery_tag != 1:
                return  # that of the id
            if message.ledger and isinstance(confirm.method, Basic.Ack) and not returned and channel.is_open:
                channel.basic_publish("", message.ledger, b"", BasicProperties(message_id=message.message_id))
            done(confirm)

        channel.add_on_return_callback(lambda _channel, method, *_: returned.append(method.reply_text))
        channel.confirm_delivery(on_confirm, callback=on_ready)

    channel = CallChannel(connection)
    try:
        confirm = await channel.begin(send)
    except NoFreeChannelError as error:
        raise NotPublishedError(str(error)) from error
    except ChannelLostError as error:
        raise UnconfirmedError(str(error)) from error
    except ChannelRefusedError as error:
        raise NotPublishedError(f"RabbitMQ refused: {error}") from error
    finally:
        channel.close()
    # RabbitMQ sends the return before the confirm of the same message.
    if returned:
        raise NotPublishedError(f"the queue does not exist ({returned[0]})")
    if not isinstance(confirm.method, Basic.Ack):
        raise NotPublishedError("RabbitMQ refused it, as when the queue is full")


async def read_ledger(connection: AsyncioConnection, ledger: Queue) -> set[str]:
    """Return the ids in a ledger, which stay there. One that RabbitMQ refuses has none.

    Raises:
        ChannelLostError: the connection was lost, or RabbitMQ did not answer.
    """
    found: list[str] = []

    def send(channel: Channel, done: Callable[[Any], None]) -> None:
        def on_declared(declared: Any) -> None:
            count = declared.method.message_count

            def on_message(_channel: Channel, _method: object, properties: BasicProperties, _: bytes) -> None:
                found.append(str(properties.message_id))
                if len(found) == count:
                    done(None)

            if not count:
                done(None)
            elif channel.is_open:
                channel.basic_consume(ledger.name, on_message)

        channel.queue_declare(
            ledger.name, durable=True, arguments=dict(ledger.arguments), callback=on_declared
        )

    channel = CallChannel(connection)
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            await channel.begin(send)
    except TimeoutError:
        raise ChannelLostError(f"no answer within {CALL_TIMEOUT:g} s") from None
    except ChannelRefusedError as error:
        logger.info("The ledger cannot be read.", extra={"queue": ledger.name, "detail": str(error)})
    finally:
        # RabbitMQ puts back what was received and not acknowledged.
        channel.close()
    return set(found)


def _require_encodable(message: OwnMessage, frame_max: int) -> None:
    """Check that AMQP can carry its properties. Otherwise the connection would be lost, which others use, too."""
    headers = dict(message.headers) or None
    checked = Outgoing(message.queue, b"", headers=headers, content_type=message.content_type)
    try:
        checked.encode(1, frame_max, message.message_id, 0)
    except ValueError as error:
        raise NotPublishedError(f"AMQP cannot carry it: {error}") from error
