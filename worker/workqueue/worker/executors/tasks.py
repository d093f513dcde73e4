"""One asyncio loop that runs async handlers and the I/O of the broker.

asyncio waits in our selector, which also runs the I/O loop, so that a message stays in one thread from the
socket to its acknowledgement, and its task starts in the same turn. A handler that blocks the asyncio loop
would stop the heartbeats. A keeper thread notices this within seconds and runs the I/O loop until the asyncio
loop continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from workqueue.amqp.io_loop import MAX_WAIT_SECONDS, Loop
from workqueue.message import Message
from workqueue.worker.ending import CLOSING_SECONDS, leave_forked_child
from workqueue.worker.errors import HandlerLoadError
from workqueue.worker.slot import Delivery

if TYPE_CHECKING:
    from workqueue.worker.handlers.lifespan import Lifespan

KEEPER_SECONDS: Final = 2.0
"""How often the keeper checks. With a heartbeat of 10 s, one is due every 5 s and is missed after 10 s."""


class _Selector(selectors.DefaultSelector):
    """asyncio's selector, which also runs the I/O loop."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for descriptors of asyncio and of the I/O loop. The latter are handled here."""
        loop = self._loop
        wait = loop.prepare(MAX_WAIT_SECONDS if timeout is None else min(timeout, MAX_WAIT_SECONDS))
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(wait)
        others = [pair for pair in ready if pair[0].data is not loop]
        loop.handle([pair for pair in ready if pair[0].data is loop] if others else ready)
        return others


class Opening(NamedTuple):
    """A lifespan to open, and the calls that report the result."""

    lifespan: Lifespan
    on_open: Callable[[], None]
    on_failure: Callable[[str], None]


class AsyncExecutor:
    """Runs each handler as a task.

    Args:
        loop: of the consuming connection.
        call: the handler, a coroutine function.
        handled: called in the asyncio thread when a handler has returned, with its exception or None.
        on_loop_ended: called with the reason when a handler's task or callback has ended the asyncio loop.
            The loop then continues, so that the other handlers can be cancelled.
        opening: the lifespan, if the handler has one.
    """

    def __init__(
        self,
        loop: Loop,
        call: Callable[[Message], Awaitable[object]],
        handled: Callable[[Delivery, BaseException | None], None],
        on_loop_ended: Callable[[str], None],
        opening: Opening | None = None,
    ) -> None:
        self._loop = loop
        self._call = call
        self._handled = handled
        self._on_loop_ended = on_loop_ended
        self._opening = opening
        self._process = os.getpid()
        self._selector = _Selector(loop)
        self._asyncio = asyncio.SelectorEventLoop(self._selector)
        self._answered = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._live, name="asyncio", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="io-keeper", daemon=True)

    def start(self) -> None:
        """Start the threads, and with them the I/O loop."""
        self._thread.start()
        self._keeper.start()

    def accepts(self, slot: int) -> bool:  # noqa: ARG002 - as other executors
        """Return True: a task can always start. Slots are held until the lifespan is open."""
        return True

    def submit(self, delivery: Delivery) -> None:
        """Run the handler. Called by the thread that runs the I/O loop."""
        if threading.current_thread() is self._thread:
            self._begin(delivery)
        else:
            self._asyncio.call_soon_threadsafe(self._begin, delivery)

    def cancel(self, delivery: Delivery) -> None:
        """Cancel the handler's task. Thread-safe."""

        def cancel() -> None:
            delivery.task.add_done_callback(ended)
            delivery.task.cancel()

        def ended(_task: object) -> None:
            if not delivery.returned:  # a task that is cancelled before its first step never starts
                self._handled(delivery, asyncio.CancelledError())

        with contextlib.suppress(RuntimeError):  # the loop is closed, its tasks are cancelled
            self._asyncio.call_soon_threadsafe(cancel)

    def is_blocked(self, delivery: Delivery) -> bool:  # noqa: ARG002 - as other executors
        """Return False: nothing here can tell, or do anything about it."""
        return False

    def stop(self, timeout: float) -> bool:
        """Cancel the tasks and end the threads; return False if one still runs after `timeout` seconds."""
        self._stopped.set()
        self._asyncio.call_soon_threadsafe(self._asyncio.stop)
        self._answered.set()
        self._loop.wake()
        timeout += CLOSING_SECONDS if self._opening is not None else 0.0
        deadline = time.monotonic() + timeout
        self._thread.join(timeout)
        self._keeper.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive() and not self._keeper.is_alive()

    def _begin(self, delivery: Delivery) -> None:
        delivery.task = asyncio.Task(self._handle(delivery), loop=self._asyncio)

    async def _handle(self, delivery: Delivery) -> None:
        error: BaseException | None = None
        try:
            await self._call(delivery.message)
        except BaseException as raised:  # noqa: BLE001 - also CancelledError
            error = raised
        if os.getpid() != self._process:
            leave_forked_child(error)
        self._handled(delivery, error)

    def _live(self) -> None:
        asyncio.set_event_loop(self._asyncio)
        self._loop.attach_selector(self._selector)
        if self._opening is not None:
            self._opening_task = self._asyncio.create_task(self._open(self._opening))
        while not self._stopped.is_set():
            self._run()
        if self._opening is not None:
            # First, since its own tasks must run until then.
            self._asyncio.run_until_complete(self._opening.lifespan.close_async())
        left = asyncio.all_tasks(self._asyncio)
        for task in left:
            task.cancel()
        self._asyncio.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._asyncio.run_until_complete(self._asyncio.shutdown_asyncgens())
        self._loop.detach_selector(self._selector)
        self._asyncio.close()

    async def _open(self, opening: Opening) -> None:
        try:
            await opening.lifespan.open_async(self._on_loop_ended)
        except HandlerLoadError as error:
            opening.on_failure(str(error))
        else:
            opening.on_open()

    def _run(self) -> None:
        """Run the asyncio loop until `stop()`, or until a handler ends it."""
        error: BaseException | None = None
        try:
            self._asyncio.run_forever()
        except BaseException as raised:  # noqa: BLE001 - asyncio lets SystemExit and KeyboardInterrupt through
            error = raised
        if os.getpid() != self._process:
            leave_forked_child(error)
        if not self._stopped.is_set():
            how = (
                "was stopped by a handler"
                if error is None
                else f"was ended by {error!r} in a task or callback"
            )
            self._on_loop_ended(f"The asyncio loop {how}.")

    def _keep(self) -> None:
        while not self._stopped.wait(KEEPER_SECONDS):
            self._answered.clear()
            self._asyncio.call_soon_threadsafe(self._answered.set)
            if not self._answered.wait(KEEPER_SECONDS / 2):
                while not self._answered.is_set():
                    self._loop.run_once(KEEPER_SECONDS / 4)
