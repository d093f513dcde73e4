"""A clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

TURNS = 50
"""Turns of the event loop that callbacks get to finish in. None of them waits for anything but the clock."""


@dataclass(eq=False)
class FakeTimer:
    """A callback that is due at a time."""

    at: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        """Do not call the callback."""
        self.cancelled = True


class FakeClock:
    """Time that passes only in `advance`."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._timers: list[FakeTimer] = []

    def monotonic(self) -> float:
        """Return the seconds."""
        return self._now

    def now(self) -> datetime:
        """Return the time of day."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now)

    async def sleep(self, seconds: float) -> None:
        """Wait for `advance`."""
        done = asyncio.get_running_loop().create_future()
        self.call_later(seconds, lambda: done.cancelled() or done.set_result(None))
        await done

    def call_later(self, seconds: float, callback: Callable[[], object]) -> FakeTimer:
        """Call the callback in `advance`."""
        timer = FakeTimer(self._now + seconds, callback)
        self._timers.append(timer)
        return timer

    async def advance(self, seconds: float) -> None:
        """Let time pass, and let everything happen that is due."""
        end = self._now + seconds
        await self.settle()
        while due := [timer for timer in self._timers if timer.at <= end and not timer.cancelled]:
            timer = min(due, key=lambda one: one.at)
            self._timers.remove(timer)
            self._now = max(self._now, timer.at)
            timer.callback()
            await self.settle()
        self._now = end

    async def settle(self) -> None:
        """Let everything happen that waits for nothing."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
