"""What has to happen before a WorkQueue may go: only where its queue is to be deleted with it.

Place in the flow: `reconcile` hands every WorkQueue that somebody deleted to `finalize`. A WorkQueue with
deletionPolicy Retain never has our finalizer and goes at once.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any, Final

from . import status
from .act import queues
from .cluster import Cluster, deployment_path, workqueue_path
from .errors import ClusterError, Trouble
from .model import DeletionPolicy, WorkQueue
from .names import ANNOTATION_ABANDON, FINALIZER, workload_name
from .observe.brokers import Brokers
from .observe.secrets import Secrets
from .observe.store import Store
from .reasons import ConditionType, Finding, Reason
from .report import Reporter
from .views import pod_views

logger = logging.getLogger(__name__)

AGAIN: Final = 2.0
"""Seconds between two tries while something is in the way."""

WITHOUT_SECRET: Final = 60.0
"""Seconds after the deletion for which a Secret that is gone is waited for; then the queue is left behind.
In a namespace that is being deleted the Secret goes first and does not come back."""


class Finalizer:
    """Sets, keeps and fulfils the finalizer."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        secrets: Secrets,
        brokers: Brokers,
        reporter: Reporter,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._secrets = secrets
        self._brokers = brokers
        self._reporter = reporter

    async def ensure(self, workqueue: WorkQueue) -> None:
        """Have the finalizer exactly when the deletion policy needs it."""
        needed = workqueue.spec.queue.deletion_policy is not DeletionPolicy.RETAIN
        if needed != (FINALIZER in workqueue.metadata.finalizers):
            others = [name for name in workqueue.metadata.finalizers if name != FINALIZER]
            await self._write(workqueue, [*others, FINALIZER] if needed else others)

    async def finalize(self, workqueue: WorkQueue) -> float | None:
        """One step towards letting the WorkQueue go.

        Returns:
            After how many seconds to come back, None when there is nothing left to do.
        """
        if FINALIZER not in workqueue.metadata.finalizers:
            await self._brokers.leave(workqueue.key)
            return None
        if not await self._is_current(workqueue):
            return AGAIN
        if workqueue.metadata.annotations.get(ANNOTATION_ABANDON) == "true":
            await self._let_go(
                workqueue, f"The queue {workqueue.queue_name!r} was left behind, as annotated."
            )
            return None
        try:
            if workqueue.spec.queue.deletion_policy is not DeletionPolicy.RETAIN:
                await self._delete_queues(workqueue)
        except Trouble as trouble:
            return await self._in_the_way(workqueue, trouble)
        await self._let_go(workqueue, f"The queue {workqueue.queue_name!r} was deleted with its WorkQueue.")
        return None

    async def _is_current(self, workqueue: WorkQueue) -> bool:
        """Ask the API server itself before anything is destroyed: the store may lag."""
        namespace, name = workqueue.key
        try:
            live = await self._cluster.get(workqueue_path(namespace, name))
        except ClusterError as error:
            if error.not_found:
                return False
            raise
        same: bool = live["metadata"]["uid"] == workqueue.metadata.uid
        return same and bool(live["metadata"].get("deletionTimestamp"))

    async def _delete_queues(self, workqueue: WorkQueue) -> None:
        namespace, secret = workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
        try:
            link = await self._brokers.link(workqueue.key, await self._secrets.binding(namespace, secret))
        except Trouble:
            # In a namespace that is going the Secret may be gone first; a connection that is still open does.
            known = self._brokers.known(workqueue.key)
            if known is None or not known.broker.connected:
                raise
            link = known
        await link.broker.ready()
        link.broker.take_down_bell(workqueue.queue_name)
        if workqueue.spec.queue.deletion_policy is DeletionPolicy.DELETE_IF_EMPTY:
            await queues.require_no_messages(workqueue, link.broker)
        await self._stop_workers(workqueue)
        await queues.delete(workqueue, link.broker)

    async def _stop_workers(self, workqueue: WorkQueue) -> None:
        """Let the workers finish what they have in hand; whatever they hand back is in the queue afterwards."""
        if workqueue.spec.worker is None:
            return
        namespace, name = workqueue.metadata.namespace, workload_name(workqueue.metadata.name)
        deployment = self._store.deployment(namespace, name)
        if deployment is not None and deployment["spec"].get("replicas", 1) > 0:
            self._store.put_deployment(
                await self._cluster.merge(deployment_path(namespace, name), {"spec": {"replicas": 0}})
            )
        left = pod_views(self._store.pods_of(workqueue.key))
        if left:
            raise Trouble(
                Reason.DELETING,
                f"{len(left)} workers finish the messages they have in hand; then the queue is deleted.",
            )

    async def _in_the_way(self, workqueue: WorkQueue, trouble: Trouble) -> float | None:
        deleted = workqueue.metadata.deletion_timestamp
        assert deleted is not None  # noqa: S101 - only deleted WorkQueues come here
        waited = (datetime.now(UTC) - deleted).total_seconds()
        if trouble.reason is Reason.SECRET_NOT_FOUND and waited > WITHOUT_SECRET:
            await self._let_go(
                workqueue,
                f"The queue {workqueue.queue_name!r} was left behind: its connection Secret is gone, so that it "
                "could not be deleted. Delete it by hand if it is not needed.",
                warning=True,
            )
            return None
        finding = Finding("False", trouble.reason, f"Deletion waits: {trouble.message}")
        findings = {ConditionType.READY: finding, ConditionType.QUEUE_DECLARED: finding}
        await self._reporter.event(
            workqueue,
            trouble.reason is not Reason.DELETING,
            trouble.reason,
            finding.message,
            "Delete",
            time.monotonic(),
        )
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._reporter.status(
            workqueue, status.status(workqueue, status.Seen(finding), findings, moment), time.monotonic()
        )
        return AGAIN

    async def _let_go(self, workqueue: WorkQueue, message: str, *, warning: bool = False) -> None:
        await self._reporter.event(workqueue, warning, Reason.DELETING, message, "Delete", time.monotonic())
        await self._write(workqueue, [name for name in workqueue.metadata.finalizers if name != FINALIZER])
        await self._brokers.leave(workqueue.key)

    async def _write(self, workqueue: WorkQueue, finalizers: list[str]) -> None:
        namespace, name = workqueue.key
        body: dict[str, Any] = {
            "metadata": {"finalizers": finalizers, "resourceVersion": workqueue.metadata.resource_version}
        }
        try:
            self._store.put_workqueue(await self._cluster.merge(workqueue_path(namespace, name), body))
        except ClusterError as error:
            # Gone, or changed meanwhile: the event that says so brings the next pass.
            if not error.not_found and not error.conflict:
                raise
