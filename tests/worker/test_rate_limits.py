"""A limit on the handlers that start per second: real RabbitMQ, real worker processes, real tokens."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support import limits
from tests.support.rabbitmq import Depth, VirtualHost
from tests.support.rates import NAME, add_tokens, leader, starts
from tests.support.wait import eventually, until
from tests.support.worker import ASYNC, THREADS, Worker, Workers, is_empty, publish
from workqueue.contract.topology import RateLimit

RATED = ("--limit-rate-queue", NAME)


def jobs(count: int, **job: Any) -> list[dict[str, Any]]:
    return [{"id": number, **job} for number in range(count)]


def waiting(worker: Worker) -> int:
    return int(worker.status()["waitingForToken"])


@pytest.mark.parametrize("handler", [THREADS, ASYNC], ids=["in a thread", "as a coroutine"])
def test_each_start_uses_up_a_token(every_vhost: VirtualHost, workers: Workers, handler: str) -> None:
    add_tokens(every_vhost, 3)
    worker = workers.start(every_vhost.url, "--concurrency", "2", *RATED, handler=handler).wait_consuming()

    publish(every_vhost, *jobs(6))

    eventually(lambda: len(worker.events_of("end")) == 3)
    eventually(lambda: waiting(worker) == 2)
    add_tokens(every_vhost, 5)
    eventually(lambda: len(worker.events_of("end")) == 6)
    eventually(lambda: is_empty(every_vhost))
    eventually(lambda: every_vhost.depth(NAME) == Depth(2, 0))


def test_token_of_several_starts_serves_all_slots(vhost: VirtualHost, workers: Workers) -> None:
    add_tokens(vhost, 1, starts=5)
    worker = workers.start(vhost.url, "--concurrency", "3", *RATED).wait_consuming()

    publish(vhost, *jobs(7))

    eventually(lambda: len(worker.events_of("end")) == 5)
    eventually(lambda: waiting(worker) == 2)


def test_failed_attempts_use_up_tokens(vhost: VirtualHost, workers: Workers) -> None:
    add_tokens(vhost, 3)
    worker = workers.start(vhost.url, *RATED, "--max-attempts", "1").wait_consuming()

    publish(vhost, *jobs(2, do="fail"), {"id": "good"})

    eventually(lambda: worker.outcomes() == {"dead_lettered": 2, "acked": 1})
    eventually(lambda: vhost.depth(NAME) == Depth(0, 0))


def test_waiting_message_goes_back_when_its_worker_stops_and_takes_no_token(
    vhost: VirtualHost, workers: Workers
) -> None:
    add_tokens(vhost, 0)
    worker = workers.start(vhost.url, *RATED).wait_consuming()
    publish(vhost, {"id": 1})
    eventually(lambda: waiting(worker) == 1)

    assert worker.stop() == 0

    assert vhost.depth("jobs") == Depth(1, 0)
    add_tokens(vhost, 1)
    assert vhost.depth(NAME) == Depth(1, 0)


def test_message_that_waits_for_a_start_returns_its_other_token(vhost: VirtualHost, workers: Workers) -> None:
    limits.make_tokens(vhost, 1)
    add_tokens(vhost, 0)
    first = workers.start(vhost.url, *RATED, "--limit-queue", limits.NAME).wait_consuming()
    publish(vhost, {"id": 1})
    eventually(lambda: vhost.depth(limits.NAME) == Depth(0, 1))
    second = workers.start(vhost.url, *RATED, "--limit-queue", limits.NAME).wait_consuming()
    publish(vhost, {"id": 2})
    eventually(lambda: waiting(second) == 1)

    first.stop()
    add_tokens(vhost, 2)

    eventually(lambda: set(second.events_of("end")) == {1, 2})
    eventually(lambda: vhost.depth(limits.NAME) == Depth(1, 0))


def test_worker_waits_for_a_missing_queue_of_starts_and_says_so(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, *RATED).wait_consuming()
    publish(vhost, {"id": 1})
    eventually(lambda: "404" in (worker.status()["lastError"] or ""))

    add_tokens(vhost, 1)

    eventually(lambda: worker.events_of("end") == [1])
    assert worker.status()["lastError"] is None


async def test_handlers_start_at_the_rate_also_beside_a_new_leader(
    vhost: VirtualHost, workers: Workers
) -> None:
    limit = RateLimit(NAME, 50, 5)
    several = [workers.start(vhost.url, "--concurrency", "4", *RATED) for _ in range(2)]
    for worker in several:
        worker.wait_consuming()
    publish(vhost, *jobs(100))

    async with leader(vhost, limit):
        await until(lambda: len(several[0].events_of("start")) >= 30)
    before = time.time()
    async with leader(vhost, limit):
        await until(lambda: len(several[0].events_of("start")) == 100)

    times = starts(several[0].events)
    # Each of the eight slots may write down its start late, and the queue may have saved the burst.
    most_at_once = 8 + limit.burst + 1
    assert times[-1] - times[0] >= (100 - 2 * most_at_once) / limit.per_second
    after = [at for at in times if at >= before]
    assert after[-1] - before >= (len(after) - most_at_once) / limit.per_second
