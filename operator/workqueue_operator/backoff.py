"""The delay before a failed pass or a refused write is tried again."""

from __future__ import annotations

import random
from typing import Final

from workqueue.amqp.backoff import doubled

_JITTER: Final = 0.25


def delay(failures: int, first: float, longest: float) -> float:
    """Return the delay before the next attempt, in seconds.

    The jitter only adds to it, so that the rate of attempts stays below `1 / longest`. That is why `Backoff`, whose
    full jitter also gives short delays, is not used here.

    Args:
        failures: consecutive failures, at least 1. Each one doubles the delay.
        first: the delay after the first failure, in seconds.
        longest: the limit of the doubling, in seconds. Jitter only adds to it.
    """
    return doubled(failures, first, longest) * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - jitter
