"""Passes that end before their report, on a real RabbitMQ, since other queues may be waiting for their doorbells."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.brokers import channel_of, put
from tests.support.fakecluster import Request, scale_of
from tests.support.passes import KEY, api, applied, operator, reports
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue_operator.kube.store import Key
from workqueue_operator.reconcile.queue import Lane, NextPass
from workqueue_operator.reconcile.reconciler import REPORT_AFTER_WAKE


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


async def test_first_pass_of_a_process_ends_at_the_doorbell_and_the_next_one_reports(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, others = reports(monkeypatch), asyncio.Event()

    async def wait(_: Key) -> NextPass:
        await others.wait()
        return NextPass()

    async with operator(api(vhost.url), "team") as passes:
        queue = passes.parts.queue
        queue.start(wait, lambda _: False)
        queue.add(("team", "other"))

        due = await passes.run()

        handle = passes.parts.brokers.known(KEY)
        assert handle is not None
        await until(lambda: handle.broker.has_doorbell("jobs"))
        assert reported == []
        assert due == NextPass(0.0, lane=Lane.RESYNC)

        await passes.reconciler.reconcile(KEY)

        assert len(reported) == 1
        others.set()
        await queue.stop(60)
