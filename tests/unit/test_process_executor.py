"""The processes of a handler, with a real I/O loop and without RabbitMQ."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pika import BasicProperties

from tests.support.wait import eventually
from workqueue.amqp.io_loop import Loop
from workqueue.message import Message, Reject
from workqueue.worker.executors import frames, processes
from workqueue.worker.executors.launcher import Launcher
from workqueue.worker.executors.processes import ProcessExecutor
from workqueue.worker.handlers.outcome import HandlerRaised, RetryPolicy
from workqueue.worker.lease import Lease
from workqueue.worker.slot import Delivery

PATIENCE = 60.0


class Bench:
    """An executor with one slot, and what it reports."""

    draining = False

    def __init__(self, startup_timeout_seconds: float) -> None:
        self.errors: list[Exception] = []
        self.ended: list[tuple[Delivery, BaseException | None]] = []
        self.interruptions: list[Delivery] = []
        self.loads = 0
        self.refusals: list[str] = []
        config: Any = SimpleNamespace(
            retry=RetryPolicy(),
            queue="jobs",
            log_format=None,
            log_level="WARNING",
            startup_timeout_seconds=startup_timeout_seconds,
            recycle_messages=None,
            recycle_memory=None,
            connection_environment=dict,
        )
        self.loop = Loop(self.errors.append)
        self.launcher = Launcher(config, "handler_under_test:handle")
        self.executor = ProcessExecutor(self.loop, self.launcher, self, [0])
        self.executor.start()

    def handled(self, delivery: Delivery, error: BaseException | None) -> None:
        self.ended.append((delivery, error))

    def interrupted(self, delivery: Delivery) -> None:
        self.interruptions.append(delivery)

    def slots_ready(self, _: Sequence[int]) -> None:
        self.loads += 1

    def slots_lost(self, _: Sequence[int]) -> None: ...

    def cannot_load(self, reason: str) -> None:
        self.refusals.append(reason)

    @property
    def is_ready(self) -> bool:
        return self.executor.accepts(0)

    def submit(self, body: bytes) -> None:
        """A message arrives, as soon as a process is ready."""
        eventually(lambda: self.is_ready, PATIENCE)
        slot: Any = SimpleNamespace(number=0)
        delivery = Delivery(slot, Lease(1, None, 1), None, BasicProperties(), body)
        delivery.message = Message(body, properties=delivery.properties, deadline=time.monotonic() + PATIENCE)
        self.loop.add_callback(lambda: self.executor.submit(delivery))

    def stop(self) -> None:
        assert self.executor.stop(PATIENCE)
        self.launcher.close()
        self.loop.close()
        assert self.errors == []


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    """Starts an executor of a handler with this source."""
    made: list[Bench] = []

    def make(source: str, startup_timeout_seconds: float = PATIENCE) -> Bench:
        (tmp_path / "handler_under_test.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        made.append(Bench(startup_timeout_seconds))
        return made[-1]

    yield make
    for bench in made:
        bench.stop()


TOO_SMALL = """
import pathlib, resource
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**24
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
def handle(message):
    pass
"""


def test_body_that_ends_its_process_on_the_way_costs_an_attempt(start: Callable[..., Bench]) -> None:
    bench = start(TOO_SMALL)

    bench.submit(b"x" * 2**25)
    eventually(lambda: bool(bench.ended or bench.interruptions), PATIENCE)

    # Not as an attempt, the message would be sent again and again, for ever.
    assert bench.interruptions == []
    [(_, error)] = bench.ended
    assert "handler's process has ended" in str(error)


LATE = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1.5)
def handle(message):
    pass
"""


def test_process_that_loads_too_late_gets_no_message(
    start: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = start(LATE, 1.0)

    eventually(lambda: bool(bench.refusals or bench.loads), PATIENCE)

    assert bench.loads == 0
    assert "1 s" in bench.refusals[0]


def test_processes_that_end_leave_nothing_behind(start: Callable[..., Bench]) -> None:
    bench = start("import os\ndef handle(message):\n    os._exit(3)\n", 3600.0)
    bench.submit(b"first")
    eventually(lambda: len(bench.ended) == 1 and bench.is_ready, PATIENCE)
    before = resources()

    for number in range(2, 8):
        bench.submit(b"next")
        eventually(lambda number=number: len(bench.ended) == number and bench.is_ready, PATIENCE)  # type: ignore[misc]

    # The loop closes the pipes of the last one some time after its end.
    eventually(lambda: resources() == before, PATIENCE)


def resources() -> tuple[int, int]:
    """Descriptors of this process, and the processes of handlers that it still knows."""
    gc.collect()
    # Not isinstance, which asks lazy objects of other libraries for their class.
    known = [one for one in gc.get_objects() if type(one) is processes._HandlerProcess]
    return len(list(Path("/proc/self/fd").iterdir())), len(known)


def test_last_answer_of_an_ended_process_counts_although_it_is_long(start: Callable[..., Bench]) -> None:
    """The worker reads 16 KiB at a time while a process lives."""
    bench = start("def handle(message):\n    pass\n")
    eventually(lambda: bench.is_ready, PATIENCE)
    executor = bench.executor
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    supervised = SimpleNamespace(terminate=lambda: None)
    child: Any = SimpleNamespace(answers=reader, close=lambda: None, supervised=supervised)
    process = processes._HandlerProcess(executor._seats[0], child, "9-9")
    slot: Any = SimpleNamespace(number=0)
    delivery = Delivery(slot, Lease(1, None, 1), None, BasicProperties(), b"")
    process.running[1] = delivery
    os.write(writer, frames.pack_outcome(1, Reject("\N{GRINNING FACE}" * 1_900)))
    os.close(writer)

    with bench.loop:
        executor._ended(process, -9)
    os.close(reader)

    [(_, error)] = bench.ended
    assert isinstance(error, HandlerRaised)
    assert error.failure.reason == "Rejected"
