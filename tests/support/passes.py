"""One operator around an API server in memory, for tests that run single passes."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.wait import until
from workqueue.contract.worker_api import PORT
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.bindings import Bindings
from workqueue_operator.broker.limits import Limits
from workqueue_operator.broker.management import Management
from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.broker.rates import RateFeeder
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.ownership import Ownership
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Store
from workqueue_operator.metrics import Metrics
from workqueue_operator.reconcile.finalize import Finalizer
from workqueue_operator.reconcile.protection import Protector
from workqueue_operator.reconcile.queue import NextPass, ReconcileQueue
from workqueue_operator.reconcile.reconciler import Dependencies, Reconciler
from workqueue_operator.reconcile.recurring import RecurringRunner
from workqueue_operator.reconcile.reporter import Reporter
from workqueue_operator.scaling.gather import Gatherer
from workqueue_operator.scaling.scale import Scaler
from workqueue_operator.workers.apply import WorkloadApplier
from workqueue_operator.workers.client import Workers
from workqueue_operator.workers.render import Defaults
from workqueue_operator.workers.retire import Retirer
from workqueue_operator.workers.target import Targets

KEY = ("team", "jobs")


@dataclass
class Passes:
    """An operator whose passes the test starts."""

    reconciler: Reconciler
    parts: Dependencies
    cluster: FakeCluster

    async def run(self) -> NextPass:
        """One pass over the WorkQueue, and another one when the connection that it opens is open."""
        due = await self.reconciler.reconcile(KEY)
        handle = self.parts.brokers.known(KEY)
        if handle is None or handle.broker.connected or handle.broker.problem is not None:
            return due
        with contextlib.suppress(ReconcileError):
            await handle.broker.ready()
        return await self.reconciler.reconcile(KEY)

    async def reported(self) -> None:
        """Wait until the reporter has written what the passes have reported."""
        reporter = self.parts.reporter
        outboxes = (reporter._statuses, reporter._events)
        await until(lambda: not any(len(one) for some in outboxes for one in some))


def api(url: str) -> FakeCluster:
    """An API server that accepts everything; its Secret leads to this RabbitMQ."""
    made = FakeCluster()
    made.answer("GET", "/api/v1/namespaces", {"items": []})
    uri = base64.b64encode(url.encode()).decode()
    made.answer("GET", "/secrets/rabbitmq", {"data": {"uri": uri}})
    made.answer("PATCH", "/deployments/jobs-worker", applied)
    made.answer("PATCH", "/poddisruptionbudgets/jobs-worker", {})
    made.answer("POST", "/secrets", {})
    made.answer("POST", "/events", {})
    made.answer("PATCH", "/workqueues/jobs/status", workqueue())
    return made


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
    """The stored form of an applied Deployment."""
    metadata = {**request.body["metadata"], "uid": "d", "generation": 1, "resourceVersion": "2"}
    return {**request.body, "metadata": metadata, "spec": {"replicas": 0, **request.body["spec"]}}


def reports(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The statuses that passes report from now on."""
    reported: list[Mapping[str, Any]] = []

    def record(_: Reporter, __: WorkQueue, status: Mapping[str, Any]) -> None:
        reported.append(status)

    monkeypatch.setattr(Reporter, "status", record)
    return reported


@asynccontextmanager
async def operator(cluster: FakeCluster, *namespaces: str, workers_port: int = PORT) -> AsyncIterator[Passes]:
    """An operator that knows the WorkQueue; it lists some namespaces, or watches everything."""
    clock = SystemClock()
    queue = ReconcileQueue(clock)
    store, metrics, workers, management = (
        Store(lambda _: None),
        Metrics(),
        Workers(workers_port),
        Management(),
    )
    secrets, brokers = Secrets(cluster), BrokerPool(lambda _: None, lambda _: None, 60, 60)
    reporter = Reporter(cluster, store, "me", metrics, clock=clock)
    rates = RateFeeder(lambda: True, queue.add, brokers.are_same)
    workload = WorkloadApplier(cluster, cluster, Defaults(), lambda _: None, clock)
    store.put_workqueue(workqueue())
    targets = Targets(cluster, store, workload, clock)
    parts = Dependencies(
        queue=queue,
        clock=clock,
        store=store,
        ownership=Ownership(cluster, "ops/me", namespaces, lambda _: None, list),
        secrets=secrets,
        brokers=brokers,
        gatherer=Gatherer(targets, workers, management, clock),
        targets=targets,
        scaler=Scaler(store, workload, Retirer(cluster, workers, store, clock), clock),
        reporter=reporter,
        protector=Protector(cluster, store, clock),
        finalizer=Finalizer(
            cluster, store, secrets, brokers, management, workers, reporter, rates, clock=clock
        ),
        bindings=Bindings(cluster, store),
        recurring=RecurringRunner(cluster, reporter, metrics, clock, queue.add),
        limits=Limits(),
        rates=rates,
        metrics=metrics,
        on_fatal=lambda _: None,
    )
    try:
        yield Passes(Reconciler(parts), parts, cluster)
    finally:
        await reporter.flush(0)
        await rates.stop()
        await brokers.close()
        await workers.close()
        await management.close()
