"""Carry out a decision: raise the count in one write, or ask workers to leave.

Every write of a count goes through this module. The reconciler sends its Event and its metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.backoff import delay
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.refusal import why_count_denied
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import (
    DeploymentView,
    PodView,
    deployment_view,
    is_observed,
    scaled,
    unsettled,
)
from workqueue_operator.ports import Broker, Clock
from workqueue_operator.scaling import wake
from workqueue_operator.scaling.decide import Decision, Hold, Retire, ScaleOut, Trim
from workqueue_operator.scaling.snapshot import Snapshot
from workqueue_operator.workers.apply import REFUSED_AGAIN, WorkloadApplier, count_of
from workqueue_operator.workers.client import Answer, SigningKeys
from workqueue_operator.workers.retire import (
    CONFLICT,
    NO_DOORBELL,
    UNSEEN,
    RetireOutcome,
    Retirer,
    RetireSteps,
    comes_true,
    cordoned_first,
    plan,
)

UNREACHABLE_AFTER: Final = 30.0
"""Seconds after which a condition names a worker that cannot be asked to leave."""


RENEW_AFTER: Final = 10.0
"""Seconds after which the lease of a worker that waits for its removal is renewed. It lasts 30 s."""

SEEN_WITHIN: Final = 1.0
"""Seconds within which Kubernetes must have seen a count that was lowered without asking a worker. A pod takes longer
to start and to take a message."""

NOT_SEEN: Final = Unknown(
    Reason.PODS_SETTLING,
    "Kubernetes had not seen the lower count after a second, and it was raised again: pods that were refused may be "
    "admitted meanwhile, and others would be removed. If this persists, look at kube-controller-manager.",
)

_UNPROCESSABLE: Final = 422


@dataclass(frozen=True, slots=True)
class CountRefusal:
    """A write of the count that the API server refused.

    Attributes:
        replicas: the refused count that is nearest to the present one.
        why: the API server's words.
        until: the monotonic time of the next attempt.
        failures: refusals in a row, at least 1.
    """

    replicas: int
    why: Unknown
    until: float
    failures: int


@dataclass(frozen=True, slots=True)
class ScaleState:
    """What scaling keeps about one WorkQueue between its passes.

    Attributes:
        refused_out: the last refusal to raise the count; None after a count as high was written.
        refused_in: the last refusal to lower the count; None after one was written.
        unreachable_since: since when a worker that should leave has not answered, on the monotonic clock.
        leases_begun_at: when the workers that wait for their removal last agreed to leave; None when it is not known.
    """

    refused_out: CountRefusal | None = None
    refused_in: CountRefusal | None = None
    unreachable_since: float | None = None
    leases_begun_at: float | None = None

    def next_attempt(self, now: float) -> float | None:
        """Return the monotonic time at which a refused count may be written again; None without a recent refusal."""
        refusals = (refusal for refusal in (self.refused_out, self.refused_in) if refusal is not None)
        return min((refusal.until for refusal in refusals if refusal.until > now), default=None)


@dataclass(frozen=True, slots=True)
class CountWrite:
    """One successful write of the count, at a monotonic time."""

    at: float
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Scaled:
    """What became of a decision.

    Attributes:
        decision: the decision, or a Hold that says why it could not be carried out.
        deployment: the Deployment afterwards.
        state: for the next pass.
        writes: every count that was written, in order.
        answers: what workers answered that were asked to leave.
        error: what ended the scaling early. Everything else here happened before it.
    """

    decision: Decision
    deployment: DeploymentView | Unknown
    state: ScaleState
    writes: tuple[CountWrite, ...] = ()
    answers: tuple[Answer, ...] = ()
    error: ClusterError | None = None


@dataclass(slots=True)
class _Attempt:
    """One decision while it is carried out, and what has happened so far."""

    workqueue: WorkQueue
    decision: ScaleOut | Retire | Trim
    deployment: DeploymentView
    state: ScaleState
    writes: list[CountWrite] = field(default_factory=list)
    answers: tuple[Answer, ...] = ()

    def hold(self, why: Unknown) -> Hold:
        """Return the Hold that replaces the decision."""
        return Hold.because(self.decision.wanted, why)

    def ended(self, decision: Decision, error: ClusterError | None = None) -> Scaled:
        """Return the result."""
        return Scaled(decision, self.deployment, self.state, tuple(self.writes), self.answers, error)


class Scaler:
    """Changes counts.

    Args:
        cordoned: returns the names of the cordoned nodes, as far as they are known.
    """

    def __init__(
        self,
        store: Store,
        workload: WorkloadApplier,
        retirer: Retirer,
        clock: Clock,
        cordoned: Callable[[], AbstractSet[str]] = frozenset,
    ) -> None:
        self._store = store
        self._workload = workload
        self._retirer = retirer
        self._clock = clock
        self._cordoned = cordoned

    async def scale(
        self, snapshot: Snapshot, decision: Decision, state: ScaleState, handle: Broker | None
    ) -> Scaled:
        """Carry out a decision.

        Args:
            handle: None without a broker, on which only the step to an empty queue depends.
        """
        deployment, workqueue = snapshot.deployment, snapshot.workqueue
        if isinstance(deployment, Unknown):
            return Scaled(decision, deployment, state)
        if isinstance(decision, Hold):
            await self._clear_marks(snapshot, deployment, handle)
            return Scaled(decision, deployment, state)
        if isinstance(decision, ScaleOut):
            # On a queue with a single active consumer the doorbell would receive the message.
            if handle is not None:
                handle.broker.remove_doorbell(workqueue.queue_name)
            return await self.raise_count(workqueue, decision, deployment, state)
        refusal = state.refused_in
        if refusal is not None and self._clock.monotonic() < refusal.until:
            return Scaled(Hold.because(decision.wanted, refusal.why), deployment, state)
        attempt = _Attempt(workqueue, decision, deployment, state)
        try:
            return attempt.ended(await self._scale_in(attempt, snapshot, handle))
        except ClusterError as error:
            return attempt.ended(decision, error)

    async def renew_leases(
        self, workqueue: WorkQueue, retired: Sequence[PodView], state: ScaleState, handle: Broker | None
    ) -> ScaleState:
        """Keep the workers retired that Kubernetes has not removed yet. That may take longer than a lease lasts.

        Args:
            retired: what `leaving` returns.
        """
        running = [pod for pod in retired if pod.running]
        now, begun = self._clock.monotonic(), state.leases_begun_at
        if not running or (begun is not None and now - begun < RENEW_AFTER):
            return state
        await self._retirer.renew(running, await self._keys_of(workqueue, handle))
        return replace(state, leases_begun_at=now)

    async def raise_count(
        self, workqueue: WorkQueue, decision: ScaleOut, deployment: DeploymentView, state: ScaleState
    ) -> Scaled:
        """Raise the count to what was decided, or as far as the API server admits."""
        attempt = _Attempt(workqueue, decision, deployment, state)
        try:
            return attempt.ended(await self._raise(attempt, decision))
        except ClusterError as error:
            return attempt.ended(decision, error)

    async def _raise(self, attempt: _Attempt, decision: ScaleOut) -> Decision:
        """Find the highest count that the API server admits, by halving."""
        refusal, why = attempt.state.refused_out, None
        highest, lowest_refused = decision.replicas, decision.replicas + 1
        if refusal is not None and self._clock.monotonic() < refusal.until and refusal.replicas <= highest:
            highest, lowest_refused = refusal.replicas - 1, refusal.replicas
        target = highest
        while target > attempt.deployment.replicas:
            try:
                written = await self._write(attempt, target)
            except ClusterError as error:
                if not error.denied:
                    raise
                why, lowest_refused = why_count_denied(error, attempt.deployment.name, target), target
                if why.reason is Reason.API_FORBIDDEN:  # of any count
                    lowest_refused = attempt.deployment.replicas + 1
            else:
                if written is None:
                    return attempt.hold(CONFLICT)
                attempt.deployment = written
            target = (attempt.deployment.replicas + lowest_refused) // 2
        if why is not None:
            refusal = self._refused_again(refusal, lowest_refused, why)
            attempt.state = replace(attempt.state, refused_out=refusal)
            return attempt.hold(why)
        if refusal is not None and lowest_refused <= decision.replicas:
            return attempt.hold(refusal.why)
        if refusal is not None and attempt.deployment.replicas >= refusal.replicas:
            attempt.state = replace(attempt.state, refused_out=None)
        return decision

    async def _scale_in(self, attempt: _Attempt, snapshot: Snapshot, handle: Broker | None) -> Decision:
        decision = attempt.decision
        try:
            if isinstance(decision, Retire) and attempt.workqueue.spec.worker is not None:
                return await self._retire(attempt, snapshot, handle)
            if isinstance(decision, Trim):
                return await self._trim(attempt, decision)
            written = await self._write(attempt, decision.replicas)
        except ClusterError as error:
            if not error.denied:
                raise
            why = why_count_denied(error, attempt.deployment.name, decision.replicas)
            refusal = self._refused_again(attempt.state.refused_in, decision.replicas, why)
            attempt.state = replace(attempt.state, refused_in=refusal)
            return attempt.hold(why)
        if written is None:
            return attempt.hold(CONFLICT)
        attempt.deployment = written
        return decision

    async def _trim(self, attempt: _Attempt, trim: Trim) -> Decision:
        """Lower the count to the pods that exist, and raise it again if Kubernetes does not see it soon.

        A refused pod might be admitted until then. Kubernetes would remove a worker for it that was not asked.
        """
        before, refusal = attempt.deployment.replicas, attempt.state.refused_in
        written = await self._write(attempt, trim.replicas)
        if written is None:
            return attempt.hold(CONFLICT)
        attempt.deployment = written
        if await self._is_seen(attempt):
            return trim
        back = await self._write(attempt, before)
        if back is None:
            return attempt.hold(CONFLICT)
        attempt.deployment = back
        # Nothing has changed that an Event should tell.
        attempt.writes.clear()
        refusal = self._refused_again(refusal, trim.replicas, NOT_SEEN)
        attempt.state = replace(attempt.state, refused_in=refusal)
        return attempt.hold(NOT_SEEN)

    async def _is_seen(self, attempt: _Attempt) -> bool:
        """Whether the Deployment controller sees the count that was written last within SEEN_WITHIN."""

        async def sees_it() -> bool:
            live = await self._workload.read(attempt.workqueue, attempt.deployment.name)
            return live is None or is_observed(live)

        return await comes_true(sees_it, SEEN_WITHIN, self._clock)

    async def _write(self, attempt: _Attempt, replicas: int) -> DeploymentView | None:
        workqueue, deployment = attempt.workqueue, attempt.deployment
        scale = await self._workload.scale(workqueue, deployment.name, deployment.replicas, replicas)
        if scale is None:
            # The store was behind. The next decision must see the write that made the `test` operation fail.
            if (current := await self._workload.read(workqueue, deployment.name)) is not None:
                self._store.put_deployment(current)
            return None
        admitted = count_of(scale)
        if admitted == deployment.replicas:
            raise ClusterError(
                _UNPROCESSABLE,
                f"an admission webhook or a mutating policy has set the count back to {admitted}",
            )
        attempt.writes.append(CountWrite(self._clock.monotonic(), deployment.replicas, admitted))
        if admitted < deployment.replicas:
            attempt.state = replace(attempt.state, refused_in=None)
        self._store.put_count(scale)
        return scaled(deployment, admitted)

    async def _retire(self, attempt: _Attempt, snapshot: Snapshot, handle: Broker | None) -> Decision:
        workqueue, deployment, decision = attempt.workqueue, attempt.deployment, attempt.decision
        confirm_empty = None
        if isinstance(decision, Retire) and decision.only_when_empty:
            if handle is None:
                return attempt.hold(NO_DOORBELL)
            confirm_empty = partial(wake.confirm_empty, workqueue, handle)
        if await self._clear_marks(snapshot, deployment, handle):
            return attempt.hold(UNSEEN)
        key = await self._workload.retirement_key(workqueue)
        if isinstance(key, Unknown):
            return attempt.hold(key)
        surplus, begun = deployment.replicas - decision.replicas, self._clock.monotonic()
        outcome = await self._retirer.retire(
            workqueue.metadata.namespace,
            plan(
                cordoned_first(snapshot.pods, self._cordoned()),
                snapshot.readings.statuses,
                surplus,
                self._clock.now().timestamp(),
            ),
            _signing_keys(key, handle),
            RetireSteps(
                pods=lambda: self._store.pods_of(workqueue.key),
                lower=lambda number: self._write(attempt, deployment.replicas - number),
                confirm_empty=confirm_empty,
            ),
        )
        attempt.answers = tuple(outcome.answers.values())
        if outcome.deployment is None:
            return self._why_none_left(attempt, outcome)
        attempt.state = replace(attempt.state, unreachable_since=None, leases_begun_at=begun)
        attempt.deployment = outcome.deployment
        return decision

    def _why_none_left(self, attempt: _Attempt, outcome: RetireOutcome) -> Hold:
        """Why no worker was removed."""
        now = self._clock.monotonic()
        since = (attempt.state.unreachable_since or now) if outcome.unreachable else None
        attempt.state = replace(attempt.state, unreachable_since=since)
        if since is not None and now - since >= UNREACHABLE_AFTER:
            return Hold(
                attempt.decision.wanted,
                Reason.RETIRE_UNREACHABLE,
                f"Worker {outcome.unreachable[0]} does not answer the operator, so that it cannot be asked whether "
                "it is busy, and stays. Look for a NetworkPolicy between them, and at its log.",
            )
        assert outcome.obstacle is not None  # noqa: S101 - for the type checker; nothing was lowered
        return attempt.hold(outcome.obstacle)

    async def _clear_marks(
        self, snapshot: Snapshot, deployment: DeploymentView, handle: Broker | None
    ) -> bool:
        """Whether an interrupted scale-in has left marks on pods. They are removed as soon as that is safe."""
        workqueue, pods = snapshot.workqueue, snapshot.pods
        if workqueue.spec.worker is None or unsettled(deployment, pods) is not None:
            return False
        if not any(pod.marked and not pod.terminating for pod in pods):
            return False
        # The store may not show a count yet that was written without an answer.
        live = await self._workload.read(workqueue, deployment.name)
        if live is not None and unsettled(deployment_view(live), pods) is None:
            # Without a key the operator cannot resume the workers. They consume again when their lease ends.
            keys = await self._keys_of(workqueue, handle)
            await self._retirer.clear_left_over(workqueue.metadata.namespace, pods, keys)
        return True

    async def _keys_of(self, workqueue: WorkQueue, handle: Broker | None) -> SigningKeys:
        key = await self._workload.retirement_key(workqueue)
        return _signing_keys(b"" if isinstance(key, Unknown) else key, handle)

    def _refused_again(self, before: CountRefusal | None, replicas: int, why: Unknown) -> CountRefusal:
        failures = before.failures + 1 if before is not None else 1
        until = self._clock.monotonic() + delay(failures, *REFUSED_AGAIN)
        return CountRefusal(replicas, why, until, failures)


def _signing_keys(key: bytes, handle: Broker | None) -> SigningKeys:
    return SigningKeys(key, b"" if handle is None else handle.broker.binding.signing_key)
