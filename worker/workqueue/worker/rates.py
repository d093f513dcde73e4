"""Arrivals and handler times in the last minute, for /status and so for scaling. The clock is an argument."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Final

from workqueue.contract.handler_times import bucket_of

WINDOW_SECONDS: Final = 60.0
_BUCKET_SECONDS: Final = 5.0


class HandlerRates:
    """Counts in buckets of five seconds, so that memory use does not depend on the rate. Thread-safe.

    Args:
        start: when counting begins, in seconds, on the same clock as every `now`.
    """

    __slots__ = (
        "_bucket_end",
        "_buckets",
        "_lock",
        "_start",
        "_times",
        "received",
        "total_count",
        "total_seconds",
    )

    def __init__(self, start: float) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._buckets: deque[list[float]] = deque()  # [when it began, arrivals, handled, handler seconds]
        self._bucket_end = start
        self._times: Counter[int] = Counter()
        self.received = 0
        self.total_count = 0
        self.total_seconds = 0.0

    def arrived(self, now: float) -> None:
        """Count a message that was received."""
        with self._lock:
            if now >= self._bucket_end:
                self._next_bucket(now)
            self._buckets[-1][1] += 1
            self.received += 1

    def handled(self, now: float, seconds: float) -> None:
        """Count a handler that returned after `seconds`."""
        with self._lock:
            if now >= self._bucket_end:
                self._next_bucket(now)
            bucket = self._buckets[-1]
            bucket[2] += 1
            bucket[3] += seconds
            self.total_count += 1
            self.total_seconds += seconds
            self._times[bucket_of(seconds)] += 1

    def times(self) -> dict[int, int]:
        """Return how many handlers returned since the start, by `handler_times.bucket_of` their seconds."""
        with self._lock:
            return dict(self._times)

    def mean_seconds(self) -> float | None:
        """Return the mean handler time since the start, or None if no handler returned."""
        return self.total_seconds / self.total_count if self.total_count else None

    def recent_seconds(self, now: float) -> float | None:
        """Return the mean handler time of the last minute, or None if no handler returned in it."""
        with self._lock:
            self._forget(now)
            handled = sum(bucket[2] for bucket in self._buckets)
            return sum(bucket[3] for bucket in self._buckets) / handled if handled else None

    def arrivals_per_second(self, now: float) -> float | None:
        """Return the arrival rate of the last minute, or None in the first 5 s, when it would be a guess."""
        seconds = min(now - self._start, WINDOW_SECONDS)
        if seconds < _BUCKET_SECONDS:
            return None
        with self._lock:
            self._forget(now)
            return sum(bucket[1] for bucket in self._buckets) / seconds

    def _next_bucket(self, now: float) -> None:
        self._forget(now)
        self._buckets.append([now, 0, 0, 0.0])
        self._bucket_end = now + _BUCKET_SECONDS

    def _forget(self, now: float) -> None:
        while self._buckets and now - self._buckets[0][0] > WINDOW_SECONDS:
            self._buckets.popleft()
