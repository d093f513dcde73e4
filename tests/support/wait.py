"""Waiting for a condition, with a deadline: no test sleeps and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

DEFAULT_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.02


def eventually(condition: Callable[[], T], seconds: float = DEFAULT_SECONDS) -> T:
    """Ask until the answer is true, and return it.

    Raises:
        AssertionError: it was not in time; says what it was.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s; at the end it was {answer!r}"
        time.sleep(_LOOK_SECONDS)
    return answer
