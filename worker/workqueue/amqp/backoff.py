"""How long to wait before something that failed is tried again.

Place in the flow: used by the connections of worker and operator, by slots whose queue is missing, and by
republishing. Full jitter: a random time up to a bound that doubles, so that a thousand workers whose broker
restarts do not come back in step.
"""

from __future__ import annotations

import random
from typing import Final

STEADY_SECONDS: Final = 5.0
"""A connection that lived for so long was a success: the next loss starts the waits anew. A broker that accepts
connections and ends each at once must not have a thousand bells hung ten times a second."""


class Backoff:
    """A row of waiting times, in seconds.

    Args:
        first: the bound of the first wait.
        longest: the bound that is never passed.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def next(self) -> float:
        """The next wait."""
        # The exponent is bounded too, since 2.0 ** 1024 overflows after a long outage.
        bound = min(self._longest, self._first * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return random.uniform(0.0, bound)  # noqa: S311 - spreading load needs no secrecy

    def reset(self) -> None:
        """Start again with the first bound, after a success."""
        self._failures = 0
