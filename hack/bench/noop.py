"""A handler that does nothing, and prints how many messages per second it got."""

from __future__ import annotations

import itertools
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workqueue import Message

_WARM = int(os.environ.get("BENCH_WARM", "0"))
_COUNT = int(os.environ.get("BENCH_COUNT", "0"))
_numbers = itertools.count(1)
_times: list[float] = []


def handle(_: Message) -> None:
    """Count."""
    number = next(_numbers)
    if number == _WARM:
        _times.append(time.monotonic())
    elif number == _COUNT:
        print(f"rate={(_COUNT - _WARM) / (time.monotonic() - _times[0])}", file=sys.stderr, flush=True)
