"""Messages that are cancelled by their ids: real RabbitMQ, real worker processes."""

from __future__ import annotations

import asyncio
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Done, workqueue
from tests.support.httpserver import server
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import ASYNC, IN_THREADS, THREADS, Worker, Workers, publish, take_all
from workqueue import AsyncPublisher, Publisher
from workqueue.amqp.errors import BrokerError
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract import topology
from workqueue.contract.binding import from_url
from workqueue.contract.cancels import Cancel

PROCESSES = ("--isolation", "Process")


def declare(vhost: VirtualHost) -> None:
    with PublishPipeline(lambda: from_url(vhost.url), "test") as pipeline:
        pipeline.declare_plan(topology.plan(topology.QueueSettings("jobs"))).result()


def cancel(vhost: VirtualHost, *ids: str, discard: bool = False) -> None:
    with Publisher(vhost.url) as publisher:
        publisher.cancel(*ids, queue="jobs", discard=discard)


def dead(vhost: VirtualHost) -> list[tuple[str, str, int]]:
    """Id, reason and attempts of the dead letters."""
    return [
        (
            properties.message_id,
            properties.headers["x-workqueue-failure-reason"],
            properties.headers["x-workqueue-attempt"],
        )
        for properties, _ in take_all(vhost, "jobs.dead")
    ]


def job(name: str, do: str = "ok", **more: Any) -> dict[str, Any]:
    return {"id": name, "do": do, **more}


# Waiting messages ---------------------------------------------------------------------------------------


def test_worker_that_starts_later_drops_only_the_cancelled_message(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    declare(every_vhost)
    for name in ("before", "cancelled", "after"):
        publish(every_vhost, job(name), message_id=name)
    cancel(every_vhost, "cancelled", "unknown")

    worker = workers.start(every_vhost.url)

    eventually(lambda: worker.outcomes() == {"acked": 2, "cancelled": 1})
    assert worker.events_of("start") == ["before", "after"]
    assert dead(every_vhost) == [("cancelled", "Cancelled", 0)]
    assert worker.count_log("Message cancelled.") == 1


def test_message_is_discarded_as_asked(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    cancel(vhost, "unwanted", discard=True)

    publish(vhost, job("unwanted"), message_id="unwanted")

    eventually(lambda: worker.outcomes() == {"cancelled": 1})
    assert (worker.events, vhost.depth("jobs.dead").ready) == ([], 0)


def test_delayed_message_is_dropped_when_it_arrives(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    with Publisher(vhost.url) as publisher:
        message_id = publisher.publish(job("late"), queue="jobs", delay=0.5)
        publisher.cancel(message_id, queue="jobs")

    eventually(lambda: worker.outcomes() == {"cancelled": 1})
    assert (worker.events, dead(vhost)) == ([], [(message_id, "Cancelled", 0)])


def test_message_that_waits_for_its_retry_is_dropped(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, job("failed", "fail"), message_id="failed")
    eventually(lambda: worker.outcomes() == {"retried": 1})

    cancel(vhost, "failed")

    eventually(lambda: worker.outcomes() == {"retried": 1, "cancelled": 1})
    assert dead(vhost) == [("failed", "Cancelled", 1)]


def test_message_without_a_process_or_token_is_dropped_at_once(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--limit-queue", "no-tokens").wait_consuming()
    publish(vhost, job("waits"), message_id="waits")
    eventually(lambda: worker.status()["waitingForToken"] == 1)

    cancel(vhost, "waits")

    eventually(lambda: worker.outcomes() == {"cancelled": 1})
    assert (worker.events, worker.status()["busy"]) == ([], 0)


def test_cancels_survive_lost_connections(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    cancel(vhost, "first")
    vhost.broker.close_connections()
    cancel(vhost, "second")
    eventually(lambda: worker.status()["consuming"])

    for name in ("first", "second", "other"):
        publish(vhost, job(name), message_id=name)

    eventually(lambda: worker.outcomes() == {"cancelled": 2, "acked": 1})
    assert worker.events_of("end") == ["other"]


@pytest.mark.slow
def test_cancels_survive_a_restart_of_rabbitmq(every_vhost: VirtualHost, workers: Workers) -> None:
    declare(every_vhost)
    publish(every_vhost, job("cancelled"), message_id="cancelled")
    cancel(every_vhost, "cancelled")
    every_vhost.broker.restart()

    worker = workers.start(every_vhost.url)

    eventually(lambda: worker.outcomes() == {"cancelled": 1}, seconds=60)


# Running handlers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "arguments"),
    [(THREADS, IN_THREADS), (ASYNC, IN_THREADS), (THREADS, PROCESSES), (ASYNC, PROCESSES)],
    ids=["in a thread", "as a coroutine", "in a process", "as a coroutine in a process"],
)
def test_running_handler_is_told_and_others_go_on(
    vhost: VirtualHost, workers: Workers, handler: str, arguments: tuple[str, ...]
) -> None:
    worker = workers.start(vhost.url, "--concurrency", "2", *arguments, handler=handler).wait_consuming()
    publish(vhost, job("other", "sleep", seconds=1), message_id="other")
    publish(vhost, job("cancelled", "sleep", seconds=60), message_id="cancelled")
    eventually(lambda: set(worker.events_of("start")) == {"cancelled", "other"})

    cancel(vhost, "cancelled")

    eventually(lambda: worker.events_of("cancelled") == ["cancelled"])
    eventually(lambda: worker.outcomes() == {"cancelled": 1, "acked": 1})
    assert worker.events_of("end") == ["other"]
    assert dead(vhost) == [("cancelled", "Cancelled", 1)]


def test_process_of_a_handler_that_does_not_stop_is_ended(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, *PROCESSES, "--timeout", "300").wait_consuming()
    publish(vhost, job("deaf", "ignore", seconds=60), message_id="deaf")
    eventually(lambda: worker.events_of("start") == ["deaf"])

    cancel(vhost, "deaf")
    publish(vhost, job("next"))

    eventually(lambda: worker.outcomes() == {"cancelled": 1, "acked": 1})
    assert worker.count_log("A cancelled handler does not stop; ending its process.") == 1
    assert dead(vhost) == [("deaf", "Cancelled", 1)]


def test_thread_that_does_not_stop_keeps_its_slot_only(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    worker = workers.start(vhost.url, "--concurrency", "2", *IN_THREADS).wait_consuming()
    publish(vhost, job("deaf", "ignore", sign=str(sign)), message_id="deaf")
    eventually(lambda: worker.events_of("start") == ["deaf"])

    cancel(vhost, "deaf")
    publish(vhost, job("next"))

    eventually(lambda: worker.events_of("end") == ["next"])
    eventually(lambda: worker.outcomes() == {"cancelled": 1, "acked": 1})
    sign.touch()
    eventually(lambda: worker.events_of("end") == ["next", "deaf"])
    eventually(lambda: worker.status()["busy"] == 0)


def test_command_gets_sigterm(vhost: VirtualHost, workers: Workers, tmp_path: Path) -> None:
    began, told = tmp_path / "began", tmp_path / "told"
    script = f"trap 'touch {told}; exit 0' TERM; touch {began}; while :; do sleep 0.05; done"
    worker = workers.start(vhost.url, "--exec", "sh", "-c", script, handler=None).wait_consuming()
    publish(vhost, b"body", message_id="cancelled")
    eventually(began.exists)

    cancel(vhost, "cancelled")

    eventually(told.exists)
    eventually(lambda: worker.outcomes() == {"cancelled": 1})
    assert dead(vhost) == [("cancelled", "Cancelled", 1)]


def test_request_of_an_http_handler_is_closed(vhost: VirtualHost, workers: Workers) -> None:
    ends: list[bytes] = []

    def answer(request: BaseHTTPRequestHandler, _number: int) -> None:
        ends.append(request.rfile.read())  # until the worker closes the connection

    with server(answer) as requests:
        worker = workers.start(vhost.url, "--http", requests.url, handler=None).wait_consuming()
        publish(vhost, b"body", message_id="cancelled")
        eventually(lambda: requests.seen)

        cancel(vhost, "cancelled")

        eventually(lambda: ends == [b""])
        eventually(lambda: worker.outcomes() == {"cancelled": 1})


# What is not cancelled ----------------------------------------------------------------------------------


def test_replay_of_a_cancelled_message_runs(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    ahead = round(time.time() * 1000) + 5_000_000  # by the clock of another machine
    declare_and_write(vhost, Cancel("replayed", ahead))
    publish(vhost, job("replayed"), message_id="replayed")
    eventually(lambda: worker.outcomes() == {"cancelled": 1})

    done = workqueue("dead", "replay", "--queue", "jobs", "--reason", "Cancelled", url=vhost.url)

    assert done.code == 0, done.err
    eventually(lambda: worker.events_of("end") == ["replayed"])
    eventually(lambda: worker.outcomes() == {"cancelled": 1, "acked": 1})


def test_replay_runs_that_was_cancelled_as_a_dead_letter(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, job("rejected", "reject"), message_id="rejected")
    eventually(lambda: worker.outcomes() == {"dead_lettered": 1})
    cancel(vhost, "rejected")

    workqueue("dead", "replay", "--queue", "jobs", url=vhost.url)

    eventually(lambda: worker.outcomes() == {"dead_lettered": 2})


def test_message_published_later_with_the_same_id_runs(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    declare_and_write(vhost, Cancel("cart-7", round(time.time() * 1000) - 2_000))

    with Publisher(vhost.url) as publisher:
        publisher.publish(job("cart-7"), queue="jobs", message_id="cart-7")

    eventually(lambda: worker.events_of("end") == ["cart-7"])


def test_old_cancel_and_foreign_records_concern_no_message(vhost: VirtualHost, workers: Workers) -> None:
    declare(vhost)
    month = topology.CANCEL_SECONDS * 1000
    declare_and_write(vhost, b"not json", b"[]", Cancel("old", round(time.time() * 1000) - month - 1000))
    publish(vhost, job("old"), message_id="old")

    worker = workers.start(vhost.url)

    eventually(lambda: worker.events_of("end") == ["old"])


def declare_and_write(vhost: VirtualHost, *records: Cancel | bytes) -> None:
    with PublishPipeline(lambda: from_url(vhost.url), "test") as pipeline:
        pipeline.declare_plan(topology.cancels_plan("jobs")).result()
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for record in records:
            body = record.encode() if isinstance(record, Cancel) else record
            channel.basic_publish("jobs.cancels", "", body, mandatory=True)


# What exists in RabbitMQ --------------------------------------------------------------------------------


def test_nothing_but_an_exchange_exists_before_the_first_cancel(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    assert not vhost.exists("jobs.cancels")

    assert worker.stop() == 0

    assert vhost.exists("jobs")
    assert vhost.exists("jobs.dead")
    assert vhost.broker.evaluate(f'length(rabbit_amqqueue:list(<<"{vhost.name}">>))') == "2"


def test_worker_without_permission_handles_messages_and_says_so(vhost: VirtualHost, workers: Workers) -> None:
    declare(vhost)
    ours = r"jobs(\.(dead|retry\..+))?"
    vhost.broker.add_user(
        vhost.name,
        "secret",
        vhost.name,
        configure=f"^{ours}$",
        write=rf"^(amq\.default|{ours})$",
        read=f"^{ours}$",
    )
    url = vhost.broker.url_of(vhost.name, vhost.name, "secret")

    worker = workers.start(url, declare=False).wait_consuming()

    publish(vhost, job("one"))
    eventually(lambda: worker.events_of("end") == ["one"])
    [entry] = [
        entry for entry in worker.log_entries if entry["message"].startswith("Cancelled messages cannot")
    ]
    assert "ACCESS_REFUSED" in entry["reason"]
    vhost.broker.delete_user(vhost.name)


def test_foreign_queue_with_the_name_keeps_its_messages(every_vhost: VirtualHost, workers: Workers) -> None:
    with every_vhost.connect() as connection:
        connection.channel().queue_declare("jobs.cancels", durable=True)
    publish(every_vhost, b"not ours", queue="jobs.cancels")

    worker = workers.start(every_vhost.url)
    publish_when_declared(every_vhost, worker)

    eventually(lambda: worker.events_of("end") == ["one"])
    eventually(lambda: every_vhost.depth("jobs.cancels") == (1, 0))


def publish_when_declared(vhost: VirtualHost, worker: Worker) -> None:
    worker.wait_consuming()
    publish(vhost, job("one"))


# The command and the library ----------------------------------------------------------------------------


def run_cancel(vhost: VirtualHost, *arguments: str) -> Done:
    return workqueue("cancel", "--queue", "jobs", *arguments, url=vhost.url)


def test_command_says_what_will_happen(vhost: VirtualHost) -> None:
    declare(vhost)

    done = run_cancel(vhost, "one", "two")

    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "2 message ids of jobs cancelled. A running handler is cancelled now. A message that waits, or arrives within"
        " 31 days, is moved to the dead-letter queue when a worker takes it.\n"
    )
    assert run_cancel(vhost, "one", "--discard", "--json").json == {
        "queue": "jobs",
        "cancelled": ["one"],
        "discard": True,
        "days": 31,
    }


def test_cancel_on_a_missing_queue_fails(vhost: VirtualHost) -> None:
    done = run_cancel(vhost, "one")

    assert (done.code, done.out) == (1, "")
    assert done.err == "workqueue cancel: The queue jobs does not exist. Create it.\n"
    assert not vhost.exists("jobs.cancels")


MISTAKES = {
    "no-id": ([], "Give the id of at least one message."),
    "empty-id": ([""], "A message id has 1 to 255 bytes. This one is ''."),
}


@pytest.mark.parametrize("title", MISTAKES)
def test_id_that_no_message_can_have_is_refused(title: str) -> None:
    ids, sentence = MISTAKES[title]

    with Publisher("amqp://nowhere") as publisher, pytest.raises(ValueError, match=sentence):
        publisher.cancel(*ids, queue="jobs")


def test_broker_without_streams_is_named(vhost: VirtualHost) -> None:
    """As if RabbitMQ refused the type of the queue."""
    declare(vhost)
    with vhost.connect() as connection:
        connection.channel().queue_declare("jobs.cancels", durable=True)

    with Publisher(vhost.url) as publisher, pytest.raises(BrokerError, match="RabbitMQ needs streams"):
        publisher.cancel("one", queue="jobs")


def test_worker_that_ends_reports_no_problem(vhost: VirtualHost, workers: Workers) -> None:
    declare(vhost)
    cancel(vhost, "one")
    worker = workers.start(vhost.url).wait_consuming()

    assert worker.stop() == 0

    assert [entry for entry in worker.log_entries if entry["level"] != "info"] == []


def test_async_publisher_cancels(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()

    async def cancel_and_publish() -> None:
        async with AsyncPublisher(vhost.url) as publisher:
            await publisher.cancel("one", queue="jobs")
            await publisher.publish(job("two"), queue="jobs", message_id="two")

    asyncio.run(cancel_and_publish())
    publish(vhost, job("one"), message_id="one")

    eventually(lambda: worker.outcomes() == {"cancelled": 1, "acked": 1})
    assert worker.events_of("end") == ["two"]
