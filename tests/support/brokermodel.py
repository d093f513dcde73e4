"""A model of RabbitMQ and of its network, in one thread and with its own clock.

For the state machine of the worker (tests/unit/test_worker_state_machine.py), where frames travel at any pace and
anything may die at any moment. It is stricter than RabbitMQ and pika: errors that they ignore, such as settling a
message twice, fail here. It implements the interfaces of pika's channel and of the worker's connection and publisher.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any, Final

import pika
import pika.exceptions

from workqueue.amqp.declaration import SAFE_AFTER_SECONDS
from workqueue.amqp.errors import BrokerError, NotSent, Returned, Unconfirmed
from workqueue.contract.topology import BrokerVersion, Plan, QueueSettings
from workqueue.worker.config import PythonHandler, RunConfig
from workqueue.worker.handlers.outcome import RetryPolicy

Frame = Callable[[], None]

QUEUE: Final = "q"


class UnexpectedError(Exception):
    """Stands for any bug in code that the worker calls."""


class Clock:
    """A clock that advances only on request, in steps of 1/16 s, so that sums are exact.

    Stands in for the module `time`.
    """

    strftime = staticmethod(time.strftime)
    gmtime = staticmethod(time.gmtime)

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, Frame]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return self.now

    time = monotonic

    def call_later(self, seconds: float, function: Frame) -> None:
        """Run a function when it is due."""
        when = self.now + -(-seconds * 16 // 1) / 16
        heapq.heappush(self._timers, (when, next(self._numbers), function))

    def advance(self, until: float, tick: Frame = lambda: None) -> None:
        """Advance the time and run what is due; `tick` is called whenever the time has changed."""
        while self._timers and self._timers[0][0] <= until:
            self.now, _, function = heapq.heappop(self._timers)
            tick()
            function()
        self.now = max(self.now, until)
        tick()


class Copy(Enum):
    """The state of the copy that settles a message."""

    NONE = "none"
    UNDER_WAY = "under way"
    CONFIRMED = "confirmed"


@dataclass(eq=False)
class ModelDelivery:
    """One message on its way through one channel."""

    message: int
    channel: Channel
    tag: int
    settled: str = ""
    """What the client asked for: ack or nack."""
    has_arrived: bool = False
    """At the client."""
    was_taken: bool = False
    """A handler got it."""
    copy: Copy = Copy.NONE

    @property
    def body(self) -> bytes:
        """Names the delivery, so that a copy identifies its original."""
        return f"{self.message} {self.channel.number} {self.tag}".encode()


class Channel:
    """A pika channel and the broker's end of it, with frames in flight between them."""

    def __init__(self, broker: Broker, number: int, on_open: Callable[[Channel], None]) -> None:
        self.broker = broker
        self.number = number
        self.is_open = False
        self.to_broker: deque[Frame] = deque()
        self.to_client: deque[Frame] = deque()
        self.deliveries: dict[int, ModelDelivery] = {}
        self.unsettled: dict[int, int] = {}
        """As the broker sees it: tag and message."""
        self.consumer: Callable[..., None] | None = None
        """As the broker sees it."""
        self.cancel_was_asked = False
        self.is_stuck = False
        """basic.consume never gets its response."""
        self._cancelled: set[str] = set()
        self._on_close: Any = None
        self._on_cancel: Any = None
        self.to_client.append(lambda: self._open(on_open))

    # pika's methods

    def add_on_close_callback(self, callback: Any) -> None:
        self._on_close = callback

    def add_on_cancel_callback(self, callback: Any) -> None:
        self._on_cancel = callback

    def basic_qos(self, prefetch_count: int) -> None:
        assert prefetch_count == 1

    def basic_consume(
        self, queue: str, on_message_callback: Any, arguments: dict[str, Any], callback: Any
    ) -> str:
        self._check()
        self.broker.on_consume()
        assert queue == QUEUE
        self.cancel_was_asked = False

        def begin() -> None:
            assert self.consumer is None, "two consumers on one channel"
            if arguments and self.broker.is_classic:
                reason = "invalid arg 'x-consumer-timeout' for queue 'q'"
                self.to_client.append(
                    lambda: self.die(
                        pika.exceptions.ChannelClosedByBroker(406, f"PRECONDITION_FAILED - {reason}")
                    )
                )
            elif self.broker.has_no_leader:
                self.is_stuck = True
            else:
                self.consumer = on_message_callback
                self.to_client.append(lambda: callback(None))
                self.broker.deliver()

        self._send(begin)
        return "tag"

    def basic_cancel(self, consumer_tag: str, callback: Any) -> None:
        self._check()
        assert not self.cancel_was_asked, "cancelled twice"
        self.cancel_was_asked = True
        self._cancelled.add(consumer_tag)

        def cancel() -> None:
            self.consumer = None
            self.to_client.append(lambda: callback(None))

        self._send(cancel)

    def basic_ack(self, delivery_tag: int) -> None:
        self._settle(delivery_tag, "ack", self.broker.acked.append)

    def basic_nack(self, delivery_tag: int, *, requeue: bool) -> None:
        assert requeue
        self._settle(delivery_tag, "nack", self.broker.ready.append)

    def close(self) -> None:
        self._check()
        self.is_open = False
        self.consumer = None
        self.to_broker.clear()
        self._give_back()

        def closed() -> None:
            self.broker.channels.remove(self)
            self._on_close(self, pika.exceptions.ChannelClosedByClient(200, "Normal shutdown"))

        self.to_client.append(closed)  # after the frames in flight

    # the client's end

    def _check(self) -> None:
        assert self.broker.lock.is_held, "pika was touched without the lock"
        assert self.is_open, "a channel was used after it was closed"

    def _send(self, frame: Frame) -> None:
        if not self.broker.is_cut_off:
            self.to_broker.append(frame)

    def _settle(self, tag: int, how: str, then: Callable[[int], None]) -> None:
        model_delivery = self.deliveries[tag]
        if not self.is_open and not model_delivery.was_taken:
            raise pika.exceptions.ChannelWrongStateError
        self._check()
        assert not model_delivery.settled, "settled twice"
        self.broker.on_settle(model_delivery, how)
        model_delivery.settled = how

        def settle() -> None:
            if tag in self.unsettled:  # else it was taken back meanwhile
                then(self.unsettled.pop(tag))
                self.broker.deliver()

        self._send(settle)

    def _open(self, on_open: Callable[[Channel], None]) -> None:
        self.is_open = True
        on_open(self)

    # the broker's end

    def deliver(self, message: int) -> None:
        tag = len(self.deliveries) + 1
        model_delivery = self.deliveries[tag] = ModelDelivery(message, self, tag)
        self.unsettled[tag] = message
        consumer = self.consumer
        assert consumer is not None
        method = SimpleNamespace(delivery_tag=tag, exchange="", routing_key=QUEUE, redelivered=False)
        # Every second publisher sets no id.
        properties = pika.BasicProperties(message_id=str(message) if message % 2 else None)

        def arrive() -> None:
            assert "tag" not in self._cancelled, "pika would reject this, which counts as a failure"
            model_delivery.has_arrived = True
            consumer(self, method, properties, model_delivery.body)

        self.to_client.append(arrive)

    def cancel_by_broker(self) -> None:
        """The consumer is cancelled and what it held is given back."""
        self.consumer = None
        self.to_broker.clear()
        self._give_back()
        self.to_client.append(lambda: self._on_cancel(None))

    def die(self, error: Exception) -> None:
        """The channel is closed. Frames in flight are lost."""
        self.is_open = False
        self._take_back()
        self._on_close(self, error)

    def _take_back(self) -> None:
        self.consumer = None
        self.to_broker.clear()
        self.to_client.clear()
        self.broker.channels.remove(self)
        self._give_back()

    def _give_back(self) -> None:
        self.broker.ready.extend(self.unsettled.values())
        self.unsettled.clear()
        self.broker.deliver()


class Lock:
    """The lock of the I/O loop: it knows whether it is held."""

    def __init__(self) -> None:
        self._depth = 0
        self.is_forbidden = False
        """In the publisher's thread, which must never wait for the consuming connection."""

    @property
    def is_held(self) -> bool:
        return self._depth > 0

    def acquire(self) -> None:
        assert not self.is_forbidden, "the publisher's thread waits for the consuming connection"
        self._depth += 1

    def release(self) -> None:
        self._depth -= 1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Broker:
    """One queue, its consumers, and the network before them."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.ready: deque[int] = deque()
        self.acked: list[int] = []
        self.channels: list[Channel] = []
        self.calls: deque[Frame] = deque()
        """What runs in the client's next turn."""
        self.is_classic = False
        self.has_no_leader = False
        self.is_cut_off = False
        """The client has abandoned the connection, and is about to be notified."""
        self.on_consume: Frame = lambda: None
        self.on_settle: Callable[[ModelDelivery, str], None] = lambda _delivery, _how: None

    def deliver(self) -> None:
        for channel in self.channels:
            if self.ready and channel.consumer is not None and not channel.unsettled:
                channel.deliver(self.ready.popleft())

    def frames(self) -> list[deque[Frame]]:
        """All frames in flight, by channel and direction, in order."""
        if self.is_cut_off:
            return []
        return [
            frames for channel in self.channels for frames in (channel.to_broker, channel.to_client) if frames
        ]


class Connection:
    """The worker's consuming connection."""

    def __init__(self, clock: Clock, *, on_open: Any, on_lost: Any) -> None:
        self.lock = Lock()
        self.loop = _Loop(self.lock)
        self.broker = Broker(self.lock)
        self.clock = clock
        self.generation = 0
        self.version = BrokerVersion(4, 3)
        self.channel_max = 2047
        self.last_error = None
        self.is_open = False
        self.is_closed = False
        self.on_close: Frame = lambda: None
        self._numbers = itertools.count(1)
        self._on_open = on_open
        self._on_lost = on_lost

    # the worker's view

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self.lock:
            yield

    def channel(self, on_open: Any) -> Channel:
        assert self.lock.is_held
        if not self.is_open or self.broker.is_cut_off:
            raise BrokerError("not open")
        channel = Channel(self.broker, next(self._numbers), on_open)
        self.broker.channels.append(channel)
        return channel

    def call(self, function: Frame) -> None:
        self.broker.calls.append(function)

    def call_later(self, seconds: float, function: Frame) -> None:
        assert self.lock.is_held
        self.clock.call_later(seconds, lambda: self.run(function))

    def flush(self) -> None:
        assert self.lock.is_held

    def abort(self, reason: str) -> None:
        assert UnexpectedError.__name__ in reason, reason
        if self.is_open and not self.broker.is_cut_off:
            self.broker.is_cut_off = True
            self.broker.calls.append(self.lose)

    def close(self) -> None:
        if self.is_open:
            self.on_close()
            for channel in self.broker.channels:  # a close comes after what was sent before it
                while channel.to_broker and not self.broker.is_cut_off:
                    channel.to_broker.popleft()()
            with self.lock:
                self.lose()
        self.is_closed = True

    # the world's view

    def run(self, function: Frame) -> None:
        """Call into the worker as its I/O loop does; a failure there costs the connection."""
        with self.lock:
            try:
                function()
            except UnexpectedError as error:
                self.abort(repr(error))

    def open(self) -> None:
        self.generation += 1
        self.is_open = True
        self._on_open(self.generation)

    def lose(self) -> None:
        # As in pika: first every channel is notified, then the owner of the connection.
        if not self.is_open:
            return
        self.is_open = False
        for channel in list(self.broker.channels):
            channel.die(pika.exceptions.StreamLostError("lost"))
        self.broker.is_cut_off = False
        self._on_lost("lost")


class _Loop:
    """What the runtime needs of an I/O loop."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def close(self) -> None:
        pass


class Changed:
    """The runtime's condition; the model advances while a caller waits for it."""

    def __init__(self, lock: Lock, meanwhile: Callable[[float], None]) -> None:
        self._lock = lock
        self._meanwhile = meanwhile
        self.was_told = False

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def notify_all(self) -> None:
        assert self._lock.is_held
        self.was_told = True

    def wait(self, timeout: float) -> None:
        self.was_told = False
        self._lock.release()
        try:
            self._meanwhile(timeout)
        finally:
            self._lock.acquire()


class PublishPipeline:
    """The worker's publishing connection, and the queues that copies go to."""

    def __init__(self, clock: Clock, lock: Lock, on_copy: Callable[[Any], ModelDelivery]) -> None:
        self.queues: dict[str, float] = {f"{QUEUE}.dead": 0.0}
        """Name, and since when copies are safe in it."""
        self.ways: dict[str, tuple[str, ...]] = {}
        """The queues that a copy passes, by the first one."""
        self.under_way: list[tuple[Future[Any], Any]] = []
        self.problem: Exception | None = None
        self._clock = clock
        self._lock = lock
        self._on_copy = on_copy

    def submit(self, outgoing: Any, is_wanted: Callable[[], bool]) -> Future[None]:
        if self.problem is not None:
            raise self.problem
        first = outgoing.exchange or outgoing.routing_key  # the exchange of a step is named as its queue
        for queue in self.ways.get(first, (first,)):
            assert self._clock.now >= self.queues.get(queue, 0.0), "this queue may not survive"
        model_delivery = self._on_copy(outgoing)
        assert model_delivery.copy is Copy.NONE, "two copies of one message"
        model_delivery.copy = Copy.UNDER_WAY
        future: Future[None] = Future()
        self.under_way.append((future, (model_delivery, first, is_wanted)))
        return future

    def declare_plan(self, plan: Plan) -> Future[bool]:
        if self.problem is not None:
            raise self.problem
        future: Future[bool] = Future()
        self.under_way.append((future, plan))
        return future

    def answer(self, entry: tuple[Future[Any], Any], *, well: bool) -> None:
        """The broker's response arrives, or never does."""
        self.under_way.remove(entry)
        future, about = entry
        self._lock.is_forbidden = True
        try:
            if isinstance(about, Plan):
                self._answer_declaration(future, about, well=well)
            else:
                self._answer_copy(future, *about, well=well)
        finally:
            self._lock.is_forbidden = False

    def _answer_declaration(self, future: Future[bool], plan: Plan, *, well: bool) -> None:
        if not well:
            future.set_exception(BrokerError("connection lost"))
            return
        names = tuple(queue.name for queue in plan.queues)
        new = set(names).difference(self.queues)
        self.queues |= dict.fromkeys(new, self._clock.now + SAFE_AFTER_SECONDS)
        self.ways[names[-1]] = names
        future.set_result(bool(new))

    def _answer_copy(
        self,
        future: Future[None],
        model_delivery: ModelDelivery,
        queue: str,
        is_wanted: Callable[[], bool],
        *,
        well: bool,
    ) -> None:
        model_delivery.copy = Copy.NONE
        if queue not in self.queues:
            future.set_exception(Returned("", queue, "1", "no queue"))
        elif not well and not is_wanted():
            future.set_exception(NotSent("", queue, "1", "no longer needed"))
        elif not well:
            future.set_exception(Unconfirmed("", queue, "1", "connection lost"))
        else:
            model_delivery.copy = Copy.CONFIRMED
            future.set_result(None)

    def close(self, _timeout: float) -> None:
        for entry in list(self.under_way):
            self.answer(entry, well=False)
        self.problem = BrokerError("The publisher is closed.")


class LeaseTimer:
    """Stands in for threading.Timer."""

    def __init__(self, clock: Clock, cancelled: list[LeaseTimer], seconds: float, function: Frame) -> None:
        self._clock = clock
        self._cancelled = cancelled
        self._seconds = seconds
        self.function = function
        self._is_over = False
        self.daemon = False

    def start(self) -> None:
        self._clock.call_later(self._seconds, self._fire)

    def cancel(self) -> None:
        self._is_over = True
        self._cancelled.append(self)

    def _fire(self) -> None:
        if not self._is_over:
            self.function()


class NotWaitedForError(Exception):
    """Ends a thread that is no longer joined."""


class Thread:
    """Stands in for threading.Thread: runs at once, to its end."""

    def __init__(self, target: Frame, **_: object) -> None:
        self._target = target

    def start(self) -> None:
        with suppress(NotWaitedForError):
            self._target()


def run_config(*, timeout_seconds: float, concurrency: int, grace_seconds: float) -> RunConfig:
    """Return the configuration of a worker that consumes from `QUEUE` of the model, without an endpoint."""
    return RunConfig(
        handler=PythonHandler("m:f"),
        queue_settings=QueueSettings(QUEUE),
        declare=False,
        retry=RetryPolicy(2, (1,)),
        delivery_limit=None,
        wake_deliveries=0,
        timeout_seconds=timeout_seconds,
        concurrency=concurrency,
        grace_seconds=grace_seconds,
        port=0,
        port_is_default=False,
        url=None,
        binding_folder=None,
        pod_uid="uid",
        worker_name="pod",
        log_format=None,
        log_level="INFO",
        heartbeat_seconds=None,
        termination_log=None,  # type: ignore[arg-type]
    )
