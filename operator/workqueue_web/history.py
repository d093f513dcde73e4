"""The depths of the last hour of each WorkQueue, in bounded memory. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

SAMPLE_SECONDS: Final = 15.0
SAMPLES: Final = 240
"""Together one hour."""

_UNKNOWN: Final = 0xFFFF_FFFF

BYTES_PER_WORKQUEUE: Final = SAMPLES * 4 + 400
"""Approximate limit: 4 bytes per sample, and a small object."""


class Series:
    """The last SAMPLES values, oldest first; None for unknown values."""

    __slots__ = ("_next", "_values")

    def __init__(self) -> None:
        self._values = array("I", [_UNKNOWN]) * SAMPLES
        self._next = 0

    def add(self, value: int | None) -> None:
        """Add a value and drop the oldest."""
        self._values[self._next] = _UNKNOWN if value is None else min(value, _UNKNOWN - 1)
        self._next = (self._next + 1) % SAMPLES

    def values(self) -> list[int | None]:
        """Return all values."""
        ordered = [*self._values[self._next :], *self._values[: self._next]]
        return [None if value == _UNKNOWN else value for value in ordered]


class History:
    """Series, by the uid of the WorkQueue."""

    def __init__(self) -> None:
        self._depths: dict[str, Series] = {}
        self.rounds = 0

    def record(self, depths: Iterable[tuple[str, int | None]]) -> None:
        """Add one sample (uid, waiting messages) of each WorkQueue, and drop all other WorkQueues."""
        before, self._depths = self._depths, {}
        for uid, depth in depths:
            series = self._depths[uid] = before.get(uid) or Series()
            series.add(depth)
        self.rounds += 1

    def depths(self, uid: str) -> list[int | None]:
        """Return the depths of the last hour; empty before the first sample."""
        series = self._depths.get(uid)
        return series.values() if series is not None else []
