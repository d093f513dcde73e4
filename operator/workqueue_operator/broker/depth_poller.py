"""Poll the depths of the queues of one broker by passive declare.

A pass sets how often a queue is polled and reads the last answer. Changed counts wake the WorkQueue. Rounds do not
overlap. Each broker has its own poller, so that a broker that is down delays no other.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, TypeAlias

from workqueue_operator.broker.channel import PLACE_SECONDS
from workqueue_operator.broker.connection import POLLING, Broker, QueueCounts, QueueMissingError
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.store import Key

logger = logging.getLogger(__name__)

WARM_SECONDS: Final = 1.0
"""Pause between two rounds over warm queues. Dead letters show within 2 s while messages fail."""

STEADY_AFTER: Final = 30.0
STEADY_SECONDS: Final = 5.0
"""A warm queue whose counts have been the same for STEADY_AFTER is polled only once in STEADY_SECONDS. Most
dead-letter queues never change, and half of all polls would be theirs."""

PAUSE_PER_ROUND: Final = 2.0
LONGEST_PAUSE: Final = 4.0
"""The pause after a round is at least this many times as long as the round took, so that polls of thousands of queues
leave time for the passes. It is at most this many times as long as after a short round."""

IDLE_SPREAD: Final = 0.5
"""The share of the pause between two rounds over the idle queues for which the next one is spread. Polls of 20,000
queues without a rest would delay each ring for seconds."""

REFUSAL_RETRY_SECONDS: Final = 300.0
"""Seconds after which the operator retries a refused doorbell: the permission may have been granted."""

_NOT_FOUND: Final = 404


class QueueMissing:
    """The answer for a queue that does not exist."""


QUEUE_MISSING: Final = QueueMissing()

PollAnswer: TypeAlias = QueueCounts | QueueMissing | ReconcileError
"""What a poll found."""


@dataclass(eq=False, slots=True)
class PolledQueue:
    """A queue that is polled for a WorkQueue.

    Attributes:
        key: the WorkQueue.
        rounds: the queues of its poller's fast rounds.
        last: the last answer; None before the first.
        answered_at: when the last answer with counts arrived, on the event loop's clock.
        changed_at: when other counts arrived than before, or the queue became warm.
        doubtful: the broker has since cancelled a doorbell: the queue may be deleted, or its leader has moved.
        refused: code and text of the last refusal of a doorbell, and its time.
        claimed: whether the WorkQueue has declared the queue, which is a claim on it.
    """

    key: Key
    queue: str
    rounds: _FastRounds
    last: PollAnswer | None = None
    answered_at: float | None = None
    changed_at: float = -math.inf
    doubtful: bool = False
    refused: tuple[tuple[int, str], float] | None = None
    claimed: bool = False

    @property
    def active(self) -> bool:
        """Whether each fast round polls it."""
        return self in self.rounds.active

    @active.setter
    def active(self, is_active: bool) -> None:
        self.rounds.active.include(self, is_one=is_active)

    @property
    def warm(self) -> bool:
        """Whether it is polled each second, or less often while nothing changes.

        Running workers publish failed messages to it. Queues that are neither are polled in the slow rounds.
        """
        return self in self.rounds.warm

    @warm.setter
    def warm(self, is_warm: bool) -> None:
        self.rounds.warm.include(self, is_one=is_warm)

    def record(self, answer: PollAnswer) -> None:
        """Record an answer."""
        if isinstance(answer, QueueCounts):
            self.answered_at = answer.at
            if _numbers(answer) != _numbers(self.last):
                self.changed_at = answer.at
        self.last = answer

    def is_due_when_warm(self, now: float) -> bool:
        """Whether a round over the warm queues polls this one."""
        if now - self.changed_at < STEADY_AFTER or self.answered_at is None:
            return True
        return now - self.answered_at >= STEADY_SECONDS

    @property
    def refusal(self) -> tuple[int, str] | None:
        """Code and text of a recent refusal of the doorbell, or None."""
        if (
            self.refused is None
            or asyncio.get_running_loop().time() - self.refused[1] > REFUSAL_RETRY_SECONDS
        ):
            return None
        return self.refused[0]


class _Members:
    """The queues of one kind of fast rounds, in the order in which they joined.

    A round need not look at thousands of others, and there is none while there are no members.

    Attributes:
        progress_at: when a round last made progress or the first member joined, on the event loop's clock.
    """

    __slots__ = ("_any", "_queues", "progress_at")

    def __init__(self) -> None:
        self._queues: dict[PolledQueue, None] = {}
        self._any = asyncio.Event()
        self.progress_at = -math.inf

    def __iter__(self) -> Iterator[PolledQueue]:
        return iter(self._queues)

    def __contains__(self, polled: PolledQueue) -> bool:
        return polled in self._queues

    def __len__(self) -> int:
        return len(self._queues)

    def include(self, polled: PolledQueue, *, is_one: bool) -> None:
        """Let a queue join or leave."""
        if is_one:
            if not self._queues:
                self.note_progress()
                self._any.set()
            self._queues[polled] = None
        elif polled in self._queues:
            del self._queues[polled]
            if not self._queues:
                self._any.clear()

    def note_progress(self) -> None:
        """Set `progress_at`."""
        self.progress_at = asyncio.get_running_loop().time()

    async def wait(self) -> None:
        """Return when there is a member."""
        await self._any.wait()


@dataclass(frozen=True, slots=True)
class _FastRounds:
    """The queues that are polled more often than the others."""

    active: _Members = field(default_factory=_Members)
    warm: _Members = field(default_factory=_Members)


class DepthPoller:
    """All polled queues of one broker.

    Args:
        broker: the broker.
        wake: called with the key of a WorkQueue whose counts changed.
        seconds: pause between two rounds over the active queues; longer after a round that took long.
        idle_seconds: pause between two rounds over the idle queues.
    """

    def __init__(
        self, broker: Broker, wake: Callable[[Key], None], seconds: float, idle_seconds: float
    ) -> None:
        self._broker = broker
        self._wake = wake
        self.seconds = seconds
        self._watched: dict[Key, dict[str, PolledQueue]] = {}
        self._by_queue: dict[str, tuple[Key, ...]] = {}
        self._fast = _FastRounds()
        self._polling: dict[PolledQueue, asyncio.Task[None]] = {}
        self._tasks = [
            asyncio.create_task(
                self._rounds(seconds, lambda _: [*self._fast.active], self._fast.active),
                name=f"depth poller {broker.binding.display}",
            ),
            asyncio.create_task(
                self._rounds(WARM_SECONDS, self._due_warm_ones, self._fast.warm),
                name=f"warm depth poller {broker.binding.display}",
            ),
            asyncio.create_task(
                self._rounds(idle_seconds, self._idle_ones, spread=IDLE_SPREAD * idle_seconds),
                name=f"idle depth poller {broker.binding.display}",
            ),
        ]

    @property
    def alive_at(self) -> float:
        """When the rounds over the active queues last made progress, on the event loop's clock; now without any."""
        active = self._fast.active
        return active.progress_at if active else asyncio.get_running_loop().time()

    def watch(self, key: Key, queue: str) -> PolledQueue:
        """Start polling a queue, in the slow rounds until the caller sets `active` or `warm`."""
        polled = self._watched.get(key, {}).get(queue)
        if polled is None:
            polled = self._watched.setdefault(key, {})[queue] = PolledQueue(key, queue, self._fast)
            self._by_queue[queue] = (*self.keys_of(queue), key)
        return polled

    def forget(self, key: Key) -> None:
        """Stop polling all queues of a WorkQueue."""
        for queue in self.queues_of(key):
            self.forget_queue(key, queue)

    def forget_queue(self, key: Key, queue: str) -> None:
        """Stop polling a queue for a WorkQueue, if it is polled."""
        queues = self._watched.get(key, {})
        polled = queues.pop(queue, None)
        if polled is None:
            return
        polled.active = polled.warm = False
        # A pass that still has it joins no round of this poller.
        polled.rounds = _FastRounds()
        if not queues:
            del self._watched[key]
        others = tuple(other for other in self._by_queue.pop(queue) if other != key)
        if others:
            self._by_queue[queue] = others

    def queues_of(self, key: Key) -> list[str]:
        """Return the queues that are polled for a WorkQueue."""
        return [*self._watched.get(key, ())]

    def keys_of(self, queue: str) -> tuple[Key, ...]:
        """Return the WorkQueues that poll a queue."""
        return self._by_queue.get(queue, ())

    def claims_on(self, queue: str) -> list[Key]:
        """Return the WorkQueues that have declared a queue."""
        return [key for key in self.keys_of(queue) if self._watched[key][queue].claimed]

    def doorbell_removed(self, queue: str, refusal: tuple[int, str] | None) -> None:
        """Note that the broker refused a doorbell, or cancelled it (no refusal)."""
        for key in self.keys_of(queue):
            polled = self._watched[key][queue]
            if refusal is None:
                polled.doubtful = True
            elif refusal[0] == _NOT_FOUND:
                polled.last = QUEUE_MISSING
            else:
                polled.refused = (refusal, asyncio.get_running_loop().time())

    def age(self) -> float | None:
        """Return the age of the oldest answer about an active queue, in seconds; None without one."""
        now = asyncio.get_running_loop().time()
        times = (entry.answered_at for entry in self._fast.active if entry.answered_at is not None)
        return max((now - answered_at for answered_at in times), default=None)

    async def ask(self, polled: PolledQueue) -> PollAnswer:
        """Poll a queue now and record the answer. Does not wake the WorkQueue."""
        return await self._record(polled, self._broker.counts)

    @staticmethod
    async def _record(polled: PolledQueue, poll: Callable[[str], Awaitable[QueueCounts]]) -> PollAnswer:
        polled.doubtful = False
        answer: PollAnswer
        try:
            answer = await poll(polled.queue)
        except QueueMissingError:
            answer = QUEUE_MISSING
        except ReconcileError as problem:
            answer = problem
        polled.record(answer)
        return answer

    async def last_answer(self, key: Key, queue: str, *, warm: bool) -> PollAnswer | None:
        """Return the last answer about a dead-letter or delay queue, and set whether the queue is warm.

        It polls the queue if there is no answer yet, and when the queue stops being warm: the last worker may have
        published to it since the last round.
        """
        polled = self.watch(key, queue)
        if polled.last is None or (polled.warm and not warm):
            await self.ask(polled)
        if warm and not polled.warm:
            polled.changed_at = asyncio.get_running_loop().time()
        polled.warm = warm
        return polled.last

    def _due_warm_ones(self, now: float) -> list[PolledQueue]:
        return [one for one in self._fast.warm if not one.active and one.is_due_when_warm(now)]

    def _idle_ones(self, _: float) -> list[PolledQueue]:
        every = chain.from_iterable(queues.values() for queues in self._watched.values())
        return [one for one in every if not (one.warm or one.active)]

    async def close(self) -> None:
        """Stop."""
        tasks = [*self._tasks, *self._polling.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _rounds(
        self,
        seconds: float,
        chosen: Callable[[float], list[PolledQueue]],
        members: _Members | None = None,
        *,
        spread: float = 0.0,
    ) -> None:
        """Poll the chosen queues again and again.

        Args:
            seconds: the shortest pause between two rounds.
            chosen: returns the queues of a round, from the time of its beginning.
            members: the rounds rest while there are none. None: they never rest.
            spread: seconds for which a round rests between its polls, within that pause.
        """
        loop, pause = asyncio.get_running_loop(), seconds
        while True:
            if members is not None:
                await members.wait()
            await asyncio.sleep(pause)
            begun, rested = loop.time(), 0.0
            try:
                entries = chosen(begun)
                if entries and self._broker.connected:
                    rested = await self._round(entries, members, spread)
            except Exception:
                # An unexpected error in one round must not stop the rounds.
                logger.exception("Polling the queues failed.", extra={"broker": self._broker.binding.display})
            polled = loop.time() - begun - rested
            pause = min(max(seconds - rested, PAUSE_PER_ROUND * polled), LONGEST_PAUSE * seconds)
            if members is not None:
                members.note_progress()

    async def _round(self, entries: list[PolledQueue], members: _Members | None, spread: float) -> float:
        """Poll queues, a few at a time. A queue that does not answer soon is left behind with its poll.

        Returns:
            The seconds for which it has rested.
        """
        starts = range(0, len(entries), POLLING)
        rest = spread / len(starts)
        for start in starts:
            if start:
                if members is not None:
                    members.note_progress()
                await asyncio.sleep(rest)
            polls = _Polls()
            for entry in entries[start : start + POLLING]:
                if entry not in self._polling and self._is_watched(entry):
                    polls.running += 1
                    self._polling[entry] = asyncio.create_task(self._look(entry, polls))
            while polls.running:
                await polls.wait(PLACE_SECONDS)
                if not self._broker.polls_wait:
                    break
        return rest * (len(starts) - 1)

    def _is_watched(self, polled: PolledQueue) -> bool:
        """Whether nobody has forgotten it since its round began."""
        return self._watched.get(polled.key, {}).get(polled.queue) is polled

    async def _look(self, polled: PolledQueue, polls: _Polls) -> None:
        before = polled.last
        try:
            await self._record(polled, self._broker.poll)
        except Exception:
            # An unexpected error in one poll must not stop the rounds.
            logger.exception("Polling a queue failed.", extra={"queue": polled.queue})
        finally:
            self._polling.pop(polled, None)
            polls.end_one()
        if _numbers(polled.last) != _numbers(before) or self._doorbell_differs(polled, before):
            self._wake(polled.key)

    def _doorbell_differs(self, polled: PolledQueue, before: PollAnswer | None) -> bool:
        """Whether an installed doorbell is no longer counted, or again.

        A queue without a leader reports zeros, as an idle one does. A pass that has found that polls it often.
        """
        if not isinstance(before, QueueCounts) or not isinstance(polled.last, QueueCounts):
            return False
        if before.doorbell:
            installed = self._broker.doorbell_installed_at(polled.queue) is not None
            return installed and not polled.last.doorbell
        return polled.last.doorbell and polled.active


class _Polls:
    """Polls that run at the same time. It costs less than `asyncio.wait`, which adds a callback to each.

    Attributes:
        running: those without an answer.
    """

    __slots__ = ("_ended", "running")

    def __init__(self) -> None:
        self.running = 0
        self._ended: asyncio.Future[None] | None = None

    def end_one(self) -> None:
        """Note an answer."""
        self.running -= 1
        if not self.running:
            self._release()

    async def wait(self, seconds: float) -> None:
        """Return when all have ended, or after some seconds."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        timer = loop.call_later(seconds, self._release)
        try:
            await self._ended
        finally:
            timer.cancel()

    def _release(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


def _numbers(answer: PollAnswer | None) -> object:
    if isinstance(answer, QueueCounts):
        return answer.ready, answer.consumers
    if isinstance(answer, ReconcileError):
        return answer.reason
    return answer
