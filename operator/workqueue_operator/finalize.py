"""What has to happen before a WorkQueue may go: only where its queue is to be deleted with it.

Place in the flow: `reconcile` hands every WorkQueue that somebody deleted to `finalize`. A WorkQueue with
deletionPolicy Retain never has our finalizer and goes at once.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any, Final

from workqueue_worker.binding import Binding

from . import status
from .act import queues
from .cluster import Cluster, deployment_path, workqueue_path
from .errors import ClusterError, Trouble
from .model import DeletionPolicy, WorkQueue, timestamp
from .names import ANNOTATION_ABANDON, FINALIZER, workload_name
from .observe.brokers import Brokers, Link
from .observe.management import Management
from .observe.secrets import Secrets
from .observe.store import Store, key_of
from .reasons import ConditionType, Finding, Reason, Unknown
from .report import Reporter

logger = logging.getLogger(__name__)

AGAIN: Final = 2.0
"""Seconds between two tries while something is in the way."""

WITHOUT_SECRET: Final = 60.0
"""Seconds after the deletion for which a Secret that is gone is waited for; then the queue is left behind.
In a namespace that is being deleted the Secret goes first and does not come back."""


_SECRET_IS_GONE: Final = frozenset({Reason.SECRET_NOT_FOUND, Reason.SECRET_FORBIDDEN})


class Finalizer:
    """Sets, keeps and fulfils the finalizer."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        secrets: Secrets,
        brokers: Brokers,
        management: Management,
        reporter: Reporter,
        *,
        hidden_seconds: float = queues.HIDES_SECONDS,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._secrets = secrets
        self._brokers = brokers
        self._management = management
        self._reporter = reporter
        self._hidden_seconds = hidden_seconds
        self._empty_since: dict[str, float] = {}

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
        try:
            message = await self._settle_queues(workqueue)
        except Trouble as trouble:
            return await self._in_the_way(workqueue, trouble)
        await self._let_go(workqueue, message)
        return None

    async def _settle_queues(self, workqueue: WorkQueue) -> str:
        """Delete the queues, or know why not to.

        Returns:
            What became of them, in a sentence.

        Raises:
            Trouble: something is in the way.
        """
        queue = f"The queue {workqueue.queue_name!r}"
        if workqueue.metadata.annotations.get(ANNOTATION_ABANDON) == "true":
            return f"{queue} was left behind, as annotated."
        if workqueue.spec.queue.deletion_policy is DeletionPolicy.RETAIN:
            return f"{queue} is retained."
        if (other := await self._other_claim(workqueue)) is not None:
            return f"{queue} was left behind: the WorkQueue {other} has it, too."
        left = await self._delete_queues(workqueue)
        return f"{queue} was deleted with its WorkQueue.{left}"

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

    async def _other_claim(self, workqueue: WorkQueue) -> str | None:
        """Another WorkQueue that has the same queue on the same broker, or may have: its Secret is unreadable.

        Asked of the store, since after a restart nobody else has announced the queue yet.
        """
        mine = await self._own_place(workqueue)
        for body in self._store.workqueues.saying(workqueue.queue_name):
            key = key_of(body)
            if key == workqueue.key or body["metadata"].get("deletionTimestamp"):
                continue
            spec = body["spec"]
            if (spec.get("queue", {}).get("name") or key[1]) != workqueue.queue_name:
                continue
            try:
                theirs = await self._place(key[0], spec["connectionSecretRef"]["name"])
            except Trouble:
                theirs = mine
            if theirs == mine:
                return f"{key[0]}/{key[1]}"
        return None

    async def _own_place(self, workqueue: WorkQueue) -> str:
        try:
            return await self._place(workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name)
        except Trouble:
            known = self._brokers.known(workqueue.key)
            if known is None:
                raise
            return known.broker.binding.display

    async def _place(self, namespace: str, secret: str) -> str:
        """The broker and virtual host that a Secret names."""
        return (await self._secrets.binding(namespace, secret)).display

    async def _delete_queues(self, workqueue: WorkQueue) -> str:
        """Returns a sentence about what may be left, if anything."""
        link, binding = await self._connection(workqueue)
        await link.broker.ready()
        link.broker.take_down_bell(workqueue.queue_name)
        listed: list[str] | Unknown = []
        if binding.management_uri is not None:
            listed = await self._management.delay_queues(binding, workqueue.queue_name)
        names = queues.names(workqueue, () if isinstance(listed, Unknown) else listed)
        only_empty = workqueue.spec.queue.deletion_policy is DeletionPolicy.DELETE_IF_EMPTY
        if only_empty:
            await self._require_no_messages(workqueue, names, link)
        await self._stop_workers(workqueue)
        if only_empty:
            await queues.require_empty(names, link.broker)
        await queues.delete(names, link.broker)
        if isinstance(listed, Unknown):
            return f" {listed.message} Delay queues of delays that spec.retry had earlier may be left."
        return ""

    async def _require_no_messages(self, workqueue: WorkQueue, names: list[str], link: Link) -> None:
        """No queue shows a message, and none has for so long that none can be hidden. Workers may still run."""
        uid = workqueue.metadata.uid
        try:
            await queues.require_no_messages(names, link.broker)
        except Trouble:
            self._empty_since.pop(uid, None)
            raise
        now = time.monotonic()
        looked = now - self._empty_since.setdefault(uid, now)
        if looked < self._hidden_seconds:
            await queues.require_nothing_hidden(workqueue, names, link.broker)

    async def _connection(self, workqueue: WorkQueue) -> tuple[Link, Binding]:
        namespace, secret = workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
        try:
            binding = await self._secrets.binding(namespace, secret)
            return await self._brokers.link(workqueue.key, binding), binding
        except Trouble:
            # In a namespace that is going the Secret may be gone first; a connection that is still open does.
            known = self._brokers.known(workqueue.key)
            if known is None or not known.broker.connected:
                raise
            return known, known.broker.binding

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
        left = self._store.pods_of(workqueue.key)
        if left:
            raise Trouble(
                Reason.DELETING,
                f"{len(left)} workers finish the messages they have in hand; then the queue is deleted.",
            )

    async def _in_the_way(self, workqueue: WorkQueue, trouble: Trouble) -> float | None:
        deleted = workqueue.metadata.deletion_timestamp
        assert deleted is not None  # noqa: S101 - only deleted WorkQueues come here
        waited = (datetime.now(UTC) - deleted).total_seconds()
        if trouble.reason in _SECRET_IS_GONE and waited > WITHOUT_SECRET:
            await self._let_go(
                workqueue,
                f"The queue {workqueue.queue_name!r} was left behind: its connection Secret cannot be read any "
                "more, so that it could not be deleted. Delete it by hand if it is not needed.",
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
        moment = timestamp(datetime.now(UTC))
        await self._reporter.status(
            workqueue, status.status(workqueue, status.Seen(finding), findings, moment), time.monotonic()
        )
        return AGAIN

    async def _let_go(self, workqueue: WorkQueue, message: str, *, warning: bool = False) -> None:
        self._empty_since.pop(workqueue.metadata.uid, None)
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
