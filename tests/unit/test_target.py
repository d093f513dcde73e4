"""The Deployment of a workloadRef: what else scales it, and when the operator checks that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Store
from workqueue_operator.workers import autoscalers
from workqueue_operator.workers.apply import Ensured, WorkloadApplier
from workqueue_operator.workers.render import Defaults
from workqueue_operator.workers.target import Targets

OURS = workqueue(workloadRef={"name": "theirs"})
SCALED = {
    "manager": "kube-controller-manager",
    "subresource": "scale",
    "fieldsV1": {"f:spec": {"f:replicas": {}}},
}


DEPLOYMENT = {
    "metadata": {"namespace": "team", "name": "theirs", "uid": "u", "resourceVersion": "1"},
    "spec": {"replicas": 3},
}


def autoscaler(name: str, kind: str, of: str, *owners: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "ownerReferences": [*owners]},
        "spec": {"scaleTargetRef": {"kind": kind, "name": of}},
    }


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    made.answer("GET", "/deployments/theirs", DEPLOYMENT)
    made.answer("GET", "/horizontalpodautoscalers", {"items": []})
    return made


@pytest.fixture
def store() -> Store:
    return Store(lambda _: None)


@pytest.fixture
def targets(cluster: FakeCluster, store: Store) -> Targets:
    return Targets(
        cluster,
        store,
        WorkloadApplier(cluster, cluster, Defaults(), lambda _: None, SystemClock()),
        SystemClock(),
    )


async def problem(targets: Targets) -> Unknown:
    found = await targets.ensure(OURS)
    assert isinstance(found, Unknown)
    assert found.reason is Reason.WORKLOAD_CONTESTED
    return found


async def test_competing_autoscaler_and_its_owner_are_named(cluster: FakeCluster, targets: Targets) -> None:
    keda = autoscaler("keda-hpa-x", "Deployment", "theirs", {"kind": "ScaledObject", "name": "x"})
    others = [autoscaler("a", "StatefulSet", "theirs"), autoscaler("b", "Deployment", "another")]
    cluster.answer("GET", "/horizontalpodautoscalers", {"items": [*others, keda]})
    said = (await problem(targets)).message
    assert "the HorizontalPodAutoscaler 'keda-hpa-x' of the ScaledObject 'x'" in said


async def test_autoscalers_are_listed_once_per_namespace_and_interval(
    cluster: FakeCluster, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("GET", "/horizontalpodautoscalers", {"items": [autoscaler("a", "Deployment", "theirs")]})
    await asyncio.gather(*(problem(targets) for _ in range(3)))
    assert len([path for path in cluster.paths("GET") if "horizontal" in path]) == 1
    cluster.answer("GET", "/horizontalpodautoscalers", {"items": []})
    await problem(targets)
    monkeypatch.setattr(autoscalers, "FRESH", -1.0)
    assert not isinstance(await targets.ensure(OURS), Unknown), "the autoscaler was deleted"


async def test_missing_right_to_list_autoscalers_prevents_scaling(
    cluster: FakeCluster, targets: Targets
) -> None:
    cluster.answer("GET", "/horizontalpodautoscalers", ClusterError(403, "no"))
    found = await targets.ensure(OURS)
    assert isinstance(found, Unknown)
    assert found.reason is Reason.API_FORBIDDEN


async def test_unanswered_autoscaler_list_is_an_error(cluster: FakeCluster, targets: Targets) -> None:
    cluster.answer("GET", "/horizontalpodautoscalers", ClusterError(0, "no answer"))
    with pytest.raises(ClusterError):
        await targets.ensure(OURS)


async def test_deployment_that_exists_can_be_taken_as_it_is(
    cluster: FakeCluster, targets: Targets, store: Store
) -> None:
    seen = {
        "metadata": {**DEPLOYMENT["metadata"], "name": "jobs-worker", "ownerReferences": [{"uid": "uid-1"}]},
        "spec": {"replicas": 2},
    }
    store.put_deployment(seen)

    found = await targets.ensure(workqueue(), as_it_is=True)

    assert isinstance(found, Ensured)
    assert found.deployment["spec"]["replicas"] == 2
    assert not cluster.asked


async def test_foreign_deployment_is_not_taken_as_it_is(targets: Targets, store: Store) -> None:
    store.put_deployment({**DEPLOYMENT, "metadata": {**DEPLOYMENT["metadata"], "name": "jobs-worker"}})

    found = await targets.ensure(workqueue(), as_it_is=True)

    assert isinstance(found, Unknown)
    assert found.reason is Reason.NAME_CONFLICT


async def test_refusal_wakes_no_suspended_workqueue(cluster: FakeCluster, targets: Targets) -> None:
    """A suspended WorkQueue applies nothing, so its next attempt would always be due."""
    cluster.answer("POST", "/secrets", {})
    cluster.answer("PATCH", "/deployments/jobs-worker", ClusterError(403, "quota"))
    await targets.ensure(workqueue())
    soon = targets.looks_again(workqueue())
    assert soon is not None
    assert soon >= 1
    assert targets.looks_again(workqueue(suspend=True)) is None


@pytest.mark.parametrize(
    ("ref", "owner", "stopped"),
    [
        pytest.param("theirs", "uid-1", True, id="another-deployment"),
        pytest.param("jobs-worker", "uid-1", False, id="the-workers-themselves"),
        pytest.param("theirs", "uid-2", False, id="workers-of-another-owner"),
    ],
)
async def test_workload_ref_stops_the_workers_of_an_earlier_worker(
    cluster: FakeCluster, targets: Targets, store: Store, ref: str, owner: str, *, stopped: bool
) -> None:
    own = {
        "metadata": {**DEPLOYMENT["metadata"], "name": "jobs-worker", "ownerReferences": [{"uid": owner}]},
        "spec": {"replicas": 2},
    }
    store.put_deployment(own)
    cluster.answer("PATCH", "/deployments/jobs-worker", {**own, "spec": {"replicas": 0}})

    await targets.ensure(workqueue(workloadRef={"name": ref}))

    assert bool(cluster.paths("PATCH")) == stopped


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("at least one replica here", Reason.COUNT_REFUSED),
        ('deployments.apps "jobs-worker" is forbidden: User "operator" cannot patch', Reason.API_FORBIDDEN),
    ],
    ids=["by-a-policy", "without-the-right"],
)
async def test_refusal_to_stop_the_workers_of_an_earlier_worker_is_named(
    cluster: FakeCluster, targets: Targets, store: Store, words: str, reason: Reason
) -> None:
    metadata = {**DEPLOYMENT["metadata"], "name": "jobs-worker", "ownerReferences": [{"uid": "uid-1"}]}
    store.put_deployment({"metadata": metadata, "spec": {"replicas": 2}})
    cluster.answer("PATCH", "/deployments/jobs-worker/scale", ClusterError(403, words))

    found = await targets.ensure(OURS)

    assert isinstance(found, Unknown)
    assert found.reason is reason
    assert words in found.message
