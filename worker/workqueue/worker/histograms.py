"""Histograms that cost little to fill: plain counts, turned into Prometheus buckets only when /metrics is read."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

_HANDLER_BUCKETS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0)
"""Seconds, from a no-op to hours. Handlers of one queue are alike, but their kind is not known in advance."""

_AGE_BUCKETS: Final = (1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0)
"""Seconds, up to a day. The timestamp property has whole seconds, so smaller buckets would mean nothing."""


class Histogram:
    """Counts of values by upper bound (inclusive)."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @classmethod
    def of_handler_seconds(cls) -> Histogram:
        """Return a histogram for the running time of handlers."""
        return cls(_HANDLER_BUCKETS)

    @classmethod
    def of_message_age_seconds(cls) -> Histogram:
        """Return a histogram for the time from publishing to receiving."""
        return cls(_AGE_BUCKETS)

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts with their bounds as text, as prometheus-client expects them."""
        bounds = [*map(str, self._bounds), "+Inf"]
        running, cumulative = 0, []
        for bound, count in zip(bounds, self._counts, strict=True):
            running += count
            cumulative.append((bound, float(running)))
        return cumulative
