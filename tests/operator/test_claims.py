"""Which of two WorkQueues owns a queue that both name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster
from tests.support.rabbitmq import VirtualHost
from tests.support.workqueue import workqueue
from workqueue.contract.binding import from_url
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.bindings import Bindings
from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.store import Store
from workqueue_operator.reconcile.queue import ReconcileQueue
from workqueue_operator.reconcile.reconciler import Dependencies, Reconciler
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.scaling.decide import ScaleInWindow


def named(name: str, namespace: str, age: int) -> WorkQueue:
    created = f"2026-11-24T12:00:{59 - age:02}Z"
    metadata = {"namespace": namespace, "uid": name, "resourceVersion": "1", "creationTimestamp": created}
    return workqueue(name=name, queue={"name": "jobs"}, metadata=metadata)


async def declare(reconciler: Reconciler, brokers: BrokerPool, one: WorkQueue, url: str) -> None:
    handle = await brokers.handle(one.key, from_url(url))
    await handle.broker.ready()
    await reconciler._declare(one, PassState(one.metadata.uid, ScaleInWindow(0.0)), handle)


@pytest.mark.parametrize("namespace", ["team", "other"])
async def test_workqueue_without_permission_blocks_no_other(every_vhost: VirtualHost, namespace: str) -> None:
    server = every_vhost.broker
    server.add_user("login-only", "secret", every_vhost.name, configure="", write="", read="")
    older, younger = named("older", namespace, 9), named("younger", "team", 1)
    queue, store = ReconcileQueue(SystemClock()), Store(lambda _: None)
    for one in (older, younger):
        store.put_workqueue(one.model_dump(mode="json", by_alias=True))
    brokers = BrokerPool(lambda _: None, lambda _: None, 60, 60)
    nothing: Any = None
    others = {
        name: nothing
        for name in Dependencies.__annotations__
        if name not in {"queue", "store", "brokers", "bindings"}
    }
    bindings = Bindings(FakeCluster(), store)
    reconciler = Reconciler(
        Dependencies(queue=queue, store=store, brokers=brokers, bindings=bindings, **others)
    )
    try:
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
        await brokers.close()
        server.delete_user("login-only")
