"""The I/O loop under a connection: pika's selector interface, made so that several threads can share it.

pika's own loop belongs to one thread, so that each acknowledgement from another thread costs a wake-up and a switch.
Here any thread may use pika under `lock`; only the wait for the socket happens outside it. When the lock is released,
written data is sent without asking the selector first, as an open connection is nearly always writable.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Final

from pika.adapters.utils.selector_ioloop_adapter import AbstractSelectorIOLoop

MAX_WAIT_SECONDS: Final = 5.0
"""The longest wait of a turn. An older last turn means that the loop is stuck."""

EventHandler = Callable[[int, int], None]

_loops: Final[weakref.WeakSet[Loop]] = weakref.WeakSet()
_loops_lock: Final = threading.Lock()


def does_io() -> bool:
    """Whether the calling thread works for one of the loops: under its lock, or while it resolves a name."""
    resolver = getattr(getattr(threading.current_thread(), "function", None), "__self__", None)
    with _loops_lock:
        # pika resolves names in a `threading.Timer`, without the lock.
        return getattr(resolver, "_loop", None) in _loops or any(loop.is_held for loop in _loops)


class _Watch:
    __slots__ = ("handler", "interest", "registered")

    def __init__(self, handler: EventHandler) -> None:
        self.handler = handler
        self.interest = 0
        self.registered = 0


class Timer:
    """A callback at a later time, ordered by time, then by age."""

    __slots__ = ("callback", "deadline", "number")

    def __init__(self, deadline: float, number: int, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.number = number
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.deadline, self.number) < (other.deadline, other.number)


class Loop(AbstractSelectorIOLoop):  # type: ignore[misc]
    """A selector with timers and callbacks, and the lock for them and for pika.

    `with loop:` holds the lock. At the end of the outermost one, all written data is sent.

    Args:
        on_error: called with an exception of a callback. The loop continues.
    """

    READ: Final = selectors.EVENT_READ
    WRITE: Final = selectors.EVENT_WRITE
    ERROR: Final = 4

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self.lock = threading.RLock()
        self.last_turn = time.monotonic()
        self.send_at_once = False
        """True while a connection is open. Before that, a writable socket means that it is connected."""
        self._on_error = on_error
        self._selector = selectors.DefaultSelector()
        self._selectors: list[selectors.BaseSelector] = [self._selector]
        self._watches: dict[int, _Watch] = {}
        self._to_send: list[Callable[[], None]] = []
        self._timers: list[Timer] = []
        self._timer_numbers = itertools.count()
        self._callbacks: deque[Callable[[], None]] = deque()
        self._waits_until = 0.0
        self._depth = 0
        self._stopped = False
        self._woken = False
        self._alarm, self._alarm_sender = socket.socketpair()
        self._alarm.setblocking(False)
        self._alarm_sender.setblocking(False)
        self.add_handler(self._alarm.fileno(), self._on_alarm, self.READ)
        with _loops_lock:
            _loops.add(self)

    @property
    def is_held(self) -> bool:
        """Whether the calling thread holds the lock."""
        held: bool = self.lock._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 - as threading does
        return held

    # Running the loop -------------------------------------------------------------------------------------

    def __enter__(self) -> None:
        self.lock.acquire()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._depth -= 1
            self.lock.release()

    def flush(self) -> None:
        """Send written data before the lock is released, except inside of an outer `with`. Call it under the lock."""
        while self._to_send and self._depth <= 1:
            self._guard(self._to_send.pop())

    def send_later(self, send: Callable[[], None]) -> None:
        """Call `send` at the next `flush`. Call it under the lock."""
        self._to_send.append(send)

    def run_once(self, max_wait: float = MAX_WAIT_SECONDS) -> None:
        """Run one turn: wait for an event, at most `max_wait` seconds, and handle it. For any thread."""
        self.handle(self._selector.select(self.prepare(max_wait)))

    def prepare(self, max_wait: float) -> float:
        """Return how many seconds may pass before the next `handle`, at most `max_wait`."""
        # Without the lock, in this order: a thread that adds a timer after this check sees that the loop is
        # about to wait.
        self._waits_until = float("inf")
        wait = 0.0 if self._callbacks else max_wait
        now = time.monotonic()
        try:
            due = max(0.0, self._timers[0].deadline - now)
        except IndexError:  # no timers, or another thread has just run the last
            due = max_wait
        wait = min(wait, due)
        self._waits_until = now + wait
        return wait

    def handle(self, ready: Iterable[tuple[selectors.SelectorKey, int]]) -> None:
        """Handle the selector's events, and the callbacks and timers that are due."""
        self.lock.acquire()
        try:
            self._waits_until = 0.0
            self.last_turn = now = time.monotonic()
            for key, events in ready:
                watch = self._watches.get(key.fd)
                # Another thread may have changed the interest since the selector returned.
                if watch is not None and events & watch.interest:
                    self._guard(watch.handler, key.fd, events & watch.interest)
            if self._callbacks:
                self._run_callbacks()
            if self._timers and self._timers[0].deadline <= now:
                self._run_timers(now)
            self.flush()
        finally:
            self.lock.release()

    def start(self) -> None:
        """Run until `stop()`."""
        while not self._stopped:
            self.run_once()

    def stop(self) -> None:
        """End `start()`. Thread-safe."""
        self._stopped = True
        self.wake()

    @property
    def stopped(self) -> bool:
        """Whether `stop()` was called."""
        return self._stopped

    def close(self) -> None:
        """Release the selector. The loop must not run afterwards."""
        with self.lock:
            self._callbacks.clear()
            self._timers.clear()
            self._selector.close()
            self._alarm.close()
            self._alarm_sender.close()

    def attach_selector(self, selector: selectors.BaseSelector) -> None:
        """Register the loop's descriptors with `selector` too. Its owner passes their events to `handle`."""
        with self.lock:
            self._selectors.append(selector)
            for fd, watch in self._watches.items():
                selector.register(fd, watch.registered, self)

    def detach_selector(self, selector: selectors.BaseSelector) -> None:
        """Unregister the loop's descriptors from `selector`."""
        with self.lock:
            self._selectors.remove(selector)
            for fd in self._watches:
                selector.unregister(fd)

    def wake(self) -> None:
        """End the wait of the current turn. Thread-safe, and safe in a signal handler."""
        if self._woken:
            return
        try:
            self._woken = True
            with contextlib.suppress(OSError):  # full: the wake-up is pending; or closed
                self._alarm_sender.send(b"\0")
        except BaseException:  # of a signal handler: otherwise nothing would wake this loop again
            self._woken = False
            raise

    # pika's interface ------------------------------------------------------------------------------------

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Run `callback` in the next turn. Thread-safe."""
        self._callbacks.append(callback)
        self.wake()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` after `delay` seconds. Call it under the lock."""
        timer = Timer(time.monotonic() + max(0.0, delay), next(self._timer_numbers), callback)
        heapq.heappush(self._timers, timer)
        if timer.deadline < self._waits_until:
            self.wake()
        return timer

    def remove_timeout(self, timeout_handle: Timer) -> None:
        """Cancel a timer. Does nothing if it has run."""
        timeout_handle.callback = None
        # Cancelled timers stay in the heap until their time, unless they are most of it.
        if len(self._timers) > 64 and sum(t.callback is None for t in self._timers) * 2 > len(self._timers):  # noqa: PLR2004
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)

    def add_handler(self, fd: int, handler: EventHandler, events: int) -> None:
        """Watch a descriptor."""
        self._watches[fd] = _Watch(handler)
        self.update_handler(fd, events)

    def update_handler(self, fd: int, events: int) -> None:
        """Change the events that a descriptor is watched for."""
        watch = self._watches[fd]
        starts_to_write = events & self.WRITE & ~watch.interest
        watch.interest = events & (self.READ | self.WRITE)
        if starts_to_write and self.send_at_once:
            self._to_send.append(partial(self._send, fd))
        else:
            self._register(fd, watch)

    def remove_handler(self, fd: int) -> None:
        """Stop watching a descriptor."""
        watch = self._watches.pop(fd)
        watch.interest = 0
        self._register(fd, watch)

    # Inside ----------------------------------------------------------------------------------------------

    def _register(self, fd: int, watch: _Watch) -> None:
        before, watch.registered = watch.registered, watch.interest
        if watch.interest == before:
            return
        for selector in self._selectors:
            if not before:
                selector.register(fd, watch.interest, self)
            elif watch.interest:
                selector.modify(fd, watch.interest, self)
            else:
                selector.unregister(fd)

    def _send(self, fd: int) -> None:
        watch = self._watches.get(fd)
        if watch is None or not watch.interest & self.WRITE:
            return
        watch.handler(fd, self.WRITE)
        watch = self._watches.get(fd)
        if watch is not None:  # the selector reports when the socket takes the rest
            self._register(fd, watch)

    def _on_alarm(self, _fd: int, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):  # another thread has read it
            self._alarm.recv(64)
        self._woken = False

    def _run_callbacks(self) -> None:
        for _ in range(len(self._callbacks)):  # callbacks that these add run in the next turn
            self._guard(self._callbacks.popleft())

    def _run_timers(self, now: float) -> None:
        while self._timers and self._timers[0].deadline <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                self._guard(callback)

    def _guard(self, callback: Callable[..., None], *arguments: int) -> None:
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the loop and its timers must go on
            self._on_error(error)
