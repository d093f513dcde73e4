"""A worker in random interleavings with a model of RabbitMQ.

The real Runtime, slots, settler, Retirement and drain run against tests/support/brokermodel.py: frames travel in both
directions at any speed, channels and connections close at any moment, confirms come late or never, and handlers
ignore their cancellation. Each call of the worker to RabbitMQ is judged when it is made. After every step no message
may be lost, settled twice or counted wrongly. When the model comes to rest, every slot that should
take messages does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import pika.exceptions
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.brokermodel import (
    Changed,
    Clock,
    Connection,
    Copy,
    LeaseTimer,
    ModelDelivery,
    NotWaitedForError,
    PublishPipeline,
    Thread,
    UnexpectedError,
    run_config,
)
from workqueue import Reject, Retry
from workqueue.amqp.errors import BrokerError
from workqueue.worker import consumer, deliveries, drain, retirement, runtime, settlement
from workqueue.worker.handlers.outcome import HandlerUnavailable, Outcome
from workqueue.worker.lease import LeaseState
from workqueue.worker.slot import ANSWER_SECONDS, LONGEST_WAIT_SECONDS, Delivery

TIMEOUT: Final = 64.0
GRACE: Final = 64.0
DRAIN_MARGIN: Final = drain.LONGEST_CANCEL_SECONDS
WAIT_MOVES: Final = 12

ENDS: Final[dict[str, BaseException | None]] = {
    "returns": None,
    "fails": ValueError("no"),
    "retries": Retry(after=3),
    "rejects": Reject("never"),
    "was not started": HandlerUnavailable("connection refused"),
}


class Verdict(Enum):
    """What may be done with a message, as far as its handler is concerned."""

    OPEN = "the handler runs"
    ACK = "it returned in time"
    COPY = "it failed or its time was up"
    NOTHING = "its result does not count"


class Before(Enum):
    """What a worker is in the middle of."""

    AS_IT_IS = "whatever it is"
    BUSY = "has a message in each slot"
    SENT_TO = "is idle, but messages are on their way"


@dataclass(eq=False)
class Attempt:
    """A delivery that was given to a handler."""

    model_delivery: ModelDelivery
    delivery: Delivery
    verdict: Verdict = Verdict.OPEN
    timed_out: bool = False
    target: str = ""
    copy_id: str | None = None
    cancelled_at: float | None = None
    told: set[bool] = field(default_factory=set)
    """That it should stop: while the message was ours, and when it was lost."""

    @property
    def outcome(self) -> Outcome | None:
        """What must have been counted."""
        match self.delivery.lease.state:
            case LeaseState.HELD:
                return None
            case LeaseState.LOST:
                return Outcome.LOST
        if self.model_delivery.settled == "nack":
            return Outcome.REQUEUED
        if self.verdict is Verdict.ACK:
            return Outcome.ACKED
        if self.timed_out:
            return Outcome.TIMED_OUT
        return Outcome.DEAD_LETTERED if self.target.endswith(".dead") else Outcome.RETRIED


class WorkerMachine(RuleBasedStateMachine):
    """Random steps of the broker, the network, the handlers, the operator and the kubelet."""

    @initialize(slots=st.integers(1, 3), classic=st.booleans())
    def start(self, slots: int, classic: bool) -> None:
        self.clock = Clock()
        self.patches = pytest.MonkeyPatch()
        for module in (runtime, consumer, deliveries, settlement, drain):
            self.patches.setattr(module, "time", self.clock)
        self.old_leases: list[LeaseTimer] = []
        threads = SimpleNamespace(
            Condition=lambda lock: Changed(lock, self._while_somebody_waits),
            Lock=lambda: SimpleNamespace(__enter__=None),
            Thread=Thread,
            Timer=partial(LeaseTimer, self.clock, self.old_leases),
        )
        self.patches.setattr(consumer, "threading", threads)
        self.patches.setattr(drain, "threading", threads)
        self.patches.setattr(f"{retirement.__name__}.threading.Timer", threads.Timer)
        config = run_config(timeout_seconds=TIMEOUT, concurrency=slots, grace_seconds=GRACE)
        self.worker = runtime.Runtime(
            config,
            config.read_binding,
            connect=lambda _source, _name, **callbacks: Connection(self.clock, **callbacks),  # type: ignore[arg-type,return-value]
            on_end=self._judge_failure,
        )
        self.connection: Connection = self.worker.consumer.connection  # type: ignore[assignment]
        self.broker = self.connection.broker
        self.broker.is_classic = classic
        self.broker.on_consume = self._judge_consume
        self.broker.on_settle = self._judge_settling
        self.connection.on_close = self._judge_close
        self.worker.deliveries._executor = self  # type: ignore[assignment]
        self.publisher = PublishPipeline(self.clock, self.connection.lock, self._judge_copy)
        self.worker.deliveries._publisher = self.publisher  # type: ignore[assignment]
        self.retirement = retirement.Retirement(self.worker.consumer, config.read_retirement_key, "uid")
        self.published = 0
        self.attempts: list[Attempt] = []
        self.running: list[Attempt] = []
        self.retired_until: float | None = None
        self.is_asked_to_retire = False
        self.drain_deadline: float | None = None
        self.signals = 0
        self.is_handing_back = False
        self.is_over = False
        self.data: Any = None
        self.connection.run(self.connection.open)
        self._the_network_is_quick()

    # What the worker does, and whether it may ------------------------------------------------------------

    def accepts(self, slot: int) -> bool:
        return True

    def is_blocked(self, delivery: Delivery) -> bool:
        return False

    def submit(self, delivery: Delivery) -> None:
        """A message is given to a handler, again if it was not started before."""
        model_delivery = delivery.lease.channel.deliveries[delivery.lease.tag]  # type: ignore[attr-defined]
        assert not self._is_retired or self.is_asked_to_retire
        assert not self.worker.consumer.draining
        assert all(attempt.delivery.slot is not delivery.slot for attempt in self.running), (
            "two handlers in one slot"
        )
        attempt = next((one for one in self.attempts if one.delivery is delivery), None)
        if attempt is None:
            model_delivery.was_taken = True
            attempt = Attempt(model_delivery, delivery)
            self.attempts.append(attempt)
        assert attempt.verdict is Verdict.OPEN, "a handler begins again although its message is decided on"
        self.running.append(attempt)

    def cancel(self, delivery: Delivery) -> None:
        """A handler is cancelled."""
        [attempt] = [one for one in self.running if one.delivery is delivery]
        assert delivery.message.cancelled.is_set()
        assert delivery.lease.held not in attempt.told, "told twice"
        attempt.told.add(delivery.lease.held)
        if attempt.cancelled_at is None:
            attempt.cancelled_at = self.clock.now
        if not attempt.timed_out and delivery.lease.held:
            assert delivery.abandoned
            assert self.drain_deadline is not None
            on_time = self.clock.now == self.drain_deadline - DRAIN_MARGIN
            assert self.signals or on_time, "cancelled although it might have finished"

    def stop(self, _timeout: float) -> bool:
        """The threads of the handlers are to end."""
        return not self.running

    def _judge_consume(self) -> None:
        assert not self._is_retired
        assert not self.worker.consumer.draining
        free = sum(slot.delivery is None for slot in self.worker.consumer.slots)
        assert free > 0, "a consumer for a slot that has a message"

    def _judge_settling(self, model_delivery: ModelDelivery, how: str) -> None:
        attempt = next((one for one in self.attempts if one.model_delivery is model_delivery), None)
        if attempt is None:  # it came too late
            assert how == "nack"
            assert model_delivery.channel.cancel_was_asked, "taken, and then not wanted"
            assert self.worker.consumer.draining, "before 4.3 this counts as a failure of the message"
        elif how == "ack":
            assert attempt.verdict is Verdict.ACK or model_delivery.copy is Copy.CONFIRMED
        else:
            assert self.worker.consumer.draining
            assert model_delivery.copy is not Copy.CONFIRMED or self.broker.calls, (
                "its copy is there, and that is known"
            )
            if not self.is_handing_back and attempt in self.running:
                assert attempt.verdict is Verdict.NOTHING, "handed back although it was being settled"
            elif not self.is_handing_back:
                assert attempt.verdict in {Verdict.NOTHING, Verdict.OPEN}

    def _judge_copy(self, outgoing: Any) -> ModelDelivery:
        [attempt] = [one for one in self.attempts if one.model_delivery.body == outgoing.body]
        assert attempt.verdict is Verdict.COPY, "a copy of a message whose handler has not failed"
        assert attempt.delivery.lease.held, "a copy of a message that was redelivered"
        attempt.target = outgoing.routing_key
        assert outgoing.message_id, "a copy without a message id"
        assert attempt.copy_id in {None, outgoing.message_id}, "a second message id"
        attempt.copy_id = outgoing.message_id
        return attempt.model_delivery

    def _judge_failure(self) -> None:
        assert any(self._is_hung(attempt) for attempt in self.running)

    def _is_hung(self, attempt: Attempt) -> bool:
        delivery = attempt.delivery
        return not delivery.lease.held and self.clock.now >= delivery.message.deadline + TIMEOUT

    def _judge_close(self) -> None:
        assert self.drain_deadline is not None
        if self.clock.now < self.drain_deadline - DRAIN_MARGIN and not self.signals:
            assert all(slot.closed for slot in self.worker.consumer.slots), (
                "did not wait for its consumers to end"
            )
        if self.broker.is_cut_off:
            return
        assert not any(attempt.delivery.lease.held for attempt in self.attempts), "not handed back"
        for channel in self.broker.channels:
            for tag in channel.unsettled if channel.is_open else ():
                model_delivery = channel.deliveries[tag]
                assert model_delivery.settled or not model_delivery.has_arrived, "kept, and not handed back"

    @property
    def _is_retired(self) -> bool:
        return self.retired_until is not None and self.clock.now < self.retired_until

    # The world -------------------------------------------------------------------------------------------

    def _publish(self, count: int) -> None:
        self.broker.ready.extend(range(self.published, self.published + count))
        self.published += count
        self.broker.deliver()

    def _the_network_is_quick(self) -> None:
        for _ in range(10_000):
            if self.broker.calls:
                self.connection.run(self.broker.calls.popleft())
            elif frames := self.broker.frames():
                self.connection.run(frames[0].popleft())
            else:
                return
        pytest.fail("the worker and the broker never come to rest")

    def _everything_is_quick(self) -> None:
        self._the_network_is_quick()
        while self.publisher.under_way:
            self.publisher.answer(self.publisher.under_way[0], well=True)
            self._the_network_is_quick()

    def _all_handlers_end(self) -> None:
        self._everything_is_quick()
        while self.running:
            self._end(self.running[0], "returns")
            self._everything_is_quick()

    def _prepare(self, before: Before) -> None:
        if before is Before.AS_IT_IS:
            return
        if not self.connection.is_open:
            self.connection.run(self.connection.open)
        self._all_handlers_end()
        self._publish(len(self.worker.consumer.slots))
        if before is Before.BUSY:
            self._the_network_is_quick()

    def _pass(self, seconds: float) -> None:
        self.clock.advance(self.clock.now + seconds, self._mark_whose_time_is_up)
        if any(self._is_hung(attempt) for attempt in self.running) and not self.broker.is_cut_off:
            assert self.worker.consumer.draining, "a handler never returns and the worker goes on"
        for attempt in self.running:
            told = (
                attempt.delivery.message.cancelled.is_set() or self.broker.is_cut_off
            )  # and soon told of that
            assert told or not attempt.timed_out

    def _mark_whose_time_is_up(self) -> None:
        for attempt in self.running:
            delivery = attempt.delivery
            is_late = delivery.message.deadline <= self.clock.now
            if is_late and attempt.verdict is Verdict.OPEN and delivery.lease.held and not delivery.abandoned:
                attempt.verdict = Verdict.COPY
                attempt.timed_out = True

    def _end(self, attempt: Attempt, how: str) -> None:
        self.running.remove(attempt)
        if attempt.verdict is Verdict.OPEN:
            if attempt.delivery.message.cancelled.is_set():
                attempt.verdict = Verdict.NOTHING
            elif how != "was not started":
                attempt.verdict = Verdict.ACK if how == "returns" else Verdict.COPY
        self.worker.deliveries.handled(attempt.delivery, ENDS[how])
        if attempt.verdict is Verdict.NOTHING:
            assert not attempt.delivery.lease.held, "its handler was told to stop, and has: hand it back"

    def _while_somebody_waits(self, seconds: float) -> None:
        """Things happen until the worker tells the one who waits, or its time is over."""
        changed: Changed = self.worker.consumer.changed  # type: ignore[assignment]
        until = self.clock.now + seconds
        for _ in range(self._draw(range(WAIT_MOVES))):
            if moves := self._moves():
                self._draw(moves)()
            if changed.was_told:
                return
        if self._draw([False, True]):
            self._the_network_is_quick()
            if not changed.was_told and not any(channel.is_stuck for channel in self.broker.channels):
                assert all(slot.closed for slot in self.worker.consumer.slots), "a consumer is not cancelled"
        while not changed.was_told and self.clock.now < until:
            self._pass(min(0.25, until - self.clock.now))
        if not changed.was_told:
            quiet = all(slot.closed for slot in self.worker.consumer.slots)
            if self.drain_deadline is not None:
                installed = sum(self._is_hung(attempt) for attempt in self.running)
                quiet = quiet and self.worker.consumer.busy() == installed
            assert not quiet, "a waiting thread was not notified"

    def _moves(self) -> list[Callable[[], Any]]:
        moves: list[Callable[[], Any]] = []
        if frames := self.broker.frames():
            moves += [lambda: self.connection.run(self._draw(frames).popleft())] * 4
        if self.broker.calls:
            moves += [lambda: self.connection.run(self.broker.calls.popleft())] * 2
        if self.running:
            moves += [lambda: self._end(self._draw(self.running), self._draw(sorted(ENDS)))] * 2
        if self.publisher.under_way:
            moves += [lambda: self.publisher.answer(self._draw(self.publisher.under_way), well=True)] * 2
        if self.connection.is_open:
            moves += [lambda: self.connection.run(self.connection.lose)]
        if self.drain_deadline is not None:
            moves += [self.worker.consumer.resume]  # as a retirement that has failed only now
            if self.running:
                moves += [self._second_signal]
        return moves

    def _draw(self, options: Any) -> Any:
        return self.data.draw(st.sampled_from(options))

    def _second_signal(self) -> None:
        self.signals += 1
        self.drain_ends_by = self.clock.now + DRAIN_MARGIN
        raise NotWaitedForError

    # -- steps

    @rule(count=st.integers(1, 4), quick=st.booleans())
    def publish(self, count: int, quick: bool) -> None:
        self._publish(count)
        if quick:
            self._everything_is_quick()

    @precondition(lambda self: self.broker.frames())
    @rule(data=st.data(), count=st.integers(1, 6))
    def frames_arrive(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            if waiting := self.broker.frames():
                self.connection.run(data.draw(st.sampled_from(waiting)).popleft())

    @precondition(lambda self: self.broker.calls)
    @rule()
    def the_loop_turns(self) -> None:
        self.connection.run(self.broker.calls.popleft())

    @rule(seconds=st.sampled_from([0.25, 2, 8, 32, TIMEOUT]), quick=st.booleans())
    def time_passes(self, seconds: float, quick: bool) -> None:
        if quick:
            self._everything_is_quick()
        self._pass(seconds)

    @precondition(lambda self: self.connection.is_open)
    @rule()
    def the_connection_is_lost(self) -> None:
        self.connection.run(self.connection.lose)

    @precondition(lambda self: not self.connection.is_open and not self.is_over)
    @rule(quick=st.booleans())
    def the_connection_comes_back(self, quick: bool) -> None:
        self.connection.run(self.connection.open)
        if quick:
            self._everything_is_quick()

    @precondition(lambda self: any(channel.is_open for channel in self.broker.channels))
    @rule(data=st.data())
    def the_broker_closes_a_channel(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from([one for one in self.broker.channels if one.is_open]))
        error = pika.exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED")
        self.connection.run(lambda: channel.die(error))

    @precondition(lambda self: any(channel.consumer for channel in self.broker.channels))
    @rule(data=st.data())
    def the_broker_cancels_a_consumer(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from([one for one in self.broker.channels if one.consumer]))
        self.connection.run(channel.cancel_by_broker)

    # -- handlers

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(sorted(ENDS)), quick=st.booleans())
    def a_handler_ends(self, data: st.DataObject, how: str, quick: bool) -> None:
        self._end(data.draw(st.sampled_from(self.running)), how)
        if quick:
            self._everything_is_quick()

    # -- the publishing connection

    @precondition(lambda self: self.publisher.under_way)
    @rule(data=st.data(), well=st.booleans(), quick=st.booleans())
    def an_answer_to_the_publisher_comes_or_never_will(
        self, data: st.DataObject, well: bool, quick: bool
    ) -> None:
        self.publisher.answer(data.draw(st.sampled_from(self.publisher.under_way)), well=well)
        if quick:
            self._everything_is_quick()

    @precondition(lambda self: not self.is_over)
    @rule(
        has_leader=st.sampled_from([True, True, False]),
        has_queues=st.sampled_from([True, True, False]),
        problem=st.sampled_from([None, None, BrokerError("full"), UnexpectedError("a bug")]),
    )
    def troubles_come_and_go(self, has_leader: bool, has_queues: bool, problem: Exception | None) -> None:
        self.broker.has_no_leader = not has_leader
        self.publisher.problem = problem
        if not has_queues:  # for the copies
            self.publisher.queues.clear()

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), before=st.sampled_from(Before))
    def messages_fail_in_hard_times(self, data: st.DataObject, before: Before) -> None:
        self.data = data
        self._prepare(before)
        self._the_network_is_quick()
        self.publisher.problem = self._draw([None, BrokerError("full"), UnexpectedError("a bug")])
        for attempt in list(self.running):
            self._end(attempt, self._draw(["fails", "retries", "rejects"]))
        for _ in range(self._draw(range(WAIT_MOVES))):
            match self._draw(["answer", "time", "time", "no queues", "trouble", "no trouble"]):
                case "answer" if self.publisher.under_way:
                    self.publisher.answer(
                        self._draw(self.publisher.under_way), well=self._draw([True, True, False])
                    )
                case "time":
                    self._the_network_is_quick()
                    self._pass(self._draw([0.25, 2, 8]))
                case "no queues":
                    self.publisher.queues.clear()
                case "trouble":
                    self.publisher.problem = BrokerError("full")
                case _:
                    self.publisher.problem = None

    # -- the operator and the kubelet

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), before=st.sampled_from(Before))
    def the_operator_asks_to_retire(self, data: st.DataObject, before: Before) -> None:
        self.data = data
        self._prepare(before)
        self.retired_until = None
        self.is_asked_to_retire = True
        held = self.worker.consumer.held()
        try:
            held_in_the_end = self.retirement.begin()
        except TimeoutError:
            held_in_the_end = 1
        self.is_asked_to_retire = False
        if held:
            assert held_in_the_end == held
        if not held_in_the_end:
            self.retired_until = self.clock.now + retirement.LEASE_SECONDS
            assert not any(attempt.delivery.lease.held for attempt in self.attempts)

    @precondition(lambda self: self.retired_until is not None and not self.is_over)
    @rule()
    def the_operator_calls_it_off(self) -> None:
        self.retired_until = None
        self.retirement.end()

    @precondition(lambda self: self.old_leases)
    @rule()
    def an_old_lease_ends_although_it_was_renewed(self) -> None:
        """It had begun to when it was cancelled, and waited for the lock."""
        self.old_leases.pop().function()

    @precondition(lambda self: self.published >= 2 and not self.is_over)  # else most runs would end early
    @rule(data=st.data(), before=st.sampled_from([*Before, Before.BUSY]))
    def sigterm(self, data: st.DataObject, before: Before) -> None:
        self.data = data
        self._prepare(before)
        self.drain_deadline = self.drain_ends_by = self.clock.now + GRACE
        hand_back = self.worker.deliveries.hand_back

        def judged_hand_back() -> int:
            for attempt in self.running:
                if attempt.delivery.lease.held:
                    assert attempt.cancelled_at is not None
                    had = self.clock.now - attempt.cancelled_at
                    assert had >= DRAIN_MARGIN or self.signals, (
                        "handed back although its handler might have ended"
                    )
            self.is_handing_back = True
            return hand_back()

        self.patches.setattr(self.worker.deliveries, "hand_back", judged_hand_back)
        drain.drain(self.worker, self, GRACE)  # type: ignore[arg-type]
        self.is_over = True
        assert self.connection.is_closed
        assert self.clock.now <= self.drain_ends_by
        assert not any(attempt.delivery.lease.held for attempt in self.attempts)

    def wait(self, timeout: float) -> bool:
        """As Signals: whether another signal came."""
        if self.signals:
            return True
        self._pass(timeout)
        return False

    def interrupt(self) -> None:
        """As Signals."""

    # What must always hold -------------------------------------------------------------------------------

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        if not hasattr(self, "attempts"):
            return
        held = [message for channel in self.broker.channels for message in channel.unsettled.values()]
        assert sorted([*self.broker.ready, *held, *self.broker.acked]) == list(range(self.published))

    @invariant()
    def every_attempt_is_counted_once_and_for_what_it_was(self) -> None:
        if not hasattr(self, "attempts"):
            return
        expected = Counter(attempt.outcome for attempt in self.attempts if attempt.outcome)
        assert +self.worker.deliveries.outcomes == expected

    @invariant()
    def who_has_lost_its_message_is_told(self) -> None:
        if not hasattr(self, "attempts"):
            return
        for attempt in self.running:
            assert attempt.delivery.slot.delivery is attempt.delivery
            assert attempt.delivery.lease.held or attempt.delivery.message.cancelled.is_set()

    @invariant()
    def a_retired_worker_has_no_consumer(self) -> None:
        if not hasattr(self, "attempts"):
            return
        assert self.retirement.active == self._is_retired
        if self._is_retired:
            assert not any(channel.consumer for channel in self.broker.channels)
            assert not any(attempt.delivery.lease.held for attempt in self.running)

    @rule()
    def the_world_comes_to_rest(self) -> None:
        """Every slot that should take messages does; one that should not does not."""
        self.broker.has_no_leader = False
        self.publisher.problem = None if not self.is_over else self.publisher.problem
        for _ in range(3):  # a channel, its consumer, and for classic queues once more
            self._the_network_is_quick()
            if not self.connection.is_open and not self.is_over:
                self.connection.run(self.connection.open)
            self._pass(ANSWER_SECONDS / 2 + LONGEST_WAIT_SECONDS)
        self._the_network_is_quick()
        consumers = sum(channel.consumer is not None for channel in self.broker.channels)
        if self._is_retired or self.worker.consumer.draining:
            assert consumers == 0
        else:
            slots = self.worker.consumer.slots
            free = sum(slot.delivery is None for slot in slots)
            closed = sum(
                slot.delivery is not None and slot.delivery.message.cancelled.is_set() for slot in slots
            )
            assert free <= consumers <= len(slots) - closed

    def teardown(self) -> None:
        """After all faults have ended, every message is handled."""
        if not hasattr(self, "attempts"):
            return
        try:
            if sys.exc_info()[0] is None:
                self._finish()
        finally:
            self.patches.undo()

    def _finish(self) -> None:
        if not self.is_over:
            self.retired_until = None
            self.retirement.end()
        for _ in range(self.published + 3):
            self.the_world_comes_to_rest()
            self._all_handlers_end()
        self.every_message_is_in_one_place()
        self.every_attempt_is_counted_once_and_for_what_it_was()
        assert self.worker.consumer.busy() == 0
        if not self.worker.consumer.draining:
            assert sorted(self.broker.acked) == list(range(self.published))


WorkerMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestWorker = WorkerMachine.TestCase


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        WorkerMachine.sigterm,
        WorkerMachine.the_operator_asks_to_retire,
        WorkerMachine.messages_fail_in_hard_times,
    ],
)
@settings(max_examples=150)
@given(data=st.data(), slots=st.integers(1, 3), before=st.sampled_from([Before.BUSY, Before.SENT_TO]))
def test_worker_from_a_state_that_random_runs_rarely_reach(
    step: Callable[..., None], data: st.DataObject, slots: int, before: Before
) -> None:
    """Start from states that random runs rarely reach."""
    machine = WorkerMachine()
    try:
        machine.start(slots=slots, classic=False)
        step(machine, data=data, before=before)
        machine.every_message_is_in_one_place()
        machine.every_attempt_is_counted_once_and_for_what_it_was()
        machine.a_retired_worker_has_no_consumer()
        machine.the_world_comes_to_rest()
    finally:
        machine.teardown()
