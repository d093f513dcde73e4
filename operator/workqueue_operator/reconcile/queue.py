"""The queue of WorkQueues that need a pass: one pass per key at a time, and another when the key was added meanwhile.

Keys wait in lanes, and the most urgent lane is served first. A running pass has a place. The places are limited per
namespace and in total, so that one namespace with thousands of WorkQueues leaves room for the others. A pass that
waits for a broker or a worker gives its place back. Rings have places of their own.

Python rarely returns memory to the OS, so peak usage is permanent. Limiting the places limits that peak.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from workqueue_operator.kube.store import Key
from workqueue_operator.ports import Clock, Timer


class Lane(IntEnum):
    """Why a WorkQueue needs a pass. The most urgent lane comes first."""

    RING = 0
    """A message has arrived in an idle queue."""

    DEPTH = 1
    """The counts of a queue have changed."""

    EVENT = 2
    """The WorkQueue, its Deployment, a pod, a Secret or the connection has changed."""

    TIMER = 3
    """A pass had set a time for the next one."""

    RESYNC = 4
    """The first pass over a WorkQueue, or a correction: nothing shows that it is urgent."""


PLACES: Final = 20
"""Places for all lanes but the rings."""

PLACES_PER_NAMESPACE: Final = 10

RING_PLACES: Final = 512
RING_PLACES_PER_NAMESPACE: Final = 256

PLACE_SECONDS: Final = 2.0
"""Seconds for which a pass keeps its place at most. A slow API server must not stop all other passes."""

STARTS_PER_TURN: Final = 4
"""Passes that begin in one turn of the event loop. Each occupies the loop for up to a millisecond, and whatever else
is ready waits for them: a ring that arrives in the same turn, and the counts of queues that rang before."""

LOWEST_FIRST_EVERY: Final = 8
"""One start in this number goes to a less urgent lane, so that no lane starves."""

_LESS_URGENT: Final = (Lane.RESYNC, Lane.TIMER, Lane.EVENT)
"""They take turns. If one of them always came first, the others would wait while it and an urgent lane are full."""


@dataclass(frozen=True, slots=True)
class NextPass:
    """When the next pass is due.

    Attributes:
        after: seconds until then; None: only when something changes.
        failed: the pass failed. A key that was added during it waits for the pause too. Otherwise a pass that changes
            something and then fails would restart itself immediately, without end.
        holds: a key that is added later also waits for the pause, if its lane is this one or less urgent.
        lane: of the next pass.
    """

    after: float | None = None
    failed: bool = False
    holds: Lane | None = None
    lane: Lane = Lane.TIMER

    def within(self, seconds: float) -> NextPass:
        """Return the same, but due after at most so many seconds."""
        return self if self.after is not None and self.after <= seconds else replace(self, after=seconds)

    def holds_back(self, lane: Lane) -> bool:
        """Whether a key that is added in this lane waits for the pause."""
        return self.holds is not None and lane >= self.holds


class _Places:
    """Places for running passes.

    Args:
        total: how many there are.
        per_namespace: how many of them one namespace may take.
    """

    def __init__(self, total: int, per_namespace: int) -> None:
        self._free = total
        self._per_namespace = per_namespace
        self._taken: Counter[str] = Counter()

    def has_one_for(self, namespace: str) -> bool:
        """Whether a pass over a WorkQueue of this namespace may begin."""
        return self._free > 0 and self._taken[namespace] < self._per_namespace

    def take(self, namespace: str) -> None:
        self._free -= 1
        self._taken[namespace] += 1

    def give_back(self, namespace: str) -> None:
        self._free += 1
        self._taken[namespace] -= 1
        if not self._taken[namespace]:
            del self._taken[namespace]


class _Lane:
    """Keys that wait for a place. The namespaces take turns; within a namespace the first key comes first."""

    def __init__(self, places: _Places) -> None:
        self.places = places
        self._waiting: dict[str, dict[Key, None]] = {}

    def add(self, key: Key) -> None:
        self._waiting.setdefault(key[0], {})[key] = None

    def remove(self, key: Key) -> None:
        keys = self._waiting[key[0]]
        del keys[key]
        if not keys:
            del self._waiting[key[0]]

    def pop(self) -> Key | None:
        """Remove and return the next key for which there is a place."""
        for namespace, keys in self._waiting.items():
            if self.places.has_one_for(namespace):
                key = next(iter(keys))
                del self._waiting[namespace], keys[key]
                if keys:
                    self._waiting[namespace] = keys
                return key
        return None


async def _never(key: Key) -> NextPass:
    raise RuntimeError(f"a pass over {key} began before the queue was started")


class ReconcileQueue:
    """Runs a pass for each key that is added. Keys that are added before `start` are ignored."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reconcile: Callable[[Key], Awaitable[NextPass]] = _never
        self._is_known: Callable[[Key], bool] = lambda _: False
        places = _Places(PLACES, PLACES_PER_NAMESPACE)
        self._lanes = {lane: _Lane(places) for lane in Lane}
        self._lanes[Lane.RING] = _Lane(_Places(RING_PLACES, RING_PLACES_PER_NAMESPACE))
        self._waiting: dict[Key, Lane] = {}
        self._placed: dict[Key, tuple[_Places, Timer]] = {}
        self._running: dict[Key, tuple[asyncio.Task[None], float]] = {}
        self._again: dict[Key, Lane] = {}
        self._pauses: dict[Key, tuple[NextPass, Timer]] = {}
        self._rings: dict[Key, float] = {}
        self._next_turn: asyncio.Handle | None = None
        self._starts = 0
        self._rings_begun = 0
        self._open = False
        self._caught_up = asyncio.Event()

    def start(self, reconcile: Callable[[Key], Awaitable[NextPass]], is_known: Callable[[Key], bool]) -> None:
        """Run passes from now on.

        Args:
            reconcile: one pass. It must not raise.
            is_known: whether a key has had a pass. A first pass takes many requests, and later passes go before it.
        """
        self._reconcile, self._is_known, self._open = reconcile, is_known, True
        # Later in this turn the caller adds the keys that are there.
        asyncio.get_running_loop().call_soon(self._note_if_caught_up)

    @property
    def catches_up(self) -> bool:
        """Whether passes over keys that were added at the start have still to end."""
        return self._open and not self._caught_up.is_set()

    async def caught_up(self) -> None:
        """Wait until the passes over the keys that were added at the start have ended."""
        await self._caught_up.wait()

    def add(self, key: Key, lane: Lane = Lane.EVENT) -> None:
        """Run a pass soon; another one if a pass is running; after the pause if that holds the lane back.

        A key that waits already moves to the more urgent lane.
        """
        pause = self._pauses.get(key)
        if not self._open or (pause is not None and pause[0].holds_back(lane)):
            return
        if key in self._running:
            self._again[key] = min(lane, self._again.get(key, lane))
            return
        if not self._is_known(key):
            lane = Lane.RESYNC
        before = self._waiting.get(key)
        if before is not None:
            if before <= lane:
                return
            self._lanes[before].remove(key)
        self._end_pause(key)
        self._waiting[key] = lane
        self._lanes[lane].add(key)
        self._admit()

    def ring(self, key: Key) -> None:
        """Note a ring of this WorkQueue's doorbell, and run a pass immediately: at least one message is waiting."""
        self._rings.setdefault(key, self._clock.monotonic())
        self.add(key, Lane.RING)

    def rang_at(self, key: Key) -> float | None:
        """Return the monotonic time of the first ring that no pass has taken; None without one."""
        return self._rings.get(key)

    def take_ring(self, key: Key) -> float | None:
        """Return the same, and forget it."""
        return self._rings.pop(key, None)

    def release_place(self, key: Key) -> None:
        """The pass over this key waits for a broker or a worker. Another pass may begin."""
        place = self._placed.pop(key, None)
        if place is not None:
            places, timer = place
            timer.cancel()
            places.give_back(key[0])
            self._admit()

    @property
    def longest(self) -> float:
        """Seconds for which the oldest pass has been running; 0 without one."""
        begun = min((begun for _, begun in self._running.values()), default=None)
        return 0.0 if begun is None else self._clock.monotonic() - begun

    async def stop(self, patience: float) -> None:
        """Begin no further pass, wait for running passes, and cancel any that takes longer.

        Args:
            patience: seconds to wait.
        """
        self._open = False
        for _, timer in (*self._pauses.values(), *self._placed.values()):
            timer.cancel()
        tasks = [task for task, _ in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _admit(self) -> None:
        """Begin a few rings now, and the other passes a few per turn of the event loop."""
        while self._open and self._rings_begun < STARTS_PER_TURN:
            if not self._begin(Lane.RING):
                break
        if self._waiting and self._next_turn is None:
            self._next_turn = asyncio.get_running_loop().call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._next_turn, self._rings_begun = None, 0
        for _ in range(STARTS_PER_TURN):
            if not self._open or not self._begin_next():
                return
        self._admit()

    def _begin_next(self) -> bool:
        """Begin the next pass. Returns whether there was one with a place."""
        self._starts += 1
        turn, rest = divmod(self._starts, LOWEST_FIRST_EVERY)
        lanes = list(Lane) if rest else [_LESS_URGENT[turn % len(_LESS_URGENT)], *reversed(Lane)]
        return any(map(self._begin, lanes))

    def _begin(self, lane: Lane) -> bool:
        """Begin the next pass of a lane. Returns whether there was one with a place."""
        places = self._lanes[lane].places
        if (key := self._lanes[lane].pop()) is None:
            return False
        self._rings_begun += lane is Lane.RING
        del self._waiting[key]
        places.take(key[0])
        self._placed[key] = places, self._clock.call_later(PLACE_SECONDS, lambda: self.release_place(key))
        task = asyncio.create_task(self._run(key), name=f"pass {key[0]}/{key[1]}")
        self._running[key] = (task, self._clock.monotonic())
        return True

    async def _run(self, key: Key) -> None:
        due = NextPass()
        try:
            due = await self._reconcile(key)
        finally:
            del self._running[key]
            self.release_place(key)
            again = self._again.pop(key, None)
            if again is not None and not due.failed and not due.holds_back(again):
                self.add(key, again)
            elif due.after is not None and self._open:
                self._pauses[key] = due, self._clock.call_later(due.after, lambda: self._on_timer(key))
            self._note_if_caught_up()

    def _note_if_caught_up(self) -> None:
        if not (self._waiting or self._running):
            self._caught_up.set()

    def _on_timer(self, key: Key) -> None:
        due, _ = self._pauses.pop(key)
        self.add(key, due.lane)

    def _end_pause(self, key: Key) -> None:
        pause = self._pauses.pop(key, None)
        if pause is not None:
            pause[1].cancel()
