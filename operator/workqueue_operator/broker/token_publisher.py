"""Publish the tokens of rate limits over one channel, and count those that RabbitMQ confirms."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import (
    ChannelClosedByBroker,
    ChannelWrongStateError,
    ConnectionWrongStateError,
    NoFreeChannels,
)
from pika.spec import Basic

from workqueue_operator.broker.channel import (
    ChannelLostError,
    ChannelRefusedError,
    describe_connection_error,
)


@dataclass(eq=False, slots=True)
class _Batch:
    """Tokens that were published together.

    Attributes:
        taken: how many of them the queue has taken; None if there is no queue.
    """

    queue: str
    unconfirmed: int
    taken: int | None = 0
    done: asyncio.Future[int | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def confirm(self, *, is_taken: bool) -> None:
        self.unconfirmed -= 1
        if is_taken and self.taken is not None:
            self.taken += 1
        if not self.unconfirmed and not self.done.done():
            self.done.set_result(self.taken)


class TokenPublisher:
    """A channel with confirms. It opens at the first token, and again after it was closed."""

    def __init__(self, connection: AsyncioConnection) -> None:
        self.connection = connection
        self._opened: asyncio.Future[Channel] | None = None
        self._batches: dict[int, _Batch] = {}
        """By delivery tag."""
        self._last_tag = 0

    async def publish(self, queue: str, body: bytes, count: int) -> int | None:
        """Publish tokens that do not survive a restart of RabbitMQ, and wait until it has confirmed or refused them.

        Returns:
            How many of them the queue has taken; None if there is no queue.

        Raises:
            ChannelLostError: the channel or the connection was lost.
            ChannelRefusedError: RabbitMQ has closed the channel.
        """
        try:
            if self._opened is None:
                self._opened = asyncio.get_running_loop().create_future()
                self.connection.channel(on_open_callback=self._on_open).add_on_close_callback(self._on_close)
            channel = await asyncio.shield(self._opened)
            batch = _Batch(queue, count)
            for _ in range(count):
                channel.basic_publish("", queue, body, mandatory=True)
                self._last_tag += 1
                self._batches[self._last_tag] = batch
        except (ChannelWrongStateError, ConnectionWrongStateError) as error:
            self._opened = None
            raise ChannelLostError("the connection is closed") from error
        except NoFreeChannels as error:
            self._opened = None
            raise ChannelLostError("the connection has no free channel") from error
        return await batch.done

    def _on_open(self, channel: Channel) -> None:
        channel.add_on_return_callback(lambda _channel, method, *_: self._on_return(method.routing_key))
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._on_ready(channel))

    def _on_ready(self, channel: Channel) -> None:
        self._last_tag = 0
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(channel)

    def _on_return(self, queue: str) -> None:
        # RabbitMQ sends it before the confirm of the same message.
        for batch in self._batches.values():
            if batch.queue == queue:
                batch.taken = None

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = [tag for tag in self._batches if tag <= method.delivery_tag]
        for tag in tags:
            self._batches.pop(tag).confirm(is_taken=isinstance(method, Basic.Ack))

    def _on_close(self, _channel: Channel, reason: Exception) -> None:
        error: Exception = ChannelLostError(describe_connection_error(reason))
        if isinstance(reason, ChannelClosedByBroker):
            error = ChannelRefusedError(reason.reply_code, reason.reply_text)
        opened, self._opened = self._opened, None
        batches, self._batches = set(self._batches.values()), {}
        for pending in ([] if opened is None else [opened], [batch.done for batch in batches]):
            for future in pending:
                if not future.done():
                    future.set_exception(error)
