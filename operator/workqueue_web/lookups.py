"""Values that take a request to read: cached, shared by all open pages, and read one at a time."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar

V = TypeVar("V")
Key = tuple[str, str]

WAIT_SECONDS: Final = 1.0
"""A page is shown without a value that takes longer to read. A live page shows it after the read."""

KEPT: Final = 200

logger = logging.getLogger(__name__)


class Lookups(Generic[V]):
    """Reads values one at a time, and each again only after some seconds.

    So the number of open pages does not change how many requests this process sends.

    Args:
        seconds: how long a value is current.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._known: dict[Key, tuple[float, V]] = {}
        self._reading: dict[Key, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._turn_alone = asyncio.Lock()
        self._locks: weakref.WeakValueDictionary[Key, asyncio.Lock] = weakref.WeakValueDictionary()

    async def get(self, key: Key, read: Callable[[], Awaitable[V]]) -> V | None:
        """Return the last value of a key; None before the first one. Reads a value that is out of date again."""
        known = self._known.get(key)
        if known is None or self._clock() - known[0] >= self._seconds:
            if key not in self._reading:
                self._reading[key] = asyncio.create_task(self._read(key, read))
            await asyncio.wait({self._reading[key]}, timeout=WAIT_SECONDS)
            known = self._known.get(key)
        return None if known is None else known[1]

    @asynccontextmanager
    async def alone(self, key: Key) -> AsyncIterator[None]:
        """Prevent reads of this key during the context. The next `get` reads it again.

        Contexts run one at a time. A slow read of another key does not delay them.
        """
        async with self._turn_alone, self._lock_of(key):
            try:
                yield
            finally:
                self._known.pop(key, None)

    async def stop(self) -> None:
        """Cancel all reads."""
        reading = list(self._reading.values())
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

    def _lock_of(self, key: Key) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _read(self, key: Key, read: Callable[[], Awaitable[V]]) -> None:
        try:
            async with self._lock_of(key), self._turn:
                value = await read()
            self._known.pop(key, None)
            self._known[key] = self._clock(), value
            while len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
        except Exception:
            # The page shows the previous value, and its next refresh tries again.
            logger.exception("Reading a value for the page failed unexpectedly.")
        finally:
            del self._reading[key]
