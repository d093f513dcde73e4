"""What the status and the metrics show while a deletion waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.workqueue import workqueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import PodView
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import FINALIZER
from workqueue_operator.reconcile.finalize import Finalizer
from workqueue_operator.reconcile.reporter import Reporter
from workqueue_operator.workers.client import WorkerStatus

DELETED = workqueue(
    queue={"deletionPolicy": "DeleteIfEmpty"},
    metadata={
        "deletionTimestamp": "2026-11-24T12:00:00Z",
        "finalizers": [FINALIZER],
        "resourceVersion": "1",
        "creationTimestamp": "2026-11-24T11:00:00Z",
    },
)
POD = PodView("pod-0", "u", "127.0.0.1", True, True, False, "hash", False, None, workqueue="jobs")
DEPLOYMENT: dict[str, Any] = {
    "metadata": {
        "name": "jobs-worker",
        "namespace": "team",
        "uid": "d-1",
        "generation": 1,
        "resourceVersion": "1",
        "labels": {"workqueue.dev/workqueue": "jobs"},
        "ownerReferences": [
            {
                "apiVersion": "workqueue.dev/v1alpha1",
                "kind": "WorkQueue",
                "name": "jobs",
                "controller": True,
                "uid": "uid-1",
            }
        ],
    },
    "spec": {"replicas": 1, "template": {}},
    "status": {"replicas": 1},
}


def owned_by(uid: str) -> dict[str, Any]:
    metadata = DEPLOYMENT["metadata"]
    owners = [{**owner, "uid": uid} for owner in metadata["ownerReferences"]]
    return {**DEPLOYMENT, "metadata": {**metadata, "resourceVersion": "2", "ownerReferences": owners}}


class Site:
    """A deleted WorkQueue with one worker, on a broker in memory."""

    def __init__(self, counts: dict[str, tuple[int, int]], worker: WorkerStatus | None) -> None:
        self.counts = counts
        self.statuses_by_pod = {} if worker is None else {POD.name: worker}
        self.cluster, self.metrics = FakeCluster(), Metrics()
        body = DELETED.model_dump(mode="json", by_alias=True)
        self.cluster.answer("GET", "/workqueues/jobs", body)
        self.cluster.answer("PATCH", "/workqueues/jobs", body)
        self.cluster.answer("POST", "/events", {})
        store = self.store = Store(lambda _: None)
        store.pods["team", POD.name] = POD
        store._pods_of["team", "jobs"].add(("team", POD.name))
        store.put_deployment(DEPLOYMENT)
        here: Any = self
        clock = SystemClock()
        self.reporter = Reporter(self.cluster, store, "operator-1", self.metrics, clock=clock)
        self.finalizer = Finalizer(
            self.cluster, store, here, here, here, here, self.reporter, here, clock=clock, hidden_seconds=0
        )

    async def wait(self) -> dict[str, Any]:
        """Run one step, and return the status that it has written."""
        assert await self.finalizer.finalize(DELETED) is not None
        await self.reporter.flush(5)
        written: list[dict[str, Any]] = [
            request.body["status"] for request in self.cluster.asked if request.path.endswith("/status")
        ]
        return written[-1]

    # the Secret, the broker and its pool, the worker

    connected = True

    @property
    def broker(self) -> Any:
        return self

    def known(self, _: Any) -> Any:
        return self

    async def binding(self, *_: Any) -> Any:
        return SimpleNamespace(management_uri=None)

    async def declare_queue(self, _: Any) -> None:
        """The queue is as the WorkQueue specifies."""

    async def handle(self, *_: Any) -> Any:
        return self

    def remove_doorbell(self, _: str) -> None: ...

    async def ready(self) -> None: ...

    async def counts_if_there(self, queue: str) -> QueueCounts | None:
        found = self.counts.get(queue)
        return None if found is None else QueueCounts(*found, at=0.0)

    async def statuses(self, _: Any) -> dict[str, WorkerStatus]:
        return self.statuses_by_pod


def worker(busy: int) -> WorkerStatus:
    return WorkerStatus(1, busy, True, None, 0.0, frozenset({30}))


def shown(site: Site) -> tuple[Any, ...]:
    values = site.metrics.workqueues.of("team", "jobs")
    return (
        values.messages_ready,
        values.messages_retrying,
        values.in_handlers,
        values.most_in_handlers,
        values.busy,
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [(worker(1), (0, 2, 1, 1, 1)), (worker(0), (0, 2, 0, 0, 0)), (None, (0, 2, 0, 1, None))],
    ids=["busy-worker", "idle-worker", "worker-without-answer"],
)
async def test_deletion_that_waits_for_a_delay_queue_shows_its_numbers(
    status: WorkerStatus | None, expected: tuple[Any, ...]
) -> None:
    site = Site({"jobs": (0, 1), "jobs.retry.30s": (2, 0), "jobs.dead": (0, 0)}, status)

    written = await site.wait()

    assert written["retrying"] == 2
    assert shown(site) == expected


@pytest.mark.parametrize(
    ("owner", "stopped"),
    [("uid-1", True), ("uid-2", False)],
    ids=["own-deployment", "deployment-of-another-owner"],
)
async def test_deletion_stops_only_workers_of_the_operator(owner: str, *, stopped: bool) -> None:
    site = Site({"jobs": (0, 1), "jobs.dead": (0, 0)}, worker(0))
    site.store.put_deployment(owned_by(owner))
    site.cluster.answer("PATCH", "/deployments/jobs-worker", owned_by(owner))

    await site.wait()

    written = [path for path in site.cluster.paths("PATCH") if "/deployments/" in path]
    assert written == (["/apis/apps/v1/namespaces/team/deployments/jobs-worker/scale"] if stopped else [])


async def test_deletion_names_a_refusal_to_stop_the_workers() -> None:
    site = Site({"jobs": (0, 1), "jobs.dead": (0, 0)}, worker(0))
    sentence = "at least one replica here"
    site.cluster.answer("PATCH", "/deployments/jobs-worker", ClusterError(422, sentence))

    written = await site.wait()

    (ready,) = (one for one in written["conditions"] if one["type"] == "Ready")
    assert ready["reason"] == "CountRefused"
    assert sentence in ready["message"]


@pytest.mark.parametrize("needed", [False, True], ids=["deleted", "new policy"])
async def test_finalizer_is_written_although_another_write_came_first(needed: bool) -> None:
    """The operator's own status is one. Its event starts no pass."""
    site = Site({}, None)
    seen = workqueue(
        queue={"deletionPolicy": "Delete"},
        metadata={"finalizers": ["theirs"] if needed else ["theirs", FINALIZER], "resourceVersion": "1"},
    )
    newer = seen.model_dump(mode="json", by_alias=True, exclude_none=True)
    newer["metadata"] |= {"resourceVersion": "2", "finalizers": [*seen.metadata.finalizers, "newer"]}
    site.cluster.answer("GET", "/workqueues/jobs", newer)
    written: list[dict[str, Any]] = []

    def patch(request: Request) -> dict[str, Any]:
        metadata = request.body["metadata"]
        if metadata["resourceVersion"] != "2":
            raise ClusterError(409, "the object has been modified")
        written.append(metadata)
        return newer

    site.cluster.answer("PATCH", "/workqueues/jobs", patch)
    if needed:
        await site.finalizer.ensure(seen)
    else:
        await site.finalizer._write(seen, needed=False)
    (metadata,) = written
    assert metadata["finalizers"] == ["theirs", "newer", *([FINALIZER] if needed else [])]
