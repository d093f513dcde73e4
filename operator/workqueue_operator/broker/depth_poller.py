"""The sweep: how deep the queues of one broker are, asked by passive declare over its one connection.

Place in the flow: a pass says how closely a queue is to be watched and reads the last answer; changed
numbers wake the WorkQueue. A round never starts before the one before it has ended, and each broker has a
sweep of its own, so that a dead one delays nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from workqueue_operator.broker.connection import Broker, QueueCounts, QueueMissingError
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.store import Key

logger = logging.getLogger(__name__)

IDLE_CHUNK: Final = 64
"""Idle queues asked at once: few enough that an active queue never waits long behind them."""

WARM_SECONDS: Final = 1.0
"""Pause between two rounds over warm queues: a dead letter shows within two seconds while workers run."""

REFUSAL_STANDS: Final = 300.0
"""Seconds after which a refused bell may be tried again: somebody may have given the permission meanwhile."""

_NOT_FOUND: Final = 404


class QueueMissing:
    """The answer for a queue that does not exist."""


QUEUE_MISSING: Final = QueueMissing()


@dataclass(eq=False, slots=True)
class PolledQueue:
    """One queue that is looked at.

    Attributes:
        key: the WorkQueue it belongs to.
        active: asked each round; otherwise in the slow rounds only, or each second if it is warm.
        warm: running workers put messages into it, those that failed.
        last: the last answer; None before the first.
        answered_at: when the last answer with numbers came, on the loop's clock.
        doubtful: the broker has cancelled a bell since: the queue may be gone, or its leader moved.
        refused: code and text when a bell on this queue was refused, and when that was.
        claimed: whether the broker let the WorkQueue declare the queue, so that it counts as a claim on it.
    """

    key: Key
    queue: str
    active: bool = False
    warm: bool = False
    last: QueueCounts | QueueMissing | ReconcileError | None = None
    answered_at: float | None = None
    doubtful: bool = False
    refused: tuple[tuple[int, str], float] | None = None
    claimed: bool = False

    def hear(self, answer: QueueCounts | QueueMissing | ReconcileError) -> None:
        """Take note of an answer."""
        self.last = answer
        if isinstance(answer, QueueCounts):
            self.answered_at = answer.at

    @property
    def refusal(self) -> tuple[int, str] | None:
        """Why a bell was refused lately, or None."""
        if self.refused is None or asyncio.get_running_loop().time() - self.refused[1] > REFUSAL_STANDS:
            return None
        return self.refused[0]


class DepthPoller:
    """All looked-at queues of one broker.

    Args:
        broker: whose connection is used.
        wake: called with the key of a WorkQueue whose numbers changed.
        seconds: pause between two rounds over the active queues.
        idle_seconds: pause between two rounds over all others.
    """

    def __init__(
        self, broker: Broker, wake: Callable[[Key], None], seconds: float, idle_seconds: float
    ) -> None:
        self._broker = broker
        self._wake = wake
        self.seconds = seconds
        self._watched: dict[tuple[Key, str], PolledQueue] = {}
        self._by_queue: dict[str, tuple[Key, ...]] = {}
        self.last_round = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(
                self._rounds(seconds, lambda entry: entry.active), name=f"sweep {broker.binding.display}"
            ),
            asyncio.create_task(
                self._rounds(WARM_SECONDS, lambda entry: entry.warm and not entry.active),
                name=f"warm sweep {broker.binding.display}",
            ),
            asyncio.create_task(
                self._rounds(idle_seconds, lambda entry: not (entry.warm or entry.active)),
                name=f"idle sweep {broker.binding.display}",
            ),
        ]
        self._active = self._tasks[0]

    def watch(self, key: Key, queue: str) -> PolledQueue:
        """Look at a queue from now on; in the slow rounds until the caller sets `active`."""
        polled = self._watched.get((key, queue))
        if polled is None:
            polled = self._watched[key, queue] = PolledQueue(key, queue)
            self._by_queue[queue] = (*self.keys_of(queue), key)
        return polled

    def forget(self, key: Key) -> None:
        """Look at no queue of this WorkQueue any more."""
        for queue in self.queues_of(key):
            self.forget_queue(key, queue)

    def forget_queue(self, key: Key, queue: str) -> None:
        """Look at this queue no more for this WorkQueue."""
        del self._watched[key, queue]
        others = tuple(other for other in self._by_queue.pop(queue) if other != key)
        if others:
            self._by_queue[queue] = others

    def queues_of(self, key: Key) -> list[str]:
        """The queues that are looked at for a WorkQueue."""
        return [queue for owner, queue in self._watched if owner == key]

    def keys_of(self, queue: str) -> tuple[Key, ...]:
        """The WorkQueues that look at a queue."""
        return self._by_queue.get(queue, ())

    def claims_on(self, queue: str) -> list[Key]:
        """The WorkQueues that have declared a queue."""
        return [key for key in self.keys_of(queue) if self._watched[key, queue].claimed]

    def doorbell_removed(self, queue: str, refusal: tuple[int, str] | None) -> None:
        """Note that a bell was refused, or that the broker has cancelled it (no refusal)."""
        for key in self.keys_of(queue):
            polled = self._watched[key, queue]
            if refusal is None:
                polled.doubtful = True
            elif refusal[0] == _NOT_FOUND:
                polled.last = QUEUE_MISSING
            else:
                polled.refused = (refusal, asyncio.get_running_loop().time())

    def age(self) -> float | None:
        """Seconds since the oldest answer about an active queue; None when none is active."""
        now = asyncio.get_running_loop().time()
        return max(
            (
                now - entry.answered_at
                for entry in self._watched.values()
                if entry.active and entry.answered_at is not None
            ),
            default=None,
        )

    async def ask(self, polled: PolledQueue) -> QueueCounts | QueueMissing | ReconcileError:
        """Ask the broker now, and remember the answer without waking anybody."""
        polled.doubtful = False
        answer: QueueCounts | QueueMissing | ReconcileError
        try:
            answer = await self._broker.counts(polled.queue)
        except QueueMissingError:
            answer = QUEUE_MISSING
        except ReconcileError as problem:
            answer = problem
        polled.hear(answer)
        return answer

    async def look_in_passing(
        self, key: Key, queue: str, *, warm: bool
    ) -> QueueCounts | QueueMissing | ReconcileError | None:
        """Return the last answer about a queue beside the work queue, and set whether it is warm.

        The broker is asked when there is no answer yet, and when the queue cools down: the last worker may have put
        something into it since the last round.
        """
        polled = self.watch(key, queue)
        if polled.last is None or (polled.warm and not warm):
            await self.ask(polled)
        polled.warm = warm
        return polled.last

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _rounds(self, seconds: float, chosen: Callable[[PolledQueue], bool]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                if self._broker.connected:
                    await self._round([entry for entry in self._watched.values() if chosen(entry)])
            except Exception:
                # One round that fails for a reason nobody thought of must not end all rounds.
                logger.exception("A sweep failed.", extra={"broker": self._broker.binding.display})
            if asyncio.current_task() is self._active:
                self.last_round = asyncio.get_running_loop().time()

    async def _round(self, entries: list[PolledQueue]) -> None:
        for start in range(0, len(entries), IDLE_CHUNK):
            await asyncio.gather(*(self._look(entry) for entry in entries[start : start + IDLE_CHUNK]))

    async def _look(self, polled: PolledQueue) -> None:
        before = _numbers(polled.last)
        await self.ask(polled)
        if _numbers(polled.last) != before:
            self._wake(polled.key)


def _numbers(answer: QueueCounts | QueueMissing | ReconcileError | None) -> object:
    if isinstance(answer, QueueCounts):
        return answer.ready, answer.consumers
    if isinstance(answer, ReconcileError):
        return answer.reason
    return answer
