"""How long to wait before something that failed is tried again. Pure but for the jitter.

Place in the flow: used by `reconcile` for passes and by `act` for writes that the API server refuses.
"""

from __future__ import annotations

import random
from typing import Final

_JITTER: Final = 0.25


def delay(failures: int, first: float, longest: float) -> float:
    """Return the delay before the next attempt, in seconds.

    Args:
        failures: in a row, at least 1; each doubles the delay.
        first: the delay after the first failure.
        longest: what the doubling ends at. The jitter only adds to it, so that the rate stays below its inverse.
    """
    seconds = min(first * 2.0 ** min(failures - 1, 10), longest)
    return seconds * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - jitter
