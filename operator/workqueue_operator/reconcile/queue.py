"""The queue of WorkQueues that want a pass: one pass a key at a time, and once more when it came again.

Place in the flow: everything that changes calls `wake`; `reconcile` is what is run. Keys begin in the order in
which they were woken, a few at a time: what a thousand passes hold together stays with the process for ever,
since Python gives memory back only in large empty pieces. There is no limit on how many run at once: a pass that
waits, for a dead broker, pod or API server, must not hold up one that need not, so each has its place for a
moment only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from workqueue_operator.kube.store import Key

FIRST_PASSES: Final = 20
"""Places for keys that run for the first time."""

FIRST_PASSES_SECONDS: Final = 2.0

LATER_PASSES: Final = 20
"""Places for all others."""

LATER_PASSES_SECONDS: Final = 0.25
"""Also when all of them wait, 80 begin each second: about as many as a process can run."""


@dataclass(frozen=True, slots=True)
class NextPass:
    """When the next run is due.

    Attributes:
        after: in so many seconds; None: only when something changes.
        failed: the run did not do its work. What it woke itself by then waits for the pause, too; otherwise
            a run that changes something and fails would begin again at once, for ever.
        firm: what wakes the key later waits for the pause as well, so that events cannot make a run that keeps
            failing more frequent than its pauses allow.
    """

    after: float | None = None
    failed: bool = False
    firm: bool = False


class _Lane:
    """Keys that wait for one of a few places.

    Args:
        places: how many there are.
        seconds: for so long a key has its place.
        begin: called when it gets it.
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
        """Begin with this key when there is a place for it, which may be now."""
        self._waiting[key] = None
        self._admit()

    def leave(self, key: Key) -> None:
        """The key needs its place no more, if it has one: another one may begin."""
        place = self._placed.pop(key, None)
        if place is not None:
            place.cancel()
            self._free += 1
            self._admit()

    def close(self) -> None:
        """Begin with nobody any more."""
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


class ReconcileQueue:
    """Runs a coroutine for each key that was woken.

    Args:
        run: one pass. It must not raise.
        is_known: whether a key has run before, so that its run costs little and does not wait for beginners.
    """

    def __init__(self, run: Callable[[Key], Awaitable[NextPass]], is_known: Callable[[Key], bool]) -> None:
        self._run = run
        self._is_known = is_known
        self._beginners = _Lane(FIRST_PASSES, FIRST_PASSES_SECONDS, self._begin)
        self._known = _Lane(LATER_PASSES, LATER_PASSES_SECONDS, self._begin)
        self._running: dict[Key, tuple[asyncio.Task[None], float]] = {}
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._firm: set[Key] = set()
        self._stopped = False

    def wake(self, key: Key) -> None:
        """Run for this key soon; once more when it is running; after its pause when that is firm."""
        if self._stopped or key in self._known or key in self._beginners or key in self._firm:
            return
        if key in self._running:
            self._again.add(key)
            return
        self._cancel_timer(key)
        (self._known if self._is_known(key) else self._beginners).join(key)

    def release_place(self, key: Key) -> None:
        """The run of this key waits for something that others need not wait for: another one may begin."""
        self._beginners.leave(key)
        self._known.leave(key)

    @property
    def longest(self) -> float:
        """Seconds for which the oldest run has been going on; 0 when none is."""
        begun = min((begun for _, begun in self._running.values()), default=None)
        return 0.0 if begun is None else time.monotonic() - begun

    async def stop(self, patience: float) -> None:
        """Begin no run any more, wait for those that are under way, and cancel what takes longer."""
        self._stopped = True
        for line in (self._beginners, self._known):
            line.close()
        for timer in self._timers.values():
            timer.cancel()
        tasks = [task for task, _ in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _begin(self, key: Key) -> None:
        task = asyncio.create_task(self._go(key), name=f"pass {key[0]}/{key[1]}")
        self._running[key] = (task, time.monotonic())

    async def _go(self, key: Key) -> None:
        due = NextPass()
        try:
            due = await self._run(key)
        finally:
            del self._running[key]
            self.release_place(key)
            again = key in self._again
            self._again.discard(key)
            if again and not due.failed:
                self.wake(key)
            elif due.after is not None and not self._stopped:
                self._timers[key] = asyncio.get_running_loop().call_later(due.after, self._on_timer, key)
                if due.firm:
                    self._firm.add(key)

    def _on_timer(self, key: Key) -> None:
        del self._timers[key]
        self._firm.discard(key)
        self.wake(key)

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
