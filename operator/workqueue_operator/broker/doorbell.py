"""Doorbells: consumers on idle queues that wake a WorkQueue when its first message arrives.

A pass installs a doorbell when a WorkQueue has no worker but may have one, and removes it before it starts a worker.
`on_ring` is called when the message is on its way back to the queue.

Rules from experiments with RabbitMQ:

- A doorbell is cancelled before it requeues the message, on the same channel and with nack. Reject and closing the
  channel would count as failed deliveries.
- The priority of a doorbell is below that of any worker.
- The doorbells of a queue that was deleted get their own channels: a channel that consumed from a quorum queue and
  then consumes from a classic queue with the same name kills the whole connection (541).

A channel has one call outstanding. pika would send a nack immediately but queue a cancel behind the consumes of other
doorbells, so the message would return to the same doorbell. So this module queues the calls: cancels before consumes,
and a nack after its cancel is confirmed. When the broker closes the channel, the cause is the outstanding call.

A doorbell receives the whole message, and RabbitMQ sends the messages of a connection one after the other. So a queue
whose last message was large has its doorbell on another connection, where only such queues wait for each other.

A quorum queue without a majority does not answer consume and cancel, and these calls block RabbitMQ's channel
process. Messages from other queues to that channel stay there until the call ends, even if the client closes the
channel (3.10 and 4.0: more than 147 s) or the connection (72 s). So before each call on a shared channel, a basic.get
on a separate channel proves that the queue answers. A ring also proves it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from pika import spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker, ConnectionWrongStateError, NoFreeChannels

from workqueue.amqp.frame_limits import UnreadProperties
from workqueue_operator.broker.channel import CALL_TIMEOUT, Calls, ChannelLostError, ChannelRefusedError

logger = logging.getLogger(__name__)

DOORBELLS_PER_CHANNEL: Final = 32
"""A channel has one call at a time, so when many queues get a message together, each waits for the cancels before it.
With 128, 200 queues together took half as long again to wake. A channel takes about 5 KB of memory."""
PRIORITY: Final = -1000

ANSWER_SECONDS: Final = 2.0
"""Seconds until a call counts as unanswered."""

PROBING: Final = 16
"""Channels for proofs that a queue answers."""

RETRY_SECONDS: Final = (2.0, 60.0)
"""The first and the longest pause before a retry on a queue that did not answer, in seconds."""

_NOT_FOUND: Final = 404
_RESOURCE_LOCKED: Final = 405


class _State(Enum):
    INSTALLING = "installing"
    INSTALLED = "installed"
    LEAVING = "leaving"
    CANCELLING = "cancelling"


@dataclass(eq=False, slots=True)
class _Doorbell:
    """One consumer.

    Attributes:
        consumer_channel: its channel; None until its queue has answered.
        tag: the consumer tag; empty until the consume is sent.
        installed_at: when consume-ok arrived, on the event loop's clock.
        settled: True after consume-ok, False if the doorbell was removed before.
        held: delivery tag of the message that is requeued after the cancel is confirmed.
        rings: whether `on_ring` is then called.
    """

    queue: str
    consumer_channel: _ConsumerChannel | None = None
    tag: str = ""
    state: _State = _State.INSTALLING
    installed_at: float | None = None
    settled: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    held: int | None = None
    rings: bool = False


@dataclass(eq=False, slots=True)
class _ConsumerChannel:
    """One channel with doorbells.

    Attributes:
        calls: doorbells whose consume or cancel is not sent yet; their state tells which.
        calling: the doorbell with the outstanding call.
        watchdog: fires when that call gets no answer.
    """

    capacity: int
    channel: Channel | None = None
    doorbells: set[_Doorbell] = field(default_factory=set)
    calls: deque[_Doorbell] = field(default_factory=deque)
    calling: _Doorbell | None = None
    watchdog: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True)
class _Silence:
    """A queue that did not answer a call.

    Attributes:
        retry_at: time of the next attempt, on the event loop's clock; math.inf while a call is outstanding.
        pause: pause before the next attempt, in seconds.
    """

    retry_at: float = math.inf
    pause: float = RETRY_SECONDS[0]


class Doorbells:
    """All doorbells of one connection. They end with the connection.

    Args:
        connection: an open connection.
        on_ring: called with the name of a queue whose doorbell rings, after it was removed.
        on_removed: called with the name of a queue whose doorbell the broker cancelled (queue deleted) or refused.
            The second argument is the refusal. It is None after a cancel, and when a queue that did not answer may
            be retried.
        on_message: called with the name of a queue and the size in bytes of a message that arrived from it.
    """

    def __init__(
        self,
        connection: AsyncioConnection,
        on_ring: Callable[[str], None],
        on_removed: Callable[[str, tuple[int, str] | None], None],
        on_message: Callable[[str, int], None],
    ) -> None:
        self._connection = connection
        self._on_message = on_message
        self._on_ring = on_ring
        self._on_removed = on_removed
        self._doorbells: dict[str, _Doorbell] = {}
        self._channels: list[_ConsumerChannel] = []
        self._vanished: set[str] = set()
        self._silences: dict[str, _Silence] = {}
        self._probes = Calls(connection, CALL_TIMEOUT, PROBING)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._doorbells)

    def is_installed(self, queue: str) -> bool:
        """Return whether the queue's doorbell may be one of its consumers."""
        doorbell = self._doorbells.get(queue)
        return doorbell is not None and doorbell.consumer_channel is not None

    def is_silent(self, queue: str) -> bool:
        """Return whether the queue did not answer our last call. A quorum queue without a majority does not."""
        return queue in self._silences

    def installed_at(self, queue: str) -> float | None:
        """Return when the broker confirmed the queue's doorbell, on the event loop's clock; None before."""
        doorbell = self._doorbells.get(queue)
        return doorbell.installed_at if doorbell is not None else None

    def mark_vanished(self, queue: str) -> None:
        """Remember that the queue was deleted: its doorbells then get their own channels."""
        self._vanished.add(queue)

    async def install(self, queue: str, *, ours: bool = True) -> bool:
        """Install a doorbell, unless one exists, and wait until the broker has confirmed it.

        Args:
            ours: whether the operator declares the queue. The doorbell of any other queue gets its own channel,
                because basic.get on a stream closes the whole connection (540).

        Returns:
            Whether the doorbell is installed. False after a ring or a refusal, or when it was not confirmed in time.
        """
        silence = self._silences.get(queue)
        if not self._connection.is_open or (silence and asyncio.get_running_loop().time() < silence.retry_at):
            return False
        doorbell = self._doorbells.get(queue) or self._install(queue, ours=ours)
        try:
            async with asyncio.timeout(ANSWER_SECONDS + 1):
                return await asyncio.shield(doorbell.settled) and self._doorbells.get(queue) is doorbell
        except TimeoutError:
            return False

    def remove(self, queue: str) -> None:
        """Cancel the doorbell of a queue, if any. A message that has just arrived at it is requeued."""
        doorbell = self._doorbells.pop(queue, None)
        if doorbell is None:
            return
        if doorbell.consumer_channel is None or doorbell.consumer_channel.capacity == 1 or not doorbell.tag:
            self._cancel(doorbell)
        else:
            doorbell.state = _State.LEAVING
            self._start(self._prove_and_cancel(doorbell))

    # -- proof that a queue answers ------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prove(self, queue: str) -> bool:
        """Wait until the queue answers a basic.get on a separate channel.

        Returns:
            Whether the queue had a message. The message is requeued.

        Raises:
            ChannelRefusedError: the broker refused the call.
            ChannelLostError: the channel or the connection was lost.
        """
        answer = await self._probes.begin(lambda channel, done: self._get(channel, queue, done))
        watchdog = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._on_silence, queue)
        try:
            found: bool = await asyncio.shield(answer)
        except ChannelRefusedError as error:
            # A queue with a single active consumer refuses basic.get. That, too, is an answer of its members.
            if error.code != _RESOURCE_LOCKED:
                raise
            found = False
        finally:
            watchdog.cancel()
        if self._silences.pop(queue, None) is not None:
            self._on_removed(queue, None)
        return found

    def _get(self, channel: Channel, queue: str, done: Callable[[bool], None]) -> None:
        """Get the first message of a queue, requeue it, and report whether there was one."""

        def on_message(
            _: Channel, method: spec.Basic.GetOk, properties: UnreadProperties, __: object
        ) -> None:
            channel.basic_nack(method.delivery_tag, requeue=True)
            self._on_message(queue, properties.body_size)
            done(True)

        channel.add_callback(lambda _: done(False), [spec.Basic.GetEmpty])
        channel.basic_get(queue, on_message)

    async def _prove_and_consume(self, doorbell: _Doorbell) -> None:
        queue = doorbell.queue
        try:
            found = await self._prove(queue)
        except ChannelRefusedError as error:
            if self._drop(doorbell):
                if error.code == _NOT_FOUND:
                    self._vanished.add(queue)
                self._on_removed(queue, (error.code, error.text))
            self._retry_later(queue)
        except ChannelLostError:
            self._drop(doorbell)
            self._retry_later(queue)
        else:
            if self._doorbells.get(queue) is doorbell and not found:
                self._consume(doorbell, alone=False)
            elif self._drop(doorbell) or (found and doorbell.state is not _State.CANCELLING):
                # A late answer with a message is a ring, too: many large messages take longer than the watchdog.
                # After `remove` nobody waits for a ring.
                self._on_ring(queue)

    async def _prove_and_cancel(self, doorbell: _Doorbell) -> None:
        # A refusal is an answer, too. After a lost channel, retry while the connection is open.
        pause = RETRY_SECONDS[0]
        while doorbell.state is _State.LEAVING and self._connection.is_open:
            try:
                await self._prove(doorbell.queue)
            except ChannelLostError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS[1])
                continue
            except ChannelRefusedError:
                pass
            break
        # In the meantime there may have been a ring, or the channel may have closed.
        if (
            doorbell.state is _State.LEAVING
            and doorbell.consumer_channel is not None
            and doorbell in doorbell.consumer_channel.doorbells
        ):
            self._cancel(doorbell)

    def _drop(self, doorbell: _Doorbell) -> bool:
        """Drop a doorbell that is not installed; return whether it was still wanted."""
        wanted = self._doorbells.get(doorbell.queue) is doorbell
        if wanted:
            del self._doorbells[doorbell.queue]
        if not doorbell.settled.done():
            doorbell.settled.set_result(False)
        return wanted

    def _on_silence(self, queue: str) -> None:
        """Note that a call to this queue has no answer yet. The next attempt waits until the call has ended."""
        logger.warning("The queue does not answer the doorbell.", extra={"queue": queue})
        self._silences.setdefault(queue, _Silence()).retry_at = math.inf
        doorbell = self._doorbells.get(queue)
        if doorbell is not None and doorbell.consumer_channel is None:
            self._drop(doorbell)

    def _retry_later(self, queue: str) -> None:
        """Schedule the next attempt after a call without an answer, with a growing pause."""
        silence = self._silences.get(queue)
        if silence is None or not self._connection.is_open:
            return
        loop = asyncio.get_running_loop()
        silence.retry_at = loop.time() + silence.pause
        loop.call_later(silence.pause, self._on_removed, queue, None)
        silence.pause = min(2 * silence.pause, RETRY_SECONDS[1])

    # -- one doorbell --------------------------------------------------------------------------------

    def _install(self, queue: str, *, ours: bool = True) -> _Doorbell:
        doorbell = self._doorbells[queue] = _Doorbell(queue)
        if queue in self._vanished or not ours:
            self._consume(doorbell, alone=True)
        else:
            self._start(self._prove_and_consume(doorbell))
        return doorbell

    def _consume(self, doorbell: _Doorbell, *, alone: bool) -> None:
        try:
            consumer_channel = self._consumer_channel(alone=alone)
        except NoFreeChannels:
            # As after a queue that does not answer, the operator polls the queue until the next attempt.
            logger.warning(
                "The connection has no free channel for a doorbell.", extra={"queue": doorbell.queue}
            )
            self._drop(doorbell)
            self._silences[doorbell.queue] = _Silence(pause=RETRY_SECONDS[1])
            self._retry_later(doorbell.queue)
            return
        except ConnectionWrongStateError:
            # The proof and the end of the connection may arrive together.
            self._drop(doorbell)
            return
        doorbell.consumer_channel = consumer_channel
        consumer_channel.doorbells.add(doorbell)
        consumer_channel.calls.append(doorbell)
        self._next_call(consumer_channel)

    def _on_delivery(self, doorbell: _Doorbell, delivery_tag: int, size: int) -> None:
        doorbell.held = delivery_tag
        self._on_message(doorbell.queue, size)
        if self._doorbells.get(doorbell.queue) is doorbell:
            del self._doorbells[doorbell.queue]
            doorbell.rings = True
            self._cancel(doorbell)
        elif doorbell.state is _State.LEAVING:
            self._cancel(doorbell)

    def _cancel(self, doorbell: _Doorbell) -> None:
        waiting = not doorbell.tag
        doorbell.state = _State.CANCELLING
        if doorbell.consumer_channel is None or waiting:
            self._finish(doorbell)
        else:
            doorbell.consumer_channel.calls.appendleft(doorbell)
            self._next_call(doorbell.consumer_channel)

    def _finish(self, doorbell: _Doorbell) -> None:
        """Requeue the message of a doorbell that no longer consumes, and call `on_ring` after a ring."""
        if not doorbell.settled.done():
            doorbell.settled.set_result(False)
        consumer_channel = doorbell.consumer_channel
        if consumer_channel is None:
            return
        consumer_channel.doorbells.discard(doorbell)
        if doorbell in consumer_channel.calls:
            consumer_channel.calls.remove(doorbell)
        channel = consumer_channel.channel
        usable = channel is not None and channel.is_open
        if channel is not None and usable and doorbell.held is not None:
            channel.basic_nack(doorbell.held, requeue=True)
        if (
            channel is not None
            and usable
            and consumer_channel.capacity == 1
            and consumer_channel in self._channels
            and not consumer_channel.doorbells
        ):
            self._channels.remove(consumer_channel)
            channel.close()
        if doorbell.rings:
            self._on_ring(doorbell.queue)

    # -- one channel ---------------------------------------------------------------------------------

    def _consumer_channel(self, *, alone: bool) -> _ConsumerChannel:
        for consumer_channel in self._channels if not alone else ():
            if len(consumer_channel.doorbells) < consumer_channel.capacity:
                return consumer_channel
        consumer_channel = _ConsumerChannel(capacity=1 if alone else DOORBELLS_PER_CHANNEL)
        consumer_channel.channel = self._connection.channel(
            on_open_callback=lambda channel: self._on_open(consumer_channel, channel)
        )
        consumer_channel.channel.add_on_close_callback(
            lambda _, reason: self._on_close(consumer_channel, reason)
        )
        self._channels.append(consumer_channel)
        return consumer_channel

    def _on_open(self, consumer_channel: _ConsumerChannel, channel: Channel) -> None:
        channel.add_on_cancel_callback(
            lambda frame: self._on_cancelled(consumer_channel, frame.method.consumer_tag)
        )
        # pika would call the callback of basic_cancel for the first cancel-ok of any consumer.
        channel.add_callback(
            lambda frame: self._on_cancel_ok(consumer_channel, frame.method.consumer_tag),
            [spec.Basic.CancelOk],
            one_shot=False,
        )
        channel.basic_qos(prefetch_count=1, callback=lambda _: self._next_call(consumer_channel))

    def _next_call(self, consumer_channel: _ConsumerChannel) -> None:
        channel = consumer_channel.channel
        if (
            consumer_channel.calling is not None
            or not consumer_channel.calls
            or channel is None
            or not channel.is_open
        ):
            return
        doorbell = consumer_channel.calling = consumer_channel.calls.popleft()
        consumer_channel.watchdog = asyncio.get_running_loop().call_later(
            ANSWER_SECONDS, self._on_stuck, consumer_channel
        )
        if doorbell.state is _State.CANCELLING:
            channel.basic_cancel(doorbell.tag, callback=lambda _: None)
        else:
            doorbell.tag = channel.basic_consume(
                doorbell.queue,
                on_message_callback=lambda _, method, properties, __: self._on_delivery(
                    doorbell, method.delivery_tag, properties.body_size
                ),
                arguments={"x-priority": PRIORITY},
                callback=lambda _: self._on_consume_ok(doorbell),
            )

    def _on_consume_ok(self, doorbell: _Doorbell) -> None:
        if doorbell.state is _State.INSTALLING:
            doorbell.state = _State.INSTALLED
            doorbell.installed_at = asyncio.get_running_loop().time()
        if not doorbell.settled.done():
            doorbell.settled.set_result(True)
        assert doorbell.consumer_channel is not None  # noqa: S101 - it was consumed there
        self._silences.pop(doorbell.queue, None)
        self._answered(doorbell.consumer_channel)

    def _on_cancel_ok(self, consumer_channel: _ConsumerChannel, tag: str) -> None:
        doorbell = consumer_channel.calling
        if doorbell is None or doorbell.tag != tag:
            return
        self._finish(doorbell)
        self._answered(consumer_channel)

    def _answered(self, consumer_channel: _ConsumerChannel) -> None:
        consumer_channel.calling = None
        if consumer_channel.watchdog is not None:
            consumer_channel.watchdog.cancel()
        self._next_call(consumer_channel)

    def _on_stuck(self, consumer_channel: _ConsumerChannel) -> None:
        """Move the other doorbells of a channel to new channels when its call gets no answer.

        pika sends the close after the call has ended. RabbitMQ would not read it before.
        """
        offender, channel = consumer_channel.calling, consumer_channel.channel
        if offender is None or channel is None or not channel.is_open:
            return
        consumer_channel.channel = consumer_channel.calling = None
        doorbells = self._discard(consumer_channel)
        channel.close()
        for doorbell in doorbells:
            if doorbell is not offender:
                self._install(doorbell.queue)
        self._on_silence(offender.queue)
        self._retry_later(offender.queue)

    def _on_cancelled(self, consumer_channel: _ConsumerChannel, tag: str) -> None:
        """Handle a cancel by the broker: the queue was deleted."""
        doorbell = next((doorbell for doorbell in consumer_channel.doorbells if doorbell.tag == tag), None)
        if doorbell is None or doorbell is consumer_channel.calling:
            # Our own cancel was already sent, and the broker still confirms it.
            return
        self._vanished.add(doorbell.queue)
        known = self._doorbells.get(doorbell.queue) is doorbell
        if known:
            del self._doorbells[doorbell.queue]
        self._finish(doorbell)
        if known:
            self._on_removed(doorbell.queue, None)

    def _on_close(self, consumer_channel: _ConsumerChannel, reason: Exception) -> None:
        """Handle a closed channel: the connection was lost, or the broker refused the outstanding call."""
        offender = consumer_channel.calling
        if consumer_channel.watchdog is not None:
            consumer_channel.watchdog.cancel()
        wanted = self._discard(consumer_channel)
        if not isinstance(reason, ChannelClosedByBroker):
            return
        for doorbell in wanted:
            if doorbell is not offender:
                if self._connection.is_open:
                    self._install(doorbell.queue)
                continue
            if reason.reply_code == _NOT_FOUND:
                self._vanished.add(doorbell.queue)
            self._on_removed(doorbell.queue, (reason.reply_code, reason.reply_text))

    def _discard(self, consumer_channel: _ConsumerChannel) -> list[_Doorbell]:
        """Discard a channel; return its doorbells that are still wanted."""
        if consumer_channel in self._channels:
            self._channels.remove(consumer_channel)
        doorbells = list(consumer_channel.doorbells)
        wanted = [doorbell for doorbell in doorbells if self._doorbells.get(doorbell.queue) is doorbell]
        for doorbell in wanted:
            del self._doorbells[doorbell.queue]
        for doorbell in doorbells:
            self._finish(doorbell)
        return wanted
