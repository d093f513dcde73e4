"""The delay before the next attempt. Pure except for the jitter."""

from __future__ import annotations

import random
from typing import Final

_JITTER: Final = 0.25


def delay(failures: int, first: float, longest: float) -> float:
    """Return the delay before the next attempt, in seconds.

    Args:
        failures: consecutive failures, at least 1. Each one doubles the delay.
        first: the delay after the first failure, in seconds.
        longest: the limit of the doubling, in seconds. Jitter only adds to it.
    """
    seconds = min(first * 2.0 ** min(failures - 1, 10), longest)
    return seconds * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - jitter
