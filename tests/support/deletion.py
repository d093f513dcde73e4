"""The deletion of a WorkQueue on a real RabbitMQ, with an API server that only records requests."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.fakecluster import FakeCluster
from tests.support.rabbitmq import VirtualHost
from tests.support.workqueue import workqueue
from workqueue.contract.topology import Step, earlier_delay_queue_name, step_name, steps_from
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.declare import HIDDEN_SECONDS
from workqueue_operator.broker.management import Management
from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.broker.rates import RateFeeder
from workqueue_operator.clock import SystemClock
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Store
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import FINALIZER
from workqueue_operator.reconcile.finalize import Finalizer
from workqueue_operator.reconcile.reporter import Reporter
from workqueue_operator.workers.client import Workers

STEPS = steps_from(Step(1000, is_high=True))
SPEC = 3
"""Delays of an earlier release: of the spec alone, one for handlers that ask, and one that an earlier spec had."""
ASKED = 7200
EARLIER = 77
QUEUES = [
    "jobs",
    "jobs.dead",
    *(step_name("jobs", step) for step in STEPS),
    *(earlier_delay_queue_name("jobs", seconds) for seconds in (SPEC, ASKED, EARLIER)),
]


def deleted(policy: str, *recurring: dict[str, Any], **queue: str) -> WorkQueue:
    """A deleted WorkQueue."""
    return workqueue(
        queue={"deletionPolicy": policy, **queue},
        retry={"delaysSeconds": [SPEC]},
        recurring=recurring,
        metadata={"deletionTimestamp": "2026-11-24T12:00:00Z", "finalizers": [FINALIZER, "theirs"]},
    )


def secret_of(**keys: str) -> dict[str, Any]:
    """A connection Secret as the API server returns it."""
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}}


@asynccontextmanager
async def finalizer(
    vhost: VirtualHost,
    *,
    hidden_seconds: float = HIDDEN_SECONDS,
    store: Store | None = None,
    port: int = 1,
    **secret: str,
) -> AsyncIterator[tuple[Finalizer, FakeCluster]]:
    """A Finalizer, and the API server as it sees it.

    Args:
        hidden_seconds: how long queues must look empty before they count as empty.
        store: the known objects of the API server.
        port: of the workers' endpoints.
        secret: more keys of the connection Secret.
    """
    cluster = FakeCluster()
    cluster.answer("GET", "/secrets/rabbitmq", secret_of(uri=vhost.url, **secret))
    cluster.answer("GET", "/workqueues/jobs", deleted("Delete").model_dump(mode="json", by_alias=True))
    cluster.answer("PATCH", "/workqueues/jobs", lambda request: _stored(request.body))
    cluster.answer("POST", "/events", {})
    store = store or Store(lambda _: None)
    brokers = BrokerPool(lambda _: None, lambda _: None, 60, 60)
    management = Management()
    workers = Workers(port)
    reporter = Reporter(cluster, store, "operator-1", Metrics(), clock=SystemClock())
    try:
        secrets = Secrets(cluster)
        made = Finalizer(
            cluster,
            store,
            secrets,
            brokers,
            management,
            workers,
            reporter,
            RateFeeder(lambda: True, lambda _: None),
            clock=SystemClock(),
            hidden_seconds=hidden_seconds,
        )
        yield made, cluster
    finally:
        await brokers.close()
        await management.close()
        await workers.close()


def _stored(patch: dict[str, Any]) -> dict[str, Any]:
    body = deleted("Delete").model_dump(mode="json", by_alias=True)
    body["metadata"] |= patch["metadata"] | {"resourceVersion": "2"}
    return body


def let_go(cluster: FakeCluster) -> bool:
    """Whether our finalizer was removed, and no other."""
    return any(
        request.method == "PATCH" and request.body.get("metadata", {}).get("finalizers") == ["theirs"]
        for request in cluster.asked
    )


def told(cluster: FakeCluster) -> str:
    """The messages of all Events."""
    return " ".join(request.body["note"] for request in cluster.asked if request.path.endswith("/events"))
