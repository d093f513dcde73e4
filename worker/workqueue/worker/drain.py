"""From a signal to the end of the process: take nothing more, let handlers finish, hand back the rest.

Place in the flow: the main thread waits here while the others work. The first SIGTERM (or Ctrl-C) begins,
the second one ends the grace at once, the third one ends the process.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final

from workqueue.worker.runtime import Runtime

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

LONGEST_CANCEL_SECONDS: Final = 2.0
"""How much of the grace is kept for handlers to end after they were told to."""

LOOK_SECONDS: Final = 1.0
LAST_SIGNAL: Final = 3
"""Ends the process immediately, whatever it is doing. RabbitMQ redelivers what was not settled."""

logger = logging.getLogger(__name__)


class Signals:
    """Receives the signals that end the worker. Make it in the main thread, before anything else starts."""

    def __init__(self) -> None:
        # The only queue that a signal handler may put into while the main thread waits in it.
        self._received: SimpleQueue[int | None] = SimpleQueue()
        self._count = 0
        self._ends_alone = False
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a signal or for `interrupt()`; returns whether it was a signal.

        Never waits long in one piece: a signal that comes just before the wait begins does not interrupt it,
        and Python calls the handler only when the wait is over.
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
        if self._ends_alone and self._count == 1:
            return
        self._received.put(number)

    def end_alone(self) -> None:
        """Let the first signal change nothing: the worker shuts down already, by itself, and has its grace."""
        self._ends_alone = True

    def interrupt(self) -> None:
        """End the wait of the main thread."""
        self._received.put(None)


def drain(runtime: Runtime, signals: Signals, grace_seconds: float) -> None:
    """Shut down in order. Returns when every message is settled or handed back and we are disconnected."""
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
    """Wait until all is settled (returns True), the time is over, or a signal comes."""
    result: list[bool] = []

    def wait() -> None:
        result.append(runtime.wait_quiet(deadline))
        signals.interrupt()

    threading.Thread(target=wait, name="drain", daemon=True).start()
    while not result:
        # The other thread keeps the time; the margin only bounds the wait on a machine that is overloaded.
        left = deadline - time.monotonic() + 1.0
        if left <= 0 or signals.wait(left):
            return False
    return result[0]
