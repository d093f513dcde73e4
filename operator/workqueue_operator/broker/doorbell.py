"""Bells: consumers on idle queues that wake a WorkQueue when its first message arrives.

Place in the flow: `reconcile` hangs a bell when a WorkQueue has no worker and may have one, and takes it
down before it starts any. A ring is told to `on_ring` when the message is on its way back to the queue.

The rules, each from an experiment: a bell is cancelled before it hands the message back, on the same channel
and with nack (reject and closing the channel count as failures); its priority is below any worker's; a queue
that had vanished gets its bells on channels of their own, because a channel that consumed from a quorum queue
and then consumes from a classic one of the same name kills the whole connection (541).

A channel has one call outstanding, and pika would queue a cancel behind other bells' consumes while a nack
goes out at once: the message would come back to the same bell. So the calls wait their turn here, cancels
before consumes, and the nack waits for its cancel to be confirmed. It also says who is to blame when the
broker closes the channel: the bell whose call was outstanding.

A quorum queue without a majority leaves consume and cancel unanswered, and blocks RabbitMQ's channel process with
them: messages that other queues hand to that channel stay there until the call ends, also when the client closes the
channel (tried on 3.10 and 4.0: more than 147 s) or the connection (72 s). So before each call on a shared channel a
basic.get on a channel of its own proves that the queue takes commands. A ring proves it, too.
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
from pika.exceptions import ChannelClosedByBroker

from workqueue_operator.broker.channel import CallChannel, ChannelLostError, ChannelRefusedError

logger = logging.getLogger(__name__)

BELLS_PER_CHANNEL: Final = 128
PRIORITY: Final = -1000

ANSWER_SECONDS: Final = 2.0
"""Seconds after which a call counts as unanswered."""

PROBES_KEPT: Final = 16
"""Channels that are kept open to prove that queues answer."""

RETRY_SECONDS: Final = (2.0, 60.0)
"""The first and the longest pause before a queue that gave no answer is tried again."""

_NOT_FOUND: Final = 404
_RESOURCE_LOCKED: Final = 405


class _State(Enum):
    HANGING = "hanging"
    HUNG = "hung"
    LEAVING = "leaving"
    CANCELLING = "cancelling"


@dataclass(eq=False)
class _Bell:
    """One consumer.

    Attributes:
        rack: the channel it is on; None until its queue has proved that it answers.
        tag: of the consumer, empty until it was asked for.
        hung_at: when consume-ok came, on the loop's clock.
        settled: True once consume-ok has come, False when the bell fell before.
        held: delivery tag of the message that goes back once the cancel is confirmed.
        rang: whether `on_ring` is to be told then.
    """

    queue: str
    rack: _Rack | None = None
    tag: str = ""
    state: _State = _State.HANGING
    hung_at: float | None = None
    settled: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    held: int | None = None
    rang: bool = False


@dataclass(eq=False)
class _Rack:
    """One channel with bells on it.

    Attributes:
        calls: bells that wait to be consumed or cancelled, as their state says.
        calling: the one whose call is outstanding.
        watchdog: fires when that call gets no answer.
    """

    capacity: int
    channel: Channel | None = None
    bells: set[_Bell] = field(default_factory=set)
    calls: deque[_Bell] = field(default_factory=deque)
    calling: _Bell | None = None
    watchdog: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True)
class _Silence:
    """A queue that left a call unanswered.

    Attributes:
        retry_at: no attempt before, on the loop's clock; math.inf while a call is outstanding.
        pause: seconds, of the pause before the next attempt.
    """

    retry_at: float = math.inf
    pause: float = RETRY_SECONDS[0]


class Doorbell:
    """All bells of one connection. Lives exactly as long as that connection.

    Args:
        connection: an open connection.
        on_ring: called with the queue's name when its bell rang; the bell is down by then.
        on_fall: called with the queue's name when its bell fell by itself (queue deleted, refused); the
            second argument is the refusal, or None when the broker cancelled the consumer or a queue that was
            silent may be tried again.
    """

    def __init__(
        self,
        connection: AsyncioConnection,
        on_ring: Callable[[str], None],
        on_fall: Callable[[str, tuple[int, str] | None], None],
    ) -> None:
        self._connection = connection
        self._on_ring = on_ring
        self._on_fall = on_fall
        self._bells: dict[str, _Bell] = {}
        self._racks: list[_Rack] = []
        self._vanished: set[str] = set()
        self._silences: dict[str, _Silence] = {}
        self._probes: list[CallChannel] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._bells)

    def is_up(self, queue: str) -> bool:
        """Whether a bell of this queue counts as a consumer at the broker, as far as we know."""
        bell = self._bells.get(queue)
        return bell is not None and bell.rack is not None

    def is_silent(self, queue: str) -> bool:
        """Whether the queue left our last call unanswered, as a quorum queue without a majority does."""
        return queue in self._silences

    def hung_at(self, queue: str) -> float | None:
        """When the broker confirmed the bell of this queue, on the loop's clock; None while it has not."""
        bell = self._bells.get(queue)
        return bell.hung_at if bell is not None else None

    def mark_vanished(self, queue: str) -> None:
        """Remember that the queue was gone: its bells get channels of their own from now on."""
        self._vanished.add(queue)

    async def hang(self, queue: str, *, ours: bool = True) -> bool:
        """Install a doorbell, unless there is one already, and wait until the broker has confirmed it.

        Args:
            ours: whether the queue is declared by us. The doorbell of any other queue gets a channel of its own,
                since basic.get on a stream closes the whole connection (540).

        Returns:
            Whether the doorbell is installed now. False: it rang, was refused, or was not confirmed in time.
        """
        silence = self._silences.get(queue)
        if not self._connection.is_open or (silence and asyncio.get_running_loop().time() < silence.retry_at):
            return False
        bell = self._bells.get(queue) or self._hang(queue, ours=ours)
        try:
            async with asyncio.timeout(ANSWER_SECONDS + 1):
                return await asyncio.shield(bell.settled) and self._bells.get(queue) is bell
        except TimeoutError:
            return False

    def take_down(self, queue: str) -> None:
        """Cancel the bell of this queue, if there is one; a message that it was just given goes back."""
        bell = self._bells.pop(queue, None)
        if bell is None:
            return
        if bell.rack is None or bell.rack.capacity == 1 or not bell.tag:
            self._cancel(bell)
        else:
            bell.state = _State.LEAVING
            self._start(self._prove_and_cancel(bell))

    # -- proof that a queue answers ------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prove(self, queue: str) -> bool:
        """Wait until the queue answers a basic.get, on a channel that waits for nothing else.

        Returns:
            Whether there was a message, which went back.

        Raises:
            ChannelRefusedError: the broker refused the call.
            ChannelLostError: the channel or the connection was lost.
        """
        probe = self._probes.pop() if self._probes else CallChannel(self._connection, math.inf)
        watchdog = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._on_silence, queue)
        try:
            found: bool = await probe.call(lambda channel, done: _get(channel, queue, done))
        except ChannelRefusedError as error:
            # A queue with a single active consumer refuses basic.get, once its members have agreed on that.
            if error.code != _RESOURCE_LOCKED:
                raise
            found = False
        finally:
            watchdog.cancel()
            if len(self._probes) < PROBES_KEPT:
                self._probes.append(probe)
            else:
                probe.close()
        if self._silences.pop(queue, None) is not None:
            self._on_fall(queue, None)
        return found

    async def _prove_and_consume(self, bell: _Bell) -> None:
        queue = bell.queue
        try:
            found = await self._prove(queue)
        except ChannelRefusedError as error:
            if self._drop(bell):
                if error.code == _NOT_FOUND:
                    self._vanished.add(queue)
                self._on_fall(queue, (error.code, error.text))
            self._retry_later(queue)
        except ChannelLostError:
            self._drop(bell)
            self._retry_later(queue)
        else:
            if self._bells.get(queue) is bell and not found:
                self._consume(bell, self._rack(alone=False))
            elif self._drop(bell):
                self._on_ring(queue)

    async def _prove_and_cancel(self, bell: _Bell) -> None:
        # Whatever was refused, somebody answered. A lost channel is tried again while the connection lives.
        pause = RETRY_SECONDS[0]
        while bell.state is _State.LEAVING and self._connection.is_open:
            try:
                await self._prove(bell.queue)
            except ChannelLostError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS[1])
                continue
            except ChannelRefusedError:
                pass
            break
        # It may have rung since, or its channel may be gone.
        if bell.state is _State.LEAVING and bell.rack is not None and bell in bell.rack.bells:
            self._cancel(bell)

    def _drop(self, bell: _Bell) -> bool:
        """Forget a bell that is not at the broker; whether it was still wanted."""
        wanted = self._bells.get(bell.queue) is bell
        if wanted:
            del self._bells[bell.queue]
        if not bell.settled.done():
            bell.settled.set_result(False)
        return wanted

    def _on_silence(self, queue: str) -> None:
        """A call about this queue has no answer yet; the next attempt waits until it has ended."""
        logger.warning("A queue gives no answer to the doorbell.", extra={"queue": queue})
        self._silences.setdefault(queue, _Silence()).retry_at = math.inf
        bell = self._bells.get(queue)
        if bell is not None and bell.rack is None:
            self._drop(bell)

    def _retry_later(self, queue: str) -> None:
        """The call has ended without an answer: the next attempt waits for a pause that grows."""
        silence = self._silences.get(queue)
        if silence is None or not self._connection.is_open:
            return
        loop = asyncio.get_running_loop()
        silence.retry_at = loop.time() + silence.pause
        loop.call_later(silence.pause, self._on_fall, queue, None)
        silence.pause = min(2 * silence.pause, RETRY_SECONDS[1])

    # -- one bell ------------------------------------------------------------------------------------

    def _hang(self, queue: str, *, ours: bool = True) -> _Bell:
        bell = self._bells[queue] = _Bell(queue)
        if queue in self._vanished or not ours:
            self._consume(bell, self._rack(alone=True))
        else:
            self._start(self._prove_and_consume(bell))
        return bell

    def _consume(self, bell: _Bell, rack: _Rack) -> None:
        bell.rack = rack
        rack.bells.add(bell)
        rack.calls.append(bell)
        self._next_call(rack)

    def _on_delivery(self, bell: _Bell, delivery_tag: int) -> None:
        bell.held = delivery_tag
        if self._bells.get(bell.queue) is bell:
            del self._bells[bell.queue]
            bell.rang = True
            self._cancel(bell)
        elif bell.state is _State.LEAVING:
            self._cancel(bell)

    def _cancel(self, bell: _Bell) -> None:
        waiting = not bell.tag
        bell.state = _State.CANCELLING
        if bell.rack is None or waiting:
            self._finish(bell)
        else:
            bell.rack.calls.appendleft(bell)
            self._next_call(bell.rack)

    def _finish(self, bell: _Bell) -> None:
        """The bell is no consumer any more: hand back what it holds, and tell if it rang."""
        if not bell.settled.done():
            bell.settled.set_result(False)
        rack = bell.rack
        if rack is None:
            return
        rack.bells.discard(bell)
        if bell in rack.calls:
            rack.calls.remove(bell)
        channel = rack.channel
        usable = channel is not None and channel.is_open
        if channel is not None and usable and bell.held is not None:
            channel.basic_nack(bell.held, requeue=True)
        if channel is not None and usable and rack.capacity == 1 and rack in self._racks and not rack.bells:
            self._racks.remove(rack)
            channel.close()
        if bell.rang:
            self._on_ring(bell.queue)

    # -- one channel ---------------------------------------------------------------------------------

    def _rack(self, *, alone: bool) -> _Rack:
        for rack in self._racks if not alone else ():
            if len(rack.bells) < rack.capacity:
                return rack
        rack = _Rack(capacity=1 if alone else BELLS_PER_CHANNEL)
        rack.channel = self._connection.channel(on_open_callback=lambda channel: self._on_open(rack, channel))
        rack.channel.add_on_close_callback(lambda _, reason: self._on_close(rack, reason))
        self._racks.append(rack)
        return rack

    def _on_open(self, rack: _Rack, channel: Channel) -> None:
        channel.add_on_cancel_callback(lambda frame: self._on_cancelled(rack, frame.method.consumer_tag))
        # The callback of basic_cancel would be called for whichever cancel-ok comes first.
        channel.add_callback(
            lambda frame: self._on_cancel_ok(rack, frame.method.consumer_tag),
            [spec.Basic.CancelOk],
            one_shot=False,
        )
        channel.basic_qos(prefetch_count=1, callback=lambda _: self._next_call(rack))

    def _next_call(self, rack: _Rack) -> None:
        channel = rack.channel
        if rack.calling is not None or not rack.calls or channel is None or not channel.is_open:
            return
        bell = rack.calling = rack.calls.popleft()
        rack.watchdog = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._on_stuck, rack)
        if bell.state is _State.CANCELLING:
            channel.basic_cancel(bell.tag, callback=lambda _: None)
        else:
            bell.tag = channel.basic_consume(
                bell.queue,
                on_message_callback=lambda _, method, *__: self._on_delivery(bell, method.delivery_tag),
                arguments={"x-priority": PRIORITY},
                callback=lambda _: self._on_consume_ok(bell),
            )

    def _on_consume_ok(self, bell: _Bell) -> None:
        if bell.state is _State.HANGING:
            bell.state = _State.HUNG
            bell.hung_at = asyncio.get_running_loop().time()
        if not bell.settled.done():
            bell.settled.set_result(True)
        assert bell.rack is not None  # noqa: S101 - it was consumed there
        self._silences.pop(bell.queue, None)
        self._answered(bell.rack)

    def _on_cancel_ok(self, rack: _Rack, tag: str) -> None:
        bell = rack.calling
        if bell is None or bell.tag != tag:
            return
        self._finish(bell)
        self._answered(rack)

    def _answered(self, rack: _Rack) -> None:
        rack.calling = None
        if rack.watchdog is not None:
            rack.watchdog.cancel()
        self._next_call(rack)

    def _on_stuck(self, rack: _Rack) -> None:
        """A call on this channel has no answer: its other doorbells move to other channels.

        pika sends the close as soon as the call has ended; RabbitMQ would not read it before either.
        """
        offender, channel = rack.calling, rack.channel
        if offender is None or channel is None or not channel.is_open:
            return
        rack.channel = rack.calling = None
        bells = self._let_go(rack)
        channel.close()
        for bell in bells:
            if bell is not offender:
                self._hang(bell.queue)
        self._on_silence(offender.queue)
        self._retry_later(offender.queue)

    def _on_cancelled(self, rack: _Rack, tag: str) -> None:
        """The broker cancelled a consumer: its queue is gone."""
        bell = next((bell for bell in rack.bells if bell.tag == tag), None)
        if bell is None or bell is rack.calling:
            # Our own cancel crossed it, and is still confirmed.
            return
        self._vanished.add(bell.queue)
        known = self._bells.get(bell.queue) is bell
        if known:
            del self._bells[bell.queue]
        self._finish(bell)
        if known:
            self._on_fall(bell.queue, None)

    def _on_close(self, rack: _Rack, reason: Exception) -> None:
        """The channel is gone: with its connection, or because the broker refused the outstanding call."""
        offender = rack.calling
        if rack.watchdog is not None:
            rack.watchdog.cancel()
        wanted = self._let_go(rack)
        if not isinstance(reason, ChannelClosedByBroker):
            return
        for bell in wanted:
            if bell is not offender:
                if self._connection.is_open:
                    self._hang(bell.queue)
                continue
            if reason.reply_code == _NOT_FOUND:
                self._vanished.add(bell.queue)
            self._on_fall(bell.queue, (reason.reply_code, reason.reply_text))

    def _let_go(self, rack: _Rack) -> list[_Bell]:
        """Give up a channel; returns its bells that are still wanted."""
        if rack in self._racks:
            self._racks.remove(rack)
        bells = list(rack.bells)
        wanted = [bell for bell in bells if self._bells.get(bell.queue) is bell]
        for bell in wanted:
            del self._bells[bell.queue]
        for bell in bells:
            self._finish(bell)
        return wanted


def _get(channel: Channel, queue: str, done: Callable[[bool], None]) -> None:
    """Take the first message of a queue, hand it back, and tell whether there was one."""

    def on_message(_: Channel, method: spec.Basic.GetOk, *__: object) -> None:
        channel.basic_nack(method.delivery_tag, requeue=True)
        done(True)

    channel.add_callback(lambda _: done(False), [spec.Basic.GetEmpty])
    channel.basic_get(queue, on_message)
