"""Threads that run handlers, and take turns at the I/O loop: the leader/followers pattern.

Place in the flow: the runtime submits work; a thread of the crew runs its handler and reports the end. One
thread leads: it turns the I/O loop. The one that receives a message makes another one the leader and runs
the handler itself, so that a message changes no thread between the socket and its acknowledgement, while
somebody always answers the broker's heartbeats, however long handlers take.
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
    """One thread more than there are slots, so that one is always free to lead.

    Args:
        loop: of the consuming connection.
        call: the handler.
        handled: told of each end, with the exception if there was one; called in the handler's thread.
        slots: how many handlers may run at once.
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

    def submit(self, delivery: Delivery) -> None:
        """Have the handler run. Called by whoever turns the loop."""
        self._waiting.append(delivery)

    def cancel(self, delivery: Delivery) -> None:
        """Nothing more than what the message's token has said: a thread cannot be interrupted."""

    def stop(self, timeout: float) -> bool:
        """Let the loop rest and the threads end. Returns whether all did; a handler may still run in one."""
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
            except BaseException as raised:  # noqa: BLE001 - SystemExit is a failure like others
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
            # For each message that waits one thread, and one to lead.
            self._condition.notify(len(self._waiting) + 1)
        return None if self._stopped else delivery
