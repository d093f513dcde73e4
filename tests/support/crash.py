"""Points between two writes of an operator process, at which it can be killed.

The proxies on its way to the API server and to RabbitMQ tell each write before they pass it on, and again when
it was answered. So the process dies before a write that no server has seen, or after a write whose response it
never got.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One place to die at.

    Attributes:
        write: its name, such as `apply deployments` or `queue.declare`.
        number: which of the writes of that name, from 1.
        done: after the write; False: before it, which then never happens.
    """

    write: str
    number: int
    done: bool

    def __str__(self) -> str:
        return f"{'after' if self.done else 'before'} {self.write} ({self.number})"


class CrashPoints:
    """Counts writes, and kills at one of them."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.fired = threading.Event()
        self._point: Point | None = None
        self._kill: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def arm(self, point: Point, kill: Callable[[], None]) -> None:
        """Restart the counts, and kill at that point, once."""
        with self._lock:
            self.seen.clear()
            self.fired.clear()
            self._point, self._kill = point, kill

    def disarm(self) -> None:
        """Restart the counts, and kill nowhere."""
        with self._lock:
            self.seen.clear()
            self._point = None

    def begins(self, write: str) -> int | None:
        """Announce a write before it is passed on. Return its number; None: the process is dead, so drop it."""
        with self._lock:
            self.seen[write] += 1
            number = self.seen[write]
        return None if self._dies(Point(write, number, done=False)) else number

    def ended(self, write: str, number: int) -> None:
        """Announce a completed write. Its response must not be passed on before this returns."""
        self._dies(Point(write, number, done=True))

    def points(self, at_most: int = 2) -> list[Point]:
        """Before and after each write that was seen, of one name only the first few."""
        return [
            Point(write, number, done)
            for write, count in self.seen.items()
            for number in range(1, min(count, at_most) + 1)
            for done in (False, True)
        ]

    def _dies(self, here: Point) -> bool:
        with self._lock:
            if here != self._point:
                return False
            self._point = None
        self._kill()
        self.fired.set()
        return True
