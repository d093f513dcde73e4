"""Faults of a worker: it is killed, stopped, stuck, crashes on a message, loses its lease."""

from __future__ import annotations

import signal

import pytest

from tests.faults.work import Work
from tests.support.tcpproxy import tcp_proxy
from tests.support.wait import eventually
from tests.support.worker import ASYNC, THREADS

BOTH = pytest.mark.parametrize(
    "handler",
    [THREADS, pytest.param(ASYNC, marks=pytest.mark.nightly)],
    ids=["in a thread", "as a coroutine"],
)
TIMES = 3


@BOTH
def test_work_survives_workers_killed_within_a_message(work: Work, handler: str) -> None:
    work.declare()
    work.start(2, handler=handler)
    with work.through("worker killed (-9) in the middle of a message", within=60):
        for _ in range(TIMES):
            victim = work.workers[0]
            eventually(lambda victim=victim: victim.status()["busy"] > 0)
            victim.kill()
            work.replace_dead(handler=handler)


@BOTH
def test_stopped_workers_finish_messages_in_handlers(work: Work, handler: str) -> None:
    """They finish messages in handlers, and RabbitMQ requeues deliveries that no handler got."""
    work.declare()
    work.start(2, handler=handler)
    with work.through("worker stopped (SIGTERM) while it works", within=60, duplicates=False):
        for _ in range(TIMES):
            victim = work.workers[0]
            eventually(lambda victim=victim: victim.status()["busy"] > 0)
            victim.signal(signal.SIGTERM)
            assert victim.wait() == 0
            work.replace_dead(handler=handler)


@BOTH
def test_hanging_handlers_are_cancelled_and_given_up(work: Work, handler: str) -> None:
    """They are cancelled when their time is up, and given up after the last attempt."""
    work.declare()
    work.start(2, "--timeout", "3", "--max-attempts", "2", handler=handler)
    with work.through("handler that hangs", within=60, duplicates=False):
        work.publish(*({"id": f"hangs {n}", "do": "sleep", "seconds": 60} for n in range(4)))
        eventually(lambda: work.outcomes("timed_out") >= 8)
    assert {f"hangs {n}" for n in range(4)} <= set(work.ledger.dead)
    assert work.lost_leases() == 0


@pytest.mark.nightly
def test_result_of_uncancellable_handler_does_not_count(work: Work) -> None:
    """Another worker takes the copy while it still runs: its end is no end of the message."""
    work.declare()
    work.start(2, "--timeout", "1")
    with work.through("handler that ignores its cancellation", within=60):
        work.publish(*({"id": f"deaf {n}", "do": "ignore once", "seconds": 4} for n in range(2)))
        work.ledger.causes["its time was up and it ran on"] |= {"deaf 0", "deaf 1"}
        eventually(lambda: work.outcomes("timed_out") == 2)
        eventually(lambda: [work.workers[0].events_of("end").count(f"deaf {n}") for n in range(2)] == [2, 2])
    assert set(work.ledger.duplicates) == {"deaf 0", "deaf 1"}


def test_messages_that_kill_their_workers_are_dead_lettered(work: Work) -> None:
    """The delivery limit makes them dead letters; the other messages of the killed workers are handled."""
    work.declare(limit=5)
    work.start(2)
    with work.through("message that kills its worker", within=60):
        work.publish({"id": "poison", "do": "die"})
        eventually(lambda: work.replace_dead() and work.is_dead("poison"), 90)
    assert work.ledger.done["poison"] == 0


@BOTH
def test_work_survives_killed_channels(work: Work, handler: str) -> None:
    work.declare()
    work.start(2, handler=handler)
    with work.through("channel killed", within=60):
        for _ in range(TIMES):
            before = work.lost_leases() + sum(work.reconnects)
            work.broker.kill_channel(work.vhost.name)
            eventually(lambda before=before: work.lost_leases() + sum(work.reconnects) > before)
            eventually(lambda: work.consuming == len(work.workers))


@pytest.mark.slow
def test_late_result_after_lost_lease_does_not_count(work: Work) -> None:
    """The first one's result comes too late and does not count, whatever it is."""
    work.declare()
    with tcp_proxy(work.broker.port) as network:
        [first] = work.start(1, port=network.port)
        with work.through("two workers on one message after a lost lease", within=60):
            work.publish({"id": "twice", "do": "ignore", "seconds": 3})
            eventually(lambda: "twice" in first.events_of("start"))
            [second] = work.start(1)
            with network.refusing():
                eventually(lambda: first.events_of("start").count("twice") == 2)
                eventually(lambda: first.events_of("end").count("twice") == 1)
    pids = {event["pid"] for event in first.events if event["id"] == "twice"}
    assert pids == {first.process.pid, second.process.pid}
    assert work.ledger.duplicates["twice"] == 1
    assert first.outcomes()["lost"] >= 1
