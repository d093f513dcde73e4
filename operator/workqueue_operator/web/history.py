"""What the page remembers: the last hour's depth and the last decisions of each WorkQueue. Pure and bounded.

Place in the flow: `watch` records samples, `report` tells decisions, `picture` shows both. A restart begins anew.
"""

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
"""At most, in round figures: samples of four bytes, and for each decision its sentence and a small object."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that the operator did or found out.

    Attributes:
        at: Unix seconds.
    """

    at: float
    warning: bool
    action: str
    reason: str
    message: str


class Series:
    """The last SAMPLES values, oldest first; None where the value was not known."""

    __slots__ = ("_next", "_values")

    def __init__(self) -> None:
        self._values = array("I", [_UNKNOWN]) * SAMPLES
        self._next = 0

    def add(self, value: int | None) -> None:
        """Add one, and forget the oldest."""
        self._values[self._next] = _UNKNOWN if value is None else min(value, _UNKNOWN - 1)
        self._next = (self._next + 1) % SAMPLES

    def values(self) -> list[int | None]:
        """All of them."""
        ordered = [*self._values[self._next :], *self._values[: self._next]]
        return [None if value == _UNKNOWN else value for value in ordered]


class History:
    """Series and decisions, by the uid of the WorkQueue."""

    def __init__(self) -> None:
        self._depths: dict[str, Series] = {}
        self._decisions: dict[str, deque[Decision]] = {}
        self.rounds = 0

    def record(self, depths: Iterable[tuple[str, int | None]]) -> None:
        """One round over all WorkQueues (uid, waiting messages); what is not among them is forgotten."""
        before, self._depths = self._depths, {}
        for uid, depth in depths:
            series = self._depths[uid] = before.get(uid) or Series()
            series.add(depth)
        for uid in [uid for uid in self._decisions if uid not in self._depths]:
            del self._decisions[uid]
        self.rounds += 1

    def decided(self, uid: str, decision: Decision) -> None:
        """Remember a decision."""
        self._decisions.setdefault(uid, deque(maxlen=DECISIONS)).append(decision)

    def depths(self, uid: str) -> list[int | None]:
        """The last hour; empty before the first round."""
        series = self._depths.get(uid)
        return series.values() if series is not None else []

    def decisions(self, uid: str) -> list[Decision]:
        """Newest first."""
        return list(reversed(self._decisions.get(uid, ())))
