"""Threads that run handlers and take turns at the I/O loop: the leader/followers pattern.

One thread is the leader and runs the I/O loop. When it receives a message, it promotes another thread and
runs the handler itself, so that a message stays in one thread from the socket to its acknowledgement. A
leader always answers the broker's heartbeats, however long handlers run.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from workqueue.amqp.io_loop import Loop
from workqueue.message import Message
from workqueue.worker.ending import leave_forked_child
from workqueue.worker.slot import Delivery


class ThreadExecutor:
    """One thread more than there are slots, so that one is always free to be the leader.

    Args:
        loop: of the consuming connection.
        call: the handler.
        handled: called in the handler's thread when it has returned, with its exception or None.
        slots: how many handlers may run at the same time.
    """

    def __init__(
        self,
        loop: Loop,
        call: Callable[[Message], object],
        handled: Callable[[Delivery, BaseException | None], None],
        slots: int,
    ) -> None:
        self._loop = loop
        self._call = call
        self._handled = handled
        self._waiting: deque[Delivery] = deque()
        self._condition = threading.Condition(threading.Lock())
        self._has_leader = False
        self._stopped = False
        self._process = os.getpid()
        self._threads = [
            threading.Thread(target=self._live, name=f"handler-{number}", daemon=True)
            for number in range(slots + 1)
        ]

    def start(self) -> None:
        """Start the threads, and with them the I/O loop."""
        for thread in self._threads:
            thread.start()

    def accepts(self, slot: int) -> bool:  # noqa: ARG002 - as other executors
        """Return True: a thread or task is always free for a slot without a handler."""
        return True

    def submit(self, delivery: Delivery) -> None:
        """Run the handler. Called by the leader."""
        self._waiting.append(delivery)

    def cancel(self, delivery: Delivery) -> None:
        """Do nothing: a thread cannot be interrupted. The handler may read `message.cancelled`."""

    def is_blocked(self, delivery: Delivery) -> bool:  # noqa: ARG002 - as other executors
        """Return False: nothing here can tell, or do anything about it."""
        return False

    def stop(self, timeout: float) -> bool:
        """End the threads; return False if a handler still runs after `timeout` seconds."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._loop.wake()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _live(self) -> None:
        while (delivery := self._next()) is not None:
            error: BaseException | None = None
            try:
                self._call(delivery.message)
            except BaseException as raised:  # noqa: BLE001 - SystemExit is a failure like any other
                error = raised
            if os.getpid() != self._process:
                leave_forked_child(error)
            self._handled(delivery, error)

    def _next(self) -> Delivery | None:
        with self._condition:
            while self._has_leader and not self._waiting and not self._stopped:
                self._condition.wait()
            if self._stopped:
                return None
            if self._waiting:
                return self._waiting.popleft()
            self._has_leader = True
        return self._lead()

    def _lead(self) -> Delivery | None:
        while not self._waiting and not self._stopped:
            self._loop.run_once()
        with self._condition:
            self._has_leader = False
            delivery = self._waiting.popleft() if self._waiting else None
            # One thread for each waiting message, and one to lead.
            self._condition.notify(len(self._waiting) + 1)
        return None if self._stopped else delivery
