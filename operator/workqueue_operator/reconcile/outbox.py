"""Writes that wait for their turn, limited in number and rate for each namespace.

They run outside of passes, so that a slow or refused write delays no decision.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from workqueue_operator.ports import Clock, Timer

logger = logging.getLogger(__name__)

REPORT_AFTER: Final = 0.25
"""Seconds between a pass and its report. When many queues wake together, the API server writes their counts first."""

HOLD_CHECK: Final = 0.1
LONGEST_HOLD: Final = 5.0
"""Seconds between two looks whether counts are still being written, and for how long a report waits for them. A few
writes a second are what an API server with two processors has left when many queues wake together."""


def never() -> bool:
    """Say that nothing is urgent."""
    return False


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `burst` writes immediately, then `per_second` a second. At most `together` at a time."""

    per_second: float
    burst: int
    together: int


class Outbox:
    """The writes of one namespace that wait for their turn, the oldest first.

    After each write the next one begins, if the rate allows it. The timer begins the first one.

    Args:
        is_urgent: whether more urgent writes are under way. None begins meanwhile, for LONGEST_HOLD at most.
    """

    def __init__(self, clock: Clock, rate: Rate, is_urgent: Callable[[], bool]) -> None:
        self._clock = clock
        self._rate = rate
        self._is_urgent = is_urgent
        self._held_until: float | None = None
        self._waiting: dict[Hashable, Callable[[], Coroutine[Any, Any, None]]] = {}
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._paid_until = 0.0
        self._timer: Timer | None = None
        self._limited = True

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def running(self) -> list[asyncio.Task[None]]:
        """The writes that have begun."""
        return [*self._running.values()]

    def put(self, name: Hashable, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Add a write. It replaces a waiting write of the same name, and follows a running one."""
        self._waiting[name] = write
        self._continue_in(REPORT_AFTER)

    def remove(self, name: Hashable) -> None:
        """Remove a waiting write, if there is one."""
        self._waiting.pop(name, None)

    def clear(self) -> None:
        """Remove all waiting writes, and cancel the running ones."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._running.values():
            if task is not asyncio.current_task():
                task.cancel()

    def stop_limiting(self) -> None:
        """Begin with the waiting writes now, however many there were."""
        self._limited = False
        self._start()

    def _start(self) -> None:
        while len(self._running) < self._rate.together:
            name = next((one for one in self._waiting if one not in self._running), None)
            if name is None or self._is_held() or not self._has_token():
                return
            task = asyncio.create_task(self._waiting.pop(name)(), name=f"report {name}")
            self._running[name] = task
            task.add_done_callback(partial(self._on_end, name))

    def _is_held(self) -> bool:
        """Whether more urgent writes go first. The outbox looks again soon."""
        if not (self._limited and self._is_urgent()):
            self._held_until = None
            return False
        now = self._clock.monotonic()
        if self._held_until is None:
            self._held_until = now + LONGEST_HOLD
        if now >= self._held_until:
            return False
        self._continue_in(HOLD_CHECK)
        return True

    def _has_token(self) -> bool:
        """Take a token. Without one, the outbox continues when there is one."""
        if not self._limited:
            return True
        now, each = self._clock.monotonic(), 1 / self._rate.per_second
        paid_until = max(self._paid_until, now - each * self._rate.burst) + each
        if paid_until <= now:
            self._paid_until = paid_until
            return True
        self._continue_in(paid_until - now)
        return False

    def _continue_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._clock.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._start()

    def _on_end(self, name: Hashable, task: asyncio.Task[None]) -> None:
        del self._running[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A report failed unexpectedly.", exc_info=error)
        self._start()


class Outboxes:
    """One outbox for each namespace, with the same rate."""

    def __init__(self, clock: Clock, rate: Rate, is_urgent: Callable[[], bool] = never) -> None:
        self._clock = clock
        self._rate = rate
        self._is_urgent = is_urgent
        self._outboxes: dict[str, Outbox] = {}

    def __iter__(self) -> Iterator[Outbox]:
        return iter(list(self._outboxes.values()))

    def __len__(self) -> int:
        return len(self._outboxes)

    def of(self, namespace: str) -> Outbox:
        """Return the outbox of a namespace. Forgets empty ones of others."""
        if namespace not in self._outboxes:
            for idle in [other for other, outbox in self._outboxes.items() if not len(outbox)]:
                del self._outboxes[idle]
            self._outboxes[namespace] = Outbox(self._clock, self._rate, self._is_urgent)
        return self._outboxes[namespace]
