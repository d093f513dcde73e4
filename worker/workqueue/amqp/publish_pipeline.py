"""Publishing with confirms: RabbitMQ has stored the message, or the caller gets an error that says why not.

    with PublishPipeline(lambda: from_url("amqp://localhost"), "my-program") as publisher:
        publisher.publish(Outgoing("thumbnails", b"...")).result()      # raises a PublishError

Confirms are pipelined: `publish` does not wait for earlier ones. A confirm alone does not say whether a queue
took the message, so each message is mandatory. RabbitMQ sends the basic.return before the confirm of the same
message.

A publisher has its own connection, since RabbitMQ's memory alarm blocks connections that publish.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import pika

from workqueue.amqp.connection import Connection
from workqueue.amqp.declaration import Declaration
from workqueue.amqp.errors import (
    BrokerError,
    NotSent,
    PublishError,
    Refused,
    Returned,
    Unconfirmed,
    Unencodable,
    describe,
)
from workqueue.amqp.io_loop import Timer
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_limiter import PublishLimiter
from workqueue.contract import topology
from workqueue.contract.binding import Binding

DEFAULT_WINDOW: Final = 1000
"""Unconfirmed messages. The throughput of one connection stops growing at a few hundred."""

DEFAULT_WINDOW_BYTES: Final = 64 * 1024 * 1024
DEFAULT_TIMEOUT_SECONDS: Final = 30.0

CLOSE_SECONDS: Final = 5.0
"""How long RabbitMQ may take to confirm that a channel is closed, before the connection is dropped."""

DECLARE_SECONDS: Final = 30.0
"""A declaration without an answer fails after at most this time. Repeating it does no harm."""

DOUBT_SECONDS: Final = 1.0
"""The shortest time between two replacements of a channel that got a nack."""

CHANNEL_AGAIN_SECONDS: Final = 0.1
"""Pause before another attempt to open a channel, while others keep all that the connection may have."""

_WRITE_BYTES: Final = 64 * 1024
"""Size of one write, which joins hundreds of small messages into one system call."""

_WAKING_BATCH: Final = 32
"""While threads wake, so many messages are sent at once: RabbitMQ then works on them while the other threads wake."""

_REFUSALS: Final = (403, 404, 406)
"""RabbitMQ closes the channel at a message with these: no permission, no such exchange, too large or wrong."""

_CLOSED: Final = "the publisher was closed"

logger = logging.getLogger(__name__)


OnResult: TypeAlias = Callable[[PublishError | None], object]

_Fate = tuple["asyncio.Future[None]", PublishError | None]
_Identity = tuple[bytes, ...]


class _Pending:
    """A message without a result yet, and who gets the result: a function, or the future of a task."""

    __slots__ = ("deadline", "is_wanted", "message_id", "on_result", "outgoing", "task_future")

    def __init__(self, outgoing: Outgoing, message_id: str, deadline: float) -> None:
        self.outgoing = outgoing
        self.message_id = message_id
        self.deadline = deadline
        self.is_wanted: Callable[[], bool] | None = None
        self.on_result: OnResult | None = None
        self.task_future: asyncio.Future[None] | None = None

    def error(self, kind: type[PublishError], reason: str) -> PublishError:
        return kind(self.outgoing.exchange, self.outgoing.routing_key, self.message_id, reason)


class PublishPipeline:
    """Publishes from any number of threads and tasks over one connection that reconnects.

    The publisher sends each message at most once. After a lost connection, RabbitMQ may or may not have
    stored a message that was sent, and its future fails with Unconfirmed. A message that was not sent waits
    for the connection or for the end of a memory alarm, until it times out. When a message that was sent
    times out, the publisher closes the channel before the future fails. A message that was reported as
    Unconfirmed is therefore never confirmed later.

    Args:
        binding_source: returns the connection data; called at each attempt to connect.
        name: the connection's name in RabbitMQ's lists.
        window: how many messages may be unconfirmed.
        window_bytes: how many bytes of bodies may be unconfirmed.
        timeout_seconds: from `publish` to the confirm. It takes up to `CLOSE_SECONDS` longer when RabbitMQ does not
            answer at all.
    """

    def __init__(
        self,
        binding_source: Callable[[], Binding],
        name: str,
        *,
        window: int = DEFAULT_WINDOW,
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self.connection = Connection(
            binding_source, name, on_open=lambda _generation: self._open_channel(), on_lost=self._on_lost
        )
        self._timeout_seconds = timeout_seconds
        self._window = PublishLimiter(window, window_bytes)
        self._id_prefix = uuid.uuid4().hex
        self._id_numbers = itertools.count(1)
        self._outbox: deque[_Pending] = deque()
        self._unconfirmed: dict[int, _Pending] = {}
        self._returned: dict[_Identity, deque[str]] = {}
        self._channel: Any = None
        self._channel_since = 0.0
        self._unblocks: Any = None
        self._is_doubtful = False
        self._late = ""
        """Why the channel is being closed, after a message timed out."""
        self._close_by = 0.0
        self._frame_max = 0
        self._next_tag = 1
        self._oldest_tag = 1
        self._flush_is_due = False
        self._timer: Timer | None = None
        self._when_open: deque[Callable[[], None]] = deque()
        self._declarations: set[Declaration] = set()
        self._answered: deque[threading.Lock] = deque()
        """The locks for which threads wait whose messages have a result."""
        self._is_waking = False
        self._closed = False

    def start(self) -> Self:
        """Connect in an I/O thread. Returns immediately; messages published before the connection wait for it."""
        self.connection.start()
        return self

    def close(self, timeout: float = 3.0) -> None:
        """Take no more messages, wait at most `timeout` seconds for open confirms, then disconnect.

        Messages that are unconfirmed then fail.
        """
        if self._closed:
            return
        self._closed = True
        self._window.wait_empty(timeout)
        self.connection.close()
        self._fail_all(_CLOSED)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an exception, the open confirms are not waited for.
        self.close(self._timeout_seconds if error is None else 0.0)

    @property
    def blocked(self) -> bool:
        """Whether an alarm of the broker (memory, disk) blocks publishing."""
        return self.connection.blocked

    @property
    def pending(self) -> int:
        """How many messages have no result yet."""
        return self._window.used

    # Publishing ------------------------------------------------------------------------------------------

    def publish(self, outgoing: Outgoing) -> Future[None]:
        """Send a message, and return the future of its confirm. For any thread except the I/O thread.

        Waits while the window is full. Callbacks of the future run in the I/O thread and must be short.

        The future raises:
            Returned: no queue took it.
            Refused: RabbitMQ refused it, such as for a full queue.
            Unconfirmed: the connection was lost, or it timed out, after it was sent.
            NotSent: it timed out before it was sent. Unencodable, a subclass: it can never be sent.

        Raises:
            NotSent: the window was full until the timeout.
            BrokerError: the publisher is closed.
        """
        future: Future[None] = Future()
        self.publish_then(outgoing, partial(_tell, future))
        return future

    def publish_then(self, outgoing: Outgoing, on_result: OnResult) -> None:
        """Send a message as `publish` does. A future takes longer to make and to settle than a message to send.

        Args:
            on_result: called in the I/O thread with the error, or with None. It must be short and must not raise.

        Raises:
            NotSent, BrokerError: as `publish`. Then there is no call.
        """
        pending = self._pending(outgoing)
        if not self._window.take(len(outgoing.body), self._timeout_seconds):
            raise pending.error(NotSent, self._why_full())
        pending.on_result = on_result
        self._enqueue(pending)

    def submit(self, outgoing: Outgoing, is_wanted: Callable[[], bool] | None = None) -> Future[None]:
        """Send a message as `publish` does, but never wait: a full window does not refuse it.

        For callers that must not block and that have their own limit on unconfirmed messages.

        Args:
            is_wanted: called in the I/O thread just before sending. If it returns False, the message is not
                sent and its future fails with NotSent.

        Raises:
            BrokerError: the publisher is closed.
        """
        pending = self._pending(outgoing)
        pending.is_wanted = is_wanted
        self._window.add(len(outgoing.body))
        future: Future[None] = Future()
        pending.on_result = partial(_tell, future)
        self._enqueue(pending)
        return future

    def publish_and_wait(self, outgoing: Outgoing) -> None:
        """Publish one message and wait for its confirm.

        Raises:
            PublishError: as the future of `publish`.
        """
        lock = threading.Lock()
        lock.acquire()
        errors: list[PublishError] = []

        def on_result(error: PublishError | None) -> None:
            if error is not None:
                errors.append(error)
            self._answered.append(lock)

        self.publish_then(outgoing, on_result)
        lock.acquire()
        self._wake_next()
        if errors:
            raise errors.pop()

    def _wake_next(self) -> None:
        """Wake one waiting thread, which wakes the next when it runs. The last one has the new messages sent.

        One read often answers a hundred threads. If all woke at once, they would compete for the interpreter lock
        with the I/O thread, which would then send their next messages one by one.
        """
        try:
            lock = self._answered.popleft()
        except IndexError:
            self._is_waking = False
            if self._answered:  # the I/O thread has just added one
                self._start_waking()
            elif self._outbox:
                self._request_flush()
        else:
            lock.release()

    def _start_waking(self) -> None:
        if not self._is_waking:
            self._is_waking = True
            self._wake_next()

    async def publish_async(self, outgoing: Outgoing) -> None:
        """Publish one message and await its confirm. Gather several calls for throughput.

        Cancelling the task does not withdraw the message.

        Raises:
            PublishError: as the future of `publish`.
        """
        await (await self.send_async(outgoing))

    async def send_async(self, outgoing: Outgoing) -> asyncio.Future[None]:
        """Send a message, and return the future of its confirm, which fails as that of `publish`.

        A full window until the timeout fails the future too.
        """
        pending = self._pending(outgoing)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        size = len(outgoing.body)
        if self._window.try_take(size) or await self._window.take_async(size, self._timeout_seconds):
            pending.task_future = future
            self._enqueue(pending)
        else:
            future.set_exception(pending.error(NotSent, self._why_full()))
        return future

    def _pending(self, outgoing: Outgoing) -> _Pending:
        if self._closed:
            raise BrokerError("The publisher is closed.")
        message_id = outgoing.message_id or f"{self._id_prefix}-{next(self._id_numbers)}"
        return _Pending(outgoing, message_id, time.monotonic() + self._timeout_seconds)

    def _enqueue(self, pending: _Pending) -> None:
        self._outbox.append(pending)
        if not self._is_waking or len(self._outbox) >= _WAKING_BATCH:
            self._request_flush()
        if self._closed:  # since the check in `_pending`
            self._fail_all(_CLOSED)

    def _request_flush(self) -> None:
        if not self._flush_is_due:
            try:
                self._flush_is_due = True
                self.connection.call(self._flush)
            except BaseException:  # of a signal handler: otherwise nothing would be sent any more
                self._flush_is_due = False
                raise

    def _why_full(self) -> str:
        return f"{self._window.used} messages are unconfirmed; {self._why_late()}"

    def _why_late(self) -> str:
        seconds = f"{self._timeout_seconds:g} s"
        if self.connection.blocked:
            return f"RabbitMQ has blocked publishing for {seconds} because of its memory or disk alarm"
        if not self.connection.is_open:
            return f"not connected for {seconds}: {self.connection.last_error or 'still connecting'}"
        return f"RabbitMQ has sent no confirm for {seconds}"

    def wait(self, timeout: float) -> bool:
        """Wait until every message has a result, at most `timeout` seconds; return whether it has."""
        return self._window.wait_empty(timeout)

    # Declaring -------------------------------------------------------------------------------------------

    def declare(self, queue: topology.Queue) -> Future[bool]:
        """Declare a queue when the connection is open. Does nothing if it exists with the same arguments.

        The future's result says whether it was created. Wait `SAFE_AFTER_SECONDS` before you publish to a new queue:
        see `declaration`.

        The future raises:
            DeclareError: RabbitMQ refused.
            BrokerError: the connection was lost, or it timed out.
        """
        return self.declare_plan(topology.Plan((queue,), None, ()))

    def declare_plan(self, plan: topology.Plan) -> Future[bool]:
        """Declare everything for a work queue: the queues in order, the exchange, the bindings.

        The future's result says whether a queue was created. It raises as the future of `declare`.
        """
        if self._closed:
            raise BrokerError("The publisher is closed.")
        declaration = Declaration(plan, min(self._timeout_seconds, DECLARE_SECONDS))
        self.connection.call(lambda: self._begin(declaration))
        return declaration.future

    def _begin(self, declaration: Declaration) -> None:
        self._declarations.add(declaration)
        declaration.future.add_done_callback(lambda _: self._declarations.discard(declaration))
        if self.connection.is_open:
            declaration.begin(self.connection)
        else:
            self._when_open.append(lambda: declaration.begin(self.connection))
        self._watch_time()

    # In the I/O thread -----------------------------------------------------------------------------------

    def _open_channel(self) -> None:
        try:
            self.connection.channel(self._prepare_channel)
        except BrokerError:
            if self.connection.is_open:  # otherwise it was just lost, and on_open is called again
                generation = self.connection.generation
                self.connection.call_later(
                    CHANNEL_AGAIN_SECONDS, lambda: self._open_channel_again(generation)
                )
        while self._when_open:
            self._when_open.popleft()()

    def _open_channel_again(self, generation: int) -> None:
        if self.connection.is_open and generation == self.connection.generation:
            self._open_channel()

    def _prepare_channel(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._use_channel(channel))

    def _use_channel(self, channel: Any) -> None:
        self._channel = channel
        self._channel_since = time.monotonic()
        self._is_doubtful = False
        self._frame_max = channel.connection.params.frame_max
        self._next_tag = self._oldest_tag = 1
        if self._unblocks is not channel.connection:
            self._unblocks = channel.connection
            channel.connection.add_on_connection_unblocked_callback(lambda *_: self._flush())
        self._flush()

    def _flush(self) -> None:
        """Send the waiting messages in as few writes as possible."""
        self._flush_is_due = False
        self._watch_time()
        if self._channel is None or not self._channel.is_open or self.connection.blocked:
            return
        writes: list[bytes] = []
        size = 0
        now = int(time.time())
        while self._outbox:
            pending = self._outbox.popleft()
            if pending.is_wanted is not None and not pending.is_wanted():
                self._settle([pending], NotSent, "it is no longer needed")
                continue
            try:
                data = pending.outgoing.encode(
                    self._channel.channel_number, self._frame_max, pending.message_id, now
                )
            except Exception as error:  # noqa: BLE001 - the caller's values raise what they like
                self._settle([pending], Unencodable, str(error) or repr(error))
                continue
            self._unconfirmed[self._next_tag] = pending
            self._next_tag += 1
            writes.append(data)
            size += len(data)
            if size >= _WRITE_BYTES:
                self._write(writes)
                writes, size = [], 0
        if writes:
            self._write(writes)

    def _write(self, data: list[bytes]) -> None:
        # Joined, since pika makes a system call per piece.
        self._channel.connection._output_marshaled_frames([b"".join(data)])  # noqa: SLF001

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tag = method.delivery_tag
        if method.multiple:
            tags: Iterable[int] = range(self._oldest_tag, tag + 1)
            self._oldest_tag = tag + 1
        else:
            tags = (tag,)
        # A range may include tags that were confirmed one by one.
        settled = [self._unconfirmed.pop(tag) for tag in tags if tag in self._unconfirmed]
        if isinstance(method, pika.spec.Basic.Nack):
            self._settle(settled, Refused, "a queue for it is full or failed")
            self._is_doubtful = True
        elif self._returned:
            self._settle([one for one in settled if not self._fail_if_returned(one)])
        else:
            self._settle(settled)
        if self._is_doubtful and not self._unconfirmed:
            self._replace_channel()

    def _replace_channel(self) -> None:
        """Open another channel after a nack.

        On RabbitMQ 3.10, a channel that first used a quorum queue while the node of its leader was down gets
        a nack for every message until that node is back. Another channel finds the new leader (tried).
        """
        now = time.monotonic()
        if self._channel is None or self._late or now - self._channel_since < DOUBT_SECONDS:
            return
        old, self._channel = self._channel, None
        self._open_channel()
        if old.is_open:
            old.close()

    def _on_return(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        identity = _identity(method.exchange, method.routing_key, properties.message_id)
        reasons = self._returned.setdefault(identity, deque())
        reasons.append(f"{method.reply_code} {method.reply_text}")

    def _fail_if_returned(self, pending: _Pending) -> bool:
        outgoing = pending.outgoing
        identity = _identity(outgoing.exchange, outgoing.routing_key, pending.message_id)
        reasons = self._returned.get(identity)
        if not reasons:
            return False
        reason = reasons.popleft()
        if not reasons:
            del self._returned[identity]
        self._settle([pending], Returned, f"no queue takes it ({reason})")
        return True

    def _settle(
        self, settled: list[_Pending], kind: type[PublishError] | None = None, reason: str = ""
    ) -> None:
        if not settled:
            return
        size = 0
        tasks: dict[asyncio.AbstractEventLoop, list[_Fate]] = {}
        for pending in settled:
            size += len(pending.outgoing.body)
            error = None if kind is None else pending.error(kind, reason)
            # Once, also if two threads find it while the publisher closes.
            on_result, pending.on_result = pending.on_result, None
            if on_result is not None:
                on_result(error)
            elif pending.task_future is not None:
                fates = tasks.setdefault(pending.task_future.get_loop(), [])
                fates.append((pending.task_future, error))
        # Waking a loop is the most expensive step, so each is woken once for all its tasks.
        for loop, fates in tasks.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the task
                loop.call_soon_threadsafe(_tell_all, fates)
        self._window.give(len(settled), size)
        if self._answered:
            self._start_waking()

    def _on_channel_closed(self, channel: Any, error: BaseException) -> None:
        if channel is not self._channel:
            return
        # The messages before the refused one may be stored, so only one that is alone is surely the refused one.
        is_refused = (
            len(self._unconfirmed) == 1
            and not self._late
            and isinstance(error, pika.exceptions.ChannelClosedByBroker)
            and error.reply_code in _REFUSALS
        )
        self._fail_sent(describe(error), Refused if is_refused else Unconfirmed)
        # RabbitMQ closed only the channel: the exchange does not exist, or a message is too large.
        if self.connection.is_open:
            self._open_channel()

    def _on_lost(self, reason: str) -> None:
        self._fail_sent(reason)
        for declaration in list(self._declarations):
            declaration.fail(BrokerError(f"The connection to RabbitMQ was lost: {reason}."))

    def _fail_sent(self, reason: str, kind: type[PublishError] = Unconfirmed) -> None:
        reason, self._late = self._late or reason, ""
        self._channel = None
        self._returned.clear()
        lost = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        self._settle(lost, kind, reason)

    def _fail_all(self, reason: str) -> None:
        self._fail_sent(reason)
        waiting = list(self._outbox)
        self._outbox.clear()
        self._settle(waiting, NotSent, reason)
        while self._answered:  # the thread that was to wake the next may have been interrupted
            self._wake_next()
        for declaration in list(self._declarations):
            declaration.fail(BrokerError(f"Nothing was declared: {reason}."))

    def _watch_time(self) -> None:
        is_needed = self._outbox or self._unconfirmed or self._declarations or self._is_waking
        if self._timer is None and is_needed:
            self._timer = self.connection.call_later(min(1.0, self._timeout_seconds / 4), self._check_time)

    def _check_time(self) -> None:
        self._timer = None
        if self._is_waking:  # the thread that was to wake the next may have been interrupted
            self._wake_next()
        now = time.monotonic()
        late: list[_Pending] = []
        while self._outbox and self._outbox[0].deadline <= now:
            late.append(self._outbox.popleft())
        self._settle(late, NotSent, self._why_late())
        self._end_late_channel(now)
        for declaration in list(self._declarations):
            if declaration.deadline <= now:
                declaration.fail(BrokerError(f"Nothing was declared: {self._why_late()}."))
        self._watch_time()

    def _end_late_channel(self, now: float) -> None:
        """Close the channel when its oldest message times out, which fails every unconfirmed message.

        RabbitMQ handles all earlier frames before it answers the close, so most confirms still come.
        """
        if self._late:
            if now >= self._close_by:
                self.connection.abort(self._late)
            return
        oldest = next(iter(self._unconfirmed.values()), None)
        if oldest is None or oldest.deadline > now:
            return
        self._late = self._why_late()
        self._close_by = now + CLOSE_SECONDS
        if self.connection.blocked:  # RabbitMQ does not even read a close now
            self.connection.abort(self._late)
        elif self._channel.is_open:
            self._channel.close()


def _identity(*texts: str | bytes) -> _Identity:
    """Return the identity of a message in a basic.return. pika gives bytes for text that is not UTF-8."""
    return tuple(text if isinstance(text, bytes) else text.encode() for text in texts)


def _tell(future: Future[None] | asyncio.Future[None], error: PublishError | None) -> None:
    try:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
    except (InvalidStateError, asyncio.InvalidStateError):  # cancelled by its owner
        return


def _tell_all(fates: list[_Fate]) -> None:
    for future, error in fates:
        _tell(future, error)
