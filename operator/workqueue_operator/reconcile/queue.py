"""The queue of WorkQueues that need a pass: one pass per key at a time, and another when the key was added meanwhile.

Passes begin in the order in which their keys were added, a few at a time. Python rarely returns memory to the OS, so
peak usage is permanent; limiting how many passes begin together limits that peak. The number of running passes has no
limit: a pass that waits for a dead broker, pod or API server must not delay others, so each keeps its place only for
a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from workqueue_operator.kube.store import Key
from workqueue_operator.ports import Clock

FIRST_PASSES: Final = 20
"""Places for first passes."""

FIRST_PASSES_SECONDS: Final = 2.0
"""Seconds for which a first pass keeps its place."""

LATER_PASSES: Final = 20
"""Places for all other passes."""

LATER_PASSES_SECONDS: Final = 0.25
"""Seconds for which a later pass keeps its place. Even when all of them wait, 80 begin each second: about as many as
one process can run."""


@dataclass(frozen=True, slots=True)
class NextPass:
    """When the next pass is due.

    Attributes:
        after: seconds until then; None: only when something changes.
        failed: the pass failed. A key that was added during it waits for the pause too. Otherwise a pass that changes
            something and then fails would restart itself immediately, without end.
        firm: a key that is added later also waits for the pause, so that events cannot run a failing pass more often.
    """

    after: float | None = None
    failed: bool = False
    firm: bool = False


class _Lane:
    """Keys that wait for one of a few places.

    Args:
        places: how many keys may hold a place together.
        seconds: for which a key keeps its place at most.
        begin: called with a key when it gets a place.
    """

    def __init__(self, places: int, seconds: float, begin: Callable[[Key], None]) -> None:
        self._free = places
        self._seconds = seconds
        self._begin = begin
        self._waiting: dict[Key, None] = {}
        self._placed: dict[Key, asyncio.TimerHandle] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def join(self, key: Key) -> None:
        """Begin with this key when a place is free, possibly now."""
        self._waiting[key] = None
        self._admit()

    def leave(self, key: Key) -> None:
        """Free the place of this key, if it has one. Another key may begin."""
        place = self._placed.pop(key, None)
        if place is not None:
            place.cancel()
            self._free += 1
            self._admit()

    def close(self) -> None:
        """Begin with no further key."""
        self._waiting.clear()
        for place in self._placed.values():
            place.cancel()

    def _admit(self) -> None:
        while self._waiting and self._free:
            key = next(iter(self._waiting))
            del self._waiting[key]
            self._free -= 1
            self._placed[key] = asyncio.get_running_loop().call_later(self._seconds, self.leave, key)
            self._begin(key)


async def _never(key: Key) -> NextPass:
    raise RuntimeError(f"a pass over {key} began before the queue was started")


class ReconcileQueue:
    """Runs a pass for each key that is added. Keys that are added before `start` are ignored."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reconcile: Callable[[Key], Awaitable[NextPass]] = _never
        self._is_known: Callable[[Key], bool] = lambda _: False
        self._first = _Lane(FIRST_PASSES, FIRST_PASSES_SECONDS, self._begin)
        self._later = _Lane(LATER_PASSES, LATER_PASSES_SECONDS, self._begin)
        self._running: dict[Key, tuple[asyncio.Task[None], float]] = {}
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._firm: set[Key] = set()
        self._rings: dict[Key, float] = {}
        self._open = False

    def start(self, reconcile: Callable[[Key], Awaitable[NextPass]], is_known: Callable[[Key], bool]) -> None:
        """Run passes from now on.

        Args:
            reconcile: one pass. It must not raise.
            is_known: whether a key has had a pass. Its later passes are cheap and do not wait for first passes.
        """
        self._reconcile, self._is_known, self._open = reconcile, is_known, True

    def add(self, key: Key) -> None:
        """Run a pass soon; another one if a pass is running; after the pause if that is firm."""
        if not self._open or key in self._later or key in self._first or key in self._firm:
            return
        if key in self._running:
            self._again.add(key)
            return
        self._cancel_timer(key)
        (self._later if self._is_known(key) else self._first).join(key)

    def ring(self, key: Key) -> None:
        """Note a ring of this WorkQueue's doorbell: at least one message is waiting."""
        self._rings.setdefault(key, self._clock.monotonic())
        self.add(key)

    def rang_at(self, key: Key) -> float | None:
        """Return the monotonic time of the first ring that no pass has taken; None without one."""
        return self._rings.get(key)

    def take_ring(self, key: Key) -> float | None:
        """Return the same, and forget it."""
        return self._rings.pop(key, None)

    def release_place(self, key: Key) -> None:
        """The pass over this key waits for something that others need not wait for. Another pass may begin."""
        self._first.leave(key)
        self._later.leave(key)

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
        for lane in (self._first, self._later):
            lane.close()
        for timer in self._timers.values():
            timer.cancel()
        tasks = [task for task, _ in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _begin(self, key: Key) -> None:
        task = asyncio.create_task(self._run(key), name=f"pass {key[0]}/{key[1]}")
        self._running[key] = (task, self._clock.monotonic())

    async def _run(self, key: Key) -> None:
        due = NextPass()
        try:
            due = await self._reconcile(key)
        finally:
            del self._running[key]
            self.release_place(key)
            again = key in self._again
            self._again.discard(key)
            if again and not due.failed:
                self.add(key)
            elif due.after is not None and self._open:
                self._timers[key] = asyncio.get_running_loop().call_later(due.after, self._on_timer, key)
                if due.firm:
                    self._firm.add(key)

    def _on_timer(self, key: Key) -> None:
        del self._timers[key]
        self._firm.discard(key)
        self.add(key)

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
