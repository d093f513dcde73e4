"""Processes that run a Python handler, so that a handler can only cost its own message.

The worker's only thread here runs the I/O loop: it passes messages to the processes and settles what they report.
Sync handlers have one process per slot, async handlers one process with one asyncio loop. All of this runs under the
lock of the I/O loop.

A process that ends has failed its message, and is replaced. A process is ended when its handler does not stop within
`CANCEL_SECONDS` after its deadline.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from workqueue.amqp.backoff import Backoff
from workqueue.amqp.io_loop import Loop, Timer
from workqueue.worker.ending import CLOSING_SECONDS, HOOKS_SECONDS
from workqueue.worker.errors import too_slow
from workqueue.worker.executors import frames
from workqueue.worker.executors.executor import Owner
from workqueue.worker.executors.frames import Kind, ProtocolError
from workqueue.worker.executors.launcher import Child, Launcher
from workqueue.worker.handlers.outcome import HandlerFailed
from workqueue.worker.slot import Delivery
from workqueue.worker.supervisor import KILL_SECONDS, describe_end

CANCEL_SECONDS: Final = 2.0
"""How long a cancelled handler may still run after its deadline, before its process gets SIGTERM."""

EXIT_SECONDS: Final = CLOSING_SECONDS + HOOKS_SECONDS + 2.0
"""How long a process that is no longer needed may take to end."""

LOADING_ATTEMPTS: Final = 3
"""A handler that was loaded before, and cannot be loaded this often in a row, ends the worker."""

FIRST_WAIT_SECONDS: Final = 0.2
LONGEST_WAIT_SECONDS: Final = 5.0
"""Between two attempts to start a process."""

MEMORY_SECONDS: Final = 1.0
"""How often a process's memory is read, at most."""

PIECE_BYTES: Final = 2**18
TURN_BYTES: Final = 2**20
"""How much of a body is sent before the I/O loop continues."""

ANSWER_BYTES: Final = 2**14
"""How much is read of a process's answers before the I/O loop continues."""

LAST_BYTES: Final = 2**20
"""How much is read of an ended process's answers: all that Linux lets a pipe hold."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

logger = logging.getLogger(__name__)


class _HandlerProcess:
    """One process: its frames, and the deliveries that it handles.

    Args:
        seat: whose slots it serves.
        child: just started.
        metrics_name: of its files.

    Attributes:
        running: the deliveries whose handlers run, by token.
        unstarted: tokens of deliveries of which the socket has taken nothing. If a process ends while it receives a
            message, that message may be the cause, such as a body that is too large for its memory.
        is_leaving: whether it gets no more messages and should end.
        is_blocked: whether it owes an answer to the last ping.
        was_ended: whether this executor has ended it, because of a handler that did not stop.
        end_reason: why it cannot be used, if known before it has ended.
        loading_timer: ends it if it does not load the handler in time.
    """

    def __init__(self, seat: _Seat, child: Child, metrics_name: str) -> None:
        self.seat = seat
        self.child = child
        self.metrics_name = metrics_name
        self.running: dict[int, Delivery] = {}
        self.unstarted: set[int] = set()
        self.is_loaded = False
        self.is_leaving = False
        self.is_blocked = False
        self.was_ended = False
        self.has_ended = False
        self.end_reason: str | None = None
        self.loading_timer: Timer | None = None
        self.handled = 0
        self.memory_read_at = 0.0
        self._tokens = itertools.count(1)
        self._incoming = bytearray()
        self._outgoing: list[tuple[int, memoryview]] = []

    def send(self, delivery: Delivery, loop: Loop) -> None:
        """Send a message. What the socket does not take now is sent later."""
        token = next(self._tokens) & 0xFFFF_FFFF
        self.running[token] = delivery
        delivery.task = token
        head = frames.pack_message(token, delivery.message, delivery.properties)
        if not self._send((head, delivery.body), loop, token):
            self.unstarted.add(token)

    def ping(self, loop: Loop) -> None:
        """Ask whether the asyncio loop turns."""
        self.is_blocked = True
        self._send((frames.HEAD.pack(Kind.PING, 0, 0, 0),), loop)

    def _send(self, pieces: Sequence[bytes], loop: Loop, token: int = 0) -> bool:
        """Send all, or as much as the socket takes; return whether it took anything."""
        taken = 0
        if not self._outgoing:
            try:
                taken = self.child.socket.sendmsg(pieces)
            except BlockingIOError:
                pass
            except OSError:  # it has ended, which its watcher reports
                return False
            if taken == sum(map(len, pieces)):
                return True
            loop.add_handler(self.child.socket.fileno(), lambda _fd, _events: self._flush(loop), loop.WRITE)
        left = taken
        for piece in pieces:
            if left < len(piece):
                self._outgoing.append((token, memoryview(piece)[left:]))
            left = max(0, left - len(piece))
        return taken > 0

    def _flush(self, loop: Loop) -> None:
        """Send more of the rest, at most `TURN_BYTES`."""
        total = 0
        while self._outgoing and total < TURN_BYTES:
            token, piece = self._outgoing[0]
            try:
                sent = self.child.socket.send(piece[:PIECE_BYTES])
            except BlockingIOError:
                return
            except OSError:
                self._outgoing.clear()
                break
            total += sent
            self.unstarted.discard(token)
            if sent == len(piece):
                del self._outgoing[0]
            else:
                self._outgoing[0] = token, piece[sent:]
        if not self._outgoing:
            loop.remove_handler(self.child.socket.fileno())

    def forget(self, loop: Loop) -> None:
        """Send and read no more."""
        if self._outgoing:
            self._outgoing.clear()
            loop.remove_handler(self.child.socket.fileno())
        with contextlib.suppress(KeyError):
            loop.remove_handler(self.child.answers)

    def receive(self, most: int) -> list[frames.Frame] | None:
        """Return the frames that have arrived, or None when the other side is closed.

        Args:
            most: bytes to read.

        Raises:
            ProtocolError: the process does not speak the protocol.
        """
        try:
            data = os.read(self.child.answers, most)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self._incoming += data
        return frames.unpack(self._incoming) if data else None

    def resident_bytes(self) -> int:
        """Return its memory, or 0 if it has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(Path(f"/proc/{self.child.supervised.pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
        return 0


class _Seat:
    """The slots that share a process.

    Attributes:
        current: the process that gets new messages, or None.
        successor: a process that loads the handler, or None.
        failed_loads: how many could not load it, in a row.
        is_waiting: whether the next one starts later.
    """

    def __init__(self, name: str, slots: Sequence[int]) -> None:
        self.name = name
        self.slots = slots
        self.current: _HandlerProcess | None = None
        self.successor: _HandlerProcess | None = None
        self.failed_loads = 0
        self.is_waiting = False
        self.backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)


class ProcessExecutor:
    """Runs each handler in a process.

    Args:
        loop: of the consuming connection.
        launcher: starts the processes.
        owner: gets the results of the deliveries.
        slots: their numbers.
    """

    def __init__(self, loop: Loop, launcher: Launcher, owner: Owner, slots: Sequence[int]) -> None:
        self._loop = loop
        self._launcher = launcher
        self._config = launcher.config
        self._owner = owner
        self._slots = slots
        # Until the first process says whether the handler is async, it is the only one.
        self._seats = [_Seat("0", slots)]
        self._by_slot = dict.fromkeys(slots, self._seats[0])
        self._knows_kind = False
        self._has_failed = False
        self._stopped = False
        self._processes: set[_HandlerProcess] = set()
        self._watchers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._live, name="io", daemon=True)

    # The executor's interface ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread of the I/O loop, and the first process."""
        self._loop.add_callback(lambda: self._launch(self._seats[0]))
        self._thread.start()

    def accepts(self, slot: int) -> bool:
        """Whether a process is ready for the slot."""
        return self._by_slot[slot].current is not None

    def submit(self, delivery: Delivery) -> None:
        """Pass the message to the process of its slot."""
        process = self._by_slot[delivery.slot.number].current
        assert process is not None  # noqa: S101 - the caller has asked `accepts`
        process.send(delivery, self._loop)

    def cancel(self, delivery: Delivery) -> None:
        """Tell the handler to stop. If it still runs after its deadline, its process is ended.

        A message that was cancelled by its id has no time left.
        """
        token = delivery.task
        process = self._process_of(delivery)
        if process is None:
            return
        process.child.send_cancel(frames.TOKEN.pack(token))
        left = delivery.message.deadline - time.monotonic()
        if left <= 0 or delivery.cancel is not None:
            self._check_stuck(process, token)
        else:
            self._loop.call_later(left, lambda: self._check_stuck(process, token))

    def is_blocked(self, delivery: Delivery) -> bool:
        """Whether the asyncio loop of its process does not turn, since another handler blocks it."""
        process = self._process_of(delivery)
        return process is not None and process.is_blocked

    def _process_of(self, delivery: Delivery) -> _HandlerProcess | None:
        token = delivery.task
        return next((one for one in self._processes if one.running.get(token) is delivery), None)

    def stop(self, timeout: float) -> bool:
        """End the thread and the processes. Those without a handler may run their exit hooks."""
        self._stopped = True
        self._loop.wake()
        self._thread.join(timeout)
        deadline = time.monotonic() + EXIT_SECONDS
        for process in self._processes:
            if process.running or not process.is_loaded:
                process.child.supervised.terminate()
            process.child.close()
        for watcher in self._watchers:
            watcher.join(max(0.0, deadline - time.monotonic()))
        for process in self._processes:
            process.child.supervised.kill()
        for watcher in self._watchers:
            watcher.join(KILL_SECONDS)
        return not self._thread.is_alive()

    def _live(self) -> None:
        while not self._stopped:
            self._loop.run_once()

    # Starting a process -----------------------------------------------------------------------------------

    def _launch(self, seat: _Seat) -> None:
        """Start the seat's next process, unless one is being started or none is needed."""
        if seat.successor is not None or seat.is_waiting or self._owner.draining or self._has_failed:
            return
        name = self._free_name(seat)
        try:
            process = _HandlerProcess(seat, self._launcher.launch(name), name)
            self._watch(process)
        except (OSError, RuntimeError) as error:  # no process, memory, descriptor or thread is free
            logger.warning(
                "A process for the handler cannot be started; trying again.", extra={"reason": str(error)}
            )
            self._launch_later(seat)
            return
        seat.successor = process
        self._loop.add_handler(
            process.child.answers, lambda _fd, _events: self._ready(process), self._loop.READ
        )
        process.loading_timer = self._loop.call_later(
            self._config.startup_timeout_seconds, lambda: self._give_up_loading(process)
        )

    def _launch_later(self, seat: _Seat) -> None:
        if seat.is_waiting:
            return

        def again() -> None:
            seat.is_waiting = False
            self._launch(seat)

        seat.is_waiting = True
        self._loop.call_later(seat.backoff.next(), again)

    def _free_name(self, seat: _Seat) -> str:
        """Return a name for metrics. Names are used again, so that the number of files stays small."""
        used = {one.metrics_name for one in self._processes}
        return next(name for number in itertools.count() if (name := f"{seat.name}-{number}") not in used)

    def _watch(self, process: _HandlerProcess) -> None:
        supervised = process.child.supervised
        try:
            watcher = supervised.watch(
                lambda code: self._loop.add_callback(lambda: self._ended(process, code))
            )
        except RuntimeError:
            supervised.kill()
            supervised.wait()
            process.child.close()
            raise
        self._processes.add(process)
        self._watchers = [*(one for one in self._watchers if one.is_alive()), watcher]

    def _loaded(self, process: _HandlerProcess, *, is_async: bool) -> None:
        seat = process.seat
        process.is_loaded = True
        self._cancel_loading_timer(process)
        seat.failed_loads = 0
        if not self._knows_kind:
            self._knows_kind = True
            if not is_async:
                self._separate()
        old, seat.current, seat.successor = seat.current, process, None
        self._owner.slots_ready(seat.slots)
        if old is not None:
            self._leave_if_idle(old)
        for other in self._seats:
            if other.current is None:
                self._launch(other)

    def _separate(self) -> None:
        """Give each slot a process of its own, as the handler is sync."""
        first, *others = self._slots
        self._seats[0].slots = [first]
        for slot in others:
            self._seats.append(_Seat(str(slot), [slot]))
            self._by_slot[slot] = self._seats[-1]

    def _give_up_loading(self, process: _HandlerProcess) -> None:
        if process.end_reason is None:
            process.end_reason = too_slow(self._launcher.name, self._config.startup_timeout_seconds)
            process.child.supervised.terminate()

    def _cancel_loading_timer(self, process: _HandlerProcess) -> None:
        if process.loading_timer is not None:
            self._loop.remove_timeout(process.loading_timer)
            process.loading_timer = None

    def _not_loaded(self, seat: _Seat, reason: str) -> None:
        seat.successor = None
        seat.failed_loads += 1
        if self._owner.draining or self._has_failed:
            return
        if not self._knows_kind or (seat.current is None and seat.failed_loads >= LOADING_ATTEMPTS):
            self._has_failed = True
            self._owner.cannot_load(reason)
            return
        logger.error("A new process could not load the handler; trying again.", extra={"reason": reason})
        self._launch_later(seat)

    # What a process sends ---------------------------------------------------------------------------------

    def _ready(self, process: _HandlerProcess) -> None:
        if self._read(process) is None and not process.has_ended:
            # It has ended, or the handler has closed its descriptors, so that it could never answer.
            process.forget(self._loop)
            self._withdraw(process)
            process.child.supervised.terminate()

    def _read(self, process: _HandlerProcess, most: int = ANSWER_BYTES) -> int | None:
        """Handle the frames that have arrived, and return their number; None when nothing more can come."""
        try:
            received = process.receive(most)
            for frame in received or ():
                self._received(process, frame)
        except ProtocolError as error:
            logger.error(  # noqa: TRY400 - the reason says it
                "A process of the handler sent something else than outcomes.", extra={"reason": str(error)}
            )
            return None
        return None if received is None else len(received)

    def _received(self, process: _HandlerProcess, frame: frames.Frame) -> None:
        match frame.kind:
            case Kind.DONE:
                self._returned(process, frame.token, None)
            case Kind.FAILED:
                self._returned(process, frame.token, frames.unpack_outcome(frame.fields))
            case Kind.PONG:
                process.is_blocked = False
            case Kind.LOADED if not process.is_loaded and process.end_reason is None:
                self._loaded(process, is_async=frames.unpack_content(frame.fields).get("async") is True)
            case Kind.UNLOADABLE:
                process.end_reason = str(frames.unpack_content(frame.fields).get("error"))

    def _returned(self, process: _HandlerProcess, token: int, error: BaseException | None) -> None:
        delivery = process.running.pop(token, None)
        if delivery is None:
            raise ProtocolError(f"no message has the token {token}")
        process.handled += 1
        process.seat.backoff.reset()
        self._owner.handled(delivery, error)
        if process.seat.current is not process:
            self._leave_if_idle(process)
        elif self._is_used_up(process):
            self._launch(process.seat)

    def _is_used_up(self, process: _HandlerProcess) -> bool:
        config = self._config
        if config.recycle_messages is not None and process.handled >= config.recycle_messages:
            return True
        if config.recycle_memory is None:
            return False
        now = time.monotonic()
        if now - process.memory_read_at < MEMORY_SECONDS:
            return False
        process.memory_read_at = now
        return process.resident_bytes() >= config.recycle_memory

    # The end of a process ---------------------------------------------------------------------------------

    def _leave_if_idle(self, process: _HandlerProcess) -> None:
        """End a process that gets no more messages, when its last handler has returned."""
        if not process.running and not process.is_leaving and not process.has_ended:
            process.forget(self._loop)
            process.is_leaving = True
            process.child.close()
            self._loop.call_later(EXIT_SECONDS, process.child.supervised.terminate)

    def _check_stuck(self, process: _HandlerProcess, token: int) -> None:
        """Ask whether the process still turns its asyncio loop, and look at the cancelled handler again later."""
        if token in process.running and not process.has_ended:
            process.ping(self._loop)
            self._loop.call_later(CANCEL_SECONDS, lambda: self._end_stuck(process, token))

    def _end_stuck(self, process: _HandlerProcess, token: int) -> None:
        """End the process of a handler that does not stop.

        If the asyncio loop still turns, its other handlers finish first, and new messages go to a new process.
        """
        stuck = process.running.get(token)
        if stuck is None or process.has_ended:
            return
        waits_for_others = any(not one.message.cancelled for one in process.running.values())
        if waits_for_others and not process.is_blocked:
            if process.seat.current is process:
                self._launch(process.seat)
            self._check_stuck(process, token)
            return
        logger.warning(
            "A cancelled handler does not stop; ending its process.",
            extra={"queue": self._config.queue, "message_id": stuck.message.properties.message_id},
        )
        process.was_ended = True
        process.child.supervised.terminate()

    def _ended(self, process: _HandlerProcess, code: int) -> None:
        """Settle what a process has left, and start the next."""
        while not process.is_leaving and self._read(process, LAST_BYTES):
            pass
        process.has_ended = True
        self._cancel_loading_timer(process)
        self._processes.discard(process)
        if not process.is_leaving:
            process.forget(self._loop)
            process.child.close()
        self._launcher.clear_metrics(process.metrics_name)
        seat, running = process.seat, list(process.running.items())
        process.running.clear()
        if seat.successor is process:
            name = self._launcher.name
            self._not_loaded(
                seat,
                process.end_reason
                or f"The handler {name} cannot be loaded: its process ended, {describe_end(code)}.",
            )
            return
        self._withdraw(process)
        if not running and not process.is_leaving:
            logger.warning(
                "A process of the handler has ended between two messages; starting another.",
                extra={"queue": self._config.queue, "reason": describe_end(code)},
            )
        for token, delivery in running:
            was_innocent = process.was_ended and not delivery.message.cancelled
            if was_innocent or token in process.unstarted:
                self._owner.interrupted(delivery)
            else:
                self._owner.handled(
                    delivery, HandlerFailed(f"The handler's process has ended: {describe_end(code)}.")
                )
        if seat.current is not None:
            return
        if process.handled or running:
            self._launch(seat)
        else:  # it has only been loaded: the next may end in the same way
            self._launch_later(seat)

    def _withdraw(self, process: _HandlerProcess) -> None:
        """Give it no more messages, as it has ended or can no longer answer."""
        if process.seat.current is process:
            process.seat.current = None
            self._owner.slots_lost(process.seat.slots)
