"""Threads that run handlers and take turns at the I/O loop: the leader/followers pattern.

One thread is the leader and runs the I/O loop. When it receives a message, it promotes another thread and
runs the handler itself, so that a message stays in one thread from the socket to its acknowledgement. A
leader always answers the broker's heartbeats, however long handlers run.

Short handlers of messages that arrived together run one after another in one thread, which then settles them
together. To wake a thread costs more than such a handler.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from workqueue.amqp.io_loop import Loop
from workqueue.message import Message
from workqueue.worker.ending import leave_forked_child
from workqueue.worker.slot import Delivery

SHORT_SECONDS: Final = 0.001
"""A handler that returns within this time may be settled together with the next one."""

_Returned: TypeAlias = tuple[Delivery, BaseException | None]


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
        self._returned: deque[_Returned] = deque()
        self._condition = threading.Condition(threading.Lock())
        self._has_leader = False
        self._idle = 0
        self._summoned = False
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
            error = self._run(delivery)
            while (after := self._next_unless_slow(delivery, error)) is not None:
                delivery, error = after, self._run(after)
            self._settle((delivery, error))

    def _run(self, delivery: Delivery) -> BaseException | None:
        error: BaseException | None = None
        try:
            self._call(delivery.message)
        except BaseException as raised:  # noqa: BLE001 - SystemExit is a failure like any other
            error = raised
        if os.getpid() != self._process:
            leave_forked_child(error)
        return error

    def _settle(self, *last: _Returned) -> None:
        """Settle these messages and all whose handlers have returned, under one lock."""
        if last and not self._returned:  # its acknowledgement is sent before it is counted
            self._handled(*last[0])
            return
        with self._loop:
            for delivery, error in [*self._take_returned(), *last]:
                self._handled(delivery, error)

    def _take_returned(self) -> Iterator[_Returned]:
        while self._returned:
            with contextlib.suppress(IndexError):  # another thread was faster
                yield self._returned.popleft()

    def _next(self) -> Delivery | None:
        """Return a message to handle, or None at the end. Until then, settle messages and lead."""
        while True:
            with self._condition:
                while self._has_leader and not (self._waiting or self._returned or self._stopped):
                    self._idle += 1
                    self._condition.wait()
                    self._idle -= 1
                    self._summoned = False
                if not (self._waiting or self._returned or self._stopped):
                    self._lead()
                if not self._returned and (self._waiting or self._stopped):
                    return self._take()
            self._settle()

    def _next_unless_slow(self, last: Delivery, error: BaseException | None) -> Delivery | None:
        """Return a message to handle before the last one is settled, if one waits and the last one was quick."""
        if not self._waiting or time.monotonic() - last.started >= SHORT_SECONDS:
            return None
        with self._condition:
            if not self._waiting or self._stopped:
                return None
            self._returned.append((last, error))
            return self._take()

    def _take(self) -> Delivery | None:
        """Take a message, unless there is none or all is over. Wake a thread for all that is left to do.

        That thread wakes another in the same way. There is always one: a thread with unsettled messages has several
        slots.
        """
        delivery = self._waiting.popleft() if self._waiting and not self._stopped else None
        is_left = self._waiting or self._returned or not self._has_leader
        if is_left and self._idle and not self._summoned:
            self._summoned = True
            self._condition.notify()
        return delivery

    def _lead(self) -> None:
        """Run the I/O loop until there is a message, without the lock, which the caller has."""
        self._has_leader = True
        self._condition.release()
        try:
            while not self._waiting and not self._stopped:
                self._loop.run_once()
        finally:
            self._condition.acquire()
            self._has_leader = False
