"""Slots, leases and settling, over random interleavings with a broker that is as mean as RabbitMQ can be.

The real Runtime, slots and settler run against a model of a broker: frames travel in both directions at
their own pace, channels and connections die at any moment, confirmations come late or never. After every
step nothing may be lost, settled twice, or settled on another channel than its own.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pika.exceptions
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workqueue_worker import Reject, Retry, topology
from workqueue_worker.broker.slot import Work
from workqueue_worker.config import PythonHandler, RunConfig
from workqueue_worker.errors import NotSent, Returned, Unconfirmed
from workqueue_worker.handlers.handler import Handler
from workqueue_worker.handlers.outcome import RetryPolicy
from workqueue_worker.runtime import Runtime
from workqueue_worker.topology import BrokerVersion, QueueSettings

Frame = Callable[[], None]


class FakeChannel:
    """A pika channel and the broker's end of it, with frames on their way in between."""

    def __init__(self, broker: FakeBroker, on_open: Callable[[FakeChannel], None]) -> None:
        self.broker = broker
        self.is_open = False
        self.to_broker: deque[Frame] = deque()
        self.to_client: deque[Frame] = deque()
        self.unsettled: dict[int, int] = {}  # as the broker sees it: tag -> message
        self.settled: set[int] = set()  # as the client asked for it
        self.tags = itertools.count(1)
        self.consumer: Callable[..., None] | None = None
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
        self._check_open()

        def begin() -> None:
            assert self.consumer is None, "two consumers on one channel"
            self.consumer = on_message_callback
            self.to_client.append(lambda: callback(None))
            self.broker.deliver()

        self.to_broker.append(begin)
        return "tag"

    def basic_cancel(self, consumer_tag: str, callback: Any) -> None:
        self._check_open()
        self._cancelled.add(consumer_tag)

        def cancel() -> None:
            self.consumer = None
            self.to_client.append(lambda: callback(None))

        self.to_broker.append(cancel)

    def basic_ack(self, delivery_tag: int) -> None:
        self._settle(delivery_tag, self.broker.acked.append)

    def basic_nack(self, delivery_tag: int, *, requeue: bool) -> None:
        assert requeue
        self._settle(delivery_tag, self.broker.ready.append)

    def close(self) -> None:
        if self.is_open:
            self.die(None)

    # the broker's end

    def _settle(self, tag: int, then: Callable[[int], None]) -> None:
        self._check_open()
        assert tag not in self.settled, "settled twice"
        self.settled.add(tag)

        def settle() -> None:
            if tag in self.unsettled:  # else it was taken back meanwhile, and the broker ignores this
                then(self.unsettled.pop(tag))
                self.broker.deliver()

        self.to_broker.append(settle)

    def _open(self, on_open: Callable[[FakeChannel], None]) -> None:
        self.is_open = True
        on_open(self)

    def _check_open(self) -> None:
        if not self.is_open:
            raise pika.exceptions.ChannelWrongStateError

    def deliver(self, message: int) -> None:
        tag = next(self.tags)
        self.unsettled[tag] = message
        consumer = self.consumer
        assert consumer is not None
        method = SimpleNamespace(delivery_tag=tag, exchange="", routing_key="q", redelivered=False)
        properties = pika.BasicProperties(message_id=str(message))
        self.to_client.append(lambda: consumer(self, method, properties, b""))

    def cancel_by_broker(self) -> None:
        """The consumer is cancelled and what it held is given back."""
        self.consumer = None
        self.broker.ready.extend(self.unsettled.values())
        self.unsettled.clear()
        self.to_broker.clear()
        self.to_client.append(lambda: self._on_cancel(None))

    def die(self, error: Exception | None) -> None:
        """The channel is closed. Frames that were on their way never arrive."""
        was_open, self.is_open = self.is_open, False
        self.consumer = None
        self.to_broker.clear()
        self.to_client.clear()
        self.broker.ready.extend(self.unsettled.values())
        self.unsettled.clear()
        self.broker.channels.remove(self)
        if error is not None and (was_open or self._on_close):
            self._on_close(self, error)
        self.broker.deliver()


class FakeBroker:
    """One queue, its consumers, and everything that was published elsewhere."""

    def __init__(self) -> None:
        self.ready: deque[int] = deque()
        self.acked: list[int] = []
        self.copies: list[int] = []
        self.channels: list[FakeChannel] = []

    def deliver(self) -> None:
        for channel in self.channels:
            if self.ready and channel.consumer is not None and not channel.unsettled:
                channel.deliver(self.ready.popleft())


class FakeLoop:
    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class FakeConnection:
    """What the runtime sees of a Connection."""

    def __init__(self, _source: Any, _name: str, *, on_open: Any, on_lost: Any) -> None:
        self.loop = FakeLoop()
        self.generation = 0
        self.version = BrokerVersion(4, 3)
        self.last_error = None
        self.is_open = False
        self.broker = FakeBroker()
        self.calls: deque[Frame] = deque()
        self._on_open = on_open
        self._on_lost = on_lost

    @contextmanager
    def exclusive(self) -> Any:
        with self.loop:
            yield

    def channel(self, on_open: Any) -> FakeChannel:
        assert self.is_open
        channel = FakeChannel(self.broker, on_open)
        self.broker.channels.append(channel)
        return channel

    def call(self, function: Frame) -> None:
        self.calls.append(function)

    def call_later(self, seconds: float, function: Frame) -> None:
        if seconds < 25:  # the wait for an answer to basic.consume never ends in vain here
            self.calls.append(function)

    def open(self) -> None:
        self.generation += 1
        self.is_open = True
        self._on_open(self.generation)

    def lose(self) -> None:
        # As pika does it: first every channel hears of it, then the connection's owner.
        for channel in list(self.broker.channels):
            channel.die(pika.exceptions.StreamLostError("lost"))
        self.is_open = False
        self._on_lost("lost")


class FakePublisher:
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.waiting: list[tuple[Future[None], int | None]] = []

    def publish(self, outgoing: Any) -> Future[None]:
        future: Future[None] = Future()
        self.waiting.append((future, int(outgoing.message_id)))
        return future

    def declare(self, queue: topology.Queue) -> Future[None]:
        future: Future[None] = Future()
        self.waiting.append((future, None))
        return future


class FakeRunner:
    def __init__(self) -> None:
        self.running: list[Work] = []

    def submit(self, work: Work) -> None:
        self.running.append(work)

    def cancel(self, work: Work) -> None:
        assert work.message.cancelled.is_set()


ENDS: dict[str, BaseException | None] = {
    "returns": None,
    "fails": ValueError("no"),
    "retries": Retry(after=3),
    "rejects": Reject("never"),
}


class WorkerMachine(RuleBasedStateMachine):
    """Random steps of the broker, the network, the handlers and the operator."""

    @initialize(slots=st.integers(1, 3))
    def start(self, slots: int) -> None:
        config = RunConfig(
            handler=PythonHandler("m:f"),
            queue_settings=QueueSettings("q"),
            declare=False,
            retry=RetryPolicy(2, (1,)),
            timeout_seconds=1000,
            concurrency=slots,
            grace_seconds=1,
            port=0,
            port_is_default=False,
            url=None,
            binding_folder=None,
            pod_uid="uid",
            worker_name="pod",
            log_format=None,
            termination_log=None,  # type: ignore[arg-type]
        )
        handler = Handler("m:f", lambda _message: None)
        self.runtime = Runtime(config, config.read_binding, handler, connect=FakeConnection)  # type: ignore[arg-type]
        self.connection: FakeConnection = self.runtime.connection  # type: ignore[assignment]
        self.broker = self.connection.broker
        self.runner = self.runtime._runner = FakeRunner()  # type: ignore[assignment]
        self.publisher = self.runtime._publisher = FakePublisher(self.broker)  # type: ignore[assignment]
        self.published = 0
        self.succeeded: set[int] = set()
        self.withdrawn = False
        self.ended = False
        self.connection.open()
        self.the_network_is_quick()

    def locked(self, function: Callable[[], None]) -> None:
        with self.connection.loop:
            function()

    # -- the world

    @rule(count=st.integers(1, 4), quick=st.booleans())
    def publish(self, count: int, quick: bool) -> None:
        self.broker.ready.extend(range(self.published, self.published + count))
        self.published += count
        self.broker.deliver()
        if quick:
            self.the_network_is_quick()

    @rule(data=st.data(), count=st.integers(1, 6))
    def frames_arrive(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            waiting = self._frames()
            if waiting:
                self.locked(data.draw(st.sampled_from(waiting)).popleft())

    @rule()
    def time_passes(self) -> None:
        """Whatever is on its way arrives, and waits are over."""
        self.callbacks_run()
        self.the_network_is_quick()

    def the_network_is_quick(self) -> None:
        while waiting := self._frames():
            self.locked(waiting[0].popleft())

    def _frames(self) -> list[deque[Frame]]:
        return [
            frames
            for channel in self.broker.channels
            for frames in (channel.to_broker, channel.to_client)
            if frames
        ]

    @rule()
    def callbacks_run(self) -> None:
        for _ in range(len(self.connection.calls)):
            self.locked(self.connection.calls.popleft())

    @precondition(lambda self: self.connection.is_open)
    @rule()
    def the_connection_is_lost(self) -> None:
        self.locked(self.connection.lose)

    @precondition(lambda self: not self.connection.is_open)
    @rule()
    def the_connection_comes_back(self) -> None:
        self.locked(self.connection.open)
        self.the_network_is_quick()

    @precondition(lambda self: any(channel.is_open for channel in self.broker.channels))
    @rule(data=st.data())
    def the_broker_closes_a_channel(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from([one for one in self.broker.channels if one.is_open]))
        error = pika.exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED")
        self.locked(lambda: channel.die(error))

    @precondition(lambda self: any(channel.consumer for channel in self.broker.channels))
    @rule(data=st.data())
    def the_broker_cancels_a_consumer(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from([one for one in self.broker.channels if one.consumer]))
        self.locked(channel.cancel_by_broker)

    # -- handlers

    @precondition(lambda self: self.runner.running)
    @rule(data=st.data(), how=st.sampled_from(sorted(ENDS)), quick=st.booleans())
    def a_handler_ends(self, data: st.DataObject, how: str, quick: bool) -> None:
        work = data.draw(st.sampled_from(self.runner.running))
        self.runner.running.remove(work)
        if how == "returns" and not work.message.cancelled.is_set():
            self.succeeded.add(int(work.properties.message_id))
        self.runtime._handled(work, ENDS[how])
        if quick:
            self.time_passes()

    @precondition(lambda self: self.runner.running)
    @rule(data=st.data())
    def the_time_of_a_handler_is_up(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.runner.running)).message.deadline = 0.0
        self.locked(self.runtime._check_time)
        self.time_passes()

    # -- the publishing connection

    @precondition(lambda self: self.publisher.waiting)
    @rule(
        data=st.data(),
        end=st.sampled_from(["confirmed", "returned", "not sent", "there but unconfirmed", "lost"]),
    )
    def a_confirmation_comes_or_not(self, data: st.DataObject, end: str) -> None:
        entry = data.draw(st.sampled_from(self.publisher.waiting))
        self.publisher.waiting.remove(entry)
        future, message = entry
        if message is not None and end in {"confirmed", "there but unconfirmed"}:
            self.broker.copies.append(message)
        match end:
            case "confirmed":
                future.set_result(None)
            case "returned":
                future.set_exception(Returned("", "q", "1", "no queue"))
            case "not sent":
                future.set_exception(NotSent("", "q", "1", "blocked"))
            case _:
                future.set_exception(Unconfirmed("", "q", "1", "connection lost"))

    # -- the operator and the kubelet

    @precondition(lambda self: not self.ended)
    @rule()
    def the_operator_asks_to_retire(self) -> None:
        if self.runtime.busy():
            return
        with self.connection.loop:
            for slot in self.runtime.slots:
                slot.pause(take_late=True)
        self.withdrawn = True

    @precondition(lambda self: self.withdrawn)
    @rule()
    def the_lease_ends(self) -> None:
        self.runtime.resume()
        self.withdrawn = False

    @precondition(lambda self: self.published >= 6)  # else most runs would end before they have begun
    @rule()
    def sigterm(self) -> None:
        self.ended = True
        self.runtime.stop_taking()

    @precondition(lambda self: self.ended)
    @rule(hand_back=st.booleans())
    def the_grace_is_over(self, hand_back: bool) -> None:
        self.runtime.cancel_handlers()
        if hand_back:
            self.runtime.hand_back()

    # -- what must always hold

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "broker"):
            return
        held = [message for channel in self.broker.channels for message in channel.unsettled.values()]
        places = {*self.broker.ready, *held, *self.broker.acked}
        assert places == set(range(self.published))
        assert set(self.broker.acked) <= self.succeeded | set(self.broker.copies)
        everywhere = [*self.broker.ready, *held, *self.broker.acked]
        assert len(everywhere) == len(set(everywhere)), "one message in two places"

    @invariant()
    def a_slot_runs_one_handler_at_a_time(self) -> None:
        if not hasattr(self, "broker"):
            return
        slots = [work.slot for work in self.runner.running]
        assert len(slots) == len(set(slots))
        for work in self.runner.running:
            assert work.slot.work is work
            assert work.lease.held or work.decided or work.message.cancelled.is_set()

    @invariant()
    def a_withdrawn_worker_takes_nothing_once_that_is_confirmed(self) -> None:
        if not hasattr(self, "broker"):
            return
        if self.withdrawn and all(slot.closed for slot in self.runtime.slots):
            assert not any(
                channel.consumer and channel.is_open and not channel.to_broker
                for channel in self.broker.channels
            )

    def teardown(self) -> None:
        """Whatever happened, when trouble ends everything gets done."""
        if not hasattr(self, "broker"):
            return
        self.runtime.resume()
        for _ in range(200):
            if not self.connection.is_open:
                self.locked(self.connection.open)
            for channel in list(self.broker.channels):
                while channel.to_broker:
                    self.locked(channel.to_broker.popleft())
                while channel.to_client:
                    self.locked(channel.to_client.popleft())
            while self.runner.running:
                work = self.runner.running.pop()
                if not work.message.cancelled.is_set():
                    self.succeeded.add(int(work.properties.message_id))
                self.runtime._handled(work, None)
            while self.publisher.waiting:
                future, message = self.publisher.waiting.pop()
                if message is not None:
                    self.broker.copies.append(message)
                future.set_result(None)
            self.callbacks_run()
        self.nothing_is_lost()
        assert self.runtime.busy() == 0
        if self.ended:
            assert not any(channel.consumer for channel in self.broker.channels)
        else:
            assert sorted(self.broker.acked) == list(range(self.published))


WorkerMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestWorker = WorkerMachine.TestCase
