"""Passes that end before their report, on a real RabbitMQ, since other queues may be waiting for their doorbells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.brokers import channel_of, put
from tests.support.fakecluster import FakeCluster, Request, scale_of
from tests.support.passes import KEY, Passes, api, applied, operator, reports, workqueue
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker import declare
from workqueue_operator.broker.connection import Broker
from workqueue_operator.kube.store import Key
from workqueue_operator.reconcile.queue import Lane, NextPass
from workqueue_operator.reconcile.reconciler import REPORT_AFTER_WAKE
from workqueue_operator.workers import render


class Deployment:
    """The Deployment as the API server has it."""

    def __init__(self) -> None:
        self.body: dict[str, Any] = {}

    def __call__(self, request: Request) -> dict[str, Any]:
        if isinstance(request.body, list):
            count = request.body[1]["value"]["replicas"]
            metadata = {**self.body["metadata"], "generation": 2, "resourceVersion": "3"}
            self.body = {**self.body, "metadata": metadata, "spec": {**self.body["spec"], "replicas": count}}
            return scale_of(self.body)
        self.body = applied(request)
        return self.body


async def test_pass_of_a_ring_ends_at_the_count_and_the_next_one_reports(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = reports(monkeypatch)
    deployment, cluster = Deployment(), api(vhost.url)
    cluster.answer("PATCH", "/deployments/jobs-worker", deployment)
    async with operator(cluster, "team") as passes, channel_of(vhost) as channel:
        await passes.run()
        handle = passes.parts.brokers.known(KEY)
        assert handle is not None
        await until(lambda: handle.broker.has_doorbell("jobs"))
        put(channel, "jobs", b"1")
        await until(lambda: not handle.broker.has_doorbell("jobs"))
        passes.parts.queue.ring(KEY)
        reported.clear()

        due = await passes.reconciler.reconcile(KEY)

        assert deployment.body["spec"]["replicas"] == 1
        assert reported == []
        assert due.after == REPORT_AFTER_WAKE
        assert handle.poller.watch(KEY, "jobs").active, "further messages are noticed"

        await passes.reconciler.reconcile(KEY)

        assert [status["desiredReplicas"] for status in reported] == [1]


def deployment_of_an_earlier_spec() -> dict[str, Any]:
    made = workqueue()
    made["spec"]["worker"]["image"] = "jobs:0"
    body = render.deployment(WorkQueue.model_validate(made), render.Defaults(), broker="", proven_hash=None)
    metadata = {**body["metadata"], "uid": "d", "generation": 1, "resourceVersion": "1"}
    return {**body, "metadata": metadata, "spec": {**body["spec"], "replicas": 0}}


def applies(cluster: FakeCluster) -> list[Request]:
    """The applies of the Deployment with its template."""
    asked = [one for one in cluster.asked if one.path.endswith("/deployments/jobs-worker")]
    return [one for one in asked if "template" in one.body["spec"]]


@asynccontextmanager
async def another_first_pass(passes: Passes) -> AsyncIterator[None]:
    """A process that starts, while the first pass over another WorkQueue has not ended."""
    others, queue = asyncio.Event(), passes.parts.queue

    async def wait(_: Key) -> NextPass:
        await others.wait()
        return NextPass()

    queue.start(wait, lambda _: False)
    queue.add(("team", "other"))
    yield
    others.set()
    await queue.stop(60)


async def test_first_pass_of_a_process_ends_at_the_doorbell_and_the_next_one_reports(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = reports(monkeypatch)
    cluster = api(vhost.url)
    async with operator(cluster, "team") as passes, another_first_pass(passes):
        passes.parts.store.put_deployment(deployment_of_an_earlier_spec())

        due = await passes.run()

        handle = passes.parts.brokers.known(KEY)
        assert handle is not None
        await until(lambda: handle.broker.has_doorbell("jobs"))
        assert reported == []
        assert applies(cluster) == []
        assert due == NextPass(0.0, lane=Lane.RESYNC)

        await passes.reconciler.reconcile(KEY)

        assert len(reported) == 1
        assert [
            one.body["spec"]["template"]["spec"]["containers"][0]["image"] for one in applies(cluster)
        ] == ["jobs:1"]


@dataclass
class Restarted:
    """An operator that starts beside a WorkQueue that slept. The first pass over another one has not ended.

    Attributes:
        declared: the queues that a whole pass has declared.
        reported: the statuses that passes have reported.
        deployment: as the API server has it.
    """

    passes: Passes
    channel: BlockingChannel
    declared: list[str]
    reported: list[Mapping[str, Any]]
    deployment: Deployment

    @property
    def broker(self) -> Broker:
        handle = self.passes.parts.brokers.known(KEY)
        assert handle is not None
        return handle.broker


@pytest.fixture
async def restarted(vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Restarted]:
    reported, deployment, cluster = reports(monkeypatch), Deployment(), api(vhost.url)
    cluster.answer("PATCH", "/deployments/jobs-worker", deployment)
    async with operator(cluster, "team") as passes:
        await passes.run()
    body = workqueue()
    slept = {**body, "metadata": {**body["metadata"], "resourceVersion": "2"}, "status": reported.pop()}
    declared: list[str] = []
    real = declare.declare

    async def recorded(one: WorkQueue, broker: Broker) -> Any:
        declared.append(one.queue_name)
        return await real(one, broker)

    monkeypatch.setattr(declare, "declare", recorded)
    async with operator(cluster, "team") as passes, another_first_pass(passes), channel_of(vhost) as channel:
        passes.parts.store.put_workqueue(slept)
        passes.parts.store.put_deployment(deployment.body)
        yield Restarted(passes, channel, declared, reported, deployment)


async def test_first_pass_over_a_workqueue_that_slept_sets_its_doorbell(restarted: Restarted) -> None:
    due = await restarted.passes.run()

    assert restarted.broker.has_doorbell("jobs")
    assert (restarted.declared, restarted.reported) == ([], [])
    assert due == NextPass(0.0, lane=Lane.RESYNC)

    await restarted.passes.reconciler.reconcile(KEY)

    assert restarted.declared == ["jobs"]
    assert len(restarted.reported) == 1


async def test_ring_after_that_first_pass_raises_the_count(restarted: Restarted) -> None:
    await restarted.passes.run()
    put(restarted.channel, "jobs", b"1")
    await until(lambda: not restarted.broker.has_doorbell("jobs"))
    restarted.passes.parts.queue.ring(KEY)

    await restarted.passes.reconciler.reconcile(KEY)

    assert restarted.deployment.body["spec"]["replicas"] == 1


async def test_message_that_waited_for_the_start_raises_the_count_in_the_first_pass(
    restarted: Restarted,
) -> None:
    put(restarted.channel, "jobs", b"1")

    await restarted.passes.run()

    assert not restarted.broker.has_doorbell("jobs")
    assert restarted.deployment.body["spec"]["replicas"] == 1


async def test_queue_that_was_deleted_before_the_start_is_declared_again(restarted: Restarted) -> None:
    restarted.channel.queue_delete("jobs")
    restarted.channel.queue_delete("jobs.dead")

    await restarted.passes.run()
    await restarted.passes.reconciler.reconcile(KEY)

    assert restarted.broker.has_doorbell("jobs")
    for queue in ("jobs", "jobs.dead"):
        assert restarted.channel.queue_declare(queue, passive=True).method.message_count == 0


async def test_stream_that_replaced_the_queue_gets_no_doorbell(restarted: Restarted) -> None:
    """To get a message from a stream, as a doorbell does, would close the whole connection."""
    restarted.channel.queue_delete("jobs")
    restarted.channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "stream"})

    await restarted.passes.run()

    assert not restarted.broker.has_doorbell("jobs")
    assert restarted.broker.generation == 1, "the connection stays open"
    conditions = {one["type"]: one for one in restarted.reported[-1]["conditions"]}
    assert conditions["QueueDeclared"]["reason"] == Reason.QUEUE_CONFLICT.value
