"""AMQP channels with awaitable calls (declare, get, delete, bind). Doorbells use raw channels, because they consume.

A queue that does not answer also blocks RabbitMQ's process of the channel that asks it, even if the client closes the
channel. Examples are a classic queue whose node is frozen, and a quorum queue without a majority. So each kind of
call has a few channels of its own, and a queue that does not answer keeps the channel on which it was asked: no other
call waits for that channel, and the queue gets no further call until it has answered or a pause has passed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel as PikaChannel
from pika.exceptions import (
    ChannelClosedByBroker,
    ChannelWrongStateError,
    ConnectionClosedByBroker,
    ConnectionWrongStateError,
    NoFreeChannels,
)

from workqueue.amqp.errors import describe
from workqueue_operator.backoff import delay

CALL_TIMEOUT: Final = 2.0
"""Seconds for one answer of the broker. A call that waits for a channel waits as long as other calls are answered."""

DECLARE_TIMEOUT: Final = 5.0
"""The same for a declaration or deletion: RabbitMQ waits for the members of a new quorum queue."""

PLACE_SECONDS: Final = 0.25
"""Seconds for which a call makes others wait for a channel. A healthy queue answers within milliseconds."""

SILENT_PAUSE: Final = (2.0, 60.0)
"""The first and the longest pause, in seconds, before a queue that did not answer is asked on another channel."""

SILENT_CALLS: Final = 3
"""Calls without an answer that a queue may have outstanding. Each keeps a channel."""

SHARE_OF_CHANNELS: Final = 8
"""Calls of one kind that exceed PLACE_SECONDS may keep one in this many of the connection's channels."""

SHARE_KEPT_OPEN: Final = 10
"""Each kind of call keeps at most one in this many open, and at least one. With the slow calls, the four kinds leave
a tenth to the doorbells. RabbitMQ's channel_max is 2047 by default, but often much lower."""

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


class NoFreeChannelError(ChannelLostError):
    """The connection has no free channel, so that nothing was sent."""


def describe_connection_error(error: BaseException) -> str:
    """Return why a connection ended or could not be opened, and name RabbitMQ when RabbitMQ closed it."""
    said = describe(error)
    return f"RabbitMQ closed it: {said}" if isinstance(error, ConnectionClosedByBroker) else said


class CallChannel:
    """A channel that makes one call at a time. It opens at the first call, and again after the broker closed it."""

    def __init__(self, connection: AsyncioConnection) -> None:
        self._connection = connection
        self._channel: PikaChannel | None = None
        self._send: Send | None = None
        self._answer: asyncio.Future[Any] | None = None

    def begin(self, send: Send) -> asyncio.Future[Any]:
        """Send a call. The call before it has ended.

        Args:
            send: sends the call. Its arguments are the channel and the callback for the answer.

        Returns:
            The answer, or ChannelRefusedError or ChannelLostError. It must not be cancelled.
        """
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._send = send
        if self._channel is not None:
            self._on_open(self._channel)
            return answer
        try:
            self._channel = self._connection.channel(on_open_callback=self._on_open)
            self._channel.add_on_close_callback(self._on_close)
        except ConnectionWrongStateError:
            self._fail(ChannelLostError("the connection is closed"))
        except NoFreeChannels:
            self._fail(NoFreeChannelError("the connection has no free channel"))
        return answer

    def close(self) -> None:
        """Close the channel, even before it is open. A call that was not sent is never sent, and gets no answer."""
        channel, self._channel, self._send = self._channel, None, None
        if channel is not None and not (channel.is_closing or channel.is_closed):
            channel.close()

    def _on_open(self, channel: PikaChannel) -> None:
        send, self._send = self._send, None
        if send is None:
            return
        try:
            send(channel, self._settle)
        except (ChannelWrongStateError, ConnectionWrongStateError):
            self._fail(ChannelLostError("the connection is closed"))
        except Exception as error:  # noqa: BLE001 - the caller raises it
            # Such as a name that is too long for AMQP.
            self._fail(error)
            channel.close()

    def _settle(self, answer: Any) -> None:
        # The future refers to the frames that await it. It is dropped here, so that all of it is freed without the
        # garbage collector.
        pending, self._answer = self._answer, None
        if pending is not None and not pending.done():
            pending.set_result(answer)

    def _fail(self, error: Exception) -> None:
        self._channel = self._send = None
        pending, self._answer = self._answer, None
        if pending is not None and not pending.done():
            pending.set_exception(error)

    def _on_close(self, channel: PikaChannel, reason: Exception) -> None:
        if channel is not self._channel:
            return
        if isinstance(reason, ChannelClosedByBroker):
            self._fail(ChannelRefusedError(reason.reply_code, reason.reply_text))
        else:
            self._fail(ChannelLostError(describe_connection_error(reason)))


@dataclass(eq=False, slots=True)
class _Silence:
    """A queue that did not answer in time.

    Attributes:
        failures: how often in a row.
        outstanding: its calls without an answer.
        retry_at: when it may be asked again, on the event loop's clock.
    """

    failures: int = 0
    outstanding: int = 0
    retry_at: float = 0.0


@dataclass(eq=False, slots=True)
class _Running:
    """A call without an answer so far.

    Attributes:
        answer: of the broker, also after the caller has given up.
        has_place: whether it counts towards the calls that others wait for.
        timer: ends that, and then the wait of the caller.
        caller: gets the answer; None if the caller awaits `answer`.
        until: when the caller gives up, on the event loop's clock.
    """

    channel: CallChannel
    answer: asyncio.Future[Any]
    has_place: bool = True
    timer: asyncio.TimerHandle | None = None
    caller: asyncio.Future[Any] | None = None
    until: float = 0.0


class Calls:
    """Calls of one kind over a few channels of one connection. They end with the connection.

    Args:
        connection: an open connection.
        seconds: for one answer.
        channels: how many are kept open, and how many calls run before others wait; fewer if the connection may
            have only a few.
        on_answer: called with the name of a queue that has answered too late, and may be asked again.

    Attributes:
        waiting: calls that wait for a channel.
    """

    def __init__(
        self,
        connection: AsyncioConnection,
        seconds: float,
        channels: int,
        on_answer: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._seconds = seconds
        self._most_idle = max(1, min(channels, int(connection.params.channel_max) // SHARE_KEPT_OPEN))
        self._on_answer = on_answer
        self._places = asyncio.Semaphore(self._most_idle)
        self._idle: list[CallChannel] = []
        self._slow = 0
        self.waiting = 0
        self._answered_at = -math.inf
        self._silences: dict[str, _Silence] = {}

    @property
    def is_busy(self) -> bool:
        """Whether calls wait for a channel although RabbitMQ answers."""
        silence = asyncio.get_running_loop().time() - self._answered_at
        return self.waiting > 0 and silence < PLACE_SECONDS

    async def call(self, queue: str, send: Send) -> Any:
        """Make one call about a queue and wait for its answer.

        Args:
            queue: is left alone for a growing pause if it does not answer.
            send: as for `CallChannel.begin`.

        Raises:
            ChannelRefusedError: the broker refused.
            ChannelLostError: there was no answer, or none lately, or none to the calls before this one.
        """
        loop = asyncio.get_running_loop()
        silence = self._silences.get(queue)
        if silence is not None and (loop.time() < silence.retry_at or silence.outstanding >= SILENT_CALLS):
            raise self._no_answer()
        if self._places.locked():
            await self._take_place_in_time()
        else:
            await self._places.acquire()
        until = loop.time() + self._seconds
        # Polls are most of what the operator does, so this has one future and one timer instead of asyncio's timeout
        # and shield.
        caller: asyncio.Future[Any] = loop.create_future()
        running = self._begin(send, caller, until)
        try:
            said = await caller
        except TimeoutError:
            self._note_silence(queue, running.answer)
            raise self._no_answer() from None
        except ChannelRefusedError:
            self._silences.pop(queue, None)
            raise
        finally:
            del running, caller
        self._silences.pop(queue, None)
        return said

    async def begin(self, send: Send) -> asyncio.Future[Any]:
        """Send a call as soon as a channel is free. Returns as `CallChannel.begin` does."""
        await self._take_place()
        return self._begin(send).answer

    async def _take_place_in_time(self) -> None:
        """Wait for a channel while RabbitMQ answers the calls before this one, however many there are."""
        loop = asyncio.get_running_loop()
        begun, has_place = loop.time(), False
        # A task, so that a look at the time does not lose the turn.
        place = loop.create_task(self._take_place())
        try:
            while not has_place:
                patience = max(begun, self._answered_at) + self._seconds - loop.time()
                if patience <= 0:
                    break
                has_place = bool((await asyncio.wait({place}, timeout=patience))[0])
        finally:
            if not has_place and not place.cancel():
                self._places.release()
        if not has_place:
            raise ChannelLostError(f"no call was answered within {self._seconds:g} s")

    async def _take_place(self) -> None:
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1

    def _begin(
        self, send: Send, caller: asyncio.Future[Any] | None = None, until: float = math.inf
    ) -> _Running:
        loop = asyncio.get_running_loop()
        channel = self._idle.pop() if self._idle else CallChannel(self._connection)
        running = _Running(channel, channel.begin(send), caller=caller, until=until)
        slow_at = loop.time() + PLACE_SECONDS
        if until < slow_at:
            running.timer = loop.call_at(until, self._on_late, running, slow_at)
        else:
            running.timer = loop.call_at(slow_at, self._on_slow, running)
        running.answer.add_done_callback(partial(self._on_end, running))
        return running

    def _on_slow(self, running: _Running) -> None:
        """Let another call begin although this one has no answer, unless very many have none."""
        if self._slow < int(self._connection.params.channel_max) // SHARE_OF_CHANNELS:
            self._slow += 1
            running.has_place = False
            self._places.release()
        if running.caller is not None and not running.caller.done():
            loop = asyncio.get_running_loop()
            running.timer = loop.call_at(running.until, self._on_late, running, None)

    def _on_late(self, running: _Running, slow_at: float | None) -> None:
        """End the wait of the caller. The answer may still come."""
        if slow_at is not None:
            running.timer = asyncio.get_running_loop().call_at(slow_at, self._on_slow, running)
        if running.caller is not None and not running.caller.done():
            running.caller.set_exception(TimeoutError())

    def _on_end(self, running: _Running, answer: asyncio.Future[Any]) -> None:
        self._answered_at = asyncio.get_running_loop().time()
        # Otherwise asyncio would log the error of a call whose caller has given up.
        error, caller = answer.exception(), running.caller
        if caller is not None and not caller.done():
            if error is None:
                caller.set_result(answer.result())
            else:
                caller.set_exception(error)
        if running.timer is not None:
            running.timer.cancel()
        if running.has_place:
            self._places.release()
        else:
            self._slow -= 1
        if len(self._idle) < self._most_idle:
            self._idle.append(running.channel)
        else:
            running.channel.close()

    def _no_answer(self) -> ChannelLostError:
        return ChannelLostError(f"no answer within {self._seconds:g} s")

    def _note_silence(self, queue: str, answer: asyncio.Future[Any]) -> None:
        silence = self._silences.setdefault(queue, _Silence())
        silence.outstanding += 1
        now = asyncio.get_running_loop().time()
        if now >= silence.retry_at:
            # Of calls that were made together, one counts.
            silence.failures += 1
            silence.retry_at = now + delay(silence.failures, *SILENT_PAUSE)
        answer.add_done_callback(partial(self._on_late_answer, queue, silence))

    def _on_late_answer(self, queue: str, silence: _Silence, answer: asyncio.Future[Any]) -> None:
        silence.outstanding -= 1
        if isinstance(answer.exception(), ChannelLostError):
            return
        silence.retry_at = 0.0
        self._on_answer(queue)
