"""The tokens of limits in the hands of a real operator: its leader is killed, and tokens are deleted under workers.

The workers are processes of the test, since a pod takes longer to start than these tests last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.report import Report
from tests.faults.site import NOWHERE, Site, second_operator
from tests.faults.test_limits import LIMIT, WORKERS, Limited
from tests.faults.test_rate_limits import LIMIT as RATE
from tests.faults.test_rate_limits import MOST, RATED, burst
from tests.faults.work import QUEUE, Work
from tests.support import rates
from tests.support.limits import NAME
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import Workers

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(400)]

GOES_ON_SECONDS = 120.0
"""Until every message has ended. An operator notices missing tokens of an idle queue within 30 s."""


@pytest.fixture
def work(place: Site, workers: Workers, report: Report) -> Iterator[Work]:
    """Workers beside an operator that leads. Each test makes the WorkQueue with `limit`."""
    made = Work(VirtualHost(place.broker, place.lab.vhost), workers, report)
    workqueue = place.lab.workqueue(QUEUE)
    place.operator.start(leader_election=True).wait_serving()
    yield made
    workers.close()
    place.operator.kill()
    place.operator.start(leader_election=False)  # also after another one has led
    workqueue.delete()


def limit(place: Site, **limits: Any) -> None:
    """Apply the WorkQueue, and wait until it is declared. None of its pods starts."""
    workqueue = place.lab.workqueue(
        QUEUE,
        limits=limits,
        queue={"deletionPolicy": "Delete"},
        worker={"nodeSelector": NOWHERE},
        scaling={"maxReplicas": 1},
    ).apply()
    workqueue.wait_condition("QueueDeclared", "True")


@pytest.fixture
def limited(place: Site, work: Work) -> Limited:
    """20 workers that share 5 tokens."""
    limit(place, concurrency=LIMIT)
    made = Limited(work)
    made.await_tokens()
    made.start(WORKERS)
    return made


def test_limit_holds_while_the_leader_changes(place: Site, limited: Limited, tmp_path: Path) -> None:
    work = limited.work
    with second_operator(place, tmp_path, leader_election=True) as (second, _):
        second.start().wait_serving()
        with work.through("concurrency limit: operator's leader killed (-9)", within=GOES_ON_SECONDS):
            limited.keep_busy(20, do="sleep", seconds=0.3)
            place.operator.leave()
            eventually(second.leads, 60)
            limited.keep_busy(20, do="sleep", seconds=0.3)
        limited.await_tokens()

    assert limited.most() == LIMIT


def test_limit_holds_while_its_queue_is_deleted(limited: Limited) -> None:
    """Handlers run on, and take the first of the new tokens."""
    work = limited.work
    with work.through("concurrency limit: queue of the tokens deleted", within=GOES_ON_SECONDS):
        limited.keep_busy(LIMIT, do="sleep", seconds=40)
        work.delete(NAME)
        eventually(lambda: work.vhost.exists(NAME), 60)

    assert limited.most() == LIMIT
    assert limited.lost == LIMIT
    limited.await_tokens()


def test_purged_tokens_are_made_again(limited: Limited) -> None:
    """The operator sees it when tokens wait in the queue."""
    work = limited.work
    with work.through("concurrency limit: two tokens purged", within=GOES_ON_SECONDS):
        with work.quiet():
            for _ in range(2):
                take(work, NAME)
            limited.await_tokens()
        limited.keep_busy(20, do="sleep", seconds=0.3)

    assert limited.most() == LIMIT
    limited.await_tokens()


def take(work: Work, queue: str) -> None:
    """Take a message, as a person may with a tool."""
    with work.vhost.connect() as connection:
        assert connection.channel().basic_get(queue, auto_ack=True)[0] is not None


@pytest.fixture
def rated(place: Site, work: Work) -> Work:
    """Two workers that share a rate."""
    limit(place, ratePerSecond=RATE.per_second, burst=RATE.burst)
    work.measures = {"starts in a burst": lambda: round(burst(work), 1)}
    work.start(2, *RATED)
    return work


def test_rate_holds_while_the_leader_changes(place: Site, rated: Work, tmp_path: Path) -> None:
    with second_operator(place, tmp_path, leader_election=True) as (second, _):
        second.start().wait_serving()
        with rated.through("rate limit: operator's leader killed (-9)", within=GOES_ON_SECONDS):
            place.operator.leave()
            eventually(second.leads, 60)

    assert burst(rated) <= MOST


def test_rate_holds_while_its_queue_is_deleted(rated: Work) -> None:
    with rated.through("rate limit: queue of the tokens deleted", within=GOES_ON_SECONDS):
        rated.delete(rates.NAME)
        eventually(lambda: rated.vhost.exists(rates.NAME), 60)

    assert burst(rated) <= MOST
