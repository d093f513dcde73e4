"""Which pods autoscalers must leave alone: those whose handler runs for long, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.fakecluster import FakeCluster, Request
from workqueue_operator.errors import ClusterError, LeadershipLostError
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.kube.views import PodView
from workqueue_operator.names import ANNOTATION_DELETION_COST, ANNOTATION_PROTECTED, LABEL_WORKQUEUE
from workqueue_operator.reconcile.outbox import REPORT_AFTER
from workqueue_operator.reconcile.protection import LONG_SECONDS, RATE, REFUSED_AGAIN, Protector, plan
from workqueue_operator.workers.client import WorkerStatus

KARPENTER = "karpenter.sh/do-not-disrupt"
CLUSTER_AUTOSCALER = "cluster-autoscaler.kubernetes.io/safe-to-evict"
PROTECTED = {KARPENTER: "true", CLUSTER_AUTOSCALER: "false", ANNOTATION_PROTECTED: "long-handler"}

IDLE = WorkerStatus(1, 0, True, None, 0.0)


def busy(seconds: float | None, handlers: int = 1) -> WorkerStatus:
    return WorkerStatus(2, handlers, True, None, 0.0, busy_seconds=seconds)


def pod(name: str, version: int, annotations: dict[str, str], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {LABEL_WORKQUEUE: "jobs"},
            "annotations": annotations,
            **metadata,
        }
    }


class Site:
    """Pods, an API server that stores their annotations, and a protector."""

    def __init__(self, **annotations: dict[str, str]) -> None:
        self.clock = FakeClock()
        self.cluster = FakeCluster()
        self.woken: list[Key] = []
        self.store = Store(self.woken.append)
        self.version = 1
        for name, some in annotations.items():
            self.store.put_pod(pod(name, 1, some))
        self.annotations = {name: dict(some) for name, some in annotations.items()}
        self.woken.clear()
        self.cluster.answer("PATCH", "/pods/", self.patch)
        self.protector = Protector(self.cluster, self.store, self.clock)

    def patch(self, request: Request) -> dict[str, Any]:
        name = request.path.rpartition("/")[2]
        assert request.body["metadata"]["uid"] == f"uid-{name}"
        for key, value in request.body["metadata"]["annotations"].items():
            if value is None:
                self.annotations[name].pop(key, None)
            else:
                self.annotations[name][key] = value
        self.version += 1
        return pod(name, self.version, self.annotations[name])

    @property
    def pods(self) -> list[PodView]:
        return self.store.pods_of(("team", "jobs"))

    async def reads(self, **statuses: WorkerStatus) -> None:
        """One pass whose workers answer this, and the writes that follow it."""
        self.protector.update("team", self.pods, statuses)
        await self.clock.advance(REPORT_AFTER)


@pytest.mark.parametrize(
    ("annotations", "status", "changed"),
    [
        ({}, busy(LONG_SECONDS), "protect"),
        ({}, busy(LONG_SECONDS, handlers=2), "protect"),
        ({}, busy(LONG_SECONDS - 0.1), None),
        ({}, IDLE, None),
        ({}, busy(None), None),
        ({}, None, None),
        (PROTECTED, busy(300.0), None),
        (PROTECTED, IDLE, "release"),
        (PROTECTED, busy(1.0), "release"),
        (PROTECTED, busy(None), None),
        (PROTECTED, None, None),
        ({KARPENTER: "true"}, IDLE, None),
        ({CLUSTER_AUTOSCALER: "true"}, busy(300.0), None),
    ],
    ids=[
        "handler that runs for long",
        "long handler beside a short one",
        "handler that does not run for long yet",
        "idle worker",
        "busy worker of an older release",
        "silent worker",
        "protected pod whose handler still runs",
        "protected pod of an idle worker",
        "protected pod with its next handler",
        "protected pod of an older release",
        "protected pod of a silent worker",
        "pod that the user protects",
        "pod that the user releases",
    ],
)
def test_only_pods_with_long_handlers_are_protected(
    annotations: dict[str, str], status: WorkerStatus | None, changed: str | None
) -> None:
    site = Site(a=annotations)
    chosen = plan(site.pods, {} if status is None else {"a": status})
    assert {"protect": len(chosen.protect), "release": len(chosen.release)} == {
        "protect": int(changed == "protect"),
        "release": int(changed == "release"),
    }


def test_terminating_pod_stays_as_it_is() -> None:
    site = Site(a={})
    site.store.put_pod(pod("a", 2, {}, deletionTimestamp="2026-01-01T00:01:00Z"))
    assert plan(site.pods, {"a": busy(300.0)}).protect == ()


async def test_long_handler_costs_two_writes_and_a_short_one_none() -> None:
    site = Site(long={}, short={ANNOTATION_DELETION_COST: "-1000"})

    for seconds in range(0, 300, 5):
        await site.reads(long=busy(float(seconds)), short=busy(seconds % 25.0))
        assert bool(site.annotations["long"]) == (seconds >= LONG_SECONDS)
    await site.reads(long=IDLE, short=IDLE)
    await site.reads(long=IDLE, short=IDLE)

    assert site.cluster.paths("PATCH") == ["/api/v1/namespaces/team/pods/long"] * 2
    assert site.annotations == {"long": {}, "short": {ANNOTATION_DELETION_COST: "-1000"}}
    assert site.woken == [], "no pass follows"


async def test_protected_pod_has_the_annotations_of_both_autoscalers() -> None:
    site = Site(a={})
    await site.reads(a=busy(31.0))
    assert site.annotations["a"] == PROTECTED


async def test_next_leader_releases_what_an_operator_left_protected() -> None:
    site = Site(a=PROTECTED)
    await site.reads(a=IDLE)
    assert site.annotations["a"] == {}


async def test_refused_write_is_repeated_after_a_minute() -> None:
    site = Site(a={}, b={})
    site.cluster.answer("PATCH", "/pods/", ClusterError(403, "no"))
    for _ in range(5):
        await site.reads(a=busy(31.0), b=busy(31.0))
    assert len(site.cluster.asked) <= RATE.together

    site.cluster.answer("PATCH", "/pods/", site.patch)
    await site.clock.advance(REFUSED_AGAIN)
    await site.reads(a=busy(99.0), b=busy(99.0))

    assert site.annotations == {"a": PROTECTED, "b": PROTECTED}


@pytest.mark.parametrize("status", [404, 409], ids=["deleted pod", "another pod of this name"])
async def test_vanished_pod_delays_no_other(status: int) -> None:
    site = Site(a={}, b={})
    site.cluster.answer("PATCH", "/pods/a", ClusterError(status, "gone"))
    await site.reads(a=busy(31.0), b=busy(31.0))
    await site.reads(a=busy(32.0), b=busy(32.0))
    assert site.annotations["b"] == PROTECTED


async def test_process_that_no_longer_leads_writes_nothing() -> None:
    site = Site(a={}, b={}, c={})
    site.cluster.answer("PATCH", "/pods/", LeadershipLostError("lost"))
    await site.reads(a=busy(31.0), b=busy(31.0), c=busy(31.0))
    assert len(site.cluster.asked) <= RATE.together
    assert site.annotations == {"a": {}, "b": {}, "c": {}}
