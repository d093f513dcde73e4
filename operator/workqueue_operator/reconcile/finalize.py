"""Delete the queues of a deleted WorkQueue before its finalizer is removed.

The reconciler calls `finalize` for each WorkQueue that is being deleted. A WorkQueue with deletionPolicy Retain
has no finalizer, and Kubernetes deletes it immediately.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from workqueue.contract.binding import Binding
from workqueue.contract.topology import is_delay_queue
from workqueue_operator.api.reasons import ConditionType, Finding, Reason, Unknown
from workqueue_operator.api.workqueue import DeletionPolicy, WorkQueue, timestamp
from workqueue_operator.broker import declare, limits
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.management import Management
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.broker.rates import RateFeeder
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import workqueue_path
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Key, Store, part_of
from workqueue_operator.kube.views import PodView, deployment_view
from workqueue_operator.names import ANNOTATION_ABANDON, FINALIZER, workload_name
from workqueue_operator.ports import Clock, Kubernetes, Workers
from workqueue_operator.reconcile import status
from workqueue_operator.reconcile.limits import CONCURRENCY, RATE, agreed_rate, is_shared
from workqueue_operator.reconcile.reporter import Event, Reporter
from workqueue_operator.scaling.decide import Depth
from workqueue_operator.scaling.depth import QueueReadings, judge
from workqueue_operator.workers.client import Address, WorkerStatus
from workqueue_operator.workers.target import write_own_count

logger = logging.getLogger(__name__)

WRITE_ATTEMPTS: Final = 5
"""How often the finalizer is written while other writes come first."""

AGAIN: Final = 2.0
"""Seconds between two attempts while something prevents the deletion."""

WITHOUT_SECRET: Final = 60.0
"""Seconds after the deletion for which the operator waits for a missing Secret. Then it leaves the queue behind. In a
namespace that is being deleted, the Secret is deleted first and does not return."""


_SECRET_IS_GONE: Final = frozenset({Reason.SECRET_NOT_FOUND, Reason.SECRET_FORBIDDEN})


class Finalizer:
    """Adds the finalizer, and does what it stands for."""

    def __init__(
        self,
        kubernetes: Kubernetes,
        store: Store,
        secrets: Secrets,
        brokers: BrokerPool,
        management: Management,
        workers: Workers,
        reporter: Reporter,
        rates: RateFeeder,
        *,
        clock: Clock,
        hidden_seconds: float = declare.HIDDEN_SECONDS,
    ) -> None:
        self._kubernetes = kubernetes
        self._clock = clock
        self._store = store
        self._secrets = secrets
        self._brokers = brokers
        self._management = management
        self._workers = workers
        self._reporter = reporter
        self._rates = rates
        self._hidden_seconds = hidden_seconds
        self._empty_since: dict[str, float] = {}
        self._retrying: dict[str, int] = {}
        """The messages that the last step saw in delay queues, by uid."""

    async def ensure(self, workqueue: WorkQueue) -> None:
        """Add or remove the finalizer, as the deletion policy requires."""
        needed = workqueue.spec.queue.deletion_policy is not DeletionPolicy.RETAIN
        if needed != (FINALIZER in workqueue.metadata.finalizers):
            await self._write(workqueue, needed=needed)

    async def finalize(self, workqueue: WorkQueue) -> float | None:
        """Do one step of the deletion.

        Returns:
            The seconds until the next step; None when the deletion is complete.
        """
        if FINALIZER not in workqueue.metadata.finalizers:
            await self._brokers.leave(workqueue.key)
            return None
        self._retrying.pop(workqueue.metadata.uid, None)
        if not await self._is_current(workqueue):
            return AGAIN
        try:
            message = await self._settle_queues(workqueue)
        except ReconcileError as problem:
            return await self._wait(workqueue, problem)
        await self._complete(workqueue, message)
        return None

    async def _settle_queues(self, workqueue: WorkQueue) -> str:
        """Delete the queues, or find out why they stay.

        Returns:
            A sentence about the result.

        Raises:
            ReconcileError: something prevents the deletion.
        """
        queue = f"The queue {workqueue.queue_name!r}"
        if workqueue.metadata.annotations.get(ANNOTATION_ABANDON) == "true":
            return f"{queue} was left behind, as annotated."
        if workqueue.spec.queue.deletion_policy is DeletionPolicy.RETAIN:
            return f"{queue} is retained."
        handle, binding = await self._connection(workqueue)
        await handle.broker.ready()
        if (other := await self._other_claim(workqueue, handle)) is not None:
            return f"{queue} was left behind: {other} has it, too."
        if await declare.conflicts(workqueue, handle.broker):
            return f"{queue} was left behind: it is not as the WorkQueue specifies, so another program declared it."
        left = await self._delete_queues(workqueue, handle, binding)
        return f"{queue} was deleted with its WorkQueue.{left}"

    async def _is_current(self, workqueue: WorkQueue) -> bool:
        """Ask the API server before the operator deletes a queue: the store may lag."""
        namespace, name = workqueue.key
        try:
            live = await self._kubernetes.get(workqueue_path(namespace, name))
        except ClusterError as error:
            if error.not_found:
                return False
            raise
        same: bool = live["metadata"]["uid"] == workqueue.metadata.uid
        return same and bool(live["metadata"].get("deletionTimestamp"))

    async def _other_claim(self, workqueue: WorkQueue, handle: BrokerHandle) -> str | None:
        """Find another WorkQueue that has the same queue on the same broker, or may have if its broker is
        unreachable.

        This asks the store, because after a restart other WorkQueues may not have declared the queue yet.
        """
        for key in self._store.workqueues_of(workqueue.queue_name):
            body = self._store.workqueue(key)
            if key == workqueue.key or body is None or body["metadata"].get("deletionTimestamp"):
                continue
            secret = part_of(body, "spec", "connectionSecretRef", "name")
            if secret and await self._is_on(handle, key, secret, workqueue.queue_name) is False:
                continue
            if key[0] == workqueue.metadata.namespace:
                return f"the WorkQueue {key[1]!r}"
            return "a WorkQueue of another namespace"
        return None

    async def _is_on(self, handle: BrokerHandle, key: Key, secret: str, queue: str) -> bool | None:
        """Whether another WorkQueue's Secret leads to the broker and virtual host of `handle`; None: unknown."""
        known = self._brokers.known(key)
        try:
            theirs = await self._brokers.handle(key, await self._secrets.binding(key[0], secret))
            broker, other = handle.broker, theirs.broker
            same = True if theirs is handle else await self._brokers.are_same(broker, other, queue)
            if same is None:
                await other.ready()
                same = await self._brokers.are_same(broker, other, queue)
        except ReconcileError:
            same = None
        if known is None and part_of(self._store.workqueue(key), "spec", "suspend"):
            # A suspended WorkQueue has no pass that would leave the broker.
            await self._brokers.leave(key)
        return same

    async def _delete_queues(self, workqueue: WorkQueue, handle: BrokerHandle, binding: Binding) -> str:
        """Delete the queues. Returns a sentence about queues that may be left, or an empty text."""
        handle.broker.remove_doorbell(workqueue.queue_name)
        listed: list[str] | Unknown = []
        if binding.management_uri is not None:
            listed = await self._management.delay_queues(binding, workqueue.queue_name)
        seen = workqueue.delay_queues_seen
        names = declare.names(workqueue, seen.union(() if isinstance(listed, Unknown) else listed))
        only_empty = workqueue.spec.queue.deletion_policy is DeletionPolicy.DELETE_IF_EMPTY
        if only_empty:
            if (rate := agreed_rate(workqueue, self._store)) is not None:
                # Also after a restart: the handlers of the messages that are left need tokens.
                await self._rates.ensure(workqueue.key, rate.limit, handle.broker, is_wanted=True)
            await self._require_nothing_to_do(workqueue, names, handle)
        await self._stop_workers(workqueue)
        if only_empty:
            await declare.require_empty(names, handle.broker)
        await declare.require_unused(workqueue.queue_name, handle.broker)
        await declare.delete(workqueue, names, handle.broker, only_empty=only_empty)
        if workqueue.limit is not None and not is_shared(workqueue, self._store, CONCURRENCY):
            await limits.delete(workqueue.limit.name, handle.broker)
        if workqueue.rate_limit is not None and not is_shared(workqueue, self._store, RATE):
            self._rates.leave(workqueue.key)
            await handle.broker.delete_queue(workqueue.rate_limit.name)
        if isinstance(listed, Unknown):
            return f" {listed.message} Delay queues of delays that spec.retry had earlier may be left."
        return ""

    async def _require_nothing_to_do(
        self, workqueue: WorkQueue, names: list[str], handle: BrokerHandle
    ) -> None:
        """Require that no message waits or is in a handler. Until then the workers stay, and at least one runs.

        A failing handler publishes its message to a delay queue before it becomes idle, so the queues are read again
        after the workers.
        """
        try:
            await self._require_no_messages(workqueue, names, handle)
            await self._require_idle_workers(workqueue)
            await self._require_no_messages(workqueue, names, handle)
        except ReconcileError:
            work = workqueue.queue_name
            delays = [name for name in names if is_delay_queue(name, work)]
            delayed = [await _ready(handle, name) for name in delays]
            known = [ready for ready in delayed if ready is not None]
            if len(known) == len(delays):
                self._retrying[workqueue.metadata.uid] = sum(known)
            if any(known) or await _ready(handle, work):
                await self._ensure_a_worker(workqueue)
            raise
        self._retrying[workqueue.metadata.uid] = 0

    async def _require_idle_workers(self, workqueue: WorkQueue) -> None:
        """Require that no worker that answers is busy. A silent worker finishes its message when it is stopped."""
        pods = [pod for pod in self._store.pods_of(workqueue.key) if pod.running and not pod.terminating]
        statuses = await self._workers.statuses([Address(pod.name, pod.uid, pod.ip) for pod in pods])
        if busy := sum(one.busy for one in statuses.values()):
            raise ReconcileError(
                Reason.DELETING,
                f"{busy} messages are in handlers. The workers stay until the queue is empty; then it is deleted.",
            )

    async def _ensure_a_worker(self, workqueue: WorkQueue) -> None:
        """Start one worker for the remaining messages, unless one runs or the spec forbids it."""
        spec = workqueue.spec
        if spec.worker is None or spec.suspend or spec.replicas is not None:
            return
        await write_own_count(workqueue, 1, self._kubernetes, self._store)

    async def _require_no_messages(
        self, workqueue: WorkQueue, names: list[str], handle: BrokerHandle
    ) -> None:
        """Require that no queue has shown a message for `hidden_seconds`. Workers may still run."""
        uid = workqueue.metadata.uid
        try:
            await declare.require_no_messages(names, handle.broker)
        except ReconcileError:
            self._empty_since.pop(uid, None)
            raise
        now = self._clock.monotonic()
        looked = now - self._empty_since.setdefault(uid, now)
        if looked < self._hidden_seconds:
            await declare.require_nothing_hidden(workqueue, names, handle.broker)

    async def _connection(self, workqueue: WorkQueue) -> tuple[BrokerHandle, Binding]:
        namespace, secret = workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
        try:
            binding = await self._secrets.binding(namespace, secret)
            return await self._brokers.handle(workqueue.key, binding), binding
        except ReconcileError:
            # In a namespace that is being deleted the Secret may be deleted first. An open connection still works.
            known = self._brokers.known(workqueue.key)
            if known is None or not known.broker.connected:
                raise
            return known, known.broker.binding

    async def _stop_workers(self, workqueue: WorkQueue) -> None:
        """Stop the workers. They finish or requeue their messages; then the queue is read again."""
        if workqueue.spec.worker is None:
            return
        await write_own_count(workqueue, 0, self._kubernetes, self._store)
        left = self._store.pods_of(workqueue.key)
        if left:
            raise ReconcileError(
                Reason.DELETING,
                f"{len(left)} workers finish their messages; then the queue is deleted.",
            )

    async def _wait(self, workqueue: WorkQueue, problem: ReconcileError) -> float | None:
        deleted = workqueue.metadata.deletion_timestamp
        assert deleted is not None  # noqa: S101 - only deleted WorkQueues come here
        waited = (self._clock.now() - deleted).total_seconds()
        if problem.reason in _SECRET_IS_GONE and waited > WITHOUT_SECRET:
            await self._complete(
                workqueue,
                f"The queue {workqueue.queue_name!r} was left behind: its connection Secret can no longer be read, "
                "so the operator could not delete the queue. Delete it by hand if it is not needed.",
                warning=True,
            )
            return None
        finding = Finding("False", problem.reason, f"Deletion waits: {problem.message}")
        findings = {ConditionType.READY: finding, ConditionType.QUEUE_DECLARED: finding}
        warning = problem.reason is not Reason.DELETING
        event = Event(problem.reason, finding.message, "Delete", warning=warning)
        self._reporter.event(workqueue, event)
        moment = timestamp(self._clock.now())
        outcome = await self._outcome(workqueue, finding)
        self._reporter.measure(workqueue, outcome)
        self._reporter.status(workqueue, status.status(workqueue, outcome, findings, moment))
        return AGAIN

    async def _outcome(self, workqueue: WorkQueue, finding: Finding) -> status.Outcome:
        """Return the outcome while the deletion waits."""
        namespace, name = workqueue.metadata.namespace, workload_name(workqueue.metadata.name)
        outcome = status.Outcome(
            finding,
            pods=self._store.pods_of(workqueue.key),
            retrying=self._retrying.get(workqueue.metadata.uid),
        )
        statuses: Mapping[str, WorkerStatus] = {}
        if (
            workqueue.spec.worker is not None
            and (live := self._store.deployment(namespace, name)) is not None
        ):
            running = [pod for pod in outcome.pods if pod.running]
            statuses = await self._workers.statuses([Address(pod.name, pod.uid, pod.ip) for pod in running])
            busy = sum(worker.busy > 0 for worker in statuses.values())
            outcome = replace(
                outcome,
                deployment=deployment_view(live),
                busy=busy if len(statuses) == len(running) else None,
            )
        handle = self._brokers.known(workqueue.key)
        if handle is None or not handle.broker.connected:
            return outcome
        work = await _counts(handle, workqueue.queue_name)
        dead = await _counts(handle, workqueue.dead_letter_queue_name)
        return replace(
            outcome,
            depth=None if work is None else _depth(workqueue, work, outcome.pods, statuses),
            dead_letters=None if dead is None else dead.ready,
        )

    async def _complete(self, workqueue: WorkQueue, message: str, *, warning: bool = False) -> None:
        self._empty_since.pop(workqueue.metadata.uid, None)
        self._retrying.pop(workqueue.metadata.uid, None)
        event = Event(Reason.DELETING, message, "Delete", warning=warning)
        self._reporter.event(workqueue, event)
        await self._write(workqueue, needed=False)
        await self._brokers.leave(workqueue.key)

    async def _write(self, workqueue: WorkQueue, *, needed: bool) -> None:
        """Add or remove the operator's finalizer. Those of others stay.

        The store may be older than our own last status, whose event starts no pass. So a conflict is resolved here.

        Raises:
            ClusterError: it did not answer, or others have written again and again.
        """
        path, uid = workqueue_path(*workqueue.key), workqueue.metadata.uid
        metadata: Mapping[str, Any] = {
            "finalizers": workqueue.metadata.finalizers,
            "resourceVersion": workqueue.metadata.resource_version,
        }
        for attempt in range(1, WRITE_ATTEMPTS + 1):
            others = [name for name in metadata.get("finalizers", ()) if name != FINALIZER]
            changed = {
                "finalizers": [*others, FINALIZER] if needed else others,
                "resourceVersion": metadata["resourceVersion"],
            }
            try:
                self._store.put_workqueue(await self._kubernetes.merge(path, {"metadata": changed}))
            except ClusterError as error:
                if error.not_found:
                    return
                if not error.conflict or attempt == WRITE_ATTEMPTS:
                    raise
            else:
                return
            live = await self._kubernetes.get(path)
            metadata = live["metadata"]
            # The event about another WorkQueue of this name, or about its deletion, starts a pass.
            if metadata["uid"] != uid or (needed and metadata.get("deletionTimestamp")):
                return


def _depth(
    workqueue: WorkQueue,
    counts: QueueCounts,
    pods: Sequence[PodView],
    statuses: Mapping[str, WorkerStatus],
) -> Depth | Unknown:
    worker = workqueue.spec.worker
    readings = QueueReadings(
        counts=counts,
        ours=worker is not None,
        pods=[pod for pod in pods if pod.running and not pod.terminating],
        statuses=statuses,
        single_active=bool(workqueue.spec.queue.single_active_consumer),
        concurrency=1 if worker is None else worker.concurrency,
    )
    return judge(readings, workqueue.queue_name)


async def _counts(handle: BrokerHandle, queue: str) -> QueueCounts | None:
    try:
        return await handle.broker.counts_if_there(queue)
    except ReconcileError:
        return None


async def _ready(handle: BrokerHandle, queue: str) -> int | None:
    """Return the waiting messages, 0 without the queue; None when the broker does not answer."""
    try:
        counts = await handle.broker.counts_if_there(queue)
    except ReconcileError:
        return None
    return counts.ready if counts is not None else 0
