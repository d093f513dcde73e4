"""The buckets in which workers report how long handlers ran, and in which the operator adds them up.

Bucket n holds times above 2^((n-1)/4) and up to 2^(n/4) seconds, as in Prometheus's native histograms of schema 2. So
no time is further than a tenth from the middle of its bucket, and few buckets are in use: handlers of one queue are
alike.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

_PER_DOUBLING: Final = 4

LOWEST: Final = -40
"""Up to about a millisecond."""

HIGHEST: Final = 68
"""Above a day and a half."""

_BOUNDS: Final = [2.0 ** (bucket / _PER_DOUBLING) for bucket in range(LOWEST, HIGHEST)]


def bucket_of(seconds: float) -> int:
    """Return the bucket of a time."""
    return LOWEST + bisect_left(_BOUNDS, seconds)


def seconds_of(bucket: int) -> float:
    """Return the geometric middle of a bucket."""
    return float(2 ** ((bucket - 0.5) / _PER_DOUBLING))
