"""Slots on a model of RabbitMQ: answers that never come, retirement, and a handler that cannot be reached."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.brokermodel import Changed, Clock, Connection, run_config
from workqueue.worker import consumer, deliveries, retirement, runtime, settlement
from workqueue.worker.handlers import http
from workqueue.worker.handlers.outcome import HandlerUnavailable
from workqueue.worker.slot import ANSWER_SECONDS, ConsumerState, Delivery, Slot

REACHED_AGAIN = "The handler can be reached again."


class Rig:
    """A worker with one slot. It is the executor: handlers run until `end()`."""

    def __init__(self, patches: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        for module in (runtime, consumer, deliveries, settlement):
            patches.setattr(module, "time", self.clock)
        condition = SimpleNamespace(Condition=lambda lock: Changed(lock, self.wait))
        patches.setattr(consumer, "threading", condition)
        self.running: list[Delivery] = []
        config = run_config(timeout_seconds=600.0, concurrency=1, grace_seconds=600.0)
        self.worker = runtime.Runtime(
            config,
            config.read_binding,
            connect=lambda _source, _name, **callbacks: Connection(self.clock, **callbacks),  # type: ignore[arg-type,return-value]
        )
        self.worker.deliveries._executor = self  # type: ignore[assignment]
        self.connection: Connection = self.worker.consumer.connection  # type: ignore[assignment]
        self.broker = self.connection.broker

    def open(self) -> None:
        self.connection.run(self.connection.open)
        self.network()

    def network(self) -> None:
        """Let all frames arrive."""
        while frames := self.broker.frames():
            self.connection.run(frames[0].popleft())

    def wait(self, seconds: float) -> None:
        self.network()
        self.clock.advance(self.clock.now + seconds)
        self.network()

    def wait_for_handler(self) -> None:
        while not self.running:
            self.wait(0.25)

    def publish(self) -> None:
        self.broker.ready.append(1)
        self.broker.deliver()
        self.network()

    def end(self, error: BaseException | None = None) -> None:
        self.worker.deliveries.handled(self.running.pop(), error)
        self.network()

    def refuse(self) -> None:
        self.end(HandlerUnavailable("connection refused"))

    def pause(self) -> None:
        with self.connection.exclusive():
            self.slot.pause(take_late=True)

    def resume(self) -> None:
        with self.connection.exclusive():
            self.slot.resume()

    @property
    def slot(self) -> Slot:
        return self.worker.consumer.slots[0]

    # As an executor

    def accepts(self, slot: int) -> bool:
        return True

    def is_blocked(self, delivery: Delivery) -> bool:
        return False

    def submit(self, delivery: Delivery) -> None:
        self.running.append(delivery)

    def cancel(self, delivery: Delivery) -> None:
        """The handler ignores it."""


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Rig:
    caplog.set_level(logging.INFO)
    rig = Rig(monkeypatch)
    rig.open()
    return rig


# Answers that never come


def test_channel_is_dropped_when_consume_is_not_answered(rig: Rig) -> None:
    rig.pause()
    rig.network()
    rig.broker.has_no_leader = True
    rig.resume()
    rig.wait(ANSWER_SECONDS - 1)
    assert rig.slot.consumer is ConsumerState.STARTING
    assert not rig.worker.consumer.queue_answers
    rig.wait(1)
    assert rig.slot.closed
    assert not rig.worker.consumer.queue_answers, "it tries again"
    rig.broker.has_no_leader = False
    rig.wait(6)
    assert rig.slot.consuming
    assert rig.worker.consumer.queue_answers


def test_lost_connection_asks_the_queue_for_nothing(rig: Rig) -> None:
    rig.pause()
    rig.network()
    rig.broker.has_no_leader = True
    rig.resume()
    rig.wait(ANSWER_SECONDS)
    assert not rig.worker.consumer.queue_answers

    rig.connection.run(rig.connection.lose)

    assert rig.worker.consumer.queue_answers


def test_timer_of_an_earlier_consume_does_not_end_a_later_one(rig: Rig) -> None:
    rig.pause()
    rig.wait(ANSWER_SECONDS - 1)
    rig.broker.has_no_leader = True
    rig.resume()
    channel = rig.slot._channel
    rig.wait(ANSWER_SECONDS - 1)
    assert rig.slot._channel is channel
    assert rig.slot.consumer is ConsumerState.STARTING
    rig.wait(1)
    assert rig.slot._channel is not channel


def cancel_without_an_answer(rig: Rig) -> None:
    rig.pause()
    rig.slot._channel.to_broker.clear()


def test_idle_slot_is_closed_when_cancel_is_not_answered(rig: Rig) -> None:
    cancel_without_an_answer(rig)
    rig.wait(ANSWER_SECONDS - 1)
    assert not rig.slot.closed
    assert not rig.worker.consumer.queue_answers
    rig.wait(1)
    assert rig.slot.closed
    assert rig.worker.consumer.queue_answers, "a paused slot asks for nothing"
    assert rig.worker.consumer.last_error == "no answer to basic.cancel"
    rig.resume()
    rig.wait(6)
    assert rig.slot.consuming


def test_message_keeps_its_channel_although_cancel_is_not_answered(rig: Rig) -> None:
    rig.publish()
    cancel_without_an_answer(rig)
    rig.wait(3 * ANSWER_SECONDS)
    assert rig.running[0].lease.held
    rig.end()
    assert rig.broker.acked == [1]
    rig.wait(ANSWER_SECONDS)
    assert rig.slot.closed


# Retirement


def test_unsettled_messages_are_counted_under_the_lock(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    held = rig.worker.consumer.held
    counted_under_lock = []

    def watched() -> int:
        counted_under_lock.append(rig.connection.lock.is_held)
        return held()

    monkeypatch.setattr(rig.worker.consumer, "held", watched)
    assert rig.worker.consumer.retire(1.0) == 0
    assert counted_under_lock == [True, True]


def fail_to_wait(*_: Any) -> bool:
    raise RuntimeError("no memory")


class TimerWithoutThread(threading.Timer):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("fails_in", ["the wait", "the lease"])
@pytest.mark.parametrize("is_retired", [False, True])
def test_worker_whose_retirement_fails_consumes_again(
    rig: Rig, fails_in: str, is_retired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = retirement.Retirement(rig.worker.consumer, lambda: b"key", "uid")
    if is_retired:
        assert asked.begin() == 0
        rig.network()
        assert rig.slot.closed
    if fails_in == "the wait":
        monkeypatch.setattr(rig.worker.consumer, "wait_until", fail_to_wait)
    else:
        monkeypatch.setattr(f"{retirement.__name__}.threading.Timer", TimerWithoutThread)

    with pytest.raises(RuntimeError):
        asked.begin()
    rig.network()

    assert not asked.active
    assert rig.slot.consuming


# A handler that cannot be reached


def test_handler_counts_as_started_only_after_a_connect_and_a_handshake() -> None:
    assert deliveries.STARTED_SECONDS > 2 * http.CONNECT_SECONDS


def test_slow_connect_does_not_count_as_reached(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """As with a server that answers no SYN."""
    rig.publish()
    for _ in range(5):
        rig.wait_for_handler()
        rig.wait(http.CONNECT_SECONDS)
        rig.refuse()
    assert rig.worker.consumer.handler_problem
    assert rig.worker.deliveries._handler_backoff._failures == 5
    assert REACHED_AGAIN not in caplog.messages


def test_handler_that_runs_on_was_reached(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.publish()
    rig.refuse()
    rig.wait_for_handler()
    rig.wait(deliveries.STARTED_SECONDS)
    assert caplog.messages.count(REACHED_AGAIN) == 1
    assert rig.worker.consumer.handler_problem is None


@pytest.mark.parametrize("is_lost_while_tried", [False, True])
def test_unavailability_ends_silently_when_its_messages_are_lost(
    rig: Rig, is_lost_while_tried: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rig.publish()
    rig.refuse()
    if is_lost_while_tried:
        rig.wait_for_handler()
    rig.connection.run(rig.connection.lose)
    if is_lost_while_tried:
        rig.refuse()
    rig.open()
    rig.wait(deliveries.STARTED_SECONDS + 1)
    assert REACHED_AGAIN not in caplog.messages
    assert rig.worker.consumer.handler_problem is None
    assert rig.running, "it takes messages again"


@pytest.mark.parametrize("is_tried", [False, True])
def test_nothing_is_reached_during_a_drain(
    rig: Rig, is_tried: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rig.publish()
    rig.refuse()
    if is_tried:
        rig.wait_for_handler()
    rig.worker.stop_taking()
    if is_tried:
        rig.refuse()
    rig.wait(deliveries.STARTED_SECONDS + 6)
    assert REACHED_AGAIN not in caplog.messages
    assert list(rig.broker.ready) == [1]
