"""An event loop whose time is virtual and whose order depends on nothing but the calls that it gets.

Time does not pass while anything is ready to run. Then it jumps to the next timer. Code runs in processes, which can
be killed or frozen in the middle of anything, as a real process can.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

PROCESS: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("PROCESS", default=None)

TIE: Final = 1e-7
"""Seconds between two frames of one stream that would arrive at the same time, so that their order stays."""


RESOLUTION: Final = 1e-9
"""Timers within so many seconds end at the same time."""


class DeadlockError(Exception):
    """Nothing is ready to run and no timer is set."""


class Process:
    """What is killed or frozen together: an operator, or a worker.

    Attributes:
        context: callbacks and tasks that begin in it belong to the process.
        frozen_until: the time before which nothing of it runs.
    """

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen_until = 0.0
        self._loop = loop
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function as this process."""
        return self.context.copy().run(function, *arguments)

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Begin a task as this process."""
        task: asyncio.Task[Any] = self._loop.create_task(work, name=name, context=self.context.copy())
        return task

    def kill(self) -> None:
        """Run nothing of it any longer."""
        self.alive = False
        self._loop.purge(self)

    def freeze(self, seconds: float) -> None:
        """Run nothing of it for some seconds."""
        self.frozen_until = self._loop.time() + seconds
        self._loop.postpone(self)


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task whose place in a set does not depend on its address in memory. It knows when it began."""

    _numbers = itertools.count()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._number = next(self._numbers)
        context = named.get("context")
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        self.begun = named["loop"].time()
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self._number


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop.

    Attributes:
        errors: what tasks and callbacks raised and nothing handled.
    """

    def __init__(self) -> None:
        super().__init__()
        # The story of a seed must not depend on what ran before in this process.
        _Task._numbers = itertools.count()
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._now = 1000.0
        self.errors: list[str] = []
        self.set_task_factory(
            lambda loop, work, **named: _Task(work, loop=loop, **named)  # type: ignore[arg-type]
        )

    def time(self) -> float:
        """Return the virtual seconds."""
        return self._now

    def _run_once(self) -> None:
        """Run what is ready. If nothing is, move the time to the next timer first."""
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2]._cancelled:  # type: ignore[attr-defined]
                heapq.heappop(timers)
            if not timers:
                raise DeadlockError
            self._now = max(self._now, timers[0][0])
        now = self._now + RESOLUTION
        while timers and timers[0][0] < now:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:  # type: ignore[attr-defined]
                ready.append(timer)
        for _ in range(len(ready)):
            _run(ready.popleft())

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        """Run a callback in the next turn, unless its process is dead or frozen."""
        handle = asyncio.Handle(callback, args, self, context)
        process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is not None:
            if not process.alive:
                return handle
            if self._now < process.frozen_until:
                return self.call_at(process.frozen_until, callback, *args, context=context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        """Run a callback at a time, or when its process is no longer frozen."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        process = timer._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is not None:
            if not process.alive:
                return timer
            if when < process.frozen_until:
                timer._when = when = process.frozen_until  # type: ignore[attr-defined]
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer stays until its time comes."""

    def purge(self, process: Process) -> None:
        """Drop everything that a process waits for."""
        for handle in (*self._ready, *(timer for _, _, timer in self._timers)):
            if not handle._cancelled and handle._context.get(PROCESS) is process:  # type: ignore[attr-defined]
                handle.cancel()

    def postpone(self, process: Process) -> None:
        """Move everything that a process waits for to the end of its freeze."""
        end = process.frozen_until
        ready = [handle for handle in self._ready if handle._context.get(PROCESS) is process]  # type: ignore[attr-defined]
        self._timers = [
            (max(when, end) if timer._context.get(PROCESS) is process else when, number, timer)  # type: ignore[attr-defined]
            for when, number, timer in self._timers
        ]
        for handle in ready:
            self._ready.remove(handle)
            later = asyncio.TimerHandle(end, _run, (handle,), self, contextvars.Context())
            self._timers.append((end, next(self._numbers), later))
        heapq.heapify(self._timers)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Record what nothing handled."""
        if "destroyed" not in context["message"]:
            self.errors.append(f"{context['message']}: {context.get('exception')!r}")

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        """Do nothing: no signal arrives from outside."""


def _run(handle: asyncio.Handle) -> None:
    if not handle._cancelled:  # type: ignore[attr-defined]
        handle._run()


class Stream:
    """One direction of a connection: what is sent arrives later, in order.

    Args:
        process: the receiver; None for a part of the world.
    """

    def __init__(self, loop: SimulatedLoop, process: Process | None = None) -> None:
        self._loop = loop
        self._context = process.context if process is not None else contextvars.Context()
        self._last = 0.0

    def send(self, seconds: float, receive: Callable[..., Any], *arguments: Any) -> None:
        """Call a function of the receiver after some seconds, and after everything that was sent before."""
        self._last = max(self._last + TIE, self._loop.time() + seconds)
        self._loop.call_at(self._last, receive, *arguments, context=self._context)
