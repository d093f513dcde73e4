"""Queues that go with their WorkQueue: all of them, and with DeleteIfEmpty not before all are empty."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.brokers import channel_of, put
from tests.support.fakecluster import FakeCluster
from tests.support.rabbitmq import VirtualHost
from tests.support.workqueue import workqueue
from workqueue_operator.finalize import Finalizer
from workqueue_operator.metrics import Metrics
from workqueue_operator.model import WorkQueue
from workqueue_operator.names import FINALIZER
from workqueue_operator.observe.brokers import Brokers
from workqueue_operator.observe.management import Management
from workqueue_operator.observe.secrets import Secrets
from workqueue_operator.observe.store import Store
from workqueue_operator.report import Reporter
from workqueue_worker.topology import dead_letter_queue, delay_queue

SPEC = 3
"""A delay of the spec alone, one that a handler may ask for, and one that an earlier spec had."""
ASKED = 7200
EARLIER = 77
QUEUES = ["jobs", "jobs.dead", *(f"jobs.retry.{seconds}s" for seconds in (SPEC, ASKED, EARLIER))]


def deleted(policy: str) -> WorkQueue:
    return workqueue(
        queue={"deletionPolicy": policy},
        retry={"delaysSeconds": [SPEC]},
        metadata={"deletionTimestamp": "2026-11-24T12:00:00Z", "finalizers": [FINALIZER, "theirs"]},
    )


@asynccontextmanager
async def finalizer(vhost: VirtualHost, **secret: str) -> AsyncIterator[tuple[Finalizer, FakeCluster]]:
    """A Finalizer, and the API server as it sees it."""
    cluster = FakeCluster()
    keys = {"uri": vhost.url, **secret}
    data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
    cluster.answer("GET", "/secrets/rabbitmq", {"data": data})
    cluster.answer("GET", "/workqueues/jobs", deleted("Delete").model_dump(mode="json", by_alias=True))
    cluster.answer("PATCH", "/workqueues/jobs", lambda request: stored(request.body))
    cluster.answer("POST", "/events", {})
    store = Store(lambda _: None)
    brokers = Brokers(lambda _: None, lambda _: None, 60, 60)
    management = Management()
    reporter = Reporter(cluster, store, "operator-1", Metrics())
    try:
        yield Finalizer(cluster, store, Secrets(cluster), brokers, management, reporter), cluster
    finally:
        await brokers.close()
        await management.close()


def stored(patch: dict[str, Any]) -> dict[str, Any]:
    body = deleted("Delete").model_dump(mode="json", by_alias=True)
    body["metadata"] |= patch["metadata"] | {"resourceVersion": "2"}
    return body


async def declare(vhost: VirtualHost) -> None:
    async with channel_of(vhost) as channel:
        channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum"})
        others = [
            dead_letter_queue("jobs"),
            *(delay_queue("jobs", delay) for delay in (SPEC, ASKED, EARLIER)),
        ]
        for queue in others:
            channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))


def left(vhost: VirtualHost) -> list[str]:
    return [name for name in QUEUES if vhost.exists(name)]


def let_go(cluster: FakeCluster) -> bool:
    return any(
        request.method == "PATCH" and request.body.get("metadata", {}).get("finalizers") == ["theirs"]
        for request in cluster.asked
    )


def told(cluster: FakeCluster) -> str:
    return " ".join(request.body["note"] for request in cluster.asked if request.path.endswith("/events"))


async def test_delete_takes_every_delay_queue_whose_name_is_known(every_vhost: VirtualHost) -> None:
    await declare(every_vhost)
    async with finalizer(every_vhost) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(every_vhost) == [f"jobs.retry.{EARLIER}s"]
        assert let_go(cluster)


async def test_with_the_management_api_delete_takes_all_of_them(every_vhost: VirtualHost) -> None:
    await declare(every_vhost)
    uri = {"management-uri": every_vhost.broker.management_url}
    async with finalizer(every_vhost, **uri) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(every_vhost) == []
        assert let_go(cluster)


async def test_a_management_api_that_is_away_holds_nothing_up_and_is_told(vhost: VirtualHost) -> None:
    await declare(vhost)
    uri = {"management-uri": f"http://127.0.0.1:{vhost.broker.port}"}
    async with finalizer(vhost, **uri) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(vhost) == [f"jobs.retry.{EARLIER}s"]
        assert let_go(cluster)
        assert "may be left" in told(cluster)


@pytest.mark.parametrize("where", [*QUEUES[:4], f"jobs.retry.{EARLIER}s"])
async def test_delete_if_empty_waits_for_a_message_in_any_of_them(vhost: VirtualHost, where: str) -> None:
    await declare(vhost)
    uri = {"management-uri": vhost.broker.management_url}
    async with finalizer(vhost, **uri) as (under_test, cluster), channel_of(vhost) as channel:
        put(channel, where, b"x")
        assert await under_test.finalize(deleted("DeleteIfEmpty")) is not None
        assert left(vhost) == QUEUES
        assert not let_go(cluster)
        assert f"{where!r} has 1 messages" in told(cluster)
        channel.queue_purge(where)
        assert await under_test.finalize(deleted("DeleteIfEmpty")) is None
        assert left(vhost) == []
        assert let_go(cluster)
