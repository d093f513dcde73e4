"""The objects that run the workers: applied, kept as they should be, and scaled.

Place in the flow: after the queues exist. Fields that we own are put right by server-side apply, foreign
additions stay; replicas are written only by the two functions at the end, each of which tests the count that
the decision was made from.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Final

from .. import render
from ..cluster import Cluster, Object, deployment_path
from ..errors import ClusterError, Trouble
from ..model import WorkQueue
from ..names import REPLICAS_FIELD_MANAGER, workload_name
from ..reasons import Reason

logger = logging.getLogger(__name__)

_FORBIDDEN: Final = 403
_REFUSED: Final = frozenset({400, 403, 422})


@dataclass(slots=True)
class Applied:
    """What was last applied for one WorkQueue, so that nothing is applied without need.

    Attributes:
        generation: of the Deployment after our apply, or after our last scaling.
    """

    uid: str
    generation: int
    objects: dict[str, Object] = field(default_factory=dict)


class Workload:
    """Applies and scales Deployments."""

    def __init__(self, cluster: Cluster, defaults: render.Defaults) -> None:
        self._cluster = cluster
        self._defaults = defaults
        self._applied: dict[str, Applied] = {}

    def forget(self, uid: str) -> None:
        """The WorkQueue is gone; Kubernetes deletes what it owns."""
        self._applied.pop(uid, None)

    async def ensure(self, workqueue: WorkQueue, seen: Object | None) -> Object:
        """Make the Deployment and what goes with it as they should be.

        Args:
            seen: the Deployment in the store, or None.

        Returns:
            The Deployment as it is now; `seen` itself when nothing had to be done.

        Raises:
            Trouble: the name is taken, or the API server refuses the objects.
            ClusterError: it did not answer.
        """
        worker = workqueue.spec.worker
        assert worker is not None  # noqa: S101 - the caller has looked
        if seen is not None:
            _require_ours(seen, workqueue)
        wanted = render.deployment(
            workqueue, worker, self._defaults, proven_hash=workqueue.status.proven_template_hash
        )
        applied = self._applied.get(workqueue.metadata.uid)
        if (
            seen is not None
            and applied is not None
            and applied.uid == seen["metadata"]["uid"]
            and applied.generation >= seen["metadata"]["generation"]
            and applied.objects.get("Deployment") == wanted
            and _contains(seen["metadata"], wanted["metadata"])
        ):
            return seen
        live = await self._apply_deployment(workqueue, wanted, exists=seen is not None)
        applied = Applied(live["metadata"]["uid"], live["metadata"]["generation"], {"Deployment": wanted})
        await self._apply_others(workqueue, applied)
        self._applied[workqueue.metadata.uid] = applied
        return live

    async def scale(self, workqueue: WorkQueue, name: str, observed: int, replicas: int) -> Object | None:
        """Set replicas, if they still are what the decision was made from.

        Args:
            name: of the Deployment.
            observed: the count that the decision was made from.

        Returns:
            The Deployment after it; None when somebody else had changed the count.
        """
        try:
            live = await self._cluster.json_patch(
                deployment_path(workqueue.metadata.namespace, name),
                [
                    {"op": "test", "path": "/spec/replicas", "value": observed},
                    {"op": "replace", "path": "/spec/replicas", "value": replicas},
                ],
            )
        except ClusterError as error:
            if error.conflict or error.not_found:
                return None
            raise
        applied = self._applied.get(workqueue.metadata.uid)
        if applied is not None and live["metadata"]["generation"] == applied.generation + 1:
            # Ours alone; a generation that jumped further holds somebody else's change as well.
            applied.generation += 1
        return live

    async def read(self, workqueue: WorkQueue, name: str) -> Object | None:
        """A Deployment as the API server has it now; None when it is gone."""
        try:
            return await self._cluster.get(deployment_path(workqueue.metadata.namespace, name))
        except ClusterError as error:
            if error.not_found:
                return None
            raise

    async def _apply_deployment(self, workqueue: WorkQueue, wanted: Object, *, exists: bool) -> Object:
        name = workload_name(workqueue.metadata.name)
        path = deployment_path(workqueue.metadata.namespace, name)
        try:
            if exists:
                return await self._cluster.apply(path, wanted)
            await self._require_free(path, workqueue)
            # Left out, replicas would be 1 for a moment; kept among our fields, a later apply would reset
            # them. So they go in with the creation and are held by a second manager; the next apply of
            # ours leaves them out.
            with_none = {**wanted, "spec": {**wanted["spec"], "replicas": 0}}
            live = await self._cluster.apply(path, with_none)
            _require_ours(live, workqueue)
            return await self._cluster.apply(
                path, _only_replicas(wanted, live), manager=REPLICAS_FIELD_MANAGER
            )
        except ClusterError as error:
            raise _refused(error, f"Deployment {name!r}") from error

    async def _require_free(self, path: str, workqueue: WorkQueue) -> None:
        """Server-side apply would take over what is already there, and the store may lag."""
        try:
            _require_ours(await self._cluster.get(path), workqueue)
        except ClusterError as error:
            if not error.not_found:
                raise

    async def _apply_others(self, workqueue: WorkQueue, applied: Applied) -> None:
        namespace, name = workqueue.metadata.namespace, workload_name(workqueue.metadata.name)
        objects = {
            f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{name}": render.disruption_budget(
                workqueue
            )
        }
        if self._defaults.network_policy:
            path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}"
            objects[path] = render.network_policy(workqueue, self._defaults)
        for path, body in objects.items():
            try:
                await self._cluster.apply(path, body)
            except ClusterError as error:
                raise _refused(error, f"{body['kind']} {name!r}") from error
            applied.objects[body["kind"]] = body


def _only_replicas(wanted: Object, live: Object) -> Object:
    return {
        "apiVersion": wanted["apiVersion"],
        "kind": wanted["kind"],
        "metadata": {
            "name": wanted["metadata"]["name"],
            "namespace": wanted["metadata"]["namespace"],
            "uid": live["metadata"]["uid"],
        },
        "spec": {"replicas": live["spec"].get("replicas", 0)},
    }


def _require_ours(seen: Object, workqueue: WorkQueue) -> None:
    owners = seen["metadata"].get("ownerReferences") or []
    if any(owner["uid"] == workqueue.metadata.uid for owner in owners):
        return
    raise Trouble(
        Reason.NAME_CONFLICT,
        f"The Deployment {seen['metadata']['name']!r} exists and does not belong to this WorkQueue; it is not "
        "touched. Delete or rename it, or choose another name for the WorkQueue.",
    )


def _refused(error: ClusterError, what: str) -> Exception:
    if error.status == _FORBIDDEN and "forbidden: User" in error.message:
        return Trouble(Reason.API_FORBIDDEN, f"The operator may not write the {what}: {error.message}")
    if error.status in _REFUSED:
        return Trouble(Reason.WORKLOAD_REFUSED, f"The API server refuses the {what}: {error.message}")
    return error


def _contains(live: Any, wanted: Any) -> bool:
    """Whether everything in `wanted` is in `live` as it should be; foreign additions do not matter."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            _contains(live.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and all(
            any(_contains(item, value) for item in live) for value in wanted
        )
    return bool(live == wanted)
