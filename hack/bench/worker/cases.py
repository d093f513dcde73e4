"""List the measured cases. The first and most telling one is a message whose handler does nothing.

The first two cases have goals and the most rounds. Each other case changes one parameter, to show its effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KINDS: Final = ("classic", "quorum")
SMALL: Final = 100
LARGE: Final = 100 * 1024


@dataclass(frozen=True)
class Case:
    """One line of the plots.

    Attributes:
        slots: messages that are handled at the same time.
        handler_seconds: how long the handler sleeps; 0 returns immediately.
        body: the size of the body in bytes.
        warm, count: the number of messages before the measurement, and the most that are measured.
        rounds: how often each contender runs.
    """

    slots: int
    handler_seconds: float
    body: int
    warm: int
    count: int
    rounds: int

    @property
    def title(self) -> str:
        """Return a description."""
        slots = "1 slot" if self.slots == 1 else f"{self.slots} slots"
        handler = f"{self.handler_seconds * 1000:.0f} ms" if self.handler_seconds else "no-op"
        body = f"{self.body} B" if self.body < 1024 else f"{self.body // 1024} KiB"
        return f"{slots}, {handler}, {body}"


MAIN: Final = Case(slots=1, handler_seconds=0, body=SMALL, warm=300, count=4_000, rounds=7)

SLOTS: Final = Case(slots=8, handler_seconds=0, body=SMALL, warm=500, count=8_000, rounds=11)

FULL: Final = (
    MAIN,
    SLOTS,
    Case(slots=1, handler_seconds=0, body=LARGE, warm=50, count=800, rounds=3),
    Case(slots=1, handler_seconds=0.01, body=SMALL, warm=5, count=100, rounds=3),
    Case(slots=8, handler_seconds=0.01, body=SMALL, warm=40, count=700, rounds=3),
)

QUICK: Final = (Case(slots=1, handler_seconds=0, body=SMALL, warm=200, count=1_500, rounds=2),)
