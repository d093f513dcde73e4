"""A pass whose broker is unknown still carries out what needs no depth: a pinned count, and what a scale-in began."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from tests.support.fakecluster import FakeCluster, Request, scale_of
from tests.support.passes import KEY, Passes, api, applied, operator, reports, workqueue
from workqueue.contract.binding import from_url
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Store
from workqueue_operator.names import ANNOTATION_DELETION_COST, FINALIZER, LABEL_RETIRING, LABEL_WORKQUEUE
from workqueue_operator.scaling.scale import RENEW_AFTER

Conditions = Mapping[str, Mapping[str, str]]


@dataclass
class Site:
    """One worker, whose connection Secret does not exist, and its Deployment.

    Attributes:
        busy: how many messages it handles.
        calls: the methods of the calls to /retire.
        replicas: the count of the Deployment.
    """

    busy: int = 0
    calls: list[str] = field(default_factory=list)
    replicas: int = 1
    marked: bool = False
    applied: dict[str, Any] = field(default_factory=dict)
    version: int = 1
    port: int = 0

    async def status(self, _: web.Request) -> web.Response:
        return web.json_response({"slots": 1, "busy": self.busy, "consuming": False})

    async def retire(self, request: web.Request) -> web.Response:
        self.calls.append(request.method)
        return web.json_response({}, status=409 if self.busy else 200)

    def cluster(self) -> FakeCluster:
        made = api("amqp://nobody@127.0.0.1:1/")
        made.answer("GET", "/secrets/rabbitmq", ClusterError(404, "not found"))
        made.answer("PATCH", "/deployments/jobs-worker", self.apply)
        made.answer("GET", "/deployments/jobs-worker", lambda _: self.deployment())
        made.answer("PATCH", "/deployments/jobs-worker/scale", self.scale)
        made.answer("GET", "/replicasets/jobs-worker-1", self.replicaset)
        made.answer("PATCH", "/pods/jobs-worker-1-a", self.mark)
        return made

    def apply(self, request: Request) -> dict[str, Any]:
        self.applied = applied(request)
        return self.deployment()

    def deployment(self) -> dict[str, Any]:
        version = {"resourceVersion": str(self.version), "generation": self.version}
        return {
            **self.applied,
            "metadata": {**self.applied["metadata"], **version},
            "spec": {**self.applied["spec"], "replicas": self.replicas},
            "status": {
                "observedGeneration": self.version,
                "replicas": 1,
                "updatedReplicas": 1,
                "readyReplicas": 1,
            },
        }

    def scale(self, request: Request) -> dict[str, Any]:
        self.replicas, self.version = request.body[1]["value"]["replicas"], self.version + 1
        return scale_of(self.deployment())

    def replicaset(self, _: Request) -> dict[str, Any]:
        labelled = 0 if self.marked else 1
        return {
            "metadata": {"generation": 1},
            "spec": {"replicas": 1},
            "status": {"observedGeneration": 1, "replicas": 1, "fullyLabeledReplicas": labelled},
        }

    def mark(self, request: Request) -> dict[str, Any]:
        self.marked = request.body["metadata"]["labels"][LABEL_RETIRING] == "true"
        self.version += 1
        return self.pod()

    def pod(self) -> dict[str, Any]:
        state = {"name": "worker", "image": "jobs:1", "state": {"running": {}}}
        return {
            "metadata": {
                "namespace": "team",
                "name": "jobs-worker-1-a",
                "uid": "uid-pod",
                "resourceVersion": str(self.version),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {LABEL_WORKQUEUE: "jobs", LABEL_RETIRING: "true" if self.marked else "false"},
                "annotations": {
                    **self.applied["spec"]["template"]["metadata"]["annotations"],
                    **({ANNOTATION_DELETION_COST: "-1"} if self.marked else {}),
                },
                "ownerReferences": [{"kind": "ReplicaSet", "name": "jobs-worker-1", "controller": True}],
            },
            "spec": {"nodeName": "node-1"},
            "status": {
                "phase": "Running",
                "podIP": "127.0.0.1",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [state],
            },
        }


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made, app = Site(), web.Application()
    app.router.add_get("/status", made.status)
    app.router.add_route("*", "/retire", made.retire)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


def change(store: Store, version: int, **spec: Any) -> None:
    """A user changes the WorkQueue."""
    body = workqueue()
    body["spec"] |= spec
    body["metadata"] |= {"generation": version, "resourceVersion": str(version)}
    store.put_workqueue(body)


def scaling_active(reported: list[Mapping[str, Any]]) -> tuple[str, str]:
    found: Conditions = {one["type"]: one for one in reported[-1]["conditions"]}
    return found["ScalingActive"]["status"], found["ScalingActive"]["reason"]


async def started(passes: Passes, site: Site) -> None:
    await passes.run()
    passes.parts.store.put_pod(site.pod())
    await passes.run()
    deployment = passes.parts.store.deployment("team", "jobs-worker")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 1


async def test_pin_of_zero_removes_idle_workers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person stops the workers of a queue while the Secret is missing."""
    reported = reports(monkeypatch)
    async with operator(site.cluster(), "team", workers_port=site.port) as passes:
        await started(passes, site)
        assert site.calls == [], "without a pin, an unknown depth changes nothing"

        change(passes.parts.store, 2, replicas=0)
        await passes.run()

    assert (site.replicas, site.calls) == (0, ["POST"])
    assert scaling_active(reported) == ("False", "Pinned")


async def test_pin_of_zero_leaves_busy_workers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    reported = reports(monkeypatch)
    async with operator(site.cluster(), "team", workers_port=site.port) as passes:
        await started(passes, site)
        site.busy = 1

        change(passes.parts.store, 2, replicas=0)
        await passes.run()
        assert (site.replicas, scaling_active(reported)) == (1, ("True", "WorkersBusy"))

        site.busy = 0
        await passes.run()

    assert site.replicas == 0


async def test_pin_below_the_count_of_foreign_workers_holds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator cannot ask them, and without a broker it does not know whether they are busy."""
    reported = reports(monkeypatch)
    cluster = site.cluster()
    cluster.answer("GET", "/horizontalpodautoscalers", {"items": []})
    async with operator(cluster, "team", workers_port=site.port) as passes:
        await started(passes, site)
        change(passes.parts.store, 2, replicas=0, worker=None, workloadRef={"name": "jobs-worker"})
        await passes.run()

    assert site.replicas == 1
    assert scaling_active(reported) == ("False", "UnacknowledgedUnknown")


def leave(store: Store, site: Site) -> None:
    """The count was lowered, and Kubernetes has still to remove the worker that has agreed to leave."""
    site.replicas, site.marked, site.version = 0, True, 5
    store.put_deployment(site.deployment())
    store.put_pod(site.pod())


async def no_secret(_: Passes) -> None:
    """The depth is unknown."""


async def suspension(passes: Passes) -> None:
    """A user suspends the WorkQueue."""
    change(passes.parts.store, 2, suspend=True)


async def deletion(passes: Passes) -> None:
    """A user deletes the WorkQueue, whose queue still has messages."""
    body = workqueue()
    body["spec"]["queue"] = {"deletionPolicy": "DeleteIfEmpty"}
    body["metadata"] |= {
        "resourceVersion": "2",
        "finalizers": [FINALIZER],
        "deletionTimestamp": "2099-01-02T00:00:00Z",
    }
    passes.cluster.answer("GET", "/workqueues/jobs", body)
    passes.parts.store.put_workqueue(body)


async def first_connection(passes: Passes) -> None:
    """The connection is being opened, and RabbitMQ takes its time."""
    uri = base64.b64encode(b"amqp://user:secret@127.0.0.1:1/").decode()
    passes.cluster.answer("GET", "/secrets/rabbitmq", {"data": {"uri": uri}})
    passes.parts.secrets.forget("team", "rabbitmq")


@pytest.mark.parametrize("happens", [no_secret, suspension, deletion, first_connection])
async def test_worker_that_agreed_to_leave_keeps_its_lease(
    site: Site, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Passes], Awaitable[None]]
) -> None:
    """Kubernetes has not removed it yet. It would take a message again, and would then be removed."""
    reports(monkeypatch)
    async with operator(site.cluster(), "team", workers_port=site.port) as passes:
        await started(passes, site)
        await happens(passes)
        leave(passes.parts.store, site)

        due = await passes.reconciler.reconcile(KEY)

    assert site.calls == ["POST"]
    assert due.after is not None
    assert due.after <= RENEW_AFTER


async def test_long_outage_outlasts_no_lease(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between passes without a depth grow."""
    reports(monkeypatch)
    async with operator(site.cluster(), "team", workers_port=site.port) as passes:
        await started(passes, site)
        leave(passes.parts.store, site)
        dues = [await passes.run() for _ in range(9)]

    assert max(due.after or 0.0 for due in dues) == RENEW_AFTER


async def test_pin_leaves_the_doorbell_of_the_older_workqueue_on_the_queue(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The younger one was refused the queue before its Secret vanished, and still has their connection."""
    reports(monkeypatch)
    removed: list[str] = []
    older = workqueue()
    older["metadata"] |= {"name": "older", "uid": "uid-0", "creationTimestamp": "2025-01-01T00:00:00Z"}
    older["spec"]["queue"] = {"name": "jobs"}
    async with operator(site.cluster(), "team", workers_port=site.port) as passes:
        brokers, store = passes.parts.brokers, passes.parts.store
        store.put_workqueue(older)
        binding = from_url("amqp://nobody@127.0.0.1:1/")
        for key in (("team", "older"), KEY):
            handle = await brokers.handle(key, binding)
            handle.poller.watch(key, "jobs").claimed = key != KEY
        monkeypatch.setattr(handle.broker, "remove_doorbell", removed.append)
        change(store, 2, replicas=3)

        await passes.reconciler.reconcile(KEY)

    assert (site.replicas, removed) == (3, [])


async def test_status_says_when_a_pin_changed_the_count(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    reported = reports(monkeypatch)
    async with operator(site.cluster(), "team", workers_port=site.port) as passes:
        await started(passes, site)
        change(passes.parts.store, 2, replicas=0)
        await passes.run()
        assert reported[-1]["lastScaleReason"].startswith("Pinned")

        change(passes.parts.store, 3, replicas=0, suspend=True)
        await passes.run()

    assert reported[-1]["lastScaleReason"].startswith("Pinned")


async def test_pin_starts_more_than_one_worker_of_a_new_template(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person has chosen the count. It does not wait for a first pod alone."""
    reports(monkeypatch)
    async with operator(site.cluster(), "team", workers_port=site.port) as passes:
        change(passes.parts.store, 2, replicas=3)
        await passes.run()

    assert site.replicas == 3
