"""Bells: consumers on idle queues that wake a WorkQueue when its first message arrives.

Place in the flow: `reconcile` hangs a bell when a WorkQueue has no worker and may have one, and takes it
down before it starts any. A ring is told to `on_ring`; the message goes straight back to the queue.

The rules, each from an experiment: the bell cancels before it hands the message back, on the same channel
and with nack (reject and closing the channel count as failures); its priority is below any worker's; a
queue that had vanished gets its next bell on a fresh channel, because a channel that consumed from a quorum
queue and then consumes from a classic one of the same name kills the whole connection (541).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker, ChannelWrongStateError

logger = logging.getLogger(__name__)

BELLS_PER_CHANNEL: Final = 128
PRIORITY: Final = -1000

_NAMED_QUEUE: Final = re.compile(r"queue '([^']*)' in vhost")


class _State(Enum):
    HANGING = "hanging"
    HUNG = "hung"
    CANCELLING = "cancelling"


@dataclass(eq=False)
class _Bell:
    queue: str
    rack: _Rack
    tag: str = ""
    state: _State = _State.HANGING
    hung_at: float | None = None
    settled: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """True once consume-ok has come, False when the bell fell before."""


@dataclass(eq=False)
class _Rack:
    """One channel with bells on it."""

    capacity: int
    channel: Channel | None = None
    bells: dict[str, _Bell] = field(default_factory=dict)


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
        """Remember that the queue was gone: its next bell gets a channel of its own."""
        self._vanished.add(queue)

    async def hang(self, queue: str, timeout: float) -> bool:
        """Hang a bell, unless one hangs already, and wait until the broker has confirmed it.

        Returns:
            Whether the bell hangs now. False: it rang at once, was refused, or was not confirmed in time.
        """
        bell = self._bells.get(queue)
        if bell is None or bell.state is _State.CANCELLING:
            bell = self._hang(queue)
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(bell.settled) and self._bells.get(queue) is bell
        except TimeoutError:
            return False

    def take_down(self, queue: str) -> None:
        """Cancel the bell of this queue, if there is one.

        The broker sees the cancel before anything that is sent later on the same connection reaches it
        through that channel; a message that it had already handed to the bell goes back.
        """
        bell = self._bells.pop(queue, None)
        if bell is not None:
            self._cancel(bell)

    def _hang(self, queue: str) -> _Bell:
        fresh = queue in self._vanished
        self._vanished.discard(queue)
        rack = self._rack(fresh)
        bell = _Bell(queue, rack)
        self._bells[queue] = bell
        rack.bells[queue] = bell
        if rack.channel is not None and rack.channel.is_open:
            self._consume(rack.channel, bell)
        return bell

    def _rack(self, fresh: bool) -> _Rack:
        if not fresh:
            for rack in self._racks:
                if len(rack.bells) < rack.capacity:
                    return rack
        rack = _Rack(capacity=1 if fresh else BELLS_PER_CHANNEL)
        self._racks.append(rack)

        def opened(channel: Channel) -> None:
            channel.basic_qos(prefetch_count=1)
            for bell in list(rack.bells.values()):
                self._consume(channel, bell)

        rack.channel = self._connection.channel(on_open_callback=opened)
        rack.channel.add_on_close_callback(lambda _, reason: self._on_close(rack, reason))
        rack.channel.add_on_cancel_callback(lambda frame: self._on_cancelled(rack, frame.method.consumer_tag))
        return rack

    def _consume(self, channel: Channel, bell: _Bell) -> None:
        def confirmed(_: Any) -> None:
            if bell.state is _State.HANGING:
                bell.state = _State.HUNG
                bell.hung_at = asyncio.get_running_loop().time()
            if not bell.settled.done():
                bell.settled.set_result(True)

        try:
            bell.tag = channel.basic_consume(
                bell.queue,
                on_message_callback=lambda channel, method, *_: self._ring(
                    channel, bell, method.delivery_tag
                ),
                arguments={"x-priority": PRIORITY},
                callback=confirmed,
            )
        except ChannelWrongStateError:
            self._forget(bell)

    def _ring(self, channel: Channel, bell: _Bell, delivery_tag: int) -> None:
        wanted = self._bells.get(bell.queue) is bell
        if wanted:
            del self._bells[bell.queue]
        self._cancel(bell)
        channel.basic_nack(delivery_tag, requeue=True)
        if wanted:
            self._on_ring(bell.queue)

    def _cancel(self, bell: _Bell) -> None:
        if bell.state is _State.CANCELLING:
            return
        hanging, bell.state = bell.state is _State.HANGING and not bell.tag, _State.CANCELLING
        self._settle(bell)
        channel = bell.rack.channel
        if hanging or channel is None or not channel.is_open:
            self._unrack(bell)
            return
        channel.basic_cancel(bell.tag, callback=lambda _: self._unrack(bell))

    def _unrack(self, bell: _Bell) -> None:
        rack = bell.rack
        if rack.bells.get(bell.queue) is bell:
            del rack.bells[bell.queue]
        if rack.capacity == 1 and not rack.bells and rack in self._racks:
            self._racks.remove(rack)
            if rack.channel is not None and rack.channel.is_open:
                rack.channel.close()

    def _forget(self, bell: _Bell) -> None:
        if self._bells.get(bell.queue) is bell:
            del self._bells[bell.queue]
        self._settle(bell)
        self._unrack(bell)

    @staticmethod
    def _settle(bell: _Bell) -> None:
        if not bell.settled.done():
            bell.settled.set_result(False)

    def _on_cancelled(self, rack: _Rack, tag: str) -> None:
        for bell in list(rack.bells.values()):
            if bell.tag == tag:
                known = self._bells.get(bell.queue) is bell
                self._vanished.add(bell.queue)
                self._forget(bell)
                if known:
                    self._on_fall(bell.queue, None)

    def _on_close(self, rack: _Rack, reason: Exception) -> None:
        """The broker closed the channel: its text names the offender, all others hang again at once."""
        if rack in self._racks:
            self._racks.remove(rack)
        bells = [bell for bell in rack.bells.values() if self._bells.get(bell.queue) is bell]
        rack.bells.clear()
        for bell in bells:
            del self._bells[bell.queue]
            self._settle(bell)
        if not isinstance(reason, ChannelClosedByBroker):
            return
        named = _NAMED_QUEUE.search(reason.reply_text)
        offender = named[1] if named else None
        for bell in bells:
            if offender in {None, bell.queue}:
                self._vanished.add(bell.queue)
                self._on_fall(bell.queue, (reason.reply_code, reason.reply_text))
            else:
                self._hang(bell.queue)
