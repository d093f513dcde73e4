"""Which of two WorkQueues owns a queue that both name, and what becomes of the other's workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request, scale_of
from tests.support.passes import KEY, Passes, api, operator, reports
from tests.support.rabbitmq import VirtualHost
from tests.support.workqueue import workqueue
from workqueue.contract.binding import from_url
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.bindings import Bindings
from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.reconcile.queue import Lane, ReconcileQueue
from workqueue_operator.reconcile.reconciler import Dependencies, Reconciler
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.scaling.decide import ScaleInWindow


def named(name: str, namespace: str, age: int) -> WorkQueue:
    created = f"2026-11-24T12:00:{59 - age:02}Z"
    metadata = {"namespace": namespace, "uid": name, "resourceVersion": "1", "creationTimestamp": created}
    return workqueue(name=name, queue={"name": "jobs"}, metadata=metadata)


async def declare(
    reconciler: Reconciler, brokers: BrokerPool, one: WorkQueue, url: str, state: PassState | None = None
) -> None:
    handle = await brokers.handle(one.key, from_url(url))
    await handle.broker.ready()
    await reconciler._declare(one, state or PassState(one.metadata.uid, ScaleInWindow(0.0)), handle)


class Enqueued(ReconcileQueue):
    """A queue that notes keys and runs no pass."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.keys: list[Key] = []

    def add(self, key: Key, lane: Lane = Lane.EVENT) -> None:
        self.keys.append(key)


@asynccontextmanager
async def claiming(*workqueues: WorkQueue) -> AsyncIterator[tuple[Reconciler, BrokerPool, Enqueued]]:
    """A reconciler that can declare the queues of these WorkQueues, and nothing else."""
    queue, store = Enqueued(), Store(lambda _: None)
    for one in workqueues:
        store.put_workqueue(one.model_dump(mode="json", by_alias=True))
    brokers, bindings = BrokerPool(lambda _: None, lambda _: None, 60, 60), Bindings(FakeCluster(), store)
    nothing: Any = None
    others = {
        name: nothing
        for name in Dependencies.__annotations__
        if name not in {"queue", "store", "brokers", "bindings"}
    }
    parts = Dependencies(queue=queue, store=store, brokers=brokers, bindings=bindings, **others)
    try:
        yield Reconciler(parts), brokers, queue
    finally:
        await brokers.close()


@pytest.mark.parametrize("namespace", ["team", "other"])
async def test_workqueue_without_permission_blocks_no_other(every_vhost: VirtualHost, namespace: str) -> None:
    server = every_vhost.broker
    server.add_user("login-only", "secret", every_vhost.name, configure="", write="", read="")
    older, younger = named("older", namespace, 9), named("younger", "team", 1)
    try:
        async with claiming(older, younger) as (reconciler, brokers, _):
            login_only = server.url_of(every_vhost.name, "login-only", "secret")
            with pytest.raises(ReconcileError) as refused:
                await declare(reconciler, brokers, older, login_only)
            assert refused.value.reason is Reason.PERMISSION_DENIED
            await declare(reconciler, brokers, younger, every_vhost.url)

            # With the permission the older one has it.
            await declare(reconciler, brokers, older, every_vhost.url)
            with pytest.raises(ReconcileError) as claimed:
                await declare(reconciler, brokers, younger, every_vhost.url)
            assert claimed.value.reason is Reason.QUEUE_CLAIMED
            assert ("older'" in claimed.value.message) is (namespace == "team")
            assert "other" not in claimed.value.message.replace("another", "")
    finally:
        server.delete_user("login-only")


async def test_younger_of_two_claims_at_the_same_moment_is_refused(vhost: VirtualHost) -> None:
    older, younger = named("older", "team", 9), named("younger", "team", 1)
    async with claiming(older, younger) as (reconciler, brokers, enqueued):
        results = await asyncio.gather(
            *(declare(reconciler, brokers, one, vhost.url) for one in (older, younger)),
            return_exceptions=True,
        )

        first, second = results
        assert first is None
        if second is None:
            # It was first. The older one has then enqueued it.
            assert younger.key in enqueued.keys
            with pytest.raises(ReconcileError) as refused:
                await declare(reconciler, brokers, younger, vhost.url)
            second = refused.value
        assert isinstance(second, ReconcileError)
        assert second.reason is Reason.QUEUE_CLAIMED


async def test_resumed_workqueue_claims_its_queue_again(vhost: VirtualHost) -> None:
    older, younger = named("older", "team", 9), named("younger", "team", 1)
    state = PassState(older.metadata.uid, ScaleInWindow(0.0))
    async with claiming(older, younger) as (reconciler, brokers, enqueued):
        # The connection stays open when the older one leaves.
        await brokers.handle(younger.key, from_url(vhost.url))
        await declare(reconciler, brokers, older, vhost.url, state)
        await brokers.leave(older.key)
        await declare(reconciler, brokers, younger, vhost.url)

        await declare(reconciler, brokers, older, vhost.url, state)

        assert enqueued.keys == [younger.key]
        with pytest.raises(ReconcileError) as refused:
            await declare(reconciler, brokers, younger, vhost.url)
        assert refused.value.reason is Reason.QUEUE_CLAIMED


async def lose_the_queue(passes: Passes, vhost: VirtualHost) -> None:
    """Let an older WorkQueue claim the queue of one that has two workers."""
    store, brokers = passes.parts.store, passes.parts.brokers
    live = store.deployment(KEY[0], "jobs-worker")
    assert live is not None
    metadata = {**live["metadata"], "resourceVersion": "3"}
    store.put_deployment({**live, "metadata": metadata, "spec": {**live["spec"], "replicas": 2}})
    older = named("older", "team", 0).to_wire()
    older["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"
    store.put_workqueue(older)
    handle = await brokers.handle(("team", "older"), from_url(vhost.url))
    handle.poller.watch(("team", "older"), "jobs").claimed = True


async def test_workers_stop_when_an_older_workqueue_claims_their_queue(vhost: VirtualHost) -> None:
    cluster, counts = api(vhost.url), []
    async with operator(cluster, "team") as passes:
        await passes.run()
        await lose_the_queue(passes, vhost)

        def write(request: Request) -> dict[str, Any]:
            counts.append(request.body["spec"]["replicas"])
            live = passes.parts.store.deployment(KEY[0], "jobs-worker")
            assert live is not None
            metadata = {**live["metadata"], "resourceVersion": "4"}
            return scale_of({"metadata": metadata, "spec": {"replicas": counts[-1]}})

        cluster.answer("PATCH", "/deployments/jobs-worker/scale", write)

        await passes.run()

    assert counts == [0]


async def test_refusal_to_stop_workers_without_a_queue_is_reported_beside_the_claim(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = reports(monkeypatch)
    cluster = api(vhost.url)
    async with operator(cluster, "team") as passes:
        await passes.run()
        await lose_the_queue(passes, vhost)
        cluster.answer("PATCH", "/deployments/jobs-worker/scale", ClusterError(403, "at least one here"))

        await passes.run()

    reasons = {one["type"]: one["reason"] for one in reported[-1]["conditions"]}
    assert reasons["QueueDeclared"] == "QueueClaimed"
    assert reasons["ScalingActive"] == "CountRefused"


async def test_finding_about_the_consumer_timeout_follows_the_time_of_a_handler(vhost: VirtualHost) -> None:
    """A classic queue has RabbitMQ's own timeout of half an hour, unless it has an argument."""
    about = {
        "queue": {"name": "jobs", "type": "Classic"},
        "metadata": {"uid": "jobs", "resourceVersion": "1"},
    }
    long, short = (workqueue(worker={"timeoutSeconds": seconds}, **about) for seconds in (7200, 60))
    state = PassState("jobs", ScaleInWindow(0.0))
    async with claiming(short) as (reconciler, brokers, _):
        for one, reason in (
            (short, Reason.DECLARED),
            (long, Reason.CONSUMER_TIMEOUT_TOO_SHORT),
            (short, Reason.DECLARED),
        ):
            await declare(reconciler, brokers, one, vhost.url, state)
            assert state.queue is not None
            assert state.queue.reason is reason
