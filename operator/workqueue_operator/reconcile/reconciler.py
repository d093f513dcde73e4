"""One pass over one WorkQueue: gather, decide, scale, report, in that order. Only this module calls these steps.

Every change (spec, Deployment, pods, doorbell, depth, timer) adds the WorkQueue's key to the queue, which runs one
pass per key at a time. A pass works from what it sees now. The state that is kept between passes only saves work,
except for the scale-in window, which a restart begins again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from pydantic import ValidationError

from workqueue.contract.topology import is_delay_queue, work_queue
from workqueue_operator.api.reasons import UNANSWERED, ConditionType, Finding, Reason, Unknown
from workqueue_operator.api.workqueue import Metadata, WorkQueue, WorkQueueStatus, timestamp
from workqueue_operator.backoff import delay
from workqueue_operator.broker import declare
from workqueue_operator.broker.bindings import Bindings
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QUEUE_MISSING, QueueMissing
from workqueue_operator.broker.limits import Limits
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.broker.rates import RateFeeder
from workqueue_operator.digest import digest_of_text
from workqueue_operator.errors import ClusterError, LeadershipLostError, ReconcileError
from workqueue_operator.kube.client import Object
from workqueue_operator.kube.ownership import Ownership
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.kube.views import DeploymentView, deployment_view, leaving
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import LABEL_OPERATOR
from workqueue_operator.ports import Clock
from workqueue_operator.reconcile import limits, status
from workqueue_operator.reconcile.finalize import Finalizer
from workqueue_operator.reconcile.protection import Protector
from workqueue_operator.reconcile.queue import Lane, NextPass, ReconcileQueue
from workqueue_operator.reconcile.recurring import RecurringRunner
from workqueue_operator.reconcile.reporter import Event, Reporter
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.scaling import retries, wake
from workqueue_operator.scaling.decide import (
    Decision,
    Observation,
    ScaleInWindow,
    ScaleOut,
    beside_stopping_workers,
    decide,
)
from workqueue_operator.scaling.depth import busy_pods, messages_in_stopping_workers, workers_decide
from workqueue_operator.scaling.gather import (
    Connection,
    Gatherer,
    changes_the_count,
    reading_seconds,
)
from workqueue_operator.scaling.place import Place
from workqueue_operator.scaling.scale import RENEW_AFTER, CountWrite, Scaled, Scaler
from workqueue_operator.scaling.snapshot import Snapshot
from workqueue_operator.workers.apply import is_owned_by
from workqueue_operator.workers.target import Targets

logger = logging.getLogger(__name__)

LOOK_AGAIN: Final = 1.0
"""Seconds until the next pass while an answer of the workers can change the count. Only they know when they are
idle."""

REPORT_AFTER_WAKE: Final = 0.5
"""Seconds from the count that a ring raised until the pass that reports it. When hundreds of queues wake together,
these passes would take the processor from the last counts."""

SHORTEST_LOOK: Final = 0.05
"""Seconds until the next pass, at least, when the scale-in window is about to end."""

LOOK_AGAIN_PER_POD: Final = 0.02
"""Seconds per pod until the next pass, if that is longer: asking many pods each second costs more than it tells."""

LOOK_AGAIN_AT_REST: Final = 5.0
"""Seconds until the next pass while workers run and the count cannot shrink."""

SCHEDULE_EVERY: Final = 20.0
"""Seconds until the next pass of a WorkQueue with schedules, or without a Deployment to scale."""

CONNECTING_AGAIN: Final = 10.0
"""Seconds until the next pass while the first connection to a broker is being opened. Its WorkQueues get a pass
immediately when it is open, or could not be opened."""

DECLARE_SECONDS: Final = 0.25
"""Seconds for which a pass that waits for declarations keeps its place. A healthy broker takes milliseconds for
them."""

BACKOFF: Final = (0.5, 60.0)
"""Seconds: the first and the longest pause after a pass that raised an error."""

BACKOFF_AFTER_PROBLEM: Final = (1.0, 15.0)
"""Seconds: the first and the longest pause after a pass that ended with a ReconcileError."""

BIND_AGAIN: Final = 15.0
"""Seconds until the next pass of a WorkQueue whose bindings name a missing exchange, or whose tokens cannot be made:
nothing tells when that changes."""

UNKNOWN_AGAIN: Final = 5.0
"""Seconds until a pass that failed before anything was known of its WorkQueue is repeated."""

_SECRET_PROBLEMS: Final = frozenset({Reason.SECRET_NOT_FOUND, Reason.SECRET_INVALID, Reason.SECRET_FORBIDDEN})
_REFUSALS: Final = frozenset(
    {Reason.AUTHENTICATION_FAILED, Reason.VIRTUAL_HOST_NOT_FOUND, Reason.PERMISSION_DENIED}
)
_TRIES_AGAIN: Final = frozenset({Reason.EXCHANGE_NOT_FOUND, Reason.LIMIT_UNAVAILABLE})
_NOT_YET: Final = Finding("Unknown", Reason.DEPTH_PENDING, "The queue has not been declared yet.")


@dataclass(eq=False, frozen=True)
class Dependencies:
    """What the passes use, made once at the start of the process.

    Attributes:
        on_fatal: called when a pass finds that this process no longer leads.
    """

    queue: ReconcileQueue
    clock: Clock
    store: Store
    ownership: Ownership
    secrets: Secrets
    brokers: BrokerPool
    gatherer: Gatherer
    targets: Targets
    scaler: Scaler
    reporter: Reporter
    protector: Protector
    finalizer: Finalizer
    bindings: Bindings
    recurring: RecurringRunner
    limits: Limits
    rates: RateFeeder
    metrics: Metrics
    on_fatal: Callable[[BaseException], None]


class Reconciler:
    """Runs the passes."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._parts = dependencies
        self._clock = dependencies.clock
        self._pass_states: dict[Key, PassState] = {}
        self._served_elsewhere: dict[str, str] = {}

    def start(self) -> None:
        """Run a pass over each WorkQueue in the store, and from now on after each change.

        The store must be complete: a pass that misses a Deployment creates it.
        """
        self._parts.queue.start(self.reconcile, self._is_known)
        for key in list(self._parts.store.workqueues):
            self._parts.queue.add(key, Lane.RESYNC)

    def _is_known(self, key: Key) -> bool:
        """Whether a pass has declared the queue. Until then a pass takes many requests."""
        state = self._pass_states.get(key)
        return state is not None and state.queue is not None

    # -- errors --------------------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> NextPass:
        """Run one pass. An error becomes a pause."""
        metrics, begun = self._parts.metrics, self._clock.monotonic()
        about = {"namespace": key[0], "workqueue": key[1]}
        try:
            return await self._pass(key)
        except LeadershipLostError as error:
            self._parts.on_fatal(error)
            return NextPass()
        except ClusterError as error:
            metrics.reconcile_errors.labels(Reason.API_UNAVAILABLE.value).inc()
            logger.warning(
                "A pass failed at the API server.",
                extra={**about, "status": error.status, "detail": error.message},
            )
            return self._failed(key, at_least=error.retry_after or 0.0)
        except Exception:
            # An unexpected error must not end the operator, which serves a thousand other queues.
            metrics.reconcile_errors.labels(Reason.INTERNAL_ERROR.value).inc()
            logger.exception("A pass failed.", extra={**about, "reason": Reason.INTERNAL_ERROR.value})
            return self._failed(key)
        finally:
            metrics.reconcile_seconds.observe(self._clock.monotonic() - begun)

    def _failed(self, key: Key, *, at_least: float = 0.0) -> NextPass:
        """The pause after a failed pass. From the second failure in a row on, nothing shortens it."""
        state = self._pass_states.get(key)
        if state is None:
            return NextPass(max(at_least, UNKNOWN_AGAIN), failed=True)
        state.failures += 1
        pause = max(at_least, delay(state.failures, *BACKOFF))
        return NextPass(pause, failed=True, holds=Lane.RING if state.failures > 1 else None)

    # -- the pass ------------------------------------------------------------------------------------

    async def _pass(self, key: Key) -> NextPass:
        parts = self._parts
        body = parts.store.workqueue(key)
        other = await parts.ownership.elsewhere(key[0])
        if body is None or other is not None:
            await self._forget_key(key)
        if body is None:
            return NextPass()
        if other != self._served_elsewhere.get(key[0]):
            self._report_who_serves(key[0], other)
        if other is not None:
            return NextPass()
        state = self._pass_state(key, body["metadata"]["uid"])
        # Everything that is kept by this key then shares its strings.
        body["metadata"]["namespace"], body["metadata"]["name"] = key
        try:
            workqueue = WorkQueue.model_validate(body)
        except ValidationError as error:
            self._report_unreadable(body, error)
            state.reported = None
            return NextPass()
        if workqueue.deleting:
            parts.recurring.forget(workqueue.metadata.uid)
            again = await parts.finalizer.finalize(workqueue)
            state.failures = 0
            return (
                NextPass() if again is None else await self._keep_retired(workqueue, state, NextPass(again))
            )
        await parts.finalizer.ensure(workqueue)
        due = await self._live_pass(workqueue, state)
        return await self._keep_retired(workqueue, state, due)

    async def _live_pass(self, workqueue: WorkQueue, state: PassState) -> NextPass:
        """A pass over a WorkQueue that is not being deleted."""
        parts = self._parts
        outcome, due = await self._gather_and_scale(workqueue, state)
        state.failures = 0
        if outcome is None:
            return due
        self._report(workqueue, state, outcome)
        if outcome.problem is None:
            state.problems = 0
        again = parts.targets.looks_again(workqueue)
        binds = BIND_AGAIN if outcome.queue.reason in _TRIES_AGAIN else None
        return NextPass(min((wait for wait in (due.after, again, binds) if wait is not None), default=None))

    async def _keep_retired(self, workqueue: WorkQueue, state: PassState, due: NextPass) -> NextPass:
        """Renew the leases of workers that have agreed to leave, until Kubernetes has removed them.

        Otherwise they would take messages again, and be removed with them. That holds whatever else a pass does.

        Returns:
            The next pass, which is soon enough for that.
        """
        parts, live = self._parts, self._parts.targets.seen(workqueue)
        pods = parts.targets.pods(workqueue)
        if live is None or not any(pod.marked for pod in pods):
            return due
        retired = leaving(deployment_view(live), pods)
        handle = parts.brokers.known(workqueue.key)
        state.scaled = await parts.scaler.renew_leases(workqueue, retired, state.scaled, handle)
        return due.within(RENEW_AFTER) if retired else due

    def _report(self, workqueue: WorkQueue, state: PassState, outcome: status.Outcome) -> None:
        reporter, metadata = self._parts.reporter, workqueue.metadata
        reported, version = (metadata.generation, outcome), metadata.resource_version
        # Most passes have nothing new to report, and most versions only show what was reported.
        if reported == state.reported and (version == state.reported_version or reporter.shows(workqueue)):
            return
        state.reported, state.reported_version = reported, version
        findings, moment = status.conditions(workqueue, outcome), timestamp(self._clock.now())
        reporter.measure(workqueue, outcome)
        reporter.transitions(workqueue, findings)
        reporter.status(workqueue, status.status(workqueue, outcome, findings, moment))

    def _report_unreadable(self, body: Object, error: ValidationError) -> None:
        """The CRD is older than this operator, or was bypassed. The operator only reports that."""
        named = WorkQueue.model_construct(
            metadata=Metadata.model_validate(body["metadata"]), status=WorkQueueStatus()
        )
        mistakes = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        message = (
            f"The resource cannot be read ({'; '.join(mistakes)}). Apply the current CRD, and correct it."
        )
        finding = Finding("False", Reason.SPEC_INVALID, message)
        event = Event(finding.reason, message, ConditionType.READY, warning=True)
        self._parts.reporter.event(named, event)
        self._parts.reporter.status(named, status.unreadable(named, finding, timestamp(self._clock.now())))

    def _pass_state(self, key: Key, uid: str) -> PassState:
        state = self._pass_states.get(key)
        if state is None or state.uid != uid:
            if state is not None:
                self._forget(state)
            # A ring from before was for another WorkQueue of this name.
            self._parts.queue.take_ring(key)
            state = self._pass_states[key] = PassState(uid, ScaleInWindow(self._clock.monotonic()))
        return state

    def _report_who_serves(self, namespace: str, other: str | None) -> None:
        """Report once for each namespace that another operator serves it, or that this one does again."""
        parts = self._parts
        before = self._served_elsewhere.pop(namespace, None)
        if before is not None:
            parts.metrics.served_elsewhere.remove(namespace, before)
        own = parts.ownership.operator
        if other is None:
            message = f"The operator {own} serves the WorkQueues of namespace {namespace!r} again."
        else:
            self._served_elsewhere[namespace] = other
            parts.metrics.served_elsewhere.labels(namespace, other).set(1)
            message = (
                f"The operator {other} serves the WorkQueues of namespace {namespace!r}; {own} leaves them alone. "
                f"The namespace's label {LABEL_OPERATOR} decides; without it the release that lists the namespace "
                "serves it."
            )
        parts.reporter.namespace_event(namespace, Event(Reason.SERVED_ELSEWHERE, message, "Serve"))

    async def _forget_key(self, key: Key) -> None:
        """Forget a WorkQueue that does not exist, or that another operator serves."""
        parts = self._parts
        state = self._pass_states.pop(key, None)
        await self._leave_broker(key)
        parts.queue.take_ring(key)
        parts.secrets.leave(key)
        parts.store.unfollow(key)
        parts.metrics.workqueues.forget(*key)
        if state is not None:
            self._forget(state)

    async def _leave_broker(self, key: Key) -> None:
        self._parts.rates.leave(key)
        await self._parts.brokers.leave(key)

    def _forget(self, state: PassState) -> None:
        self._parts.reporter.forget(state.uid)
        self._parts.targets.forget(state.uid)
        self._parts.recurring.forget(state.uid)

    async def _gather_and_scale(
        self, workqueue: WorkQueue, state: PassState
    ) -> tuple[status.Outcome | None, NextPass]:
        """Everything between reading the resource and reporting.

        Returns:
            The outcome; None while the connection is being opened, and if the next pass reports it. And that pass.
        """
        parts, secret = self._parts, workqueue.spec.connection_secret_ref.name
        if workqueue.spec.suspend:
            return await self._suspended(workqueue, state)
        parts.secrets.use(workqueue.key, secret)
        try:
            known = parts.brokers.known(workqueue.key)
            binding = await parts.secrets.binding(
                workqueue.metadata.namespace,
                secret,
                suspect=known is not None and known.broker.problem is not None,
                # A ring has just arrived over this connection, and the wake must not wait for a GET.
                proven=parts.queue.rang_at(workqueue.key) is not None,
            )
            handle = await parts.brokers.handle(workqueue.key, binding)
            state.secret = secret
            if not handle.broker.connected and handle.broker.problem is None:
                return None, NextPass(CONNECTING_AGAIN)
            await self._require_connection(workqueue, handle)
        except ReconcileError as problem:
            keeps = state.queue is not None and problem.reason not in _SECRET_PROBLEMS
            if not keeps and state.secret not in {None, secret}:
                # The doorbell is on the broker of the Secret before.
                await self._leave_broker(workqueue.key)
                state.secret = None
            return await self._without_depth(workqueue, state, problem, state.queue if keeps else None)
        place = Place(self._clock, handle.broker, partial(parts.queue.release_place, workqueue.key))
        # The doorbells of all come before the first look at a template, and before the first report.
        is_first = parts.queue.catches_up and not state.caught_up
        if is_first and state.queue is None and self._slept(workqueue, binding.display):
            with place.waits_for_broker(DECLARE_SECONDS):
                if await self._set_doorbell_again(workqueue, state, handle):
                    return None, NextPass(0.0, lane=Lane.RESYNC)
        # The pass after that reports, unless a message came first.
        is_first = is_first and (state.queue is None or parts.queue.rang_at(workqueue.key) is not None)
        try:
            with place.waits_for_broker(DECLARE_SECONDS):
                queue = await self._declare(workqueue, state, handle)
                about_limit = await self._make_tokens(workqueue, state, handle)
        except ReconcileError as problem:
            state.queue = None
            if not _leaves_doorbell_to_older(workqueue, handle, parts.store):
                handle.broker.remove_doorbell(workqueue.queue_name)
            return await self._without_depth(workqueue, state, problem, None)
        if about_limit is not None and queue.status == "True":
            queue = about_limit
        next_slot = parts.recurring.look(workqueue, handle.broker)
        connection = Connection(handle, binding, place, is_first)
        outcome, due = await self._scale(workqueue, state, connection, queue)
        return outcome, due if next_slot is None else due.within(next_slot)

    async def _suspended(self, workqueue: WorkQueue, state: PassState) -> tuple[status.Outcome, NextPass]:
        """A pass that changes nothing."""
        parts = self._parts
        parts.recurring.forget(workqueue.metadata.uid)
        await self._leave_broker(workqueue.key)
        parts.secrets.leave(workqueue.key)
        nothing = Unknown(Reason.SUSPENDED, "spec.suspend is true.")
        decision = self._decide(workqueue, state, Observation(nothing, nothing))
        outcome = status.Outcome(state.queue or _NOT_YET, decision=decision, last_scale=state.last_scale)
        return self._with_workload(workqueue, outcome), NextPass()

    def _slept(self, workqueue: WorkQueue, broker: str) -> bool:
        """Whether the WorkQueue needs nothing but its doorbell."""
        seen = self._parts.targets.seen(workqueue)
        pods = self._parts.targets.pods(workqueue)
        return (
            seen is not None
            and is_owned_by(seen, workqueue)
            and wake.slept(workqueue, deployment_view(seen), pods, broker)
        )

    async def _set_doorbell_again(self, workqueue: WorkQueue, state: PassState, handle: BrokerHandle) -> bool:
        """Set the doorbell of a WorkQueue that slept. The next pass makes sure of everything else.

        The declaration finds a queue that others have replaced, or whose messages need workers and no doorbell.

        Returns:
            Whether that was enough.
        """
        queue = workqueue.queue_name
        watched = handle.poller.watch(workqueue.key, queue)
        try:
            claimants = await self._parts.brokers.claimants(queue, handle)
            _require_first_claim(workqueue, claimants, self._parts.store)
            counts = await handle.broker.declare_queue(work_queue(workqueue.queue_settings))
            watched.record(counts)
            watched.claimed = True
            await self._compare_claims(workqueue, handle)
        except ReconcileError:
            return False  # the whole pass meets it again, and reports it
        if counts.ready:
            return False
        state.queue = declare.both_exist(queue)
        watched.active = not await handle.broker.install_doorbell(queue)
        return True

    async def _without_depth(
        self, workqueue: WorkQueue, state: PassState, problem: ReconcileError, queue: Finding | None
    ) -> tuple[status.Outcome, NextPass]:
        """A pass without a depth holds the count, unless a person has pinned it or the queue is another's."""
        parts, unknown = self._parts, Unknown(problem.reason, problem.message)
        snapshot, state.gathered = await parts.gatherer.gather_without_queue(
            workqueue, unknown, state.gathered, partial(parts.queue.release_place, workqueue.key)
        )
        if problem.reason is Reason.QUEUE_CLAIMED:
            # Its workers would consume from the queue of the older WorkQueue.
            workload = unknown
            try:
                await parts.targets.stop_own_workers(workqueue)
            except ReconcileError as refused:
                workload = Unknown(refused.reason, refused.message)
            decision = self._decide(workqueue, state, Observation(workload, unknown))
        else:
            decision = self._decide(workqueue, state, snapshot.observation)
            handle = parts.brokers.known(workqueue.key)
            if handle is not None and _leaves_doorbell_to_older(workqueue, handle, parts.store):
                handle = None
            scaled = await parts.scaler.scale(snapshot, decision, state.scaled, handle)
            self._record(workqueue, state, decision, scaled)
            decision = scaled.decision
        outcome = status.Outcome(
            queue or Finding("False", problem.reason, problem.message),
            depth=unknown,
            decision=decision,
            problem=unknown,
            refusal=snapshot.refusal,
            last_scale=state.last_scale,
        )
        state.problems += 1
        pause = delay(state.problems, *BACKOFF_AFTER_PROBLEM)
        return self._with_workload(workqueue, outcome), NextPass(pause)

    def _decide(self, workqueue: WorkQueue, state: PassState, seen: Observation) -> Decision:
        decision, state.window = decide(workqueue.spec, seen, state.window, self._clock.monotonic())
        return decision

    def _with_workload(self, workqueue: WorkQueue, outcome: status.Outcome) -> status.Outcome:
        """Add the Deployment and the pods of the store to a pass that ended early."""
        live = self._parts.targets.seen(workqueue)
        if live is None:
            return outcome
        return replace(outcome, deployment=deployment_view(live), pods=self._parts.targets.pods(workqueue))

    # -- the connection and the queue ----------------------------------------------------------------

    async def _require_connection(self, workqueue: WorkQueue, handle: BrokerHandle) -> None:
        try:
            await handle.broker.ready()
        except ReconcileError as problem:
            if problem.reason in _REFUSALS:
                # A rotated password shows first as a refused login.
                self._parts.secrets.forget(
                    workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
                )
            raise

    async def _declare(self, workqueue: WorkQueue, state: PassState, handle: BrokerHandle) -> Finding:
        """Declare the queues when something changed: the spec, the connection, or a queue that has vanished."""
        parts, queue = self._parts, workqueue.queue_name
        watched = handle.poller.watch(workqueue.key, queue)
        dead = handle.poller.watch(workqueue.key, workqueue.dead_letter_queue_name)
        _require_first_claim(workqueue, await parts.brokers.claimants(queue, handle), parts.store)
        if watched.doubtful:
            await handle.poller.ask(watched)
        vanished = [entry for entry in (watched, dead) if entry.last is QUEUE_MISSING]
        generation = workqueue.metadata.generation
        if state.queue_spec[0] != generation:
            # The finding also depends on the time that a handler may take.
            longest = None if workqueue.spec.worker is None else workqueue.spec.worker.timeout_seconds
            text = f"{longest} {workqueue.spec.queue.model_dump_json()}"
            state.queue_spec = generation, digest_of_text(text)
        declared = (handle.broker.binding.identity, handle.broker.generation, state.queue_spec[1])
        # A WorkQueue that was suspended has lost its claim.
        if watched.claimed and state.declared == declared and state.queue is not None and not vanished:
            return state.queue
        for entry in vanished:
            handle.broker.mark_vanished(entry.queue)
        for name in handle.poller.queues_of(workqueue.key):
            # An earlier queue.deadLetterQueue.
            if name not in {queue, dead.queue} and not is_delay_queue(name, queue):
                handle.poller.forget_queue(workqueue.key, name)
        await parts.bindings.announce(workqueue, handle.broker.binding.display)
        try:
            again = [
                entry.queue for entry in vanished if entry.queue != workqueue.spec.queue.dead_letter_queue
            ]
            if again and state.queue is not None and workqueue.spec.queue.declare:
                finding, answers = await declare.declare_again(workqueue, handle.broker, again)
            else:
                finding, answers = await declare.declare(workqueue, handle.broker)
            await parts.bindings.remove_unwanted(workqueue, handle.broker)
        except ReconcileError as problem:
            watched.claimed = watched.claimed and problem.reason in UNANSWERED
            raise
        # Not earlier: a user whom the broker refuses to let declare the queue has no claim on it.
        watched.claimed = True
        if finding.status == "True":
            finding = declare.consumer_timeout_problem(workqueue, handle.broker) or finding
        # With a missing exchange, the next pass binds again.
        state.declared, state.queue = declared if finding.status == "True" else None, finding
        for entry in (watched, dead):
            entry.record(answers[entry.queue])
        await self._compare_claims(workqueue, handle)
        return finding

    async def _compare_claims(self, workqueue: WorkQueue, handle: BrokerHandle) -> None:
        """Look for claims of others after making one.

        Of two WorkQueues that make a claim at the same moment, neither has seen the other's before. After a restart,
        a younger one may have come first.

        Raises:
            ReconcileError: an older WorkQueue has the queue.
        """
        claimants = await self._parts.brokers.claimants(workqueue.queue_name, handle)
        _require_first_claim(workqueue, claimants, self._parts.store)
        for other in claimants:
            if other != workqueue.key:
                # Its next pass is refused, and stops its workers.
                self._parts.queue.add(other)

    async def _make_tokens(
        self, workqueue: WorkQueue, state: PassState, handle: BrokerHandle
    ) -> Finding | None:
        """Make the tokens of the limits that have changed, or whose tokens are missing.

        Returns:
            The problem, or None.
        """
        problems = [
            await self._make_handler_tokens(workqueue, state, handle),
            await self._feed_start_tokens(workqueue, handle),
        ]
        found = [problem for problem in problems if problem is not None]
        return min(found, key=lambda problem: problem.status, default=None)  # False before True

    async def _feed_start_tokens(self, workqueue: WorkQueue, handle: BrokerHandle) -> Finding | None:
        """See that the tokens of the limit per second are published."""
        agreed = limits.agreed_rate(workqueue, self._parts.store)
        if agreed is None:
            self._parts.rates.leave(workqueue.key)
            return None
        work = handle.poller.watch(workqueue.key, workqueue.queue_name).last
        # A worker outside of the cluster may take tokens for messages of another queue.
        tokens = handle.poller.watch(workqueue.key, agreed.limit.name).last
        is_idle = isinstance(work, QueueCounts) and work.ready == work.consumers == 0
        is_idle = is_idle and not (isinstance(tokens, QueueCounts) and tokens.consumers)
        try:
            await self._parts.rates.ensure(workqueue.key, agreed.limit, handle.broker, is_wanted=not is_idle)
        except ReconcileError as problem:
            return Finding("False", Reason.LIMIT_UNAVAILABLE, problem.message)
        return _conflict(agreed.conflict)

    async def _make_handler_tokens(
        self, workqueue: WorkQueue, state: PassState, handle: BrokerHandle
    ) -> Finding | None:
        """Make the tokens of the limit on handlers that run."""
        agreed = limits.agreed(workqueue, self._parts.store)
        if agreed is None:
            return None
        limit, watched = agreed.limit, handle.poller.watch(workqueue.key, agreed.limit.name)
        made = (handle.broker.binding.identity, handle.broker.generation, limit)
        if state.tokens != made or limits.lacks_tokens(limit, watched.last):
            state.tokens = None
            try:
                await self._parts.limits.ensure(limit, handle.broker)
            except ReconcileError as problem:
                return Finding("False", Reason.LIMIT_UNAVAILABLE, problem.message)
            finally:
                await handle.poller.ask(watched)
            state.tokens = made
        return _conflict(agreed.conflict)

    # -- the count -----------------------------------------------------------------------------------

    async def _scale(
        self, workqueue: WorkQueue, state: PassState, connection: Connection, queue: Finding
    ) -> tuple[status.Outcome | None, NextPass]:
        """Decide, change the count, and collect what the status shows. Returns as `_gather_and_scale` does."""
        parts, handle = self._parts, connection.handle
        # Taken here and not at the end: a ring during the pass is for the next pass.
        ring_at = parts.queue.take_ring(workqueue.key)
        snapshot, state.gathered = await parts.gatherer.gather(
            workqueue, connection, state.gathered, ring=ring_at is not None
        )
        decision, state.window = decide(workqueue.spec, snapshot.observation, state.window, snapshot.now)
        decision = beside_stopping_workers(decision, messages_in_stopping_workers(snapshot.readings))
        scaled = await parts.scaler.scale(snapshot, decision, state.scaled, handle)
        self._observe_wake(scaled.writes, ring_at)
        self._record(workqueue, state, decision, scaled)
        decision = scaled.decision
        snapshot = replace(snapshot, deployment=scaled.deployment, pods=parts.targets.pods(workqueue))
        doorbell = await wake.adjust_doorbell(snapshot, decision, handle)
        if ring_at is not None and scaled.writes and isinstance(decision, ScaleOut):
            # The Deployment changes now. Its events would start the pass that reports while other queues still wake.
            return None, NextPass(REPORT_AFTER_WAKE, holds=Lane.EVENT)
        if connection.is_first:
            state.caught_up = True
            return None, NextPass(0.0, lane=Lane.RESYNC)
        snapshot, state.gathered = await parts.gatherer.gather_rest(snapshot, state.gathered)
        parts.protector.update(workqueue.metadata.namespace, snapshot.pods, snapshot.readings.statuses)
        retrying, state.retries = await retries.waiting(snapshot, state.retries, handle)
        # The queue has vanished since the pass began. The next pass declares it again.
        vanished = isinstance(snapshot.readings.counts, QueueMissing)
        dead = await handle.poller.last_answer(
            workqueue.key, workqueue.dead_letter_queue_name, warm=snapshot.workers_run
        )
        deployment = snapshot.deployment
        current = deployment.current if isinstance(deployment, DeploymentView) else None
        outcome = status.Outcome(
            queue,
            depth=snapshot.depth,
            deployment=deployment,
            pods=snapshot.pods,
            decision=decision,
            refusal=snapshot.refusal,
            doorbell=doorbell,
            retrying=retrying,
            delay_queues=state.retries.queues or frozenset(),
            dead_letters=dead.ready if isinstance(dead, QueueCounts) else None,
            busy=busy_pods(snapshot.readings, snapshot.depth, current),
            line=None if snapshot.waits is None else snapshot.waits.line,
            ignored=snapshot.minimum.ignored,
            last_scale=state.last_scale,
        )
        # A ring that led to nothing: whatever took its message may requeue it.
        fruitless_ring = ring_at is not None and not isinstance(decision, ScaleOut)
        conflict = decision.reason is Reason.CONFLICTING_WRITE
        now = self._clock.monotonic()
        refused_until = state.scaled.next_attempt(now)
        silent_pause = parts.gatherer.pause(snapshot.readings)
        delays = [
            LOOK_AGAIN if fruitless_ring or vanished or conflict else None,
            _next_look(snapshot, decision, state.window, silent_pause),
            None if refused_until is None else max(refused_until - now, 0.0),
        ]
        return outcome, NextPass(min((seconds for seconds in delays if seconds is not None), default=None))

    def _observe_wake(self, writes: Sequence[CountWrite], ring_at: float | None) -> None:
        if ring_at is not None:
            for write in writes:
                self._parts.metrics.wake_seconds.observe(write.at - ring_at)

    def _record(self, workqueue: WorkQueue, state: PassState, decision: Decision, scaled: Scaled) -> None:
        """Note what a scaling has done, and report it. Then raise the error that ended it, if any.

        Args:
            decision: that was carried out.
        """
        parts, state.scaled = self._parts, scaled.state
        for answer in scaled.answers:
            parts.metrics.retire.labels(answer.value).inc()
        if scaled.writes:
            state.last_scale = {
                "lastScaleTime": timestamp(self._clock.now()),
                "lastScaleReason": f"{decision.reason.value}: {decision.message}",
            }
        for write in scaled.writes:
            direction = "out" if write.after > write.before else "in"
            parts.metrics.scale.labels(direction, decision.reason.value).inc()
            message = f"Scaled {direction} from {write.before} to {write.after}: {decision.message}"
            parts.reporter.event(workqueue, Event(decision.reason, message, "Scale"))
        if scaled.error is not None:
            raise scaled.error


def _conflict(message: str | None) -> Finding | None:
    """Return what is wrong within the group of a limit."""
    return None if message is None else Finding("True", Reason.LIMIT_CONFLICT, message)


def _require_first_claim(workqueue: WorkQueue, claimants: Sequence[Key], store: Store) -> None:
    """Of several WorkQueues on one queue, the oldest has it."""
    for other in claimants:
        if other != workqueue.key and store.is_older(other, workqueue.key):
            raise ReconcileError(
                Reason.QUEUE_CLAIMED,
                f"The queue {workqueue.queue_name!r} belongs to {_named(other, workqueue)} on the same broker. "
                "Delete one of the two; for another queue make another WorkQueue.",
            )


def _named(other: Key, workqueue: WorkQueue) -> str:
    """Describe an older WorkQueue. Its name is shown only within the same namespace."""
    if other[0] == workqueue.metadata.namespace:
        return f"the older WorkQueue {other[1]!r}"
    return "an older WorkQueue of another namespace"


def _leaves_doorbell_to_older(workqueue: WorkQueue, handle: BrokerHandle, store: Store) -> bool:
    """Whether the doorbell on this connection belongs to an older WorkQueue on the same queue."""
    return any(
        store.is_older(other, workqueue.key) for other in handle.poller.claims_on(workqueue.queue_name)
    )


def _next_look(
    snapshot: Snapshot, decision: Decision, window: ScaleInWindow, silent_pause: float
) -> float | None:
    """Seconds until a pass must look again although nothing changed; None when only a change needs a pass.

    Args:
        silent_pause: seconds for which workers that do not answer are left alone.
    """
    spec, deployment = snapshot.workqueue.spec, snapshot.deployment
    delays = []
    if spec.scaling.schedules or isinstance(deployment, Unknown):
        delays.append(SCHEDULE_EVERY)
    if isinstance(deployment, DeploymentView) and snapshot.workers_run:
        seconds = _until_next_reading(snapshot, decision, deployment, window)
        delays.append(max(seconds, silent_pause, LOOK_AGAIN_PER_POD * len(snapshot.pods)))
    return min(delays, default=None)


def _until_next_reading(
    snapshot: Snapshot, decision: Decision, deployment: DeploymentView, window: ScaleInWindow
) -> float:
    """Seconds until the workers, or the management API, must be asked again."""
    spec, readings = snapshot.workqueue.spec, snapshot.readings
    if decision.reason is Reason.SCALE_IN_DELAYED:
        # Without a pass at the end of the window, the scale-in would wait for the next reading.
        ends = window.next_end(spec.scaling.scale_in_delay_seconds) - snapshot.now
        return min(reading_seconds(spec, readings), max(ends, SHORTEST_LOOK))
    # An exact count comes from the management API, which does not report changes.
    exact = isinstance(readings.unacknowledged, int)
    surplus = decision.wanted is not None and decision.wanted < deployment.replicas
    surplus = surplus and decision.reason is not Reason.WORKERS_BUSY
    decisive = workers_decide(readings.counts) and changes_the_count(
        spec, readings, deployment, snapshot.minimum.replicas
    )
    # Messages that wait grow older although no count changes.
    grow_old = snapshot.waits is not None and bool(snapshot.waits.line.cohorts)
    if exact or surplus or decisive or grow_old:
        return LOOK_AGAIN
    if deployment.replicas > spec.scaling.min_replicas:
        return reading_seconds(spec, readings)
    return max(LOOK_AGAIN_AT_REST, reading_seconds(spec, readings))
