"""One pass over one WorkQueue: observe, decide, act, report, in that order. The only place that calls them.

Place in the flow: whatever changes (spec, Deployment, pods, bell, depth, timer) wakes the WorkQueue's key;
`keys` runs one pass a key at a time. A pass works from what is seen now. What is kept between passes only
saves work, but for the scale-in window, which a restart begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from workqueue.contract.binding import Binding
from workqueue.contract.topology import dead_letter_queue_name
from workqueue_operator.api.reasons import ConditionType, Finding, Reason, Unknown
from workqueue_operator.api.workqueue import Metadata, WorkQueue, WorkQueueStatus, timestamp
from workqueue_operator.backoff import delay
from workqueue_operator.broker import declare
from workqueue_operator.broker.bindings import Bindings
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QUEUE_MISSING, QueueMissing
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.digest import digest
from workqueue_operator.errors import ClusterError, LeadershipLostError, ReconcileError
from workqueue_operator.kube.client import Object
from workqueue_operator.kube.ownership import Ownership
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.kube.views import (
    DeploymentView,
    PodView,
    deployment_view,
    existing_of_refused,
    unsettled,
)
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import LABEL_OPERATOR
from workqueue_operator.reconcile import status
from workqueue_operator.reconcile.finalize import Finalizer
from workqueue_operator.reconcile.queue import NextPass, ReconcileQueue
from workqueue_operator.reconcile.reporter import Reporter
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.scaling import retries, schedule, wake
from workqueue_operator.scaling.decide import (
    Decision,
    Depth,
    Observation,
    ScaleInWindow,
    ScaleOut,
    WorkloadState,
    beside_stopping_workers,
    decide,
)
from workqueue_operator.scaling.depth import (
    QueueReadings,
    busy_pods,
    judge,
    load,
    messages_in_stopping_workers,
)
from workqueue_operator.scaling.gather import Gatherer
from workqueue_operator.scaling.scale import Scaler, next_attempt
from workqueue_operator.workers.apply import Ensured
from workqueue_operator.workers.target import Targets

logger = logging.getLogger(__name__)

LOOK_AGAIN: Final = 1.0
"""Seconds until the next pass while workers run that may become idle: only they know when they do."""

LOOK_AGAIN_PER_POD: Final = 0.02
"""With many pods, asking all of them each second would cost more than it tells."""

LOOK_AGAIN_AT_REST: Final = 5.0
SCHEDULE_EVERY: Final = 20.0
CONNECTING_SECONDS: Final = 0.25
"""For so long first passes wait for a connection before others may begin."""

BACKOFF: Final = (0.5, 60.0)
BACKOFF_AFTER_PROBLEM: Final = (1.0, 15.0)
"""Seconds: the first and the longest pause after a pass that failed, and after one that met a trouble."""

UNKNOWN_AGAIN: Final = 5.0
"""Seconds until a pass that failed before anything was known of its WorkQueue is repeated."""

_SECRET_PROBLEMS: Final = frozenset({Reason.SECRET_NOT_FOUND, Reason.SECRET_INVALID, Reason.SECRET_FORBIDDEN})
_REFUSALS: Final = frozenset(
    {Reason.AUTHENTICATION_FAILED, Reason.VIRTUAL_HOST_NOT_FOUND, Reason.PERMISSION_DENIED}
)
_NO_ANSWER: Final = frozenset({Reason.BROKER_TIMEOUT, Reason.BROKER_UNREACHABLE})
_NOT_YET: Final = Finding("Unknown", Reason.DEPTH_PENDING, "The queue has not been declared yet.")


@dataclass(eq=False, frozen=True)
class Dependencies:
    """What a pass works with, made once at the start of the process."""

    store: Store
    ownership: Ownership
    secrets: Secrets
    brokers: BrokerPool
    gatherer: Gatherer
    targets: Targets
    scaler: Scaler
    reporter: Reporter
    finalizer: Finalizer
    bindings: Bindings
    metrics: Metrics


class Reconciler:
    """Runs the passes.

    Args:
        on_fatal: called when a pass found that this process is not the leader any more.
    """

    def __init__(self, on_fatal: Callable[[BaseException], None]) -> None:
        self._on_fatal = on_fatal
        self._dependencies: Dependencies | None = None
        self._pass_states: dict[Key, PassState] = {}
        self._left: dict[str, str] = {}
        self.keys = ReconcileQueue(self._guarded, self._pass_states.__contains__)

    def start(self, dependencies: Dependencies) -> None:
        """Take the edges, which need `wake` and `rang` themselves, and begin with all that the store has.

        It has been filled by then: a pass that misses a Deployment makes it.
        """
        self._dependencies = dependencies
        for key in dependencies.store.workqueues:
            self.wake(key)

    def wake(self, key: Key) -> None:
        """Run a pass over this WorkQueue soon."""
        if self._dependencies is not None:
            self.keys.wake(key)

    def wake_namespaces(self, namespaces: set[str]) -> None:
        """Run a pass over each WorkQueue in these namespaces: another operator serves them now."""
        if self._dependencies is not None:
            for key in [key for key in self._dependencies.store.workqueues if key[0] in namespaces]:
                self.wake(key)

    def rang(self, key: Key) -> None:
        """The bell of this WorkQueue rang: there is at least one message."""
        pass_state = self._pass_states.get(key)
        if pass_state is not None and pass_state.ring_at is None:
            pass_state.ring_at = time.monotonic()
        self.wake(key)

    # -- what goes wrong -----------------------------------------------------------------------------

    async def _guarded(self, key: Key) -> NextPass:
        """A pass, with whatever it raises turned into a pause."""
        assert self._dependencies is not None  # noqa: S101 - `wake` has looked
        metrics, begun = self._dependencies.metrics, time.monotonic()
        about = {"namespace": key[0], "workqueue": key[1]}
        try:
            return NextPass(await self._pass(key, self._dependencies))
        except LeadershipLostError as error:
            self._on_fatal(error)
            return NextPass()
        except ClusterError as error:
            metrics.reconcile_errors.labels(Reason.API_UNAVAILABLE.value).inc()
            logger.warning(
                "A pass failed at the API server.",
                extra={**about, "status": error.status, "detail": error.message},
            )
            return self._failed(key, at_least=error.retry_after or 0.0)
        except Exception:
            # Whatever nobody thought of must not end the operator, which serves a thousand other queues.
            metrics.reconcile_errors.labels(Reason.INTERNAL_ERROR.value).inc()
            logger.exception("A pass failed.", extra={**about, "reason": Reason.INTERNAL_ERROR.value})
            return self._failed(key)
        finally:
            metrics.reconcile_seconds.observe(time.monotonic() - begun)

    def _failed(self, key: Key, *, at_least: float = 0.0) -> NextPass:
        """The pause after a failed pass; from the second failure in a row on, nothing shortens it."""
        pass_state = self._pass_states.get(key)
        if pass_state is None:
            return NextPass(max(at_least, UNKNOWN_AGAIN), failed=True)
        pass_state.failures += 1
        pause = max(at_least, delay(pass_state.failures, *BACKOFF))
        return NextPass(pause, failed=True, firm=pass_state.failures > 1)

    # -- the pass ------------------------------------------------------------------------------------

    async def _pass(self, key: Key, dependencies: Dependencies) -> float | None:
        """Returns after how many seconds the next pass is due, None when only a change is."""
        body = dependencies.store.workqueue(key)
        other = await dependencies.ownership.elsewhere(key[0])
        if body is None or other is not None:
            await self._gone(key, dependencies)
        if body is None:
            return None
        if other != self._left.get(key[0]):
            await self._tell_who_serves(key[0], other, dependencies)
        if other is not None:
            return None
        pass_state = self._pass_state(key, body["metadata"]["uid"], dependencies)
        try:
            workqueue = WorkQueue.model_validate(body)
        except ValidationError as error:
            await self._report_unreadable(body, error, dependencies.reporter)
            return None
        if workqueue.deleting:
            again = await dependencies.finalizer.finalize(workqueue)
            pass_state.failures = 0
            return again
        await dependencies.finalizer.ensure(workqueue)
        seen, delay = await self._look_and_act(workqueue, pass_state, dependencies)
        findings = status.conditions(workqueue, seen)
        _measure(workqueue, seen, dependencies.metrics)
        now, moment = time.monotonic(), timestamp(datetime.now(UTC))
        await dependencies.reporter.transitions(workqueue, findings, now)
        put_off = await dependencies.reporter.status(
            workqueue, status.status(workqueue, seen, findings, moment), now
        )
        pass_state.failures = 0
        if seen.problem is None:
            pass_state.problems = 0
        again = dependencies.targets.looks_again(workqueue)
        return min((wait for wait in (delay, put_off, again) if wait is not None), default=None)

    @staticmethod
    async def _report_unreadable(body: Object, error: ValidationError, reporter: Reporter) -> None:
        """The CRD is older than this operator, or was bypassed: nothing is done but said."""
        named = WorkQueue.model_construct(
            metadata=Metadata.model_validate(body["metadata"]), status=WorkQueueStatus()
        )
        mistakes = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        message = (
            f"The resource cannot be read ({'; '.join(mistakes)}). Apply the current CRD, and correct it."
        )
        finding = Finding("False", Reason.SPEC_INVALID, message)
        moment = timestamp(datetime.now(UTC))
        await reporter.event(named, True, finding.reason, message, ConditionType.READY, time.monotonic())
        await reporter.status(named, status.unreadable(named, finding, moment), time.monotonic())

    def _pass_state(self, key: Key, uid: str, dependencies: Dependencies) -> PassState:
        pass_state = self._pass_states.get(key)
        if pass_state is None or pass_state.uid != uid:
            if pass_state is not None:
                self._forget(pass_state, dependencies)
            pass_state = self._pass_states[key] = PassState(uid, ScaleInWindow(time.monotonic()))
        return pass_state

    async def _tell_who_serves(self, namespace: str, other: str | None, dependencies: Dependencies) -> None:
        """Say once for each namespace that another operator serves it, or that this one does again."""
        before = self._left.pop(namespace, None)
        if before is not None:
            dependencies.metrics.served_elsewhere.remove(namespace, before)
        own = dependencies.ownership.operator
        if other is None:
            message = f"The operator {own} serves the WorkQueues of namespace {namespace!r} again."
        else:
            self._left[namespace] = other
            dependencies.metrics.served_elsewhere.labels(namespace, other).set(1)
            message = (
                f"The operator {other} serves the WorkQueues of namespace {namespace!r}; {own} leaves them alone. "
                f"The namespace's label {LABEL_OPERATOR} decides; without it the release that lists the namespace "
                "serves it."
            )
        await dependencies.reporter.namespace_event(namespace, Reason.SERVED_ELSEWHERE, message, "Serve")

    async def _gone(self, key: Key, dependencies: Dependencies) -> None:
        """Forget a WorkQueue that is not there, or not this operator's to serve."""
        pass_state = self._pass_states.pop(key, None)
        await dependencies.brokers.leave(key)
        dependencies.secrets.leave(key)
        dependencies.store.unfollow(key)
        dependencies.metrics.workqueues.forget(*key)
        if pass_state is not None:
            self._forget(pass_state, dependencies)

    @staticmethod
    def _forget(pass_state: PassState, dependencies: Dependencies) -> None:
        dependencies.reporter.forget(pass_state.uid)
        dependencies.targets.forget(pass_state.uid)

    async def _look_and_act(
        self, workqueue: WorkQueue, pass_state: PassState, dependencies: Dependencies
    ) -> tuple[status.Seen, float | None]:
        """Everything between reading the resource and writing its status."""
        if workqueue.spec.suspend:
            await dependencies.brokers.leave(workqueue.key)
            dependencies.secrets.leave(workqueue.key)
            nothing = Unknown(Reason.SUSPENDED, "spec.suspend is true.")
            decision, pass_state.window = decide(
                workqueue.spec, Observation(nothing, nothing), pass_state.window, time.monotonic()
            )
            return self._with_workload(
                workqueue, dependencies, status.Seen(pass_state.queue or _NOT_YET, decision=decision)
            ), None
        dependencies.secrets.use(workqueue.key, workqueue.spec.connection_secret_ref.name)
        try:
            known = dependencies.brokers.known(workqueue.key)
            binding = await dependencies.secrets.binding(
                workqueue.metadata.namespace,
                workqueue.spec.connection_secret_ref.name,
                suspect=known is not None and known.broker.problem is not None,
                # The bell has just rung over this connection, and an answer to it must not wait for a read.
                proven=pass_state.ring_at is not None,
            )
            handle = await self._connect(workqueue, binding, dependencies)
        except ReconcileError as problem:
            keeps = pass_state.queue is not None and problem.reason not in _SECRET_PROBLEMS
            return await self._blind(
                workqueue, pass_state, problem, pass_state.queue if keeps else None, dependencies
            )
        try:
            queue = await self._declare(workqueue, pass_state, handle, dependencies)
        except ReconcileError as problem:
            pass_state.queue = None
            if not _leaves_doorbell_to_older(workqueue, handle, dependencies.store):
                handle.broker.remove_doorbell(workqueue.queue_name)
            return await self._blind(workqueue, pass_state, problem, None, dependencies)
        return await self._scale(workqueue, pass_state, handle, binding, queue, dependencies)

    async def _blind(
        self,
        workqueue: WorkQueue,
        pass_state: PassState,
        problem: ReconcileError,
        queue: Finding | None,
        dependencies: Dependencies,
    ) -> tuple[status.Seen, float]:
        """A pass without a depth: the count holds, unless a person has pinned it."""
        unknown = Unknown(problem.reason, problem.message)
        ensured = await dependencies.targets.ensure(workqueue)
        workload: WorkloadState | Unknown = (
            ensured
            if isinstance(ensured, Unknown)
            else WorkloadState(deployment_view(ensured.deployment).replicas)
        )
        decision, pass_state.window = decide(
            workqueue.spec, Observation(workload, unknown), pass_state.window, time.monotonic()
        )
        if isinstance(decision, ScaleOut) and not isinstance(ensured, Unknown):
            view = deployment_view(ensured.deployment)
            decision = await dependencies.scaler.raise_pinned(workqueue, pass_state, decision, view)
        seen = status.Seen(
            queue or Finding("False", problem.reason, problem.message),
            depth=unknown,
            decision=decision,
            problem=unknown,
            refusal=_refusal(ensured),
        )
        pass_state.problems += 1
        return self._with_workload(workqueue, dependencies, seen), delay(
            pass_state.problems, *BACKOFF_AFTER_PROBLEM
        )

    def _with_workload(
        self, workqueue: WorkQueue, dependencies: Dependencies, seen: status.Seen
    ) -> status.Seen:
        """Add what the store shows of the workload to a pass that ended early."""
        live = dependencies.targets.seen(workqueue)
        if live is None:
            return seen
        return replace(seen, deployment=deployment_view(live), pods=dependencies.store.pods_of(workqueue.key))

    # -- the connection and the queue ----------------------------------------------------------------

    async def _connect(
        self, workqueue: WorkQueue, binding: Binding, dependencies: Dependencies
    ) -> BrokerHandle:
        handle = await dependencies.brokers.handle(workqueue.key, binding)
        if not handle.broker.connected:
            # All of a thousand begin together otherwise, in the moment that a healthy broker takes to answer.
            patience = CONNECTING_SECONDS if handle.broker.problem is None else 0.0
            asyncio.get_running_loop().call_later(patience, self.keys.release_place, workqueue.key)
        try:
            await handle.broker.ready()
        except ReconcileError as problem:
            if problem.reason in _REFUSALS:
                # A rotated password shows first as a refused login.
                dependencies.secrets.forget(
                    workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
                )
            raise
        return handle

    async def _declare(
        self, workqueue: WorkQueue, pass_state: PassState, handle: BrokerHandle, dependencies: Dependencies
    ) -> Finding:
        """Declare when something changed: the plan, the connection, or a queue that has vanished."""
        queue = workqueue.queue_name
        watched = handle.poller.watch(workqueue.key, queue)
        dead = handle.poller.watch(workqueue.key, dead_letter_queue_name(queue))
        claimants = await dependencies.brokers.claimants(queue, handle)
        _require_first_claim(workqueue, claimants, dependencies.store)
        if watched.doubtful:
            await handle.poller.ask(watched)
        vanished = [entry for entry in (watched, dead) if entry.last is QUEUE_MISSING]
        wanted = digest([handle.broker.binding.identity, workqueue.spec.queue.model_dump(mode="json")])
        state = (handle.broker.generation, wanted)
        if pass_state.declared == state and pass_state.queue is not None and not vanished:
            return pass_state.queue
        for entry in vanished:
            handle.broker.mark_vanished(entry.queue)
        await dependencies.bindings.announce(workqueue)
        try:
            if vanished and pass_state.queue is not None and workqueue.spec.queue.declare:
                again = [entry.queue for entry in vanished]
                finding, answers = await declare.declare_again(workqueue, handle.broker, again)
            else:
                finding, answers = await declare.declare(workqueue, handle.broker)
            await dependencies.bindings.remove_unwanted(workqueue, handle.broker)
        except ReconcileError as problem:
            watched.claimed = watched.claimed and problem.reason in _NO_ANSWER
            raise
        # Only now: a user whom the broker does not let declare the queue has no claim on it.
        watched.claimed = True
        finding = declare.consumer_timeout_problem(workqueue, handle.broker) or finding
        pass_state.declared, pass_state.queue = state, finding
        for entry in (watched, dead):
            entry.hear(answers[entry.queue])
        for other in claimants:
            # A younger one may have come first, after a restart; its next pass finds out.
            if other != workqueue.key:
                self.wake(other)
        return finding

    # -- the count -----------------------------------------------------------------------------------

    async def _scale(
        self,
        workqueue: WorkQueue,
        pass_state: PassState,
        handle: BrokerHandle,
        binding: Binding,
        queue: Finding,
        dependencies: Dependencies,
    ) -> tuple[status.Seen, float | None]:
        # Taken up here and not at the end: a ring that comes during the pass is for the next one.
        pass_state.waking_since, pass_state.ring_at = pass_state.ring_at, None
        ensured = await dependencies.targets.ensure(workqueue)
        deployment = ensured if isinstance(ensured, Unknown) else deployment_view(ensured.deployment)
        pods = dependencies.store.pods_of(workqueue.key)
        answers = await dependencies.gatherer.ask(workqueue, pass_state, handle, binding, pods)
        depth = judge(answers, workqueue.queue_name)
        minimum = schedule.minimum_replicas(workqueue.spec, datetime.now(UTC))
        observation = _observation(workqueue, pass_state, deployment, pods, depth, answers, minimum.replicas)
        decision, pass_state.window = decide(workqueue.spec, observation, pass_state.window, time.monotonic())
        decision = beside_stopping_workers(decision, messages_in_stopping_workers(answers))
        decision, deployment = await dependencies.scaler.carry_out(
            workqueue, pass_state, handle, decision, deployment, pods, answers.statuses
        )
        pods = dependencies.store.pods_of(workqueue.key)
        doorbell = await wake.mind(workqueue, handle, deployment, pods, depth, decision)
        fruitless_ring = pass_state.waking_since is not None and not isinstance(decision, ScaleOut)
        answers = await dependencies.gatherer.ask_the_rest(pass_state, answers)
        # Whether a worker may be putting messages into the queues beside the work queue.
        workers_run = bool(pods) or (isinstance(deployment, DeploymentView) and deployment.replicas > 0)
        retrying = await retries.waiting(
            workqueue,
            pass_state,
            handle,
            [*answers.statuses.values(), *(answers.stopping_statuses or {}).values()],
            workers_run=workers_run,
        )
        # Gone since the pass began: the next one declares it again.
        vanished = isinstance(answers.counts, QueueMissing)
        dead = await handle.poller.look_in_passing(
            workqueue.key, dead_letter_queue_name(workqueue.queue_name), warm=workers_run
        )
        seen = status.Seen(
            queue,
            depth=depth,
            deployment=deployment,
            pods=pods,
            decision=decision,
            refusal=_refusal(ensured),
            doorbell=doorbell,
            retrying=retrying,
            retry_delays=tuple(sorted(pass_state.retry_delays or ())),
            dead_letters=dead.ready if isinstance(dead, QueueCounts) else None,
            busy=busy_pods(
                answers, depth, deployment.current if isinstance(deployment, DeploymentView) else None
            ),
            ignored=minimum.ignored,
            last_scale=pass_state.last_scale,
            proven_hash=pass_state.proven_hash,
        )
        # Whoever took the message of a ring that led to nothing may hand it back.
        conflict = decision.reason is Reason.CONFLICTING_WRITE
        soon = LOOK_AGAIN if fruitless_ring or vanished or conflict else None
        # Nothing but a look shows that it has changed.
        exact = isinstance(answers.unacknowledged, int)
        delays = [
            soon,
            _next_look(workqueue, deployment, pods, decision, exact=exact),
            _until(next_attempt(pass_state)),
        ]
        return seen, min((delay for delay in delays if delay is not None), default=None)


def _refusal(ensured: Ensured | Unknown) -> Unknown | None:
    return ensured if isinstance(ensured, Unknown) else ensured.refusal


def _until(moment: float | None) -> float | None:
    """Seconds until a monotonic time."""
    return None if moment is None else max(moment - time.monotonic(), 0.0)


def _require_first_claim(workqueue: WorkQueue, claimants: Sequence[Key], store: Store) -> None:
    """Of several WorkQueues on one queue the oldest has it."""
    for other in claimants:
        if store.is_older(other, workqueue.key):
            raise ReconcileError(
                Reason.QUEUE_CLAIMED,
                f"The queue {workqueue.queue_name!r} belongs to {_named(other, workqueue)} on the same broker. "
                "Delete one of the two; for another queue make another WorkQueue.",
            )


def _named(other: Key, workqueue: WorkQueue) -> str:
    """An older WorkQueue, by name only in the same namespace: others are none of this one's business."""
    if other[0] == workqueue.metadata.namespace:
        return f"the older WorkQueue {other[1]!r}"
    return "an older WorkQueue of another namespace"


def _leaves_doorbell_to_older(workqueue: WorkQueue, handle: BrokerHandle, store: Store) -> bool:
    """Whether the bell that hangs over this link is that of an older WorkQueue on the same queue."""
    return any(
        store.is_older(other, workqueue.key) for other in handle.poller.claims_on(workqueue.queue_name)
    )


def _observation(
    workqueue: WorkQueue,
    pass_state: PassState,
    deployment: DeploymentView | Unknown,
    pods: Sequence[PodView],
    depth: Depth | Unknown,
    answers: QueueReadings,
    minimum: int,
) -> Observation:
    if isinstance(deployment, Unknown):
        return Observation(deployment, depth, minimum)
    if workqueue.spec.worker is None:
        unknown = answers.unacknowledged if isinstance(answers.unacknowledged, Unknown) else None
        existing = existing_of_refused(deployment, ())
        return Observation(
            WorkloadState(deployment.replicas, unsettled=unknown, existing=existing), depth, minimum
        )
    if any(pod.ready and pod.template_hash == deployment.template_hash for pod in pods):
        pass_state.proven_hash = deployment.template_hash
    proven = pass_state.proven_hash or workqueue.status.proven_template_hash
    workload = WorkloadState(
        replicas=deployment.replicas,
        proven=proven == deployment.template_hash,
        unsettled=unsettled(deployment, pods),
        concurrency=answers.concurrency,
        existing=existing_of_refused(deployment, pods),
    )
    return Observation(workload, depth, minimum, load(answers.statuses, pass_state.growth))


def _next_look(
    workqueue: WorkQueue,
    deployment: DeploymentView | Unknown,
    pods: Sequence[PodView],
    decision: Decision,
    *,
    exact: bool,
) -> float | None:
    delays = []
    if workqueue.spec.scaling.schedules or isinstance(deployment, Unknown):
        delays.append(SCHEDULE_EVERY)
    if isinstance(deployment, DeploymentView) and (deployment.replicas > 0 or pods):
        surplus = decision.wanted is not None and decision.wanted < deployment.replicas
        if exact or surplus or deployment.replicas > workqueue.spec.scaling.min_replicas:
            delays.append(max(LOOK_AGAIN, LOOK_AGAIN_PER_POD * len(pods)))
        else:
            delays.append(LOOK_AGAIN_AT_REST)
    return min(delays, default=None)


def _measure(workqueue: WorkQueue, seen: status.Seen, metrics: Metrics) -> None:
    shown = metrics.workqueues.of(*workqueue.key)
    shown.pinned = workqueue.spec.replicas
    if isinstance(seen.depth, Depth):
        shown.messages_ready, shown.consumers = seen.depth.ready, seen.depth.consumers
        shown.in_handlers, shown.most_in_handlers = seen.depth.in_handlers, seen.depth.most_in_handlers
    if seen.retrying is not None:
        shown.messages_retrying = seen.retrying
    if seen.dead_letters is not None:
        shown.dead_letters = seen.dead_letters
    if isinstance(seen.deployment, DeploymentView):
        view = seen.deployment
        shown.desired, shown.current, shown.ready = view.replicas, view.current, view.ready
        shown.maximum = workqueue.spec.most_replicas
    if seen.busy is not None:
        shown.busy = seen.busy
