"""Threads of a worker on the simulated loop: greenlets, which wait on futures instead of locks.

The worker waits in threads for its consumers to end. Here such a thread is a greenlet. Its waits switch back to the
loop, so that the order of everything follows from the seed. Between two waits nothing else runs, so a lock is empty.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import greenlet

from tests.simulation.loop import PROCESS, Process


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function that may wait with the classes below."""
    thread = greenlet.greenlet(function)
    thread.gr_context = contextvars.copy_context()
    result = thread.switch(*arguments)
    while not thread.dead:
        await result
        result = thread.switch()
    return result


def _wait_for(future: asyncio.Future[Any]) -> None:
    parent = greenlet.getcurrent().parent
    assert parent is not None, "only a thread may wait"
    parent.switch(future)


def _start(function: Callable[[], Any], name: str) -> None:
    process = PROCESS.get()
    assert isinstance(process, Process)
    process.start(in_thread(function), name)


class NullLock:
    """The lock of a connection's loop."""

    def acquire(self) -> None:
        """Nothing else runs."""

    def release(self) -> None:
        """Nothing else has waited."""

    def __enter__(self) -> None:
        """Nothing else runs."""

    def __exit__(self, *_: object) -> None:
        """Nothing else has waited."""


class Condition(NullLock):
    """Stands in for threading.Condition."""

    def __init__(self, _lock: object) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify_all(self) -> None:
        """Wake every thread that waits."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def wait(self, timeout: float) -> None:
        """Wait for `notify_all`, at most `timeout` seconds."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        timer = loop.call_later(timeout, lambda: future.done() or future.set_result(None))
        _wait_for(future)
        timer.cancel()


class Lock:
    """Stands in for threading.Lock: a lock that is held during a wait."""

    def __init__(self) -> None:
        self._held = False
        self._released = Condition(None)

    def __enter__(self) -> None:
        while self._held:
            self._released.wait(3600.0)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        self._released.notify_all()


class Thread:
    """Stands in for threading.Thread."""

    def __init__(self, target: Callable[[], Any], name: str = "", **_: object) -> None:
        self._target = target
        self._name = name

    def start(self) -> None:
        """Begin."""
        _start(self._target, self._name)


class Timer:
    """Stands in for threading.Timer."""

    def __init__(self, seconds: float, function: Callable[[], Any]) -> None:
        self._seconds = seconds
        self._function = function
        self._timer: asyncio.TimerHandle | None = None
        self.daemon = False

    def start(self) -> None:
        """Begin."""
        self._timer = asyncio.get_running_loop().call_later(self._seconds, _start, self._function, "timer")

    def cancel(self) -> None:
        """Do not call the function."""
        if self._timer is not None:
            self._timer.cancel()


class Signals:
    """Stands in for the worker's Signals: no second one comes."""

    def __init__(self) -> None:
        self._interrupted = Condition(None)
        self._count = 0

    def wait(self, timeout: float) -> bool:
        """Whether another signal came; False after `interrupt`."""
        if self._count == 0:
            self._interrupted.wait(timeout)
        self._count = 0
        return False

    def interrupt(self) -> None:
        """End the wait."""
        self._count += 1
        self._interrupted.notify_all()
