"""The executors: threads and the asyncio loop that run handlers and the I/O loop."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.wait import eventually
from workqueue.amqp.io_loop import Loop
from workqueue.message import Message
from workqueue.worker.executors import tasks
from workqueue.worker.executors.tasks import AsyncExecutor
from workqueue.worker.executors.threads import ThreadExecutor
from workqueue.worker.lease import Lease
from workqueue.worker.slot import Delivery

SLOTS = 3
PATIENCE = 20.0


class Bench:
    """A runner with a real I/O loop, without a connection."""

    def __init__(self, make: Callable[[Loop, Callable[..., Any]], ThreadExecutor | AsyncExecutor]) -> None:
        self.errors: list[Exception] = []
        self.ended: list[tuple[Delivery, BaseException | None]] = []
        self.is_stopped = False
        self.loop = Loop(self.errors.append)
        self.runner = make(self.loop, self._handled)
        self.runner.start()

    def _handled(self, delivery: Delivery, error: BaseException | None) -> None:
        delivery.returned = True
        self.ended.append((delivery, error))

    def submit(self, *bodies: bytes) -> list[Delivery]:
        """Messages arrive, all in one turn of the I/O loop."""
        deliveries = [self._work(body) for body in bodies]

        def arrive() -> None:
            for delivery in deliveries:
                delivery.started = time.monotonic()
                self.runner.submit(delivery)

        self.loop.add_callback(arrive)
        return deliveries

    def _work(self, body: bytes) -> Delivery:
        delivery = Delivery(None, Lease(1, None, 1), None, None, body)  # type: ignore[arg-type]
        delivery.message = Message(body)
        return delivery

    def stop(self) -> None:
        """Everything ends."""
        if not self.is_stopped:
            self.is_stopped = True
            assert self.runner.stop(PATIENCE)
            self.loop.close()
            assert self.errors == []

    def turns(self) -> bool:
        """Whether a thread runs the I/O loop."""
        turned = threading.Event()
        self.loop.add_callback(turned.set)
        return turned.wait(PATIENCE)


class Gate:
    """Handlers stand at it until it opens."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside: list[bytes] = []

    def handle(self, message: Message) -> None:
        self.inside.append(message.body)
        if message.body == b"exit":
            raise SystemExit(9)
        assert self.opened.wait(PATIENCE)

    async def handle_async(self, message: Message) -> None:
        self.inside.append(message.body)
        if message.body == b"exit":
            raise RuntimeError
        if message.body == b"block":
            self.opened.wait(PATIENCE)
            return
        while not self.opened.is_set():  # noqa: ASYNC110 - a thread opens it
            await asyncio.sleep(0.01)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture
def crew(gate: Gate) -> Iterator[Bench]:
    bench = Bench(lambda loop, handled: ThreadExecutor(loop, gate.handle, handled, SLOTS))
    yield bench
    gate.opened.set()
    bench.stop()


@pytest.fixture
def loop_of_tasks(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(tasks, "KEEPER_SECONDS", 0.1)
    bench = Bench(lambda loop, handled: AsyncExecutor(loop, gate.handle_async, handled, pytest.fail))
    yield bench
    gate.opened.set()
    bench.stop()


@pytest.fixture(params=["crew", "loop_of_tasks"])
def bench(request: pytest.FixtureRequest) -> Bench:
    made: Bench = request.getfixturevalue(request.param)
    return made


def test_messages_of_one_turn_are_handled_in_parallel_while_the_io_loop_runs(
    bench: Bench, gate: Gate
) -> None:
    bench.submit(*(b"%d" % number for number in range(SLOTS)))
    eventually(lambda: sorted(gate.inside) == [b"0", b"1", b"2"])
    assert bench.turns()
    assert bench.ended == []
    gate.opened.set()
    eventually(lambda: len(bench.ended) == SLOTS)
    assert {error for _, error in bench.ended} == {None}


def test_each_message_is_handled_once(bench: Bench, gate: Gate) -> None:
    gate.opened.set()
    for number in range(30):
        [delivery] = bench.submit(b"%d" % number)
        eventually(lambda delivery=delivery: delivery.returned)
    assert gate.inside == [b"%d" % number for number in range(30)]
    assert len(bench.ended) == 30


def test_exception_is_reported_and_the_next_message_handled(bench: Bench, gate: Gate) -> None:
    gate.opened.set()
    for _ in range(SLOTS + 2):
        bench.submit(b"exit")
    eventually(lambda: len(bench.ended) == SLOTS + 2)
    assert all(isinstance(error, (SystemExit, RuntimeError)) for _, error in bench.ended)
    bench.submit(b"next")
    eventually(lambda: bench.ended[-1][1] is None)
    assert bench.turns()


def test_message_of_a_quick_handler_is_settled_while_slow_ones_of_the_same_turn_run(
    bench: Bench, gate: Gate
) -> None:
    bench.submit(b"exit", *(b"%d" % number for number in range(SLOTS - 1)))

    eventually(lambda: len(gate.inside) == SLOTS)
    eventually(lambda: [delivery.body for delivery, _ in bench.ended] == [b"exit"])
    assert bench.turns()


def test_data_written_under_a_nested_lock_is_sent_once_at_the_end_of_the_outer_one() -> None:
    errors: list[Exception] = []
    loop = Loop(errors.append)
    ours, theirs = socket.socketpair()
    sent: list[int] = []
    loop.add_handler(ours.fileno(), lambda _fd, events: sent.append(events), loop.READ)
    loop.send_at_once = True

    with loop:
        for _ in range(2):
            with loop:
                loop.update_handler(ours.fileno(), loop.READ | loop.WRITE)
        assert sent == []
    assert sent == [loop.WRITE]

    loop.close()
    ours.close()
    theirs.close()
    assert errors == []


def test_only_one_thread_runs_the_io_loop_at_a_time(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[str] = []
    most: list[int] = []
    turn = Loop.run_once

    def watched(loop: Loop) -> None:
        inside.append(threading.current_thread().name)
        most.append(len(inside))
        turn(loop, 0.02)
        inside.pop()

    monkeypatch.setattr(Loop, "run_once", watched)
    bench = Bench(lambda loop, handled: ThreadExecutor(loop, gate.handle, handled, SLOTS))
    eventually(lambda: len(most) > 20)
    bench.stop()
    assert set(most) == {1}


def test_stop_leaves_a_handler_that_never_returns_behind(gate: Gate) -> None:
    bench = Bench(lambda loop, handled: ThreadExecutor(loop, gate.handle, handled, SLOTS))
    bench.submit(b"0")
    eventually(lambda: gate.inside)
    assert not bench.runner.stop(0.05)
    gate.opened.set()
    bench.stop()


def test_cancelled_task_is_reported_once_even_if_it_never_started(loop_of_tasks: Bench, gate: Gate) -> None:
    [running] = loop_of_tasks.submit(b"0")
    eventually(lambda: gate.inside == [b"0"])
    loop_of_tasks.runner.cancel(running)
    eventually(lambda: running.returned)
    [late] = deliveries = [loop_of_tasks._work(b"late")]

    def arrive_and_be_cancelled() -> None:
        loop_of_tasks.runner.submit(late)
        late.task.cancel()  # as if both came in one round
        loop_of_tasks.runner.cancel(late)

    loop_of_tasks.loop.add_callback(arrive_and_be_cancelled)
    eventually(lambda: late.returned)
    assert loop_of_tasks.turns()
    assert [delivery for delivery, _ in loop_of_tasks.ended] == [running, *deliveries]
    assert all(isinstance(error, asyncio.CancelledError) for _, error in loop_of_tasks.ended)
    assert gate.inside == [b"0"]


def test_io_loop_runs_while_a_coroutine_blocks(loop_of_tasks: Bench, gate: Gate) -> None:
    loop_of_tasks.submit(b"block")
    eventually(lambda: gate.inside == [b"block"])
    for _ in range(5):
        assert loop_of_tasks.turns()
    loop_of_tasks.submit(b"next")
    assert loop_of_tasks.turns()
    assert gate.inside == [b"block"]
    gate.opened.set()
    eventually(lambda: [delivery.body for delivery, _ in loop_of_tasks.ended] == [b"block", b"next"])


def test_stop_cancels_remaining_tasks(loop_of_tasks: Bench, gate: Gate) -> None:
    [delivery] = loop_of_tasks.submit(b"0")
    eventually(lambda: gate.inside)
    loop_of_tasks.stop()
    assert [(ended, type(error)) for ended, error in loop_of_tasks.ended] == [
        (delivery, asyncio.CancelledError)
    ]
