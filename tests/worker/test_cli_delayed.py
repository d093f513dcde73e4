"""`workqueue delayed`, as people run it."""

from __future__ import annotations

import math
import time

from tests.support.commands import Done, workqueue
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from workqueue import Publisher
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.amqp.session import Received
from workqueue.cli.delayed import _leaves_at
from workqueue.contract import topology
from workqueue.contract.binding import from_url
from workqueue.contract.properties import Properties

SOON, LATER, LATEST = 235, 3600, topology.LONGEST_DELAY_SECONDS
"""Delays in seconds. No message is due during a test."""


def fill(vhost: VirtualHost) -> None:
    with PublishPipeline(lambda: from_url(vhost.url), "test") as pipeline:
        pipeline.declare_plan(topology.plan(topology.QueueSettings("jobs"))).result()
        pipeline.declare_plan(topology.delay_route("jobs", LATEST).plan).result()
    with Publisher(vhost.url) as publisher:
        for name, delay in (("later", LATER), ("latest", LATEST), ("soon", SOON), ("soon too", SOON)):
            publisher.publish(name, queue="jobs", delay=delay, message_id=name, priority=3)


def delayed(vhost: VirtualHost, action: str, *arguments: str) -> Done:
    return workqueue("delayed", action, "--queue", "jobs", *arguments, url=vhost.url)


def total(vhost: VirtualHost) -> int:
    return sum(vhost.depth(name).ready for name in topology.delay_route("jobs", LATEST).queues)


def test_list_shows_next_messages_first_and_takes_none(every_vhost: VirtualHost) -> None:
    fill(every_vhost)

    done = delayed(every_vhost, "list", "--limit", "3")

    assert (done.code, done.err) == (0, "")
    head, *rows, last = done.out.splitlines()
    assert head.split() == ["ID", "DUE", "AT", "(UTC)", "IN", "ATTEMPTS"]
    assert [row.split("  ")[0] for row in rows] == ["soon", "soon too", "later"]
    assert "3m" in rows[0]
    assert last == "3 of 4 delayed messages of jobs."
    document = delayed(every_vhost, "list", "--json").json
    assert [one["id"] for one in document["messages"]] == ["soon", "soon too", "later", "latest"]
    assert document["total"] == 4
    eventually(lambda: total(every_vhost) == 4)


def test_listed_messages_still_arrive_in_time(every_vhost: VirtualHost) -> None:
    """Looking takes messages out of a delay queue and puts them back."""
    with PublishPipeline(lambda: from_url(every_vhost.url), "test") as pipeline:
        pipeline.declare_plan(topology.plan(topology.QueueSettings("jobs"))).result()
    with Publisher(every_vhost.url) as publisher:
        for number in range(20):
            publisher.publish(b"", queue="jobs", delay=4 + number / 10, priority=number % 7)
        due = time.time() + 6

    while every_vhost.depth("jobs").ready < 20 and time.time() < due:
        assert delayed(every_vhost, "list").code == 0

    eventually(lambda: every_vhost.depth("jobs").ready == 20)


def test_purge_drops_one_message_or_all(vhost: VirtualHost) -> None:
    fill(vhost)

    refused = delayed(vhost, "purge")
    assert (refused.code, refused.out) == (2, "")
    assert delayed(vhost, "purge", "--id", "later", "--yes").out == "1 delayed message of jobs dropped.\n"
    eventually(lambda: total(vhost) == 3)
    assert [one["id"] for one in delayed(vhost, "list", "--json").json["messages"]] == [
        "soon",
        "soon too",
        "latest",
    ]
    assert delayed(vhost, "purge", "--yes", "--json").json == {"queue": "jobs", "dropped": 3}
    eventually(lambda: total(vhost) == 0)


def test_missing_work_queue_is_reported(vhost: VirtualHost) -> None:
    done = delayed(vhost, "list")

    assert (done.code, done.err) == (
        1,
        "workqueue delayed: The queue jobs does not exist: apply its WorkQueue first.\n",
    )


def test_message_leaves_a_step_before_its_shorter_steps() -> None:
    """The order in which looked-at messages return to their queue."""

    def leaves_at(name: str, due: object = 1_000_000, key: str = "1.0.1.1") -> float:
        received = Received(1, False, "", key, Properties(), {"x-workqueue-due-at": due}, b"")
        return _leaves_at("jobs", name, received)

    assert leaves_at("jobs.retry.high.4s") == 1_000_000 - 500 - 2000
    assert (
        leaves_at("jobs.retry.step.500ms") == leaves_at("jobs.retry.last", key="jobs.retry.last") == 1_000_000
    )
    assert leaves_at("jobs.retry.60s", key="jobs.retry.60s") == 1_000_000
    assert leaves_at("jobs.retry.60s", due="soon") == math.inf
