"""A pass that fails at the API server, on a real RabbitMQ: its pauses grow, whatever part of it works."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.rabbitmq import VirtualHost
from workqueue_operator.act.retire import Retirement
from workqueue_operator.act.scale import Scaler
from workqueue_operator.act.target import Targets
from workqueue_operator.act.workload import Workload
from workqueue_operator.errors import ClusterError
from workqueue_operator.finalize import Finalizer
from workqueue_operator.keys import Next
from workqueue_operator.metrics import Metrics
from workqueue_operator.observe.brokers import Brokers
from workqueue_operator.observe.gather import Gatherer
from workqueue_operator.observe.management import Management
from workqueue_operator.observe.secrets import Secrets
from workqueue_operator.observe.store import Store
from workqueue_operator.observe.workers import Workers
from workqueue_operator.reconcile import Parts, Reconciler
from workqueue_operator.render import Defaults
from workqueue_operator.report import Reporter

KEY = ("team", "jobs")
OLD_DEFINITION = ClusterError(
    500, "failed to create typed patch object: .status.queueName: field not declared"
)


def workqueue() -> dict[str, Any]:
    return {
        "apiVersion": "workqueue.dev/v1alpha1",
        "kind": "WorkQueue",
        "metadata": {
            "namespace": "team",
            "name": "jobs",
            "uid": "uid-1",
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "connectionSecretRef": {"name": "rabbitmq"},
            "worker": {"image": "jobs:1", "handler": {"python": "jobs:handle"}},
        },
    }


def applied(request: Request) -> dict[str, Any]:
    """What the API server makes of an applied Deployment."""
    metadata = {**request.body["metadata"], "uid": "d", "generation": 1, "resourceVersion": "2"}
    return {**request.body, "metadata": metadata, "spec": {"replicas": 0, **request.body["spec"]}}


@asynccontextmanager
async def operator(cluster: FakeCluster) -> AsyncIterator[Reconciler]:
    """The parts of one operator, whose passes the test runs itself."""
    reconciler = Reconciler(lambda _: None)
    store, metrics, workers, management = Store(lambda _: None), Metrics(), Workers(), Management()
    secrets, brokers = Secrets(cluster), Brokers(lambda _: None, lambda _: None, 60, 60)
    reporter = Reporter(cluster, store, "me", metrics)
    workload = Workload(cluster, Defaults(), lambda _: None)
    store.put_workqueue(workqueue())
    parts = Parts(
        store=store,
        secrets=secrets,
        brokers=brokers,
        gatherer=Gatherer(workers, management),
        targets=Targets(cluster, store, workload),
        scaler=Scaler(store, workload, Retirement(cluster, workers, store), reporter, metrics),
        reporter=reporter,
        finalizer=Finalizer(cluster, store, secrets, brokers, management, reporter),
        metrics=metrics,
    )
    reconciler._parts = parts
    try:
        yield reconciler
    finally:
        await brokers.close()
        await workers.close()
        await management.close()


@pytest.fixture
def cluster(vhost: VirtualHost) -> FakeCluster:
    made = FakeCluster()
    uri = base64.b64encode(vhost.url.encode()).decode()
    made.answer("GET", "/secrets/rabbitmq", {"data": {"uri": uri}})
    made.answer("PATCH", "/deployments/jobs-worker", applied)
    made.answer("PATCH", "/poddisruptionbudgets/jobs-worker", {})
    made.answer("POST", "/events", {})
    made.answer("PATCH", "/workqueues/jobs/status", OLD_DEFINITION)
    return made


async def test_failing_status_writes_back_off_to_one_a_minute(cluster: FakeCluster) -> None:
    async with operator(cluster) as reconciler:
        dues: list[Next] = [await reconciler._guarded(KEY) for _ in range(14)]

        assert all(due.failed for due in dues)
        assert not dues[0].firm, "after the first failure a change is not kept waiting"
        assert all(due.firm for due in dues[1:])
        assert all(due.after is not None and due.after >= 60 for due in dues[10:])

        cluster.answer("PATCH", "/workqueues/jobs/status", workqueue())
        assert not (await reconciler._guarded(KEY)).failed
        cluster.answer("PATCH", "/workqueues/jobs/status", OLD_DEFINITION)
        reconciler._parts.reporter.forget("uid-1")  # type: ignore[union-attr]
        first = await reconciler._guarded(KEY)
        assert first.after is not None
        assert first.after < 2, "a successful pass ends the series"


async def test_retry_after_does_not_shorten_the_pause(cluster: FakeCluster) -> None:
    cluster.answer("PATCH", "/workqueues/jobs/status", ClusterError(429, "busy", retry_after=1.0))
    async with operator(cluster) as reconciler:
        dues = [await reconciler._guarded(KEY) for _ in range(11)]

        assert dues[-1].after is not None
        assert dues[-1].after >= 60
