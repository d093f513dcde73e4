"""A limit on the handlers that run at the same time, while workers, RabbitMQ and the network between them fail.

20 workers share 5 tokens, which are made as the operator makes them. The operator is in tests/faults/test_tokens.py.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import Any

import pytest

from tests.faults.work import Work
from tests.support.limits import NAME, make_tokens, most_at_once, seconds_above, tokens_lost
from tests.support.rabbitmq import BrokerError, Depth
from tests.support.tcpproxy import tcp_proxy
from tests.support.wait import eventually

LIMIT = 5
WORKERS = 20
LIMITED = ("--limit-queue", NAME, "--concurrency", "1")
START_SECONDS = 120.0
"""For 20 processes on a busy machine."""

CANCELLED_SECONDS = 1.0
"""A cancelled handler returns within this time."""

HEARTBEAT_SECONDS = 10
RECLAIM_SECONDS = 15
"""After a lost connection no handler starts for this time."""


class Limited:
    """Workers that share a limit."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._numbers = itertools.count(1)
        work.measures = {
            "handlers at the same time": self.most,
            f"seconds above {LIMIT}": lambda: round(self.seconds_above, 2),
            "tokens lost": lambda: self.lost,
        }

    def start(
        self,
        count: int,
        *arguments: str,
        port: int | None = None,
        url: str | None = None,
        handlers: int = 1,
    ) -> None:
        """Start workers with so many slots each. The other arguments are those of `Work.start`."""
        words = (*LIMITED, "--concurrency", str(handlers), *arguments)
        for worker in self.work.start(count, *words, port=port, url=url, wait=False):
            eventually(lambda worker=worker: worker.status()["consuming"], START_SECONDS)

    def keep_busy(self, count: int, **job: Any) -> None:
        """Publish messages whose handlers take their time, until the limit is reached."""
        jobs = [{"id": f"busy {next(self._numbers)}", **job} for _ in range(count)]
        self.work.publish(*jobs)
        ids = {job["id"] for job in jobs}
        eventually(lambda: len(ids & set(self.work.workers[0].events_of("start"))) >= min(count, LIMIT), 60)

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.work.workers[0].events

    def most(self) -> int:
        return most_at_once(self.events, self.work.killed)

    @property
    def seconds_above(self) -> float:
        return seconds_above(LIMIT, self.events, self.work.killed)

    @property
    def lost(self) -> int:
        running = [worker for worker in self.work.workers if worker.process.poll() is None]
        return sum(map(tokens_lost, running))

    def await_tokens(self) -> None:
        """Wait until all tokens are back: no more, and no less."""
        eventually(self._has_tokens, 60, "all tokens are back")

    def _has_tokens(self) -> bool:
        with suppress(BrokerError):  # the operator makes the queue again
            return self.work.vhost.depth(NAME) == Depth(LIMIT, 0)
        return False


@pytest.fixture
def limited(work: Work) -> Limited:
    """The queue and its tokens."""
    work.declare()
    make_tokens(work.vhost, LIMIT)
    return Limited(work)


SIZES = [
    pytest.param(5, 4, id="5-workers-of-4-slots"),
    pytest.param(WORKERS, 1, id="20-workers", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("count", "slots"), SIZES)
def test_limit_holds_while_workers_are_killed(limited: Limited, count: int, slots: int) -> None:
    work = limited.work
    limited.start(count, handlers=slots)
    with work.through("concurrency limit: worker killed (-9)", within=60):
        limited.keep_busy(20, do="sleep", seconds=0.3)
        for _ in range(3):
            victim = work.workers[0]
            eventually(lambda victim=victim: victim.status()["busy"] > 0)
            work.kill(victim)
            work.replace_dead(*LIMITED, "--concurrency", str(slots))

    assert limited.most() == LIMIT
    limited.await_tokens()


RESTARTS = [("broker restarted", False), ("broker killed (-9) and started", True)]


@pytest.mark.nightly
@pytest.mark.parametrize(("fault", "kill"), RESTARTS)
def test_limit_holds_through_broker_restart(limited: Limited, fault: str, kill: bool) -> None:
    work = limited.work
    work.broker.save_queues()
    limited.start(WORKERS)
    with work.through(f"concurrency limit: {fault}", within=90):
        limited.keep_busy(40, do="sleep", seconds=0.5)
        work.broker.restart(kill=kill)

    if kill:
        assert limited.most() == LIMIT
    else:
        # RabbitMQ closes one connection after the other. Handlers that are being cancelled run beside others.
        assert limited.most() <= LIMIT + limited.lost
        assert limited.seconds_above < CANCELLED_SECONDS
    limited.await_tokens()


@pytest.mark.nightly
def test_limit_holds_for_handlers_that_survive_a_killed_broker(limited: Limited) -> None:
    """They ignore their cancellation, and take the first tokens of the new broker."""
    work = limited.work
    work.broker.save_queues()
    limited.start(WORKERS)
    with work.through("concurrency limit: broker killed (-9) under handlers that run on", within=120):
        limited.keep_busy(LIMIT, do="ignore", seconds=RECLAIM_SECONDS + 10)
        work.broker.restart(kill=True)

    assert limited.most() == LIMIT
    assert limited.lost == LIMIT
    limited.await_tokens()


@pytest.mark.nightly
def test_partitioned_workers_exceed_the_limit_no_longer_than_heartbeats(limited: Limited) -> None:
    """RabbitMQ gives the tokens of workers that it no longer hears to others, whose handlers start beside theirs."""
    work = limited.work
    words = ("--heartbeat", str(HEARTBEAT_SECONDS))
    with tcp_proxy(work.broker.port) as network:
        limited.start(WORKERS // 2, *words, port=network.port)
        partitioned = list(work.workers)
        limited.keep_busy(LIMIT, do="sleep", seconds=40)
        limited.start(WORKERS // 2, *words)
        work.publish(*({"id": number, "do": "sleep", "seconds": 0.3} for number in range(40)))
        with network.black_hole():
            eventually(lambda: not any(worker.status()["connected"] for worker in partitioned), 60)
        fault = "concurrency limit: black hole until heartbeats are missed"
        work.balance(fault, time.monotonic(), within=120)

    assert limited.lost == LIMIT
    assert limited.most() <= LIMIT + limited.lost
    assert limited.seconds_above <= 2 * HEARTBEAT_SECONDS
    limited.await_tokens()
