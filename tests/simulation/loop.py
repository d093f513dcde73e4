"""An event loop whose time is virtual and whose order depends on nothing but the calls that it gets.

Time does not pass while anything is ready to run. Then it jumps to the next timer. Code runs in processes, which can
be killed or frozen in the middle of anything, as a real process can.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
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
        rests_until: the same; without end after its death.
    """

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen_until = self.rests_until = 0.0
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
        self.alive, self.rests_until = False, math.inf
        self._loop.purge(self)

    def freeze(self, seconds: float) -> None:
        """Run nothing of it for some seconds."""
        self.frozen_until = self._loop.time() + seconds
        self.rests_until = max(self.rests_until, self.frozen_until)
        self._loop.postpone(self)


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task whose place in a set does not depend on its address in memory. It knows when it began."""

    _numbers = itertools.count()

    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        *,
        loop: SimulatedLoop,
        name: str | None,
        context: contextvars.Context | None,
    ) -> None:
        self._number = next(self._numbers)
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        self.begun = loop._now
        super().__init__(work, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


class Handle(list[Any]):
    """Stands in for asyncio.Handle and asyncio.TimerHandle, which cost four times as much.

    The items are when, a number that orders timers of the same time, the callback (None after `cancel`), its
    arguments, its context and its process. So a heap of timers compares them without a call into Python.
    """

    __slots__ = ()

    def cancel(self) -> None:
        """Do not run."""
        self[_CALLBACK] = None

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self[_CALLBACK] is None

    def when(self) -> float:
        """The time of a timer."""
        return float(self[_WHEN])


_WHEN, _CALLBACK, _CONTEXT, _PROCESS = 0, 2, 4, 5


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop.

    Attributes:
        errors: what tasks and callbacks raised and nothing handled.
    """

    def __init__(self) -> None:
        super().__init__()
        # The story of a seed must not depend on what ran before in this process.
        _Task._numbers = itertools.count()
        self._ready: deque[Handle] = deque()
        self._timers: list[Handle] = []
        self._numbers = itertools.count()
        self._now = 1000.0
        self.errors: list[str] = []
        # The loop makes thousands of futures. This makes them without a frame of Python.
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign]

    # Each future and each task asks for it. This answers False without a frame of Python.
    get_debug = staticmethod(bool)  # type: ignore[assignment]

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> Any:
        """Begin a task."""
        return _Task(coro, loop=self, name=name, context=context)

    def time(self) -> float:
        """Return the virtual seconds."""
        return self._now

    def _run_once(self) -> None:
        """Run until the loop stops: first all that is ready, then the time moves to the next timer."""
        while not self._stopping:  # type: ignore[attr-defined]
            try:
                self._take_turns()
            except DeadlockError:
                raise
            except Exception as error:  # noqa: BLE001 - it is recorded
                self.call_exception_handler({"message": "Exception in a callback", "exception": error})

    def _take_turns(self) -> None:
        ready, timers, pop = self._ready, self._timers, heapq.heappop
        while not self._stopping:  # type: ignore[attr-defined]
            if not ready:
                # Nearly always, only one timer is due.
                _, _, callback, arguments, context, _ = timer = self._next_timer()
                if not timers or timers[0][_WHEN] >= self._now + RESOLUTION:
                    context.run(callback, *arguments)
                    continue
                ready.append(timer)
            now = self._now + RESOLUTION
            while timers and timers[0][_WHEN] < now:
                ready.append(pop(timers))
            for _ in range(len(ready)):
                _, _, callback, arguments, context, _ = ready.popleft()
                if callback is not None:
                    context.run(callback, *arguments)

    def _next_timer(self) -> Handle:
        """Move the time to the next timer, and return it."""
        timers = self._timers
        while timers:
            timer = heapq.heappop(timers)
            if timer[_CALLBACK] is not None:
                self._now = max(self._now, timer[_WHEN])
                return timer
        raise DeadlockError

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        """Run a callback in the next turn, unless its process is dead or frozen."""
        if context is None:
            context = contextvars.copy_context()
        process = context.get(PROCESS)
        if process is not None and self._now < process.rests_until:
            return self.call_at(self._now, callback, *args, context=context)
        handle = Handle((0.0, 0, callback, args, context, process))
        self._ready.append(handle)
        return handle

    # Python closes generators that are garbage by it.
    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        """Run a callback after some seconds, or when its process is no longer frozen."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        """Run a callback at a time, or when its process is no longer frozen."""
        if context is None:
            context = contextvars.copy_context()
        process = context.get(PROCESS)
        if process is not None and when < process.rests_until:
            when = process.rests_until
        timer = Handle((when, next(self._numbers), callback, args, context, process))
        if when < math.inf:
            heapq.heappush(self._timers, timer)
        return timer

    def purge(self, process: Process) -> None:
        """Drop everything that a process waits for."""
        for handle in (*self._ready, *self._timers):
            if handle[_PROCESS] is process:
                handle.cancel()

    def postpone(self, process: Process) -> None:
        """Move everything that a process waits for to the end of its freeze."""
        end, ready = process.frozen_until, list(self._ready)
        for timer in self._timers:
            if timer[_PROCESS] is process:
                timer[_WHEN] = max(timer[_WHEN], end)
        self._ready.clear()
        for handle in ready:
            if handle[_PROCESS] is process:
                handle[:2] = end, next(self._numbers)
                self._timers.append(handle)
            else:
                self._ready.append(handle)
        heapq.heapify(self._timers)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Record what nothing handled."""
        if "destroyed" not in context["message"]:
            self.errors.append(f"{context['message']}: {context.get('exception')!r}")

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        """Do nothing: no signal arrives from outside."""


class _Sleep:
    """What a task awaits in `sleep`: as a future whose timer runs the task, without a turn of the loop in between."""

    __slots__ = ("_asyncio_future_blocking", "_loop", "_timer", "_when")

    def __init__(self, loop: SimulatedLoop, when: float) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._when = when
        self._timer: Handle | None = None

    def __await__(self) -> Generator[_Sleep, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def add_done_callback(self, wake: Callable[[_Sleep], None], *, context: contextvars.Context) -> None:
        """Set the timer. The task calls this once."""
        self._timer = self._loop.call_at(self._when, wake, self, context=context)

    def cancel(self, msg: object = None) -> bool:
        """End the sleep with CancelledError."""
        timer = self._timer
        if timer is None or timer[_CALLBACK] is None:
            return False
        self._when = math.nan
        self._loop.call_soon(timer[_CALLBACK], self, context=timer[_CONTEXT])
        timer.cancel()
        return True

    def result(self) -> None:
        """Raise CancelledError after `cancel`."""
        self._timer = None
        if math.isnan(self._when):
            raise asyncio.CancelledError


async def sleep(delay: float, result: Any = None) -> Any:
    """Stand in for `asyncio.sleep`, which makes half of all timers, with a third of its steps."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, SimulatedLoop) or delay <= 0:
        return await _real_sleep(delay, result)
    await _Sleep(loop, loop._now + delay)
    return result


_real_sleep: Final = asyncio.sleep


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
        loop = self._loop
        self._last = max(self._last + TIE, loop._now + seconds)
        loop.call_at(self._last, receive, *arguments, context=self._context)
