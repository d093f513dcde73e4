"""Waiting for a condition, with a deadline: no test sleeps and hopes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

DEFAULT_SECONDS: Final = 20.0
_SHORTEST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.1


def eventually(condition: Callable[[], T | None], seconds: float = DEFAULT_SECONDS, what: str = "") -> T:
    """Call `condition` until its result is true, and return that result.

    The pause between two calls is as long as the call took, within bounds, so that kubectl does not fill a processor.

    Args:
        what: the condition in words, for the error.

    Raises:
        TimeoutError: it did not become true in time; the message has the last result.
    """
    deadline = time.monotonic() + seconds
    while True:
        called_at = time.monotonic()
        if result := condition():
            return result
        now = time.monotonic()
        if now > deadline:
            raise _timeout(seconds, what, result)
        time.sleep(min(max(now - called_at, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS))


async def until(condition: Callable[[], T | Awaitable[T]], seconds: float = DEFAULT_SECONDS) -> T:
    """Do the same as `eventually` inside a running event loop."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return result
        if loop.time() > deadline:
            raise _timeout(seconds, "", result)
        await asyncio.sleep(0.005)


def _timeout(seconds: float, what: str, result: object) -> TimeoutError:
    return TimeoutError(f"not within {seconds:g} s: {what or 'a condition'} (last result: {result!r})")
