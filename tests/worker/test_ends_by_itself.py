"""Workers that end by themselves: `--until-empty` and `--max-messages`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import Workers, publish, take_all
from workqueue.contract.topology import Queue, QueueSettings, plan

ENDS_SECONDS = 60.0


@pytest.fixture
def jobs(every_vhost: VirtualHost) -> Callable[..., None]:
    """Declares the queue and publishes jobs before any worker runs."""

    def declare(queue: Queue) -> None:
        with every_vhost.connect() as connection:
            connection.channel().queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))

    def publish_all(*found: dict[str, object]) -> None:
        for queue in plan(QueueSettings("jobs")).queues:
            declare(queue)
        publish(every_vhost, *found)

    return publish_all


def test_worker_ends_when_its_queue_and_retries_are_done(
    every_vhost: VirtualHost, workers: Workers, jobs: Callable[..., None]
) -> None:
    jobs(
        {"id": 1},
        {"id": 2, "do": "fail once"},
        {"id": 3, "do": "sleep", "seconds": 3},
        {"id": 4, "do": "reject"},
    )

    worker = workers.start(every_vhost.url, "--until-empty", "--delays", "2", "--concurrency", "2")

    assert worker.wait(ENDS_SECONDS) == 0
    assert sorted(worker.events_of("end")) == [1, 2, 3]
    assert [json.loads(body)["id"] for _, body in take_all(every_vhost, "jobs.dead")] == [4]


def test_worker_ends_immediately_on_an_empty_queue(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--until-empty")

    assert worker.wait(ENDS_SECONDS) == 0
    assert worker.count_log("The queue is empty.") == 1


def test_worker_does_not_wait_for_a_missing_queue(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--until-empty", declare=False)

    assert worker.wait(ENDS_SECONDS) == 1
    assert "The queue 'jobs' does not exist, and --until-empty does not wait for it." in worker.log
    assert "--until-empty" in worker.termination_log.read_text()


def test_signal_ends_a_worker_before_its_queue_is_empty(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--until-empty", "--delays", "60")
    worker.wait_consuming()
    publish(vhost, {"id": 1, "do": "fail"})
    eventually(lambda: worker.outcomes() == {"retried": 1})

    assert worker.stop() == 0
    assert worker.count_log("The queue is empty.") == 0


@pytest.mark.parametrize("isolation", ["Thread", "Process"])
def test_worker_ends_after_so_many_settled_messages(
    every_vhost: VirtualHost, workers: Workers, jobs: Callable[..., None], isolation: str
) -> None:
    jobs({"id": 0, "do": "reject"}, {"id": 1, "do": "fail"}, *({"id": number} for number in range(2, 12)))

    limits = ("--max-messages", "7", "--concurrency", "3", "--delays", "3600")
    worker = workers.start(every_vhost.url, *limits, "--isolation", isolation)

    assert worker.wait(ENDS_SECONDS) == 0
    assert len(worker.events_of("end")) == 5
    eventually(lambda: every_vhost.depth("jobs") == (5, 0))
    assert every_vhost.depth("jobs.dead").ready == 1
    assert every_vhost.depth("jobs.retry.step.2048s").ready == 1


def test_worker_has_no_more_slots_than_messages(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--max-messages", "1", "--concurrency", "5").wait_consuming()

    assert worker.status()["slots"] == 1
    publish(vhost, {"id": 1})
    assert worker.wait(ENDS_SECONDS) == 0


def test_requeued_message_does_not_count(vhost: VirtualHost, workers: Workers) -> None:
    """A worker that loses its connection handles the message again."""
    worker = workers.start(vhost.url, "--max-messages", "1").wait_consuming()
    publish(vhost, {"id": 1, "do": "sleep", "seconds": 60, "again": 0}, {"id": 2})
    eventually(lambda: worker.events_of("start") == [1])

    vhost.broker.close_connections()

    assert worker.wait(ENDS_SECONDS) == 0
    assert worker.events_of("start") == [1, 1]
