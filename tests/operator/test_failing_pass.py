"""A pass that fails at the API server, on a real RabbitMQ: its pauses grow even when parts of it succeed."""

from __future__ import annotations

import pytest

from tests.support.fakecluster import FakeCluster
from tests.support.passes import api, applied, operator
from tests.support.rabbitmq import VirtualHost
from workqueue_operator.errors import ClusterError
from workqueue_operator.reconcile.queue import Lane, NextPass

DEPLOYMENT = "/deployments/jobs-worker"
UNAVAILABLE = ClusterError(503, "etcdserver: leader changed")
OLD_DEFINITION = ClusterError(
    500, "failed to create typed patch object: .status.queueName: field not declared"
)


@pytest.fixture
def cluster(vhost: VirtualHost) -> FakeCluster:
    made = api(vhost.url)
    made.answer("PATCH", DEPLOYMENT, UNAVAILABLE)
    return made


async def test_failing_passes_back_off_to_one_per_minute(cluster: FakeCluster) -> None:
    async with operator(cluster, "team") as passes:
        dues: list[NextPass] = [await passes.run() for _ in range(14)]

        assert all(due.failed for due in dues)
        assert dues[0].holds is None, "after the first failure a change is not kept waiting"
        assert all(due.holds is Lane.RING for due in dues[1:])
        assert all(due.after is not None and due.after >= 60 for due in dues[10:])

        cluster.answer("PATCH", DEPLOYMENT, applied)
        assert not (await passes.run()).failed
        passes.parts.store.drop("deployments", passes.parts.store.deployments["team", "jobs-worker"])
        cluster.answer("PATCH", DEPLOYMENT, UNAVAILABLE)
        first = await passes.run()
        assert first.failed
        assert first.after is not None
        assert first.after < 2, "a successful pass ends the series"


async def test_retry_after_does_not_shorten_the_pause(cluster: FakeCluster) -> None:
    cluster.answer("PATCH", DEPLOYMENT, ClusterError(429, "busy", retry_after=1.0))
    async with operator(cluster, "team") as passes:
        dues = [await passes.run() for _ in range(11)]

        assert dues[-1].after is not None
        assert dues[-1].after >= 60


async def test_refused_status_write_fails_no_pass(cluster: FakeCluster) -> None:
    """As with a CustomResourceDefinition that is older than the operator."""
    cluster.answer("PATCH", DEPLOYMENT, applied)
    cluster.answer("PATCH", "/workqueues/jobs/status", OLD_DEFINITION)
    async with operator(cluster, "team") as passes:
        dues = [await passes.run() for _ in range(3)]
        await passes.reported()

        assert not any(due.failed for due in dues)
        assert any(path.endswith("/status") for path in cluster.paths("PATCH"))
