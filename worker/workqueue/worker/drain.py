"""Shutdown: take no more messages, let handlers finish, requeue the rest.

The first SIGTERM or Ctrl-C begins the shutdown, the second ends the grace period, the third ends the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from workqueue.worker.runtime import Runtime

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

LONGEST_CANCEL_SECONDS: Final = 2.0
"""How much of the grace period remains for cancelled handlers to end."""

LOOK_SECONDS: Final = 1.0
LAST_SIGNAL: Final = 3
"""This signal ends the process immediately. RabbitMQ redelivers unsettled messages."""

logger = logging.getLogger(__name__)


class Signals:
    """Receives the signals that end the worker. Create it in the main thread, before anything else starts."""

    def __init__(self) -> None:
        # The only queue that a signal handler may use while the main thread waits on it.
        self._received: SimpleQueue[int | None] = SimpleQueue()
        self._count = 0
        self._ignores_first = False
        self._leave: Callable[[], object] | None = None
        # A parent that ignores it passes that on, and the worker would never hear of the end of its processes.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._install()

    def _install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._receive)

    @contextlib.contextmanager
    def loading(self, leave: Callable[[], object]) -> Iterator[None]:
        """End the process with the first signal, while the main thread loads the handler and there is no message.

        The user's code may set its own signal handlers. Those of the worker are set again.

        Args:
            leave: ends the process.
        """
        self._leave = leave
        try:
            if self._count:
                leave()
            yield
        finally:
            self._leave = None
            self._install()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a signal or for `interrupt()`; return whether it was a signal.

        It waits in short steps: a signal just before a wait does not interrupt the wait, and Python calls the signal
        handler only after it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
            try:
                return self._received.get(timeout=max(left, 0)) is not None
            except Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    return False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count == LAST_SIGNAL:
            os._exit(128 + number)
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        if self._ignores_first and self._count == 1:
            return
        self._received.put(number)

    def ignore_first(self) -> None:
        """Ignore the first signal, as the worker already shuts down by itself and has its grace period."""
        self._ignores_first = True

    def interrupt(self) -> None:
        """End the wait of the main thread."""
        self._received.put(None)


def drain(runtime: Runtime, signals: Signals, grace_seconds: float) -> None:
    """Shut down. Returns when every message is settled or requeued and the worker is disconnected."""
    begun = time.monotonic()
    deadline = begun + grace_seconds
    runtime.stop_taking()
    logger.info(
        "Shutting down; handlers may finish.", extra={"busy": runtime.consumer.busy(), "grace": grace_seconds}
    )
    quiet = _wait_quiet(runtime, signals, deadline - min(LONGEST_CANCEL_SECONDS, grace_seconds / 10))
    handed_back = 0
    if not quiet:
        logger.warning(
            "Handlers did not finish in time; cancelling them.", extra={"busy": runtime.consumer.busy()}
        )
        runtime.deliveries.cancel_handlers()
        _wait_quiet(runtime, signals, min(deadline, time.monotonic() + LONGEST_CANCEL_SECONDS))
        handed_back = runtime.deliveries.hand_back()
    runtime.close()
    logger.info(
        "Shut down.",
        extra={"handed_back": handed_back, "seconds": round(time.monotonic() - begun, 3)},
    )


def _wait_quiet(runtime: Runtime, signals: Signals, deadline: float) -> bool:
    """Wait until all messages are settled (returns True), the deadline passes, or a signal comes."""
    result: list[bool] = []

    def wait() -> None:
        result.append(runtime.wait_quiet(deadline))
        signals.interrupt()

    threading.Thread(target=wait, name="drain", daemon=True).start()
    while not result:
        # The other thread watches the deadline. The margin limits the wait on an overloaded machine.
        left = deadline - time.monotonic() + 1.0
        if left <= 0 or signals.wait(left):
            return False
    return result[0]
