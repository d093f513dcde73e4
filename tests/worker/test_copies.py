"""Copies of failed messages while RabbitMQ accepts none: nothing else waits, and each is published once."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.rabbitmq import Broker, VirtualHost
from tests.support.wait import eventually
from tests.support.worker import Worker, Workers, is_empty, publish, take_all

MIB = 1024 * 1024


def start_jobs(vhost: VirtualHost, workers: Workers, sign: Path, count: int, padding: int = 0) -> Worker:
    """A worker with `count` messages in handlers, which all fail once the file `sign` exists."""
    worker = workers.start(vhost.url, "--concurrency", str(count + 1)).wait_consuming()
    publish(vhost, {"id": "first", "do": "fail once"})  # so that the publishing connection exists
    eventually(lambda: worker.outcomes() == {"retried": 1, "acked": 1})
    for number in range(count):
        job: dict[str, Any] = {
            "id": number,
            "do": "fail on sign",
            "sign": str(sign),
            "padding": "x" * padding,
        }
        publish(vhost, job)
    eventually(lambda: worker.status()["busy"] == count, 60)
    return worker


def attempts(worker: Worker) -> Counter[tuple[Any, int]]:
    """How often a job (its id and attempt number) was started."""
    return Counter((event["id"], event["attempt"]) for event in worker.events if event["event"] == "start")


def two_each(count: int) -> dict[tuple[Any, int], int]:
    """What `attempts` returns when each job had exactly two attempts."""
    return {(name, attempt): 1 for name in ("first", *range(count)) for attempt in (1, 2)}


@pytest.mark.slow
def test_worker_stays_responsive_while_copies_exceed_publisher_limit(
    every_rabbitmq: Broker, every_vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    """72 MiB of copies during a memory alarm: more than a publisher keeps unconfirmed by default."""
    count, sign = 6, tmp_path / "sign"
    worker = start_jobs(every_vhost, workers, sign, count, padding=12 * MIB)
    publish(every_vhost, {"id": "other", "do": "sleep", "seconds": 3})
    eventually(lambda: worker.status()["busy"] == count + 1)

    with every_rabbitmq.memory_alarm():
        sign.touch()
        eventually(lambda: worker.count_log("Message failed; trying again later.") == count + 1)

        eventually(lambda: "other" in worker.events_of("end"))
        eventually(lambda: worker.outcomes()["acked"] == 2)
        for path in ("/livez", "/readyz", "/status"):
            assert worker.request(path)[0] == 200

    eventually(lambda: worker.outcomes() == {"retried": count + 1, "acked": count + 2}, 60)
    assert attempts(worker) == two_each(count) | {("other", 1): 1}
    assert worker.count_log("Connected to RabbitMQ.") == 2, "for consuming and for publishing, once each"
    eventually(lambda: is_empty(every_vhost))


@pytest.mark.slow
def test_slow_confirm_causes_no_second_copy(
    every_rabbitmq: Broker, every_vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    """A memory alarm that lasts longer than an ordinary publisher waits for a confirm."""
    count, sign = 3, tmp_path / "sign"
    worker = start_jobs(every_vhost, workers, sign, count)

    with every_rabbitmq.memory_alarm():
        sign.touch()
        eventually(lambda: worker.count_log("Message failed; trying again later.") == count + 1)
        time.sleep(35)  # the duration itself is what is tested
        assert worker.outcomes() == {"retried": 1, "acked": 1}

    eventually(lambda: worker.outcomes()["acked"] > count, 60)
    eventually(lambda: is_empty(every_vhost) and is_empty(every_vhost, "jobs.retry.step.1s"))
    assert attempts(worker) == two_each(count)
    eventually(lambda: worker.outcomes() == {"retried": count + 1, "acked": count + 1})


def test_message_without_id_gets_one_shared_by_all_attempts(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(every_vhost.url, "--max-attempts", "3").wait_consuming()

    publish(every_vhost, {"id": "none", "do": "fail"})
    publish(every_vhost, {"id": "given", "do": "fail"}, message_id="m-1")
    eventually(lambda: worker.outcomes()["dead_lettered"] == 2)

    ids: dict[str, list[str | None]] = {"none": [], "given": []}
    for event in worker.events:
        ids[event["id"]].append(event["message_id"])
    for properties, body in take_all(every_vhost, "jobs.dead"):
        ids[json.loads(body)["id"]].append(properties.message_id)
    assert ids["given"] == ["m-1"] * 4
    first, *later = ids["none"]
    assert first is None
    assert later[0]
    assert later == [later[0]] * 3
