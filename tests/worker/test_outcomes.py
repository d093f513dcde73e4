"""The outcome of a message for each way its handler ends: real RabbitMQ, real worker processes."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import ASYNC, IN_THREADS, THREADS, Workers, is_empty, publish, take_all
from workqueue import Publisher
from workqueue.amqp.declaration import SAFE_AFTER_SECONDS
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract.binding import from_url
from workqueue.contract.topology import delay_route

NEVER = "/no/such/sign"

BOTH = pytest.mark.parametrize("handler", [THREADS, ASYNC], ids=["in a thread", "as a coroutine"])


@BOTH
def test_messages_are_handled_retried_and_dead_lettered_on_every_version(
    every_vhost: VirtualHost, workers: Workers, handler: str
) -> None:
    worker = workers.start(every_vhost.url, "--max-attempts", "2", handler=handler).wait_consuming()
    publish(
        every_vhost,
        {"id": "good"},
        {"id": "at the second attempt", "do": "fail once"},
        {"id": "never", "do": "fail", "why": "no such file"},
        {"id": "rejected", "do": "reject", "why": "no image"},
    )
    eventually(lambda: worker.outcomes() == {"acked": 2, "retried": 2, "dead_lettered": 2})
    assert sorted(worker.events_of("end")) == ["at the second attempt", "good"]
    eventually(lambda: is_empty(every_vhost))
    eventually(lambda: is_empty(every_vhost, "jobs.retry.step.1s"))
    reasons = {
        properties.headers["x-workqueue-failure-message"]: (
            properties.headers["x-workqueue-failure-reason"],
            properties.headers["x-workqueue-attempt"],
        )
        for properties, _ in take_all(every_vhost, "jobs.dead")
    }
    assert reasons == {"ValueError: no such file": ("Exception", 2), "no image": ("Rejected", 1)}
    assert worker.stop() == 0


def test_coroutine_function_behind_a_synchronous_decorator_runs(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, handler="tests.support.jobs:handle_timed").wait_consuming()

    publish(vhost, {"id": 1}, {"id": 2, "do": "fail once"})

    eventually(lambda: worker.outcomes() == {"acked": 2, "retried": 1})
    assert sorted(worker.events_of("end")) == [1, 2]


def test_classic_work_queue_has_the_same_outcomes(every_vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(every_vhost.url, "--queue-type", "Classic", "--max-attempts", "2").wait_consuming()
    publish(every_vhost, {"id": 1, "do": "fail once"}, {"id": 2, "do": "fail"})
    eventually(lambda: worker.outcomes() == {"acked": 1, "retried": 2, "dead_lettered": 1})
    assert every_vhost.depth("jobs.dead").ready == 1


@pytest.mark.parametrize("first", ["publisher", "worker"])
def test_publisher_declaring_without_arguments_works_beside_classic_worker(
    every_vhost: VirtualHost, workers: Workers, first: str
) -> None:
    def publish_as_tutorials_do(job: dict[str, Any]) -> None:
        with every_vhost.connect() as connection:
            channel = connection.channel()
            channel.queue_declare("hello", durable=True)
            channel.basic_publish("", "hello", json.dumps(job).encode())

    if first == "publisher":
        publish_as_tutorials_do({"id": 1})
    worker = workers.start(every_vhost.url, "--queue-type", "Classic", queue="hello").wait_consuming()
    if first == "worker":
        publish_as_tutorials_do({"id": 1})
    publish_as_tutorials_do({"id": 2})

    eventually(lambda: worker.events_of("end") == [1, 2])


def test_worker_that_cannot_declare_its_queue_offers_both_remedies(
    vhost: VirtualHost, workers: Workers
) -> None:
    with vhost.connect() as connection:
        connection.channel().queue_declare("hello", durable=True)

    worker = workers.start(vhost.url, queue="hello")

    eventually(lambda: worker.count_log("The queue cannot be declared; trying again."))
    [entry] = [entry for entry in worker.log_entries if entry["message"].startswith("The queue cannot be")]
    assert "Classic without limits and TTL" in entry["reason"]
    assert "passively" in entry["reason"]


def test_retry_keeps_published_properties_and_records_the_failure(
    vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(vhost.url, "--max-attempts", "2").wait_consuming()
    publish(
        vhost,
        {"id": 1, "do": "fail", "why": "disk full"},
        headers={"tenant": "blue", "CC": ["elsewhere"]},
        priority=4,
        correlation_id="c-1",
        message_id="m-1",
        content_type="application/json",
        expiration="600000",
        timestamp=1_700_000_000,
        reply_to="answers",
        type="thumbnail",
        app_id="web",
        user_id="guest",
    )
    eventually(lambda: worker.outcomes() == {"retried": 1, "dead_lettered": 1})
    first, second = worker.events
    assert (first["attempt"], second["attempt"]) == (1, 2)
    for event in (first, second):
        assert event["headers"]["tenant"] == "blue"
        assert event["headers"]["CC"] == "['elsewhere']"
        assert (event["expiration"], event["priority"], event["correlation_id"]) == ("600000", 4, "c-1")
    assert second["headers"]["x-workqueue-failure-reason"] == "Exception"
    assert second["headers"]["x-workqueue-worker"] == "pod-0"
    assert second["at"] - first["at"] > 0.85
    [(properties, body)] = take_all(vhost, "jobs.dead")
    headers = properties.headers
    assert body == b'{"id": 1, "do": "fail", "why": "disk full"}'
    assert (properties.message_id, properties.correlation_id, properties.priority) == ("m-1", "c-1", 4)
    assert (properties.reply_to, properties.type, properties.app_id) == ("answers", "thumbnail", "web")
    assert properties.timestamp == 1_700_000_000
    assert properties.expiration is None, "it would empty the dead-letter queue"
    assert properties.user_id is None, "RabbitMQ refuses the name of another user"
    assert headers["x-workqueue-original-expiration"] == "600000"
    assert headers["x-workqueue-original-cc"] == ["elsewhere"]
    assert headers["x-workqueue-original-user-id"] == "guest"
    assert "CC" not in headers
    assert headers["x-workqueue-attempt"] == 2
    assert headers["x-workqueue-failure-message"] == "ValueError: disk full"
    assert "_misbehave" in headers["x-workqueue-failure-traceback"]
    assert headers["x-workqueue-failed-at"].endswith("Z")
    assert "x-death" not in headers


def test_message_expiring_before_next_attempt_is_dead_lettered_as_expired(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(every_vhost.url, "--delays", "30").wait_consuming()

    publish(every_vhost, {"id": 1, "do": "fail", "why": "disk full"}, expiration="20000")
    publish(every_vhost, {"id": 2, "do": "fail"}, expiration="600000")

    eventually(lambda: worker.outcomes() == {"dead_lettered": 1, "retried": 1})
    [(properties, body)] = take_all(every_vhost, "jobs.dead")
    assert json.loads(body)["id"] == 1
    assert properties.headers["x-workqueue-failure-reason"] == "Expired"
    assert "disk full" in properties.headers["x-workqueue-failure-message"]
    assert properties.headers["x-workqueue-original-expiration"] == "20000"
    assert properties.headers["x-workqueue-attempt"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "attempts"),
    [({"do": "fail"}, 1), ({"do": "retry", "sign": NEVER}, 0)],
    ids=["counted", "uncounted"],
)
def test_message_expiring_while_it_awaits_retry_is_not_handled_again(
    every_vhost: VirtualHost, workers: Workers, job: dict[str, Any], attempts: int
) -> None:
    first = workers.start(every_vhost.url, "--delays", "1", "--max-messages", "1").wait_consuming()
    publish(every_vhost, {"id": 1, **job}, expiration="8000")
    assert first.wait(60) == 0
    failed_at = first.events[0]["at"]
    eventually(lambda: every_vhost.depth("jobs").ready == 1 and time.time() > failed_at + 8)

    second = workers.start(every_vhost.url).wait_consuming()

    eventually(lambda: second.outcomes() == {"dead_lettered": 1})
    assert second.events_of("start") == [1], "handled once, by the first worker"
    [(properties, _)] = take_all(every_vhost, "jobs.dead")
    assert properties.headers["x-workqueue-failure-reason"] == "Expired"
    assert properties.headers["x-workqueue-attempt"] == attempts


def test_message_with_zero_ttl_is_handled_if_delivered_immediately(
    vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(vhost.url).wait_consuming()

    publish(vhost, {"id": 1}, expiration="0", timestamp=int(time.time()))

    eventually(lambda: worker.outcomes() == {"acked": 1})


@pytest.mark.slow
def test_newer_retry_with_priority_does_not_block_older_ones(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    """Only the head of a delay queue expires, and in a common one a priority would make a copy the head."""
    worker = workers.start(every_vhost.url, "--delays", "7", "--concurrency", "8").wait_consuming()
    publish(every_vhost, {"id": "makes the delay queue", "do": "fail once"})
    eventually(lambda: worker.events_of("end") == ["makes the delay queue"])

    publish(every_vhost, *({"id": number, "do": "fail once"} for number in range(7)))
    eventually(lambda: worker.outcomes()["retried"] == 8)
    time.sleep(4)  # so that the delay of the next copy ends later
    publish(every_vhost, {"id": "prioritised", "do": "fail once"}, priority=7)

    eventually(lambda: len(worker.events_of("end")) == 9, 60)
    assert sorted(worker.events_of("end")[1:-1]) == list(range(7))
    second = worker.events[-1]
    assert (second["id"], second["attempt"], second["priority"]) == ("prioritised", 2, 7)


def test_message_that_kills_its_worker_is_dead_lettered_after_configured_attempts(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    """A limit of 1 lets a message come back once: two attempts, whatever the broker's version."""
    settings = (*IN_THREADS, "--delivery-limit", "1")
    worker = workers.start(every_vhost.url, *settings).wait_consuming()

    publish(every_vhost, {"id": "poison", "do": "die"})
    for _ in range(2):
        assert worker.wait() == 70
        worker = workers.start(every_vhost.url, *settings)

    eventually(lambda: worker.outcomes() == {"dead_lettered": 1})
    assert worker.events_of("start") == ["poison", "poison"]
    [(properties, body)] = take_all(every_vhost, "jobs.dead")
    assert json.loads(body)["id"] == "poison"
    assert properties.headers["x-workqueue-failure-reason"] == "DeliveryLimit"
    assert "the delivery limit is 1" in properties.headers["x-workqueue-failure-message"]
    assert worker.stop() == 0


def test_ring_does_not_count_towards_delivery_limit(every_vhost: VirtualHost, workers: Workers) -> None:
    settings = {
        "WORKQUEUE_DELIVERY_LIMIT": "1",
        "WORKQUEUE_WAKE_DELIVERIES": "1",
        "WORKQUEUE_ISOLATION": "Thread",
    }
    workers.start(every_vhost.url, environment=settings).wait_consuming().stop()
    publish(every_vhost, {"id": "poison", "do": "die"})
    with every_vhost.connect() as doorbell:
        channel = doorbell.channel()
        method, _, _ = channel.basic_get("jobs")
        channel.basic_nack(method.delivery_tag, requeue=True)

    for _ in range(2):
        assert workers.start(every_vhost.url, environment=settings).wait() == 70
    worker = workers.start(every_vhost.url, environment=settings).wait_consuming()

    eventually(lambda: worker.outcomes() == {"dead_lettered": 1})
    assert worker.events_of("start") == ["poison", "poison"]


def test_undecodable_body_is_dead_lettered_immediately(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, b"not json \xff")
    eventually(lambda: worker.outcomes() == {"dead_lettered": 1})
    [(properties, body)] = take_all(vhost, "jobs.dead")
    assert body == b"not json \xff"
    assert properties.headers["x-workqueue-failure-reason"] == "Undecodable"
    assert properties.headers["x-workqueue-attempt"] == 1


def declare_queue(vhost: VirtualHost, name: str) -> None:
    with vhost.connect() as connection:
        connection.channel().queue_declare(name, durable=True)


def test_dead_letters_go_to_an_existing_queue(every_vhost: VirtualHost, workers: Workers) -> None:
    declare_queue(every_vhost, "failed")
    worker = workers.start(every_vhost.url, "--dead-letter-queue", "failed").wait_consuming()

    publish(every_vhost, {"id": 1, "do": "reject", "why": "no image"})

    eventually(lambda: worker.outcomes() == {"dead_lettered": 1})
    [(properties, _)] = take_all(every_vhost, "failed")
    assert properties.headers["x-workqueue-failure-reason"] == "Rejected"
    assert properties.headers["x-workqueue-queue"] == "jobs"
    assert not every_vhost.exists("jobs.dead")


def test_worker_keeps_its_message_while_the_dead_letter_queue_is_missing(
    vhost: VirtualHost, workers: Workers
) -> None:
    declare_queue(vhost, "failed")
    worker = workers.start(vhost.url, "--dead-letter-queue", "failed").wait_consuming()
    with vhost.connect() as connection:
        connection.channel().queue_delete("failed")

    publish(vhost, {"id": 1, "do": "reject"})
    eventually(
        lambda: worker.count_log(
            "A copy could not be published; the message stays unacknowledged, trying again."
        )
    )
    assert not vhost.exists("failed"), "the worker does not declare it"
    declare_queue(vhost, "failed")

    eventually(lambda: worker.outcomes() == {"dead_lettered": 1})
    assert vhost.depth("failed").ready == 1


def test_worker_declares_nothing_without_the_dead_letter_queue(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--dead-letter-queue", "failed")

    eventually(lambda: worker.count_log("The queue cannot be declared; trying again."))
    [entry] = [entry for entry in worker.log_entries if entry["message"].startswith("The queue cannot be")]
    assert entry["reason"] == "The queue failed does not exist. Create it."
    assert not vhost.exists("jobs")

    declare_queue(vhost, "failed")
    worker.wait_consuming()


def test_handler_may_choose_its_retry_delay(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--delays", "60").wait_consuming()
    publish(vhost, {"id": 1, "do": "retry", "after": 1.2, "why": "busy"})
    eventually(lambda: worker.events_of("end") == [1])
    first, second = worker.events[:2]
    assert second["at"] - first["at"] >= 1.2
    assert second["headers"]["x-workqueue-failure-reason"] == "RetryRequested"
    assert int(second["headers"]["x-workqueue-due-at"]) / 1000 <= second["at"]
    assert vhost.exists("jobs.retry.step.1s")
    assert not vhost.exists("jobs.retry.step.2s"), "no more steps than needed"


@pytest.mark.parametrize(
    ("handler", "isolation"),
    [(THREADS, "Thread"), (ASYNC, "Thread"), (THREADS, "Process")],
    ids=["in a thread", "as a coroutine", "in a process"],
)
def test_uncounted_retries_leave_all_attempts(
    vhost: VirtualHost, workers: Workers, handler: str, isolation: str, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    arguments = ("--max-attempts", "2", "--isolation", isolation)
    worker = workers.start(vhost.url, *arguments, handler=handler).wait_consuming()

    publish(vhost, {"id": 1, "do": "retry", "sign": str(sign)}, {"id": 2, "do": "fail"})
    eventually(lambda: worker.events_of("start").count(1) > 2)
    sign.touch()

    eventually(lambda: worker.outcomes()["acked"] == 1 and worker.outcomes()["dead_lettered"] == 1)
    attempts = [event["attempt"] for event in worker.events if event["id"] == 1]
    assert len(attempts) > 2, "more often than there are attempts"
    assert set(attempts) == {1}
    assert [event["attempt"] for event in worker.events if event["id"] == 2] == [1, 2]


def test_uncounted_retries_end_at_the_maximum_age(every_vhost: VirtualHost, workers: Workers) -> None:
    with PublishPipeline(lambda: from_url(every_vhost.url), "test") as pipeline:
        pipeline.declare_plan(delay_route("jobs", 1).plan).result()  # else the first retry takes 2 s longer
    worker = workers.start(every_vhost.url, "--max-age", "6", "--max-attempts", "1").wait_consuming()

    publish(every_vhost, {"id": 1, "do": "retry", "sign": NEVER})

    eventually(lambda: worker.outcomes()["dead_lettered"] == 1)
    first_attempts = {event["headers"].get("x-workqueue-first-attempt-at") for event in worker.events[1:]}
    assert len(first_attempts) == 1, "each copy keeps the time of the first attempt"
    [(properties, _)] = take_all(every_vhost, "jobs.dead")
    assert properties.headers["x-workqueue-failure-reason"] == "MaxAge"
    assert properties.headers["x-workqueue-failure-message"].endswith("the last one failed: quota used up")
    assert properties.headers["x-workqueue-attempt"] == 0


def test_retry_delays_follow_configuration_and_last_one_repeats(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--delays", "1,2", "--max-attempts", "4").wait_consuming()
    publish(vhost, {"id": 1, "do": "fail"})
    eventually(lambda: worker.outcomes() == {"retried": 3, "dead_lettered": 1})
    times = [event["at"] for event in worker.events]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # A worker waits two seconds before it uses a delay queue that it declared.
    new = SAFE_AFTER_SECONDS
    least = [1 + new, 2 + new, 2]
    assert all(gap > 0.85 * delay for gap, delay in zip(gaps, least, strict=True))
    first_steps = [event["headers"]["x-first-death-queue"] for event in worker.events[1:]]
    assert first_steps == ["jobs.retry.step.1s", "jobs.retry.step.2s", "jobs.retry.step.2s"]


@BOTH
def test_timed_out_handler_is_cancelled_and_its_message_retried(
    vhost: VirtualHost, workers: Workers, handler: str
) -> None:
    worker = workers.start(
        vhost.url, "--timeout", "1", "--max-attempts", "2", handler=handler
    ).wait_consuming()
    publish(vhost, {"id": 1, "do": "sleep", "seconds": 30})
    eventually(lambda: worker.outcomes() == {"timed_out": 2})
    eventually(lambda: worker.events_of("cancelled") == [1, 1])
    [(properties, _)] = take_all(vhost, "jobs.dead")
    assert properties.headers["x-workqueue-failure-reason"] == "TimedOut"
    publish(vhost, {"id": 2})
    eventually(lambda: worker.events_of("end") == [2])


def test_handler_ignoring_cancellation_gets_no_second_message(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    worker = workers.start(vhost.url, "--timeout", "1", "--max-attempts", "1").wait_consuming()
    publish(vhost, {"id": "deaf", "do": "ignore", "sign": str(sign)}, {"id": "next"})
    eventually(lambda: worker.outcomes()["timed_out"] == 1)
    assert worker.status()["busy"] == 1
    assert not worker.status()["consuming"]
    sign.touch()
    eventually(lambda: worker.events_of("end") == ["deaf", "next"])
    assert [event["event"] for event in worker.events] == ["start", "end"] * 2
    eventually(lambda: worker.outcomes() == {"timed_out": 1, "acked": 1})


@pytest.mark.parametrize("isolation", ["Thread", "Process"])
def test_retry_is_logged_as_warning_and_dead_letter_as_error_with_traceback(
    vhost: VirtualHost, workers: Workers, isolation: str
) -> None:
    worker = workers.start(vhost.url, "--isolation", isolation, "--max-attempts", "2").wait_consuming()

    publish(vhost, {"id": 1, "do": "fail", "why": "disk full"})
    eventually(lambda: worker.outcomes() == {"retried": 1, "dead_lettered": 1})

    [retry] = [one for one in worker.log_entries if one["message"] == "Message failed; trying again later."]
    [end] = [one for one in worker.log_entries if one["message"] == "Message given up."]
    assert retry["level"] == "warning"
    assert retry["error"] == "ValueError: disk full"
    assert "exception" not in retry
    assert end["level"] == "error"
    assert end["exception"].startswith("Traceback")
    assert "_misbehave" in end["exception"]
    assert end["exception"].endswith("ValueError: disk full")


def test_rejected_message_is_logged_as_error_without_traceback(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()

    publish(vhost, {"id": 1, "do": "reject", "why": "no image"})
    eventually(lambda: worker.outcomes() == {"dead_lettered": 1})

    [end] = [one for one in worker.log_entries if one["message"] == "Message given up."]
    assert (end["level"], end["error"]) == ("error", "no image")
    assert "exception" not in end


def test_log_level_hides_lower_levels(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--log-level", "error", "--max-attempts", "1")

    eventually(lambda: vhost.exists("jobs") and vhost.depth("jobs") == (0, 0))
    publish(vhost, {"id": 1, "do": "fail"})
    eventually(lambda: worker.log_entries)

    assert {entry["level"] for entry in worker.log_entries} == {"error"}


def test_handler_that_calls_exit_fails_like_any_other(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--max-attempts", "1").wait_consuming()
    publish(vhost, {"id": 1, "do": "exit"}, {"id": 2})
    eventually(lambda: worker.outcomes() == {"dead_lettered": 1, "acked": 1})


@BOTH
def test_slots_run_concurrently_and_hold_one_message_each(
    vhost: VirtualHost, workers: Workers, handler: str, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    worker = workers.start(vhost.url, "--concurrency", "3", handler=handler).wait_consuming()
    eventually(lambda: _consumers(vhost) == 3)
    publish(vhost, *({"id": number, "do": "wait", "sign": str(sign)} for number in range(5)))
    eventually(lambda: len(worker.events_of("start")) == 3)
    assert worker.status()["busy"] == 3
    assert vhost.depth("jobs") == (2, 3)
    sign.touch()
    eventually(lambda: len(worker.events_of("end")) == 5)


def test_worker_reports_figures_of_last_minute(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    begun = time.monotonic()
    publish(vhost, *({"id": number, "do": "sleep", "seconds": 0.2} for number in range(3)))
    eventually(lambda: worker.status()["handled"] == 3)
    status: dict[str, Any] = worker.status()
    assert status["queue"] == "jobs"
    assert status["slots"] == 1
    assert 0.19 < status["meanHandlerSeconds"] < (time.monotonic() - begun) / 3
    assert status["recentHandlerSeconds"] == status["meanHandlerSeconds"]
    assert (status["received"], sum(status["handlerTimes"].values())) == (3, 3)
    assert (status["connected"], status["lastError"], status["retired"]) == (True, None, False)
    assert eventually(lambda: worker.status()["arrivalPerSecond"]) <= 3 / 5


def test_worker_reports_for_how_long_its_oldest_handler_runs(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    worker = workers.start(vhost.url, "--concurrency", "2").wait_consuming()
    assert worker.status()["busySeconds"] is None

    publish(vhost, {"id": 1, "do": "wait", "sign": str(sign)}, {"id": 2, "do": "sleep", "seconds": 0.5})
    eventually(lambda: worker.events_of("end") == [2])

    assert worker.status()["busySeconds"] >= 0.5, "the oldest handler counts"
    sign.touch()
    eventually(lambda: worker.status()["busy"] == 0)
    assert worker.status()["busySeconds"] is None


def test_worker_names_its_declared_delay_queues(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--delays", "4").wait_consuming()
    assert worker.status()["delayQueues"] == []

    publish(vhost, {"id": 1, "do": "fail"})
    publish(vhost, {"id": 2, "do": "fail"}, priority=7)
    eventually(lambda: worker.outcomes() == {"retried": 2})

    assert worker.status()["delayQueues"] == [
        "jobs.retry.high.4s",
        "jobs.retry.high.2s",
        "jobs.retry.high.1s",
        "jobs.retry.high.500ms",
        "jobs.retry.step.4s",
        "jobs.retry.step.2s",
        "jobs.retry.step.1s",
        "jobs.retry.step.500ms",
        "jobs.retry.last",
    ]


def test_worker_names_delay_queues_of_publishers(every_vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(every_vhost.url).wait_consuming()

    with Publisher(every_vhost.url) as publisher:
        publisher.publish({"id": 1}, queue="jobs", delay=1)
    eventually(lambda: worker.outcomes() == {"acked": 1})

    names = ["jobs.retry.step.1s", "jobs.retry.step.500ms", "jobs.retry.last"]
    assert worker.status()["delayQueues"] == names


def test_message_age_is_measured_from_its_timestamp(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, {"id": 1}, timestamp=int(time.time()) - 100)
    eventually(lambda: worker.outcomes() == {"acked": 1})
    metrics = worker.request("/metrics")[1]
    assert 'workqueue_worker_message_age_seconds_bucket{le="60.0",queue="jobs"} 0.0' in metrics
    assert 'workqueue_worker_message_age_seconds_bucket{le="300.0",queue="jobs"} 1.0' in metrics


def _consumers(vhost: VirtualHost) -> int:
    with vhost.connect() as connection:
        count: int = connection.channel().queue_declare("jobs", passive=True).method.consumer_count
        return count
