"""What becomes of the marks of a scale-in that was called off, as passes and the ReplicaSet controller see them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.fakecluster import FakeCluster, Request, scale_of
from tests.support.snapshots import snapshot
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import Reason
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import deployment_view, unsettled
from workqueue_operator.names import (
    ANNOTATION_DELETION_COST,
    ANNOTATION_TEMPLATE_HASH,
    LABEL_RETIRING,
    LABEL_WORKQUEUE,
)
from workqueue_operator.scaling.decide import Decision, Hold, Retire
from workqueue_operator.scaling.scale import Scaler, ScaleState
from workqueue_operator.workers.apply import WorkloadApplier
from workqueue_operator.workers.client import Answer, SigningKeys, Workers
from workqueue_operator.workers.render import Defaults
from workqueue_operator.workers.retire import Retirer

OURS = workqueue()
TEMPLATE = {LABEL_WORKQUEUE: "jobs", LABEL_RETIRING: "false", "app.kubernetes.io/name": "jobs"}
OF_A_MESH = {"security.istio.io/tlsMode": "istio", "service.istio.io/canonical-name": "jobs"}
HANDLE: Any = SimpleNamespace(broker=SimpleNamespace(binding=SimpleNamespace(signing_key=b"")))


class Clock(FakeClock):
    """A clock on which each sleep ends at once."""

    async def sleep(self, seconds: float) -> None:
        self._now += seconds


class Idle(Workers):
    """Workers that agree to leave."""

    def __init__(self) -> None:
        self.retired: set[str] = set()

    async def retire(self, addresses: Any, keys: SigningKeys) -> dict[str, Answer]:
        asked = {address.pod for address in addresses}
        self.retired |= asked
        return dict.fromkeys(asked, Answer.RETIRED)

    async def resume(self, addresses: Any, keys: SigningKeys) -> None:
        self.retired -= {address.pod for address in addresses}


class Site:
    """An API server, three workers, a ReplicaSet controller that can be late, and an operator."""

    def __init__(self, labels: dict[str, str] | None = None) -> None:
        self.labels = {**TEMPLATE, **(labels or {})}
        self.version = self.generation = 1
        self.pods: dict[str, dict[str, Any]] = {}
        self.count, self.late = 3, False
        self.clock, self.workers = Clock(), Idle()
        self.cluster = FakeCluster()
        self.cluster.answer("POST", "/secrets", {})
        self.cluster.answer("GET", "/secrets/", ClusterError(404, "not found"))
        self.cluster.answer("PATCH", "/pods/", self.mark)
        self.cluster.answer("GET", "/replicasets/jobs-1", lambda _: self.replicaset)
        self.cluster.answer("GET", "/deployments/jobs-worker", lambda _: self.deployment)
        self.cluster.answer("PATCH", "/deployments/jobs-worker/scale", self.scale)
        self.restart()
        for name in ("a", "b", "c"):
            self.create(name)
        self.sync()

    def restart(self) -> None:
        """Another operator process begins, and lists the pods."""
        self.store = Store(lambda _: None)
        workload = WorkloadApplier(self.cluster, self.cluster, Defaults(), lambda _: None, self.clock)
        retirer = Retirer(self.cluster, self.workers, self.store, self.clock)
        self.scaler, self.state = Scaler(self.store, workload, retirer, self.clock), ScaleState()
        for body in self.pods.values():
            self.store.put_pod(body)

    def create(self, name: str) -> None:
        self.version += 1
        self.pods[name] = {
            "metadata": {
                "namespace": "team",
                "name": name,
                "uid": name,
                "resourceVersion": str(self.version),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": dict(self.labels),
                "annotations": {ANNOTATION_TEMPLATE_HASH: "h"},
                "ownerReferences": [{"name": "jobs-1", "controller": True}],
            },
            "spec": {"nodeName": "n"},
            "status": {
                "phase": "Running",
                "podIP": "10.0.0.1",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "worker", "state": {"running": {}}}],
            },
        }
        self.store.put_pod(self.pods[name])

    def delete(self, name: str) -> None:
        body = self.pods.pop(name)
        self.store.drop("pods", body)

    def mark(self, request: Request) -> dict[str, Any]:
        metadata = self.pods[request.path.rpartition("/")[2]]["metadata"]
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        for part, values in request.body["metadata"].items():
            merged = {**metadata[part], **values}
            metadata[part] = {key: value for key, value in merged.items() if value is not None}
        return deepcopy(self.pods[metadata["name"]])

    def scale(self, request: Request) -> dict[str, Any]:
        self.count, self.generation = request.body[1]["value"]["replicas"], self.generation + 1
        return scale_of(self.deployment)

    def sync(self) -> None:
        """The controller sees everything, and removes and creates pods."""
        ranked = sorted(self.pods, key=lambda name: (name not in self.marked, name))
        for name in ranked[: max(0, len(self.pods) - self.count)]:
            self.delete(name)
        for number in range(self.count - len(self.pods)):
            self.create(f"new-{self.version}-{number}")
        matching = [
            body for body in self.pods.values() if TEMPLATE.items() <= body["metadata"]["labels"].items()
        ]
        self.seen = {
            "observedGeneration": self.generation,
            "replicas": len(self.pods),
            "updatedReplicas": len(self.pods),
            "fullyLabeledReplicas": len(matching),
        }

    @property
    def replicaset(self) -> dict[str, Any]:
        if not self.late:
            self.sync()
        return {
            "metadata": {"generation": self.generation},
            "spec": {"replicas": self.count},
            "status": self.seen,
        }

    @property
    def deployment(self) -> dict[str, Any]:
        annotations = {ANNOTATION_TEMPLATE_HASH: "h"}
        return {
            "metadata": {
                "namespace": "team",
                "name": "jobs-worker",
                "uid": "d",
                "generation": self.generation,
                "resourceVersion": str(self.version),
            },
            "spec": {"replicas": self.count, "template": {"metadata": {"annotations": annotations}}},
            "status": self.seen,
        }

    @property
    def marked(self) -> set[str]:
        return {
            name
            for name, body in self.pods.items()
            if ANNOTATION_DELETION_COST in body["metadata"]["annotations"]
        }

    async def run(self, wanted: int) -> Decision:
        """One pass that wants this many workers."""
        view, pods = deployment_view(self.deployment), self.store.pods_of(OURS.key)
        why = unsettled(view, pods)
        decision: Decision = Hold(wanted, Reason.WITHIN_BOUNDS, "enough")
        if wanted < self.count:
            retire = Retire(wanted, wanted, only_when_empty=False, reason=Reason.SURPLUS, message="surplus")
            decision = retire if why is None else Hold.because(wanted, why)
        seen = snapshot(OURS, deployment=view, pods=pods)
        scaled = await self.scaler.scale(seen, decision, self.state, HANDLE)
        assert scaled.error is None
        self.state = scaled.state
        return scaled.decision

    async def call_off(self) -> None:
        """A scale-in of two workers whose marks the controller does not see in time."""
        self.late = True
        decision = await self.run(wanted=1)
        assert decision.reason is Reason.PODS_SETTLING
        assert (self.marked, self.workers.retired) == ({"a", "b"}, set())


def nothing(_: Site) -> None:
    """Nothing happens in between."""


def one_marked_pod_vanishes(site: Site) -> None:
    site.delete("a")


def all_marked_pods_vanish(site: Site) -> None:
    site.delete("a")
    site.delete("b")


def somebody_takes_the_cost_away(site: Site) -> None:
    del site.pods["a"]["metadata"]["annotations"][ANNOTATION_DELETION_COST]
    site.version += 1
    site.pods["a"]["metadata"]["resourceVersion"] = str(site.version)
    site.store.put_pod(site.pods["a"])


@pytest.mark.parametrize("wanted", [1, 3], ids=["surplus as before", "no surplus any more"])
@pytest.mark.parametrize(
    "happens",
    [nothing, Site.restart, one_marked_pod_vanishes, all_marked_pods_vanish],
    ids=["nothing", "operator restarts", "marked pod vanishes", "all marked pods vanish"],
)
async def test_marks_end_within_two_passes(happens: Callable[[Site], None], wanted: int) -> None:
    site = Site()
    await site.call_off()

    happens(site)
    site.late = False
    site.sync()
    for _ in range(2):
        await site.run(wanted=3)

    assert (site.marked, site.workers.retired, site.count) == (set(), set(), 3)
    await site.run(wanted)
    site.sync()
    assert (len(site.pods), site.marked) == (wanted, set())


async def test_marks_of_a_suspended_workqueue_end_after_it() -> None:
    """Without a pass nobody clears them. The workers consume again when their lease ends."""
    site = Site()
    await site.call_off()
    await site.clock.advance(3600)
    site.late = False

    await site.run(wanted=3)

    assert site.marked == set()


async def test_marks_stay_until_the_controller_has_seen_them() -> None:
    site = Site()
    await site.call_off()

    for wanted in (1, 3):
        await site.run(wanted)

    assert (site.marked, site.workers.retired, site.count) == ({"a", "b"}, set(), 3)


async def test_label_without_its_cost_does_not_stop_scale_in() -> None:
    """Somebody removed the cost of a marked pod. The next marks, and their end, repair the label."""
    site = Site()
    await site.call_off()
    somebody_takes_the_cost_away(site)
    site.late = False

    for _ in range(4):
        await site.run(wanted=1)
        site.sync()

    assert (site.count, len(site.pods)) == (1, 1)


async def test_labels_that_a_webhook_adds_do_not_stop_scale_in() -> None:
    """As a service mesh does. A ReplicaSet counts the pods that have at least the labels of its template."""
    site = Site(labels=OF_A_MESH)

    await site.run(wanted=1)
    site.sync()

    assert (list(site.pods), site.count) == (["c"], 1)
