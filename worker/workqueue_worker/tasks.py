"""One asyncio loop that runs async handlers and, when nothing holds it up, the I/O of the broker too.

Place in the flow: like `crew`, for coroutine functions. The asyncio loop watches the selector of the I/O
loop and turns it, so that a message changes no thread between the socket and its acknowledgement. A handler
that blocks the asyncio loop would silence the heartbeat; a keeper thread notices that within seconds and
turns the I/O loop in its place until the asyncio loop is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .broker.loop import MAX_WAIT_SECONDS, Loop
from .broker.slot import Work

KEEPER_SECONDS: Final = 2.0
"""How often the keeper looks. A heartbeat is due every 5 s and is missed after 10."""


class Tasks:
    """Runs each handler as a task.

    Args:
        loop: of the consuming connection.
        run: the coroutine function that runs the handler of some work and reports its end.
    """

    def __init__(self, loop: Loop, run: Callable[[Work], Coroutine[Any, Any, None]]) -> None:
        self._loop = loop
        self._run = run
        self._waiting: deque[Work] = deque()
        self._tasks: dict[Work, asyncio.Task[None]] = {}
        self._asyncio = asyncio.new_event_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._answered = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._live, name="asyncio", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="io-keeper", daemon=True)

    def start(self) -> None:
        """Start the threads, and with them the I/O loop."""
        self._thread.start()
        self._keeper.start()

    def submit(self, work: Work) -> None:
        """Have the handler run. Called by whoever turns the loop."""
        self._waiting.append(work)
        if threading.current_thread() is not self._thread:
            self._asyncio.call_soon_threadsafe(self._begin)

    def cancel(self, work: Work) -> None:
        """Cancel the handler's task. Thread-safe."""

        def cancel() -> None:
            task = self._tasks.get(work)
            if task is not None:
                task.cancel()

        with contextlib.suppress(RuntimeError):  # the loop is closed, its tasks are cancelled
            self._asyncio.call_soon_threadsafe(cancel)

    def stop(self, timeout: float) -> bool:
        """Let the loop rest and the threads end; tasks are cancelled. Returns whether both ended."""
        self._stopped.set()
        self._asyncio.call_soon_threadsafe(self._asyncio.stop)
        self._answered.set()
        self._loop.wake()
        self._thread.join(timeout)
        self._keeper.join(timeout)
        return not self._thread.is_alive() and not self._keeper.is_alive()

    def _live(self) -> None:
        asyncio.set_event_loop(self._asyncio)
        self._asyncio.add_reader(self._loop.fileno(), self._turn)
        self._asyncio.call_soon(self._turn)
        self._asyncio.run_forever()
        self._asyncio.remove_reader(self._loop.fileno())
        for task in self._tasks.values():
            task.cancel()
        self._asyncio.run_until_complete(asyncio.gather(*self._tasks.values(), return_exceptions=True))
        self._asyncio.run_until_complete(self._asyncio.shutdown_asyncgens())
        self._asyncio.close()

    def _turn(self) -> None:
        self._loop.turn(0.0)
        if self._waiting:
            self._begin()
        with self._loop.lock:
            due = self._asyncio.time() + self._loop.seconds_to_next(MAX_WAIT_SECONDS)
        # A timer that comes too early costs one turn; only one that comes too late would do harm.
        if self._timer is None or due < self._timer.when() or self._timer.when() <= self._asyncio.time():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._asyncio.call_at(due, self._turn)

    def _begin(self) -> None:
        while self._waiting:
            work = self._waiting.popleft()
            task = self._asyncio.create_task(self._run(work))
            self._tasks[work] = task
            task.add_done_callback(lambda _done, work=work: self._tasks.pop(work, None))  # type: ignore[misc]

    def _keep(self) -> None:
        while not self._stopped.wait(KEEPER_SECONDS):
            self._answered.clear()
            self._asyncio.call_soon_threadsafe(self._answered.set)
            if not self._answered.wait(KEEPER_SECONDS / 2):
                while not self._answered.is_set():
                    self._loop.turn(KEEPER_SECONDS / 4)
