"""The delay before another attempt, for connections, channels, copies and the operator's writes."""

from __future__ import annotations

from typing import Final

STEADY_SECONDS: Final = 5.0
"""A connection that stayed open for this long was a success, so that the next loss starts with the first delay. A
broker that accepts connections and closes each immediately must not get a thousand doorbells ten times a second."""

_MOST_DOUBLINGS: Final = 30
"""2.0 ** 1024 overflows, which a long outage would reach."""


def doubled(failures: int, first: float, longest: float) -> float:
    """Return `first` after the first failure in a row, twice as much after each further one, at most `longest`."""
    return min(longest, first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))


class Backoff:
    """Delays with full jitter: a random time up to a bound that doubles.

    A thousand workers whose broker restarts then do not reconnect at the same moment.

    Args:
        first: the bound of the first delay, in seconds.
        longest: the largest bound, in seconds.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def next(self) -> float:
        """Count a failure and return the delay before the next attempt, in seconds."""
        import random  # takes 1 ms, and most workers start without a failure

        self._failures += 1
        bound = doubled(self._failures, self._first, self._longest)
        return random.uniform(0.0, bound)  # noqa: S311 - spreading load needs no secrecy

    def reset(self) -> None:
        """Start again with the first bound, after a success."""
        self._failures = 0
