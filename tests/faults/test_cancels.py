"""Messages are cancelled by their ids while workers, RabbitMQ and the connections between them fail."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.faults.work import QUEUE, Work
from tests.support.tcpproxy import tcp_proxy
from tests.support.wait import eventually
from tests.support.worker import publish
from workqueue import Publisher
from workqueue.contract.topology import cancels_name

CANCELLED = [f"cancelled {number}" for number in range(5)]
DISCARDED = [f"discarded {number}" for number in range(3)]
OTHERS = [f"other {number}" for number in range(5)]


def put(work: Work, *names: str, **job: Any) -> None:
    """Publish a message with each of these ids."""
    for name in names:
        publish(work.vhost, {"id": name, **job}, message_id=name)
        work.ledger.sent(name)


def cancel(work: Work) -> None:
    with Publisher(work.vhost.url) as publisher:
        publisher.cancel(*CANCELLED, queue=QUEUE)
        publisher.cancel(*DISCARDED, queue=QUEUE, discard=True)
    work.ledger.discarded |= set(DISCARDED)


def check(work: Work) -> None:
    """Each cancelled message has ended as asked, and no other one."""
    cancelled = {name for name, reason in work.reasons.items() if reason == "Cancelled"}
    assert cancelled == set(CANCELLED)
    assert not set(DISCARDED) & set(work.ledger.ends)
    assert not set(CANCELLED) & set(work.ledger.done)
    assert set(OTHERS) <= set(work.ledger.done)


@pytest.fixture
def work(work: Work) -> Work:
    """The work queue."""
    work.declare()
    work.measures = {"cancelled": lambda: sum(reason == "Cancelled" for reason in work.reasons.values())}
    return work


RESTARTS = [
    pytest.param("broker restarted", False, marks=pytest.mark.nightly),
    pytest.param("broker killed (-9) and started", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fault", "kill"), RESTARTS)
def test_cancels_survive_broker_restart(work: Work, fault: str, kill: bool) -> None:
    put(work, *CANCELLED, *OTHERS, *DISCARDED)
    cancel(work)
    work.broker.save_queues()  # the stream, too

    work.broker.restart(kill=kill)

    over = time.monotonic()
    work.start(2)
    work.balance(f"cancelled messages: {fault}", over, within=60, duplicates=False)
    check(work)


def test_cancels_reach_the_next_worker_of_a_killed_one(work: Work) -> None:
    """It has been told, and its successor reads the stream."""
    [worker] = work.start(1, "--concurrency", "1")
    put(work, "busy", do="linger", seconds=60)
    eventually(lambda: worker.events_of("start") == ["busy"])
    put(work, *CANCELLED, *OTHERS, *DISCARDED)
    cancel(work)

    work.kill(worker)

    over = time.monotonic()
    work.replace_dead()
    work.balance("cancelled messages: worker killed (-9)", over, within=60)
    check(work)


@pytest.mark.nightly
def test_cancels_survive_a_deleted_stream(work: Work) -> None:
    """Workers that run remember what the stream had, and the next cancel declares it again."""
    work.start(2)
    with work.through("cancelled messages: stream deleted", within=60, duplicates=False):
        with Publisher(work.vhost.url) as publisher:
            publisher.cancel(*CANCELLED[:2], queue=QUEUE)
            work.delete(cancels_name(QUEUE))
            put(work, *CANCELLED[:2], *OTHERS)
            eventually(lambda: work.outcomes("cancelled") == 2)
            publisher.cancel(*CANCELLED[2:], queue=QUEUE)
            publisher.cancel(*DISCARDED, queue=QUEUE, discard=True)
        work.ledger.discarded |= set(DISCARDED)
        for worker in work.workers:
            assert worker.stop() == 0
        work.replace_dead()
        put(work, *CANCELLED[2:], *DISCARDED)
    check(work)


@pytest.mark.slow
def test_cancels_reach_workers_that_had_lost_their_connection(work: Work) -> None:
    """Also that of a message whose handler ran then: RabbitMQ delivers it again."""
    with tcp_proxy(work.broker.port) as network:
        work.start(2, port=network.port)
        with work.through("cancelled messages: connection lost", within=60):
            running, *waiting = CANCELLED
            put(work, running, do="sleep", seconds=60)
            eventually(lambda: running in work.workers[0].events_of("start"))
            with network.refusing():
                eventually(lambda: work.connected == 0)
                put(work, *waiting, *OTHERS, *DISCARDED)
                cancel(work)
        assert running in work.workers[0].events_of("cancelled")
    check(work)
