"""The queue of WorkQueues that want a pass: one pass a key at a time, and once more when it came again.

Place in the flow: everything that changes calls `wake`; `reconcile` is what is run. There is no limit on how
many keys run at once, but for beginners: what a thousand first passes hold together stays with the process for
ever, since Python gives memory back only in large empty pieces. A pass that waits for a dead broker must not
hold up one for a healthy broker, so it gives its place away, and nobody keeps one for longer than PLACE_SECONDS.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from .observe.store import Key

BEGINNERS: Final = 20
"""How many keys run for the first time at once."""

PLACE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Next:
    """When the next run is due.

    Attributes:
        after: in so many seconds; None: only when something changes.
        failed: the run did not do its work. What it woke itself by then waits for the pause, too; otherwise
            a run that changes something and fails would begin again at once, for ever.
    """

    after: float | None = None
    failed: bool = False


class Keys:
    """Runs a coroutine for each key that was woken.

    Args:
        run: one pass. It must not raise.
        is_known: whether a key has run before, so that its run costs little and begins at once.
    """

    def __init__(self, run: Callable[[Key], Awaitable[Next]], is_known: Callable[[Key], bool]) -> None:
        self._run = run
        self._is_known = is_known
        self._beginners: dict[Key, None] = {}
        self._places: dict[Key, asyncio.TimerHandle] = {}
        self._running: dict[Key, tuple[asyncio.Task[None], float]] = {}
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._stopped = False

    def wake(self, key: Key) -> None:
        """Run for this key soon; once more when it is running."""
        if self._stopped or key in self._beginners:
            return
        if key in self._running:
            self._again.add(key)
            return
        self._cancel_timer(key)
        if self._is_known(key):
            self._begin(key)
        else:
            self._beginners[key] = None
            self._admit()

    def give_place(self, key: Key) -> None:
        """The run of this key waits for something that others need not wait for: another one may begin."""
        place = self._places.pop(key, None)
        if place is not None:
            place.cancel()
            self._admit()

    @property
    def longest(self) -> float:
        """Seconds for which the oldest run has been going on; 0 when none is."""
        begun = min((begun for _, begun in self._running.values()), default=None)
        return 0.0 if begun is None else time.monotonic() - begun

    async def stop(self, patience: float) -> None:
        """Begin no run any more, wait for those that are under way, and cancel what takes longer."""
        self._stopped = True
        for timer in (*self._timers.values(), *self._places.values()):
            timer.cancel()
        tasks = [task for task, _ in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _admit(self) -> None:
        while self._beginners and len(self._places) < BEGINNERS and not self._stopped:
            key = next(iter(self._beginners))
            del self._beginners[key]
            loop = asyncio.get_running_loop()
            self._places[key] = loop.call_later(PLACE_SECONDS, self.give_place, key)
            self._begin(key)

    def _begin(self, key: Key) -> None:
        task = asyncio.create_task(self._go(key), name=f"pass {key[0]}/{key[1]}")
        self._running[key] = (task, time.monotonic())

    async def _go(self, key: Key) -> None:
        due = Next()
        try:
            due = await self._run(key)
        finally:
            del self._running[key]
            self.give_place(key)
            again = key in self._again
            self._again.discard(key)
            if again and not due.failed:
                self.wake(key)
            elif due.after is not None and not self._stopped:
                self._timers[key] = asyncio.get_running_loop().call_later(due.after, self._on_timer, key)

    def _on_timer(self, key: Key) -> None:
        del self._timers[key]
        self.wake(key)

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
