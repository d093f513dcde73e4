"""A limit on unconfirmed messages, at which publishing threads and tasks wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial


class PublishLimiter:
    """A limit on the number of messages and on their bytes.

    Waiting threads and tasks continue when a quarter is free, not one place: waking a thread for each
    confirmation would cost more than the message itself. A message larger than the byte limit passes when
    nothing else is unconfirmed.
    """

    def __init__(self, places: int, size: int) -> None:
        self._places = places
        self._size = size
        self._used = 0
        self._used_bytes = 0
        self._condition = threading.Condition()
        self._tasks: deque[Callable[[], None]] = deque()
        self._waiting = 0

    @property
    def used(self) -> int:
        """How many places are taken, one per message."""
        return self._used

    def try_take(self, size: int) -> bool:
        """Take a place for `size` bytes without waiting; return whether there was one."""
        with self._condition:
            return self._take(size)

    def take(self, size: int, timeout: float) -> bool:
        """Take a place, waiting at most `timeout` seconds; return whether there was one."""
        if self.try_take(size):
            return True
        deadline = time.monotonic() + timeout
        with self._condition:
            while not self._take(size):
                self._waiting += 1
                try:
                    if not self._condition.wait(deadline - time.monotonic()):
                        return self._take(size)
                finally:
                    self._waiting -= 1
        return True

    def add(self, size: int) -> None:
        """Take a place even if none is free, for callers with a limit of their own. Never waits."""
        with self._condition:
            self._used += 1
            self._used_bytes += size

    async def take_async(self, size: int, timeout: float) -> bool:
        """Like `take`, for a task."""
        if self.try_take(size):
            return True
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    turn = loop.create_future()
                    with self._condition:
                        if self._take(size):
                            return True
                        self._tasks.append(partial(_wake, loop, turn))
                    await turn
        except TimeoutError:
            return self.try_take(size)

    def give(self, places: int, size: int) -> None:
        """Free places, and the total bytes of their messages."""
        tasks: list[Callable[[], None]] = []
        with self._condition:
            self._used -= places
            self._used_bytes -= size
            if (self._waiting or self._tasks) and self._is_roomy():
                self._condition.notify_all()
                tasks = list(self._tasks)
                self._tasks.clear()
        for wake in tasks:
            wake()

    def wait_empty(self, timeout: float) -> bool:
        """Wait until every place is free, at most `timeout` seconds; return whether it is."""
        with self._condition:
            self._waiting += 1
            try:
                return self._condition.wait_for(lambda: self._used == 0, timeout)
            finally:
                self._waiting -= 1

    def _take(self, size: int) -> bool:
        if self._used >= self._places or (self._used and self._used_bytes + size > self._size):
            return False
        self._used += 1
        self._used_bytes += size
        return True

    def _is_roomy(self) -> bool:
        return self._used * 4 <= self._places * 3 and self._used_bytes * 4 <= self._size * 3


def _wake(loop: asyncio.AbstractEventLoop, turn: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the task
        loop.call_soon_threadsafe(_go_on, turn)


def _go_on(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
