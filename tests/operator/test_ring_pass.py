"""Passes that end before their report, on a real RabbitMQ, since other queues may be waiting for their doorbells."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.brokers import channel_of, put
from tests.support.fakecluster import FakeCluster, Request, scale_of
from tests.support.passes import KEY, api, applied, operator, reports, workqueue
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue_operator.api.workqueue import WorkQueue
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


async def test_first_pass_of_a_process_ends_at_the_doorbell_and_the_next_one_reports(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, others = reports(monkeypatch), asyncio.Event()

    async def wait(_: Key) -> NextPass:
        await others.wait()
        return NextPass()

    cluster = api(vhost.url)
    async with operator(cluster, "team") as passes:
        passes.parts.store.put_deployment(deployment_of_an_earlier_spec())
        queue = passes.parts.queue
        queue.start(wait, lambda _: False)
        queue.add(("team", "other"))

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
        others.set()
        await queue.stop(60)
