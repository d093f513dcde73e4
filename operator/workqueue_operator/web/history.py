"""The depths of the last hour and the last decisions of each WorkQueue, in bounded memory. Pure."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SAMPLE_SECONDS: Final = 15.0
SAMPLES: Final = 240
"""Together one hour."""

DECISIONS: Final = 20
DECISION_CHARACTERS: Final = 300

_UNKNOWN: Final = 0xFFFF_FFFF

BYTES_PER_WORKQUEUE: Final = SAMPLES * 4 + DECISIONS * (DECISION_CHARACTERS + 250)
"""Approximate limit: 4 bytes per sample, and a text and a small object per decision."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision or a finding of the operator.

    Attributes:
        at: time in Unix seconds.
    """

    at: float
    warning: bool
    action: str
    reason: str
    message: str


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
    """Series and decisions, by the uid of the WorkQueue."""

    def __init__(self) -> None:
        self._depths: dict[str, Series] = {}
        self._decisions: dict[str, deque[Decision]] = {}
        self.rounds = 0

    def record(self, depths: Iterable[tuple[str, int | None]]) -> None:
        """Add one sample (uid, waiting messages) of each WorkQueue, and drop all other WorkQueues."""
        before, self._depths = self._depths, {}
        for uid, depth in depths:
            series = self._depths[uid] = before.get(uid) or Series()
            series.add(depth)
        for uid in [uid for uid in self._decisions if uid not in self._depths]:
            del self._decisions[uid]
        self.rounds += 1

    def decided(self, uid: str, decision: Decision) -> None:
        """Add a decision."""
        self._decisions.setdefault(uid, deque(maxlen=DECISIONS)).append(decision)

    def depths(self, uid: str) -> list[int | None]:
        """Return the depths of the last hour; empty before the first sample."""
        series = self._depths.get(uid)
        return series.values() if series is not None else []

    def decisions(self, uid: str) -> list[Decision]:
        """Return the last decisions, newest first."""
        return list(reversed(self._decisions.get(uid, ())))
