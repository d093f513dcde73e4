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
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pika import spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

BELLS_PER_CHANNEL: Final = 128
PRIORITY: Final = -1000

_NOT_FOUND: Final = 404


class _State(Enum):
    HANGING = "hanging"
    HUNG = "hung"
    CANCELLING = "cancelling"


@dataclass(eq=False)
class _Bell:
    """One consumer.

    Attributes:
        tag: of the consumer, empty until it was asked for.
        hung_at: when consume-ok came, on the loop's clock.
        settled: True once consume-ok has come, False when the bell fell before.
        held: delivery tag of the message that goes back once the cancel is confirmed.
        rang: whether `on_ring` is to be told then.
    """

    queue: str
    rack: _Rack
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
    """

    capacity: int
    channel: Channel | None = None
    bells: set[_Bell] = field(default_factory=set)
    calls: deque[_Bell] = field(default_factory=deque)
    calling: _Bell | None = None


class Doorbell:
    """All bells of one connection. Lives exactly as long as that connection.

    Args:
        connection: an open connection.
        on_ring: called with the queue's name when its bell rang; the bell is down by then.
        on_fall: called with the queue's name when its bell fell by itself (queue deleted, refused); the
            second argument is the refusal, or None when the broker cancelled the consumer.
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

    def __len__(self) -> int:
        return len(self._bells)

    def is_up(self, queue: str) -> bool:
        """Whether a bell of this queue counts as a consumer at the broker, as far as we know."""
        return queue in self._bells

    def hung_at(self, queue: str) -> float | None:
        """When the broker confirmed the bell of this queue, on the loop's clock; None while it has not."""
        bell = self._bells.get(queue)
        return bell.hung_at if bell is not None else None

    def mark_vanished(self, queue: str) -> None:
        """Remember that the queue was gone: its bells get channels of their own from now on."""
        self._vanished.add(queue)

    async def hang(self, queue: str, timeout: float) -> bool:
        """Hang a bell, unless one hangs already, and wait until the broker has confirmed it.

        Returns:
            Whether the bell hangs now. False: it rang at once, was refused, or was not confirmed in time.
        """
        if not self._connection.is_open:
            return False
        bell = self._bells.get(queue) or self._hang(queue)
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(bell.settled) and self._bells.get(queue) is bell
        except TimeoutError:
            return False

    def take_down(self, queue: str) -> None:
        """Cancel the bell of this queue, if there is one; a message that it was just given goes back."""
        bell = self._bells.pop(queue, None)
        if bell is not None:
            self._cancel(bell)

    # -- one bell ------------------------------------------------------------------------------------

    def _hang(self, queue: str) -> _Bell:
        rack = self._rack(alone=queue in self._vanished)
        bell = self._bells[queue] = _Bell(queue, rack)
        rack.bells.add(bell)
        rack.calls.append(bell)
        self._next_call(rack)
        return bell

    def _on_delivery(self, bell: _Bell, delivery_tag: int) -> None:
        bell.held = delivery_tag
        if self._bells.get(bell.queue) is bell:
            del self._bells[bell.queue]
            bell.rang = True
            self._cancel(bell)

    def _cancel(self, bell: _Bell) -> None:
        waiting = bell.state is _State.HANGING and not bell.tag
        bell.state = _State.CANCELLING
        if waiting:
            self._finish(bell)
        else:
            bell.rack.calls.appendleft(bell)
            self._next_call(bell.rack)

    def _finish(self, bell: _Bell) -> None:
        """The bell is no consumer any more: hand back what it holds, and tell if it rang."""
        rack = bell.rack
        rack.bells.discard(bell)
        if bell in rack.calls:
            rack.calls.remove(bell)
        if not bell.settled.done():
            bell.settled.set_result(False)
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
        bell.rack.calling = None
        self._next_call(bell.rack)

    def _on_cancel_ok(self, rack: _Rack, tag: str) -> None:
        bell = rack.calling
        if bell is None or bell.tag != tag:
            return
        rack.calling = None
        self._finish(bell)
        self._next_call(rack)

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
        if rack in self._racks:
            self._racks.remove(rack)
        offender, bells = rack.calling, list(rack.bells)
        wanted = [bell for bell in bells if self._bells.get(bell.queue) is bell]
        for bell in wanted:
            del self._bells[bell.queue]
        for bell in bells:
            self._finish(bell)
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
