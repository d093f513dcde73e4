"""The Deployment that a WorkQueue scales: one that the operator creates, or the one of spec.workloadRef.

The operator only reads and scales the Deployment of a workloadRef, and only while nothing else scales it. It
reports a HorizontalPodAutoscaler (also KEDA's) or an older WorkQueue on the same Deployment, and does not compete
with it.
"""

from __future__ import annotations

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkloadRef, WorkQueue
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import Object, deployment_path, scale_path
from workqueue_operator.kube.refusal import why_count_denied
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import PodView
from workqueue_operator.names import workload_name
from workqueue_operator.ports import Clock, Kubernetes
from workqueue_operator.workers.apply import (
    REFUSED_AGAIN,
    Ensured,
    WorkloadApplier,
    is_owned_by,
    require_ours,
)
from workqueue_operator.workers.autoscalers import FRESH, Autoscalers


class Targets:
    """Finds or creates Deployments."""

    def __init__(self, kubernetes: Kubernetes, store: Store, workload: WorkloadApplier, clock: Clock) -> None:
        self._kubernetes = kubernetes
        self._clock = clock
        self._store = store
        self._workload = workload
        self._autoscalers = Autoscalers(kubernetes, clock)

    def forget(self, uid: str) -> None:
        """The WorkQueue is gone."""
        self._workload.forget(uid)

    def looks_again(self, workqueue: WorkQueue) -> float | None:
        """Return the seconds until a pass is due although nothing changed.

        The operator lists autoscalers and does not watch them. It also applies again what the API server refused.
        """
        if workqueue.spec.suspend:
            return None  # nothing is applied, so that an attempt would stay due
        if workqueue.spec.workload_ref is not None:
            return FRESH
        moment = self._workload.next_attempt(workqueue)
        return None if moment is None else max(moment - self._clock.monotonic(), REFUSED_AGAIN[0])

    def seen(self, workqueue: WorkQueue) -> Object | None:
        """The Deployment as the store has it."""
        ref = workqueue.spec.workload_ref
        name = ref.name if ref is not None else workload_name(workqueue.metadata.name)
        return self._store.deployment(workqueue.metadata.namespace, name)

    def pods(self, workqueue: WorkQueue) -> list[PodView]:
        """The pods of the WorkQueue as the store has them."""
        return self._store.pods_of(workqueue.key)

    async def ensure(
        self,
        workqueue: WorkQueue,
        broker: str | None = None,
        proven_hash: str | None = None,
        *,
        as_it_is: bool = False,
    ) -> Ensured | Unknown:
        """Return the current Deployment, created or repaired if the operator owns it; or why it cannot be scaled.

        Args:
            broker, proven_hash: see `WorkloadApplier.ensure`.
            as_it_is: leave an existing Deployment that the operator owns for a later pass.

        Raises:
            ClusterError: the API server did not answer.
        """
        seen = self.seen(workqueue)
        try:
            if workqueue.spec.workload_ref is not None:
                return Ensured(await self._foreign(workqueue, workqueue.spec.workload_ref, seen))
            if as_it_is and seen is not None:
                require_ours(seen, workqueue)
                return Ensured(seen)
            ensured = await self._workload.ensure(workqueue, seen, broker, proven_hash)
        except ReconcileError as problem:
            return Unknown(problem.reason, problem.message)
        if ensured.deployment is not seen:
            self._store.put_deployment(ensured.deployment)
        return ensured

    async def _foreign(self, workqueue: WorkQueue, ref: WorkloadRef, seen: Object | None) -> Object:
        namespace = workqueue.metadata.namespace
        self._store.follow(workqueue.key, namespace, ref.name)
        live = seen or await self._find(namespace, ref.name)
        if (autoscaler := await self._autoscalers.of(namespace, ref.name)) is not None:
            raise ReconcileError(
                Reason.WORKLOAD_CONTESTED,
                f"The Deployment {ref.name!r} is scaled by {autoscaler}. Delete it, or this WorkQueue; until then "
                "nothing is scaled here.",
            )
        for other in self._store.followers_of(namespace, ref.name):
            if self._store.is_older(other, workqueue.key):
                raise ReconcileError(
                    Reason.WORKLOAD_CONTESTED,
                    f"The Deployment {ref.name!r} is scaled by the older WorkQueue {other[1]!r} already. Delete one "
                    "of the two.",
                )
        if ref.name != workload_name(workqueue.metadata.name):
            # Those of an earlier spec.worker.
            await self.stop_own_workers(workqueue)
        return live

    async def stop_own_workers(self, workqueue: WorkQueue) -> None:
        """Stop the workers that the operator runs. They finish their messages, as when a WorkQueue is deleted.

        Raises:
            ReconcileError: the API server refused.
            ClusterError: it did not answer.
        """
        await write_own_count(workqueue, 0, self._kubernetes, self._store)

    async def _find(self, namespace: str, name: str) -> Object:
        try:
            live = await self._kubernetes.get(deployment_path(namespace, name))
        except ClusterError as error:
            if not error.not_found:
                raise
            raise ReconcileError(
                Reason.WORKLOAD_NOT_FOUND,
                f"The Deployment {name!r} that spec.workloadRef names does not exist. Create it, or correct the "
                "name.",
            ) from error
        self._store.put_deployment(live)
        return live


async def write_own_count(workqueue: WorkQueue, replicas: int, kubernetes: Kubernetes, store: Store) -> None:
    """Stop the workers that the operator runs, or start some if none runs. It may not delete their Deployment.

    A Deployment of the same name that another owner made is not changed.

    Args:
        replicas: 0 to stop all.

    Raises:
        ReconcileError: the API server refused the count.
        ClusterError: it did not answer.
    """
    namespace, name = workqueue.metadata.namespace, workload_name(workqueue.metadata.name)
    own = store.deployment(namespace, name)
    if own is None or not is_owned_by(own, workqueue):
        return
    if (own["spec"].get("replicas", 1) == 0) == (replicas == 0):
        return
    try:
        # A policy that refuses a template admits no other change of the Deployment.
        written = await kubernetes.merge(scale_path(namespace, name), {"spec": {"replicas": replicas}})
    except ClusterError as error:
        if not error.denied:
            raise
        why = why_count_denied(error, name, replicas)
        raise ReconcileError(why.reason, why.message) from error
    store.put_count(written)
