"""The workers' Deployment: how it is created, applied again, and left alone after a restart."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.wait import until
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.views import deployment_view
from workqueue_operator.names import FIELD_MANAGER, REPLICAS_FIELD_MANAGER
from workqueue_operator.workers import apply as module
from workqueue_operator.workers import render
from workqueue_operator.workers.apply import WorkloadApplier

DEFAULTS = render.Defaults("workqueue:1", False, (), {})
DEPLOYMENT = "/deployments/jobs-worker"


def live(body: dict[str, Any], generation: int = 1, **metadata: Any) -> dict[str, Any]:
    """What the API server makes of an apply."""
    spec = {"replicas": 0, **body.get("spec", {})}
    return {"metadata": {**body["metadata"], "uid": "d1", "generation": generation, **metadata}, "spec": spec}


def wanted() -> dict[str, Any]:
    made = workqueue()
    return render.deployment(made, DEFAULTS, broker="", proven_hash=None)


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    made.answer("PATCH", DEPLOYMENT, lambda request: live(request.body))
    made.answer("PATCH", "/poddisruptionbudgets/jobs-worker", {})
    made.answer("POST", "/secrets", {})
    return made


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[WorkQueue]:
    """The WorkQueues whose Deployments were rendered."""
    found: list[WorkQueue] = []
    real = render.deployment

    def recorded(one: WorkQueue, *arguments: Any, **named: Any) -> Any:
        found.append(one)
        return real(one, *arguments, **named)

    monkeypatch.setattr(render, "deployment", recorded)
    return found


@pytest.fixture
def woken() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def workload(cluster: FakeCluster, woken: list[tuple[str, str]]) -> WorkloadApplier:
    return WorkloadApplier(cluster, cluster, DEFAULTS, woken.append, SystemClock())


def applies(cluster: FakeCluster) -> list[Request]:
    return [request for request in cluster.asked if request.path.endswith(DEPLOYMENT)]


async def test_deployment_is_created_without_replicas_and_force(
    cluster: FakeCluster, workload: WorkloadApplier
) -> None:
    made = (await workload.ensure(workqueue(), None)).deployment
    (request,) = applies(cluster)
    assert request.body["spec"]["replicas"] == 0
    assert request.query == {"fieldManager": FIELD_MANAGER, "force": "false"}
    assert (await workload.ensure(workqueue(), made)).deployment is made
    assert len(applies(cluster)) == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "volumes[2].name: Invalid value"),
        (422, "volumes[2].name: Invalid value"),
        (
            500,
            "failed to create typed patch object: .spec.template.spec.volumes[0].x: field not declared in schema",
        ),
    ],
)
async def test_refused_deployment_is_named(
    status: int, said: str, cluster: FakeCluster, workload: WorkloadApplier
) -> None:
    cluster.answer("PATCH", DEPLOYMENT, ClusterError(status, said))
    with pytest.raises(ReconcileError, match="volumes") as caught:
        await workload.ensure(workqueue(), None)
    assert caught.value.reason is Reason.WORKLOAD_REFUSED


async def test_foreign_deployment_is_a_name_conflict(cluster: FakeCluster, workload: WorkloadApplier) -> None:
    theirs = {"metadata": {"name": "jobs-worker", "uid": "d9"}, "spec": {"replicas": 7}}
    cluster.answer("PATCH", DEPLOYMENT, ClusterError(409, "conflict with kubectl"))
    cluster.answer("GET", DEPLOYMENT, theirs)
    with pytest.raises(ReconcileError) as caught:
        await workload.ensure(workqueue(), None)
    assert caught.value.reason is Reason.NAME_CONFLICT
    assert [request.method for request in applies(cluster)] == ["PATCH", "GET"]


async def test_own_deployment_missing_in_store_is_reapplied(
    cluster: FakeCluster, workload: WorkloadApplier
) -> None:
    def answer(request: Request) -> Any:
        forced = request.query["force"] == "true"
        return live(request.body) if forced else ClusterError(409, "conflict")

    cluster.answer("PATCH", DEPLOYMENT, answer)
    cluster.answer("GET", DEPLOYMENT, live({**wanted(), "spec": {"replicas": 2}}))
    await workload.ensure(workqueue(), None)
    assert "replicas" not in applies(cluster)[-1].body["spec"]


@pytest.mark.parametrize("owned", [False, True], ids=["never scaled", "scaled before, which is a conflict"])
async def test_reapply_first_gives_the_count_an_owner(
    cluster: FakeCluster, workload: WorkloadApplier, owned: bool
) -> None:
    made = (await workload.ensure(workqueue(), None)).deployment
    cluster.asked.clear()

    def answer(request: Request) -> Any:
        conflict = owned and request.query["force"] == "false"
        return ClusterError(409, "conflict") if conflict else live(request.body, 2)

    cluster.answer("PATCH", DEPLOYMENT, answer)
    await workload.ensure(workqueue(worker={"image": "jobs:2"}), made)
    count, template = applies(cluster)
    assert count.query == {"fieldManager": REPLICAS_FIELD_MANAGER, "force": "false"}
    assert count.body["spec"] == {"replicas": 0}
    assert count.body["metadata"]["uid"] == "d1"
    assert "replicas" not in template.body["spec"]
    assert template.query["force"] == "true"


async def test_count_above_zero_is_not_claimed_again(cluster: FakeCluster, workload: WorkloadApplier) -> None:
    made = (await workload.ensure(workqueue(), None)).deployment
    made["spec"]["replicas"] = 3
    cluster.asked.clear()
    await workload.ensure(workqueue(worker={"image": "jobs:2"}), made)
    assert len(applies(cluster)) == 1


async def test_deployment_is_rendered_once_after_an_edit_that_does_not_change_it(
    cluster: FakeCluster, workload: WorkloadApplier, rendered: list[WorkQueue]
) -> None:
    made = (await workload.ensure(workqueue(), None)).deployment
    rendered.clear()
    edited = workqueue(scaling={"maxReplicas": 7})
    for _ in range(3):
        assert (await workload.ensure(edited, made)).deployment is made

    assert rendered == [edited]
    assert len(applies(cluster)) == 1


async def test_another_broker_replaces_the_pods(cluster: FakeCluster, workload: WorkloadApplier) -> None:
    made = (await workload.ensure(workqueue(), None, "amqp://old:5672/")).deployment
    cluster.asked.clear()
    assert (await workload.ensure(workqueue(), made)).deployment is made, "the broker is not known"
    assert not applies(cluster)
    moved = (await workload.ensure(workqueue(), made, "amqp://new:5672/")).deployment
    before, after = deployment_view(made), deployment_view(moved)
    assert (before.broker, after.broker) == ("amqp://old:5672/", "amqp://new:5672/")
    assert before.template_hash != after.template_hash


async def test_unchanged_deployment_is_reapplied_in_its_turn_after_restart(
    cluster: FakeCluster,
    workload: WorkloadApplier,
    woken: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TURNS_BEGIN_AFTER", 0.01)
    monkeypatch.setattr(module, "TURN_SECONDS", 0.01)
    seen = live(wanted())
    assert (await workload.ensure(workqueue(), seen)).deployment is seen
    assert not cluster.asked
    await until(lambda: woken == [("team", "jobs")])
    await asyncio.sleep(0)
    await workload.ensure(workqueue(), seen)
    assert applies(cluster)


async def test_changed_template_is_applied_immediately_after_restart(
    cluster: FakeCluster, workload: WorkloadApplier
) -> None:
    await workload.ensure(workqueue(worker={"image": "jobs:2"}), live(wanted()))
    assert applies(cluster)


REFUSED = ClusterError(403, "admission webhook denied the request: image jobs:2 is not signed")
CHANGED = workqueue(worker={"image": "jobs:2"})


async def test_refused_template_keeps_working_deployment_scalable(
    cluster: FakeCluster, workload: WorkloadApplier
) -> None:
    made = (await workload.ensure(workqueue(), None)).deployment
    cluster.answer("PATCH", DEPLOYMENT, REFUSED)

    ensured = await workload.ensure(CHANGED, made)

    assert ensured.deployment is made
    assert ensured.refusal is not None
    assert ensured.refusal.reason is Reason.WORKLOAD_REFUSED
    assert "not signed" in ensured.refusal.message


async def test_refused_disruption_budget_keeps_deployment_scalable(
    cluster: FakeCluster, workload: WorkloadApplier
) -> None:
    cluster.answer("PATCH", "/poddisruptionbudgets/jobs-worker", ClusterError(403, "exceeded quota: few"))

    ensured = await workload.ensure(workqueue(), None)

    assert ensured.deployment["metadata"]["name"] == "jobs-worker"
    assert ensured.refusal is not None
    assert "PodDisruptionBudget 'jobs-worker'" in ensured.refusal.message


async def test_refused_apply_is_retried_with_growing_pauses(
    cluster: FakeCluster, workload: WorkloadApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    made = (await workload.ensure(workqueue(), None)).deployment
    cluster.answer("PATCH", DEPLOYMENT, REFUSED)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pauses = []
    for _ in range(10):
        await workload.ensure(CHANGED, made)
        cluster.asked.clear()
        assert (await workload.ensure(CHANGED, made)).refusal is not None, "it is remembered"
        assert not cluster.asked
        moment = workload.next_attempt(CHANGED)
        assert moment is not None
        pauses.append(moment - now)
        now = moment

    assert pauses[0] < 2
    assert pauses[-1] >= 60
    cluster.answer("PATCH", DEPLOYMENT, lambda request: live(request.body, 2))
    assert (await workload.ensure(CHANGED, made)).refusal is None
    assert workload.next_attempt(CHANGED) is None


async def test_corrected_template_is_applied_immediately(
    cluster: FakeCluster, workload: WorkloadApplier
) -> None:
    made = (await workload.ensure(workqueue(), None)).deployment
    cluster.answer("PATCH", DEPLOYMENT, REFUSED)
    await workload.ensure(CHANGED, made)
    cluster.answer("PATCH", DEPLOYMENT, lambda request: live(request.body, 2))

    ensured = await workload.ensure(workqueue(worker={"image": "jobs:3"}), made)

    assert ensured.refusal is None
    assert ensured.deployment is not made


@pytest.mark.parametrize("path", ["/secrets", "/poddisruptionbudgets/jobs-worker"])
async def test_webhook_that_is_down_for_a_side_object_does_not_stop_the_scaling(
    path: str, cluster: FakeCluster, workload: WorkloadApplier
) -> None:
    down = ClusterError(500, 'Internal error occurred: failed calling webhook "x.example.com": refused')
    for method in ("POST", "PATCH"):
        cluster.answer(method, path, down)
    ensured = await workload.ensure(workqueue(), None)
    assert ensured.refusal is not None
    assert "failed calling webhook" in ensured.refusal.message


async def test_proven_deployment_is_rendered_once_before_its_turn(
    cluster: FakeCluster, workload: WorkloadApplier, rendered: list[WorkQueue]
) -> None:
    made = (await workload.ensure(workqueue(), None)).deployment
    proven = deployment_view(made).template_hash
    rendered.clear()
    for _ in range(3):
        assert (await workload.ensure(workqueue(), made, proven_hash=proven)).deployment is made

    assert len(rendered) == 1


async def test_proof_of_a_template_is_kept_in_its_deployment(
    cluster: FakeCluster,
    workload: WorkloadApplier,
    woken: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a restarted operator need not start one worker first again."""
    monkeypatch.setattr(module, "TURNS_BEGIN_AFTER", 0.01)
    made = (await workload.ensure(workqueue(), None)).deployment
    view = deployment_view(made)
    assert view.proven_hash is None

    cluster.asked.clear()
    assert (await workload.ensure(workqueue(), made, proven_hash=view.template_hash)).deployment is made
    assert not cluster.asked, "nothing waits for it"
    await until(lambda: woken == [("team", "jobs")])
    proven = (await workload.ensure(workqueue(), made, proven_hash=view.template_hash)).deployment
    assert deployment_view(proven).proven_hash == view.template_hash
    assert len(cluster.asked) == len(applies(cluster)) == 2, "one hands over its count, one has the proof"

    assert (await workload.ensure(workqueue(), proven)).deployment is proven, (
        "without what the first process knew"
    )
    other = (await workload.ensure(workqueue(worker={"image": "jobs:2"}), proven)).deployment
    assert deployment_view(other).proven_hash is None
