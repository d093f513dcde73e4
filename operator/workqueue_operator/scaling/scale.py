"""A decision carried out: replicas raised in one write, or workers asked to leave.

Place in the flow: after `decide`. Every write of a count goes through here, with its metric, its Event and
its note for the status.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueue, timestamp
from workqueue_operator.backoff import delay
from workqueue_operator.broker.pool import BrokerHandle
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Object
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import DeploymentView, PodView, deployment_view, unsettled
from workqueue_operator.metrics import Metrics
from workqueue_operator.reconcile.reporter import Reporter
from workqueue_operator.reconcile.state import PassState, Refusal
from workqueue_operator.scaling import wake
from workqueue_operator.scaling.decide import Decision, Hold, Retire, ScaleOut, Trim
from workqueue_operator.workers.apply import REFUSED_AGAIN, WorkloadApplier, why_denied
from workqueue_operator.workers.client import SigningKeys, WorkerStatus
from workqueue_operator.workers.retire import CONFLICT, UNSEEN, RetireOutcome, Retirer, plan

UNREACHABLE_AFTER: Final = 30.0
"""Seconds after which a worker that cannot be asked is worth a person's attention."""


class Scaler:
    """Changes counts."""

    def __init__(
        self,
        store: Store,
        workload: WorkloadApplier,
        retirement: Retirer,
        reporter: Reporter,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._workload = workload
        self._retirement = retirement
        self._reporter = reporter
        self._metrics = metrics

    async def carry_out(
        self,
        workqueue: WorkQueue,
        pass_state: PassState,
        handle: BrokerHandle,
        decision: Decision,
        deployment: DeploymentView | Unknown,
        pods: Sequence[PodView],
        statuses: Mapping[str, WorkerStatus],
    ) -> tuple[Decision, DeploymentView | Unknown]:
        """Do what was decided.

        Returns:
            The decision, or a Hold that says why it could not be carried out; and the Deployment after it.
        """
        if isinstance(deployment, Unknown):
            return decision, deployment
        match decision:
            case Hold():
                await self._clear_left_over(workqueue, handle, deployment, pods)
                return decision, deployment
            case ScaleOut():
                # A bell that still hung would get the message on a queue with a single active consumer.
                handle.broker.remove_doorbell(workqueue.queue_name)
                return await self._raise(workqueue, pass_state, decision, deployment)
            case Retire() | Trim() if (
                refusal := pass_state.refused_in
            ) is not None and time.monotonic() < refusal.until:
                return Hold.because(decision.wanted, refusal.why), deployment
            case Retire() | Trim():
                return await self._lower(workqueue, pass_state, handle, decision, deployment, pods, statuses)

    async def raise_pinned(
        self, workqueue: WorkQueue, pass_state: PassState, decision: ScaleOut, deployment: DeploymentView
    ) -> Decision:
        """Raise a count that a person has pinned; it needs no broker."""
        return (await self._raise(workqueue, pass_state, decision, deployment))[0]

    async def _raise(
        self, workqueue: WorkQueue, pass_state: PassState, decision: ScaleOut, deployment: DeploymentView
    ) -> tuple[Decision, DeploymentView]:
        """Raise the count to what was decided, or as far as the API server admits, which is found by halving."""
        refusal, why = pass_state.refused_out, None
        highest, lowest_refused = decision.replicas, decision.replicas + 1
        if refusal is not None and time.monotonic() < refusal.until and refusal.replicas <= highest:
            highest, lowest_refused = refusal.replicas - 1, refusal.replicas
        target = highest
        while target > deployment.replicas:
            try:
                live = await self._write(workqueue, pass_state, decision, deployment, target)
            except ClusterError as error:
                if not error.denied:
                    raise
                why, lowest_refused = _why_refused(error, deployment, target), target
            else:
                if live is None:
                    return Hold.because(decision.wanted, CONFLICT), deployment
                deployment = deployment_view(live)
            target = (deployment.replicas + lowest_refused) // 2
        if why is not None:
            refusal = pass_state.refused_out = _refused_again(refusal, lowest_refused, why)
        elif lowest_refused > decision.replicas:
            if refusal is not None and deployment.replicas >= refusal.replicas:
                pass_state.refused_out = None
            return decision, deployment
        assert refusal is not None  # noqa: S101 - for the type checker; it is what limits the count
        return Hold.because(decision.wanted, refusal.why), deployment

    async def _lower(
        self,
        workqueue: WorkQueue,
        pass_state: PassState,
        handle: BrokerHandle,
        decision: Retire | Trim,
        deployment: DeploymentView,
        pods: Sequence[PodView],
        statuses: Mapping[str, WorkerStatus],
    ) -> tuple[Decision, DeploymentView]:
        try:
            if isinstance(decision, Retire) and workqueue.spec.worker is not None:
                return await self._retire(workqueue, pass_state, handle, decision, deployment, pods, statuses)
            live = await self._write(workqueue, pass_state, decision, deployment, decision.replicas)
        except ClusterError as error:
            if not error.denied:
                raise
            why = _why_refused(error, deployment, decision.replicas)
            pass_state.refused_in = _refused_again(pass_state.refused_in, decision.replicas, why)
            return Hold.because(decision.wanted, why), deployment
        if live is None:
            return Hold.because(decision.wanted, CONFLICT), deployment
        return decision, deployment_view(live)

    async def _write(
        self,
        workqueue: WorkQueue,
        pass_state: PassState,
        decision: ScaleOut | Retire | Trim,
        deployment: DeploymentView,
        replicas: int,
    ) -> Object | None:
        live = await self._workload.scale(workqueue, deployment.name, deployment.replicas, replicas)
        if live is None:
            # The store was behind: what made the guard fail must be seen before the next decision.
            if (current := await self._workload.read(workqueue, deployment.name)) is not None:
                self._store.put_deployment(current)
            return None
        now = time.monotonic()
        if pass_state.waking_since is not None:
            self._metrics.wake_seconds.observe(now - pass_state.waking_since)
        direction = "out" if replicas > deployment.replicas else "in"
        self._metrics.scale.labels(direction, decision.reason.value).inc()
        pass_state.last_scale = {
            "lastScaleTime": timestamp(datetime.now(UTC)),
            "lastScaleReason": f"{decision.reason.value}: {decision.message}",
        }
        if direction == "in":
            pass_state.refused_in = None
        self._store.put_deployment(live)
        message = f"Scaled {direction} from {deployment.replicas} to {replicas}: {decision.message}"
        await self._reporter.event(workqueue, False, decision.reason, message, "Scale", now)
        return live

    async def _retire(
        self,
        workqueue: WorkQueue,
        pass_state: PassState,
        handle: BrokerHandle,
        decision: Retire,
        deployment: DeploymentView,
        pods: Sequence[PodView],
        statuses: Mapping[str, WorkerStatus],
    ) -> tuple[Decision, DeploymentView]:
        if await self._clear_left_over(workqueue, handle, deployment, pods):
            return Hold.because(decision.wanted, UNSEEN), deployment

        key = await self._workload.retirement_key(workqueue)
        if isinstance(key, Unknown):
            return Hold.because(decision.wanted, key), deployment

        async def lower(number: int) -> Object | None:
            return await self._write(
                workqueue, pass_state, decision, deployment, deployment.replicas - number
            )

        outcome = await self._retirement.carry_out(
            workqueue.metadata.namespace,
            plan(pods, statuses, deployment.replicas - decision.replicas, time.time()),
            lambda: self._store.pods_of(workqueue.key),
            SigningKeys(key, handle.broker.binding.signing_key),
            lower,
            partial(wake.confirm_empty, workqueue, handle) if decision.only_when_empty else None,
        )
        for answer in outcome.answers.values():
            self._metrics.retire.labels(answer.value).inc()
        if outcome.deployment is not None:
            pass_state.unreachable_since = None
            return decision, deployment_view(outcome.deployment)
        return _why_not(pass_state, decision, outcome), deployment

    async def _clear_left_over(
        self, workqueue: WorkQueue, handle: BrokerHandle, deployment: DeploymentView, pods: Sequence[PodView]
    ) -> bool:
        """Whether there are marks of a scale-in that was broken off; they go as soon as that is safe."""
        if workqueue.spec.worker is None or unsettled(deployment, pods) is not None:
            return False
        if not any(pod.marked and not pod.terminating for pod in pods):
            return False
        # The store may not have heard yet of a count that was written without an answer.
        live = await self._workload.read(workqueue, deployment.name)
        if live is not None and unsettled(deployment_view(live), pods) is None:
            key = await self._workload.retirement_key(workqueue)
            # Without a key the workers are not called back, and consume again when their lease ends.
            keys = SigningKeys(b"" if isinstance(key, Unknown) else key, handle.broker.binding.signing_key)
            await self._retirement.clear_left_over(workqueue.metadata.namespace, pods, keys)
        return True


def next_attempt(pass_state: PassState) -> float | None:
    """The monotonic time at which a refused count may be tried again, None when none was refused lately."""
    moments = [
        refusal.until for refusal in (pass_state.refused_out, pass_state.refused_in) if refusal is not None
    ]
    return min((moment for moment in moments if moment > time.monotonic()), default=None)


def _why_refused(error: ClusterError, deployment: DeploymentView, replicas: int) -> Unknown:
    counted = "1 replica" if replicas == 1 else f"{replicas} replicas"
    return why_denied(error, f"{counted} of the Deployment {deployment.name!r}", Reason.COUNT_REFUSED)


def _refused_again(before: Refusal | None, replicas: int, why: Unknown) -> Refusal:
    failures = before.failures + 1 if before is not None else 1
    return Refusal(replicas, why, time.monotonic() + delay(failures, *REFUSED_AGAIN), failures)


def _why_not(pass_state: PassState, decision: Retire, outcome: RetireOutcome) -> Hold:
    """Why nobody was removed."""
    now = time.monotonic()
    pass_state.unreachable_since = (pass_state.unreachable_since or now) if outcome.unreachable else None
    if pass_state.unreachable_since is not None and now - pass_state.unreachable_since >= UNREACHABLE_AFTER:
        return Hold(
            decision.wanted,
            Reason.RETIRE_UNREACHABLE,
            f"Worker {outcome.unreachable[0]} does not answer the operator, so that it cannot be asked whether it "
            "is busy, and stays. Look for a NetworkPolicy between them, and at its log.",
        )
    assert outcome.obstacle is not None  # noqa: S101 - for the type checker; nothing was lowered
    return Hold.because(decision.wanted, outcome.obstacle)
