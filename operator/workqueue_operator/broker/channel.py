"""One AMQP channel whose calls can be awaited.

Place in the flow: `connection` hands out channels for calls (declare, delete, bind); `doorbell` uses raw
channels, since consuming is not a call with an answer.
"""

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
"""Seconds for one answer of the broker. Past it the channel is thrown away: its answers can no longer be matched."""

DECLARE_TIMEOUT: Final = 5.0
"""The same for declarations and deletions: RabbitMQ waits for the members of a quorum queue while it makes one."""

Send: TypeAlias = Callable[[PikaChannel, Callable[[Any], None]], object]


class ChannelRefusedError(Exception):
    """The broker closed the channel because of the call: code and text as it gave them.

    Attributes:
        code: the AMQP reply code, such as 404.
        text: the broker's sentence.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


class ChannelLostError(Exception):
    """The channel or its connection went away before the answer came, or no answer came in time."""


def words_of(error: BaseException) -> str:
    """Return why a connection ended or could not be opened, and name RabbitMQ when RabbitMQ closed it."""
    said = describe(error)
    return f"RabbitMQ closed it: {said}" if isinstance(error, ConnectionClosedByBroker) else said


class CallChannel:
    """Opens when it is first needed, and again after the broker closed it; one call at a time.

    Args:
        connection: the open connection; a CallChannel lives no longer than it.
        timeout: seconds for one answer, math.inf for none; by default `CALL_TIMEOUT`.
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
            send: gets the channel and the callback for the answer's frame.

        Raises:
            ChannelRefusedError: the broker refused; the next call uses a new channel.
            ChannelLostError: no answer.
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
        assert self._pending is not None  # noqa: S101 - the callers have just made it
        try:
            return await self._pending
        finally:
            # An error in it refers to those who waited for it: all of them would stay until the garbage
            # collector comes.
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
        """Close the channel; the next call opens another one."""
        self._discard()

    def _discard(self) -> None:
        channel, self._channel = self._channel, None
        # One that is still opening is closed as well, else it would stay open at the broker for good.
        if channel is not None and (channel.is_open or channel.is_opening):
            channel.close()
