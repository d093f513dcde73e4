"""A Snapshot of a WorkQueue without workers and messages, for tests that change what they are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.kube.views import DeploymentView, PodView
from workqueue_operator.names import ANNOTATION_TEMPLATE_HASH, workload_name
from workqueue_operator.scaling.decide import Depth
from workqueue_operator.scaling.depth import QueueReadings
from workqueue_operator.scaling.schedule import Minimum
from workqueue_operator.scaling.snapshot import Snapshot
from workqueue_operator.workers.apply import Ensured
from workqueue_operator.workers.target import Targets

NO_WORKERS = DeploymentView("jobs-worker", "d", 1, 0, 0, 0, True, "h", None)


class Deployments(Targets):
    """A Deployment, and these pods."""

    def __init__(self, pods: Sequence[PodView], replicas: int = 0) -> None:
        self._pods = pods
        self._replicas = replicas

    async def ensure(
        self,
        workqueue: WorkQueue,
        broker: str | None = None,
        proven_hash: str | None = None,
        *,
        as_it_is: bool = False,
    ) -> Ensured:
        name = workload_name(workqueue.metadata.name)
        metadata = {"name": name, "uid": "d", "generation": 1}
        template = {"metadata": {"annotations": {ANNOTATION_TEMPLATE_HASH: "h"}}}
        return Ensured({"metadata": metadata, "spec": {"replicas": self._replicas, "template": template}})

    def pods(self, workqueue: WorkQueue) -> list[PodView]:
        return list(self._pods)


def snapshot(workqueue: WorkQueue, **changes: Any) -> Snapshot:
    fields: dict[str, Any] = {
        "deployment": NO_WORKERS,
        "pods": (),
        "readings": QueueReadings(counts=None),
        "depth": Depth(0, 0, 0),
        "minimum": Minimum(0),
        "now": 0.0,
    }
    return Snapshot(workqueue, **{**fields, **changes})
