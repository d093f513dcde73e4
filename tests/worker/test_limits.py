"""A limit on the handlers that run at the same time: real RabbitMQ, real worker processes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.support.limits import NAME, make_tokens, most_at_once, tokens_lost
from tests.support.rabbitmq import Depth, VirtualHost, running
from tests.support.wait import eventually
from tests.support.worker import ASYNC, THREADS, Worker, Workers, is_empty, publish
from workqueue.contract.topology import QueueSettings, work_queue

LIMITED = ("--limit-queue", NAME)


def sleeping(count: int, seconds: float, do: str = "sleep") -> list[dict[str, Any]]:
    return [{"id": number, "do": do, "seconds": seconds} for number in range(count)]


def ended(worker: Worker) -> set[Any]:
    return set(worker.events_of("end"))


def tokens_are_back(vhost: VirtualHost, count: int) -> bool:
    return vhost.depth(NAME) == Depth(count, 0)


@pytest.mark.parametrize("handler", [THREADS, ASYNC], ids=["in a thread", "as a coroutine"])
def test_no_more_handlers_run_than_there_are_tokens(
    every_vhost: VirtualHost, workers: Workers, handler: str
) -> None:
    make_tokens(every_vhost, 2)
    several = [
        workers.start(every_vhost.url, "--concurrency", "2", *LIMITED, handler=handler) for _ in range(3)
    ]
    for worker in several:
        worker.wait_consuming()

    publish(every_vhost, *sleeping(12, 0.1))

    eventually(lambda: ended(several[0]) == set(range(12)))
    assert most_at_once(several[0].events) == 2
    eventually(lambda: is_empty(every_vhost))
    eventually(lambda: tokens_are_back(every_vhost, 2))


def test_token_of_a_killed_worker_goes_to_another_one(vhost: VirtualHost, workers: Workers) -> None:
    make_tokens(vhost, 1)
    first = workers.start(vhost.url, *LIMITED).wait_consuming()
    publish(vhost, {"id": "first", "do": "linger", "seconds": 60})
    eventually(lambda: first.events_of("start") == ["first"])
    second = workers.start(vhost.url, *LIMITED).wait_consuming()
    publish(vhost, {"id": "second"})
    eventually(lambda: second.status()["waitingForToken"] == 1)

    first.kill()

    eventually(lambda: ended(second) == {"first", "second"})
    eventually(lambda: tokens_are_back(vhost, 1))


def test_waiting_message_goes_back_when_its_worker_stops(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, *LIMITED).wait_consuming()
    publish(vhost, {"id": 1})
    eventually(lambda: worker.status()["waitingForToken"] == 1)
    assert worker.status()["busySeconds"] is None

    assert worker.stop() == 0

    assert vhost.depth("jobs") == Depth(1, 0)
    assert worker.events == []


def test_handler_past_its_timeout_keeps_its_token(vhost: VirtualHost, workers: Workers) -> None:
    make_tokens(vhost, 1)
    worker = workers.start(
        vhost.url, *LIMITED, "--concurrency", "2", "--timeout", "1", "--max-attempts", "1"
    ).wait_consuming()

    publish(vhost, {"id": "slow", "do": "ignore", "seconds": 2}, {"id": "next"})

    eventually(lambda: ended(worker) == {"slow", "next"})
    assert most_at_once(worker.events) == 1
    eventually(lambda: worker.outcomes() == {"timed_out": 1, "acked": 1})


def test_failing_handlers_return_their_tokens(vhost: VirtualHost, workers: Workers) -> None:
    make_tokens(vhost, 1)
    worker = workers.start(vhost.url, *LIMITED, "--max-attempts", "1").wait_consuming()

    publish(vhost, *({"id": number, "do": "fail"} for number in range(3)), {"id": "good"})

    eventually(lambda: worker.outcomes() == {"dead_lettered": 3, "acked": 1})
    eventually(lambda: tokens_are_back(vhost, 1))


def test_worker_waits_for_a_missing_limit_and_says_so(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, *LIMITED).wait_consuming()
    publish(vhost, {"id": 1})
    eventually(lambda: "404" in (worker.status()["lastError"] or ""))
    assert worker.count_log("The queue of the limit's tokens does not exist; trying again.") == 1

    make_tokens(vhost, 1)

    eventually(lambda: ended(worker) == {1})
    assert worker.status()["lastError"] is None


def test_workers_take_turns_while_the_limit_is_reached(vhost: VirtualHost, workers: Workers) -> None:
    make_tokens(vhost, 1)
    several = [workers.start(vhost.url, *LIMITED).wait_consuming() for _ in range(2)]

    publish(vhost, *sleeping(30, 0.05))

    eventually(lambda: len(ended(several[0])) == 30)
    by_worker = [event["pid"] for event in several[0].events if event["event"] == "start"]
    turns = [len(list(group)) for _, group in itertools.groupby(by_worker)]
    # A turn lasts 0.2 s, so that it has about four messages. A busy machine makes it shorter. The first and the last
    # one are longer: the other worker does not wait yet, or no more.
    assert max(turns[1:-1]) < 10


def test_handler_keeps_its_token_beyond_the_consumer_timeout(vhost: VirtualHost, workers: Workers) -> None:
    """The work queue allows more time, as `queue.consumerTimeoutSeconds` does."""
    make_tokens(vhost, 1)
    with vhost.connect() as connection:
        arguments = work_queue(QueueSettings("jobs", consumer_timeout_seconds=60)).arguments
        connection.channel().queue_declare("jobs", durable=True, arguments=dict(arguments))
    with vhost.broker.consumer_timeout(2):
        worker = workers.start(vhost.url, *LIMITED, "--concurrency", "2", declare=False).wait_consuming()

        publish(vhost, {"id": 1, "do": "sleep", "seconds": 6}, {"id": 2})

        eventually(lambda: ended(worker) == {1, 2}, 60)
    assert tokens_lost(worker) == 0
    assert most_at_once(worker.events) == 1


@pytest.mark.slow
def test_handlers_that_lost_their_tokens_get_them_first(workers: Workers) -> None:
    with running(management=False) as server, server.new_vhost() as vhost:
        make_tokens(vhost, 2)
        several = [
            workers.start(vhost.url, *LIMITED, "--concurrency", "2").wait_consuming() for _ in range(3)
        ]
        publish(vhost, *sleeping(6, 12, do="ignore"))
        eventually(lambda: len(several[0].events_of("start")) == 2)
        server.save_queues()

        server.restart(kill=True)

        eventually(lambda: ended(several[0]) == set(range(6)), 180)
        assert most_at_once(several[0].events) == 2
        assert sum(map(tokens_lost, several)) == 2
