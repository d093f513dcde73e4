"""An AMQP channel with awaitable calls (declare, delete, bind). Doorbells use raw channels, because they consume."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel as PikaChannel
from pika.exceptions import (
    ChannelClosedByBroker,
    ChannelWrongStateError,
    ConnectionClosedByBroker,
    ConnectionWrongStateError,
)

from workqueue.amqp.errors import describe

CALL_TIMEOUT: Final = 2.0
"""Seconds for one answer of the broker. Then the channel is closed, because a late answer could not be matched."""

DECLARE_TIMEOUT: Final = 5.0
"""Seconds for a declaration or deletion: RabbitMQ waits for the members of a new quorum queue."""

Send: TypeAlias = Callable[[PikaChannel, Callable[[Any], None]], object]


class ChannelRefusedError(Exception):
    """The broker refused the call and closed the channel.

    Attributes:
        code: the AMQP reply code, such as 404.
        text: the AMQP reply text.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


class ChannelLostError(Exception):
    """The channel or its connection closed before the answer arrived, or the call timed out."""


def words_of(error: BaseException) -> str:
    """Return why a connection ended or could not be opened, and name RabbitMQ when RabbitMQ closed it."""
    said = describe(error)
    return f"RabbitMQ closed it: {said}" if isinstance(error, ConnectionClosedByBroker) else said


class CallChannel:
    """A channel that makes one call at a time. It opens at the first call, and again after the broker closed it.

    Args:
        connection: the open connection. A CallChannel must not outlive it.
        timeout: seconds for one answer; math.inf for no limit. Defaults to `CALL_TIMEOUT`.
    """

    def __init__(self, connection: AsyncioConnection, timeout: float | None = None) -> None:
        self._connection = connection
        self._timeout = timeout
        self._channel: PikaChannel | None = None
        self._pending: asyncio.Future[Any] | None = None
        self._turn = asyncio.Lock()
        self.waiting = 0

    async def call(self, send: Send) -> Any:
        """Make one call and wait for its answer.

        Args:
            send: sends the call. Its arguments are the channel and the callback for the answer.

        Raises:
            ChannelRefusedError: the broker refused. The next call opens a new channel.
            ChannelLostError: there was no answer.
        """
        self.waiting += 1
        limit = CALL_TIMEOUT if self._timeout is None else self._timeout
        try:
            async with self._turn:
                try:
                    async with asyncio.timeout(None if limit == math.inf else limit):
                        return await self._exchange(send)
                except TimeoutError as error:
                    self._discard()
                    raise ChannelLostError(f"no answer within {limit:g} s") from error
                except asyncio.CancelledError:
                    self._discard()
                    raise
        finally:
            self.waiting -= 1

    async def _exchange(self, send: Send) -> Any:
        try:
            channel = self._channel or await self._open()
            self._expect()
            send(channel, lambda frame: self._settle(channel, frame))
        except (ChannelWrongStateError, ConnectionWrongStateError) as error:
            self._channel = None
            raise ChannelLostError("the connection is closed") from error
        return await self._answer()

    async def _open(self) -> PikaChannel:
        self._expect()
        channel = self._connection.channel(on_open_callback=lambda opened: self._settle(opened, None))
        channel.add_on_close_callback(self._on_close)
        self._channel = channel
        await self._answer()
        return channel

    def _expect(self) -> None:
        self._pending = asyncio.get_running_loop().create_future()

    async def _answer(self) -> Any:
        assert self._pending is not None  # noqa: S101 - the callers have just set it
        try:
            return await self._pending
        finally:
            # An exception in the future refers to the frames that awaited it, and these refer to the future. Break
            # the cycle, so that all of it is freed without the garbage collector.
            self._pending = None

    def _settle(self, channel: PikaChannel, answer: Any) -> None:
        if channel is self._channel and self._pending is not None and not self._pending.done():
            self._pending.set_result(answer)

    def _on_close(self, channel: PikaChannel, reason: Exception) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        if self._pending is not None and not self._pending.done():
            if isinstance(reason, ChannelClosedByBroker):
                self._pending.set_exception(ChannelRefusedError(reason.reply_code, reason.reply_text))
            else:
                self._pending.set_exception(ChannelLostError(words_of(reason)))

    def close(self) -> None:
        """Close the channel. The next call opens a new one."""
        self._discard()

    def _discard(self) -> None:
        channel, self._channel = self._channel, None
        # Also close a channel that is still opening. Otherwise it would stay open at the broker.
        if channel is not None and (channel.is_open or channel.is_opening):
            channel.close()
