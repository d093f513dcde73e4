"""A limit on the handlers that start per second, while RabbitMQ restarts. The operator is in test_tokens.py."""

from __future__ import annotations

import pytest

from tests.faults.work import Work
from tests.support.rates import NAME, burst_of, leader_in_a_thread, starts
from workqueue.contract.topology import RateLimit

LIMIT = RateLimit(NAME, 20, 4)
SLOTS = 4
RATED = ("--limit-rate-queue", NAME, "--concurrency", "2")
MOST = 2 * LIMIT.burst + 1 + SLOTS
"""The queue may have saved the burst, and the operator may have been held up. Each slot may write its start late."""

RESTARTS = [
    pytest.param("broker restarted", False, marks=pytest.mark.nightly),
    pytest.param("broker killed (-9) and started", True, marks=pytest.mark.slow),
]


def burst(work: Work) -> float:
    return burst_of(starts(work.workers[0].events), LIMIT.per_second)


@pytest.mark.parametrize(("fault", "kill"), RESTARTS)
def test_rate_holds_through_broker_restart(work: Work, fault: str, kill: bool) -> None:
    work.declare()
    work.broker.save_queues()
    work.measures = {"starts in a burst": lambda: round(burst(work), 1)}
    with leader_in_a_thread(work.vhost, LIMIT):
        work.start(2, *RATED)
        with work.through(f"rate limit: {fault}", within=90):
            work.broker.restart(kill=kill)

    assert burst(work) <= MOST
