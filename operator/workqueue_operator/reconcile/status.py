"""Make the status of a WorkQueue from the outcome of a pass. PURE.

This is the last step of a pass; the reporter writes the result. Numbers are in fields of their own and never in
the message of a condition, so that a busy queue does not rewrite its conditions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from workqueue.contract.topology import earlier_delay_seconds
from workqueue_operator.api.reasons import ADVICE, ConditionType, Finding, Reason, Unknown
from workqueue_operator.api.workqueue import NEVER, WorkQueue, timestamp
from workqueue_operator.kube.views import DeploymentView, PodView
from workqueue_operator.names import pod_selector
from workqueue_operator.scaling.decide import Decision, Depth, Hold
from workqueue_operator.scaling.wait import Line

PENDING: Final = frozenset({Reason.DEPTH_PENDING, Reason.WORKERS_STARTING})
"""Transient reasons. Reported as Unknown rather than False."""

_STANDING_STILL: Final = frozenset({Reason.SUSPENDED, Reason.PINNED, Reason.DELETING})
_COUNT_REFUSED: Final = frozenset({Reason.COUNT_REFUSED, Reason.API_FORBIDDEN})
_CANNOT_SHRINK: Final = frozenset(
    {
        Reason.RETIRE_UNREACHABLE,
        Reason.UNACKNOWLEDGED_UNKNOWN,
        # There is no key that workers could be asked to leave with.
        Reason.NAME_CONFLICT,
        Reason.WORKLOAD_REFUSED,
    }
)
_WORTH_SAYING: Final = frozenset(
    {
        Reason.AT_MAXIMUM,
        Reason.WAIT_NOT_MET,
        Reason.AT_CONCURRENCY_LIMIT,
        Reason.AT_RATE_LIMIT,
        Reason.SINGLE_ACTIVE_CONSUMER,
        Reason.CANARY,
        Reason.SCALE_IN_DELAYED,
        Reason.WORKERS_BUSY,
        Reason.MESSAGES_WAITING,
        Reason.ROLLOUT_UNDER_WAY,
        Reason.PODS_SETTLING,
        Reason.POD_NOT_READY,
        Reason.RETIREMENT_TOO_SLOW,
        Reason.CONFLICTING_WRITE,
        Reason.DOORBELL_UNAVAILABLE,
    }
)
"""Reasons why the count differs from what the backlog alone asks for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass has learned and done.

    Attributes:
        queue: the QueueDeclared finding.
        depth: None when the pass ended before it asked.
        deployment: after the scaling, like the pods.
        problem: what ended the pass early, or None.
        refusal: why the Deployment, or an object beside it, differs from what the WorkQueue asks for, or None.
        doorbell: why the operator polls an idle queue although Push is wanted, or None.
        busy: pods with a message in a handler; None when unknown.
        line: the waiting messages; None without maxWaitSeconds, and when the pass did not look.
        ignored: which schedules cannot be read.
        retrying: messages that wait for a retry; None when unknown.
        delay_queues: the delay queues that exist; None when the pass did not look.
    """

    queue: Finding
    depth: Depth | Unknown | None = None
    deployment: DeploymentView | Unknown | None = None
    pods: Sequence[PodView] = ()
    decision: Decision | None = None
    problem: Unknown | None = None
    refusal: Unknown | None = None
    doorbell: Unknown | None = None
    dead_letters: int | None = None
    busy: int | None = None
    line: Line | None = None
    ignored: Unknown | None = None
    retrying: int | None = None
    delay_queues: frozenset[str] | None = None
    last_scale: Mapping[str, str] = field(default_factory=dict)


def conditions(workqueue: WorkQueue, outcome: Outcome) -> dict[ConditionType, Finding]:
    """Return the finding of each condition, in the order of ConditionType."""
    found = {
        ConditionType.QUEUE_DECLARED: outcome.queue,
        ConditionType.DEPTH_KNOWN: _depth_known(outcome),
        ConditionType.WORKLOAD_APPLIED: _workload_applied(workqueue, outcome),
        ConditionType.WORKERS_AVAILABLE: _workers_available(outcome),
        ConditionType.SCALING_ACTIVE: _scaling_active(outcome),
    }
    return {**found, ConditionType.READY: _ready(workqueue, found)}


def status(
    workqueue: WorkQueue, outcome: Outcome, findings: Mapping[ConditionType, Finding], now: str
) -> dict[str, Any]:
    """Return the whole status as the API server accepts it.

    Args:
        now: RFC 3339; becomes the lastTransitionTime of conditions whose status has changed.
    """
    fields: dict[str, Any] = {
        "observedGeneration": workqueue.metadata.generation,
        "queueName": workqueue.queue_name,
        "selector": ",".join(
            f"{key}={value}" for key, value in pod_selector(workqueue.metadata.name).items()
        ),
        **(outcome.last_scale or _last_scale_before(workqueue)),
        **_counts(workqueue, outcome),
    }
    fields |= _delay_queues(workqueue, outcome)
    fields["conditions"] = [_condition(workqueue, kind, finding, now) for kind, finding in findings.items()]
    return fields


def _delay_queues(workqueue: WorkQueue, outcome: Outcome) -> dict[str, Any]:
    queues = workqueue.delay_queues_seen if outcome.delay_queues is None else outcome.delay_queues
    seconds = {name: earlier_delay_seconds(name, workqueue.queue_name) for name in queues}
    fields = {
        "retryDelaysSeconds": sorted(delay for delay in seconds.values() if delay is not None),
        "delayQueues": sorted(name for name, delay in seconds.items() if delay is None),
    }
    return {name: found for name, found in fields.items() if found}


def unreadable(workqueue: WorkQueue, finding: Finding, now: str) -> dict[str, Any]:
    """Return the status of a WorkQueue whose spec cannot be read. It uses only the metadata."""
    return {
        "observedGeneration": workqueue.metadata.generation,
        "conditions": [_condition(workqueue, ConditionType.READY, finding, now)],
    }


def _condition(workqueue: WorkQueue, kind: ConditionType, finding: Finding, now: str) -> dict[str, Any]:
    before = workqueue.status.condition(kind)
    since = before.last_transition_time if before and before.status == finding.status else NEVER
    return {
        "type": str(kind),
        "status": finding.status,
        "reason": str(finding.reason),
        "message": finding.message,
        "lastTransitionTime": now if since == NEVER else timestamp(since),
        "observedGeneration": workqueue.metadata.generation,
    }


def _last_scale_before(workqueue: WorkQueue) -> dict[str, str]:
    """Return what an earlier process wrote, which a restart of the operator must keep."""
    before = workqueue.status
    if before.last_scale_time is None or before.last_scale_reason is None:
        return {}
    return {
        "lastScaleTime": timestamp(before.last_scale_time),
        "lastScaleReason": before.last_scale_reason,
    }


def _counts(workqueue: WorkQueue, outcome: Outcome) -> dict[str, Any]:
    """Return the known counts."""
    found: dict[str, int | None] = {
        "messages": None,
        "retrying": outcome.retrying,
        "consumers": None,
        "busyReplicas": outcome.busy,
        "deadLetters": outcome.dead_letters,
        # The scale subresource would read 0 where it is left out.
        "replicas": workqueue.status.replicas,
    }
    if isinstance(outcome.depth, Depth):
        found |= {"messages": outcome.depth.ready, "consumers": outcome.depth.consumers}
    if isinstance(outcome.deployment, DeploymentView):
        found |= {
            "replicas": outcome.deployment.current,
            "readyReplicas": outcome.deployment.ready,
            "desiredReplicas": outcome.deployment.replicas,
        }
    return {name: count for name, count in found.items() if count is not None}


def _negative(unknown: Unknown) -> Finding:
    return Finding("Unknown" if unknown.reason in PENDING else "False", unknown.reason, unknown.message)


def _depth_known(outcome: Outcome) -> Finding:
    if isinstance(outcome.depth, Unknown):
        return _negative(outcome.depth)
    if outcome.depth is None:
        cause = outcome.problem or Unknown(
            Reason.DEPTH_PENDING, "The operator has not read the queue's counts yet."
        )
        return _negative(cause)
    if outcome.depth.stale is not None:
        return _negative(outcome.depth.stale)
    if outcome.doorbell is not None:
        return Finding("True", outcome.doorbell.reason, outcome.doorbell.message)
    return Finding("True", Reason.DEPTH_OBSERVED, "The queue's depth is known.")


def _workload_applied(workqueue: WorkQueue, outcome: Outcome) -> Finding:
    if workqueue.spec.suspend:
        return Finding("Unknown", Reason.SUSPENDED, "spec.suspend is true: the operator applies nothing.")
    if outcome.deployment is None:
        cause = outcome.problem or Unknown(
            Reason.WORKERS_STARTING, "The operator is creating the Deployment."
        )
        return Finding("Unknown", cause.reason, cause.message)
    refusal = outcome.deployment if isinstance(outcome.deployment, Unknown) else outcome.refusal
    if refusal is not None:
        return _negative(refusal)
    if workqueue.spec.worker is None:
        message = "spec.workloadRef names a Deployment that its owner applies."
    else:
        message = "The Deployment and the objects beside it are as the WorkQueue asks."
    return Finding("True", Reason.WORKLOAD_APPLIED, message)


def _workers_available(outcome: Outcome) -> Finding:  # noqa: PLR0911 - one return a case reads best
    deployment = outcome.deployment
    if deployment is None:
        cause = outcome.problem or Unknown(
            Reason.WORKERS_STARTING, "The operator is creating the Deployment."
        )
        return Finding("Unknown", cause.reason, cause.message)
    if isinstance(deployment, Unknown):
        return _negative(deployment)
    if deployment.refusal is not None:
        return _negative(deployment.refusal)
    failures = [
        pod.failure
        for pod in outcome.pods
        if pod.failure is not None and not pod.ready and not pod.terminating
    ]
    if failures:
        return _negative(failures[0])
    if deployment.replicas == 0:
        running = "Workers finish their messages and stop" if outcome.busy else "No worker runs"
        return Finding("True", Reason.SCALED_TO_ZERO, f"{running}; a message on the queue starts one.")
    if deployment.ready == 0:
        return Finding(
            "Unknown", Reason.WORKERS_STARTING, "No worker is Ready yet; the first pod is starting."
        )
    return Finding("True", Reason.WORKERS_READY, "Workers are Ready.")


def _scaling_active(outcome: Outcome) -> Finding:
    decision = outcome.decision
    if decision is None:
        cause = outcome.problem or Unknown(Reason.DEPTH_PENDING, "Nothing has been decided yet.")
        return _negative(cause)
    if (obstacle := _obstacle(outcome, decision)) is not None:
        return _negative(obstacle)
    if decision.reason in _WORTH_SAYING:
        return Finding("True", decision.reason, ADVICE[decision.reason])
    return Finding("True", Reason.AS_EXPECTED, "Replicas follow the depth of the queue.")


def _obstacle(outcome: Outcome, decision: Decision) -> Unknown | None:
    """Return why the count does not follow the depth as the spec asks, or None."""
    because = Unknown(decision.reason, decision.message)
    if decision.reason in _STANDING_STILL | _COUNT_REFUSED:
        return because
    if outcome.ignored is not None:
        return outcome.ignored
    if isinstance(outcome.depth, Depth):
        if outcome.depth.stale is not None:
            return outcome.depth.stale
        doubt = outcome.depth.doubt
        if doubt is not None and doubt.reason is Reason.RETIRE_UNREACHABLE:
            return doubt
    unknown = isinstance(decision, Hold) and decision.wanted is None
    return because if unknown or decision.reason in _CANNOT_SHRINK else None


def _ready(workqueue: WorkQueue, found: Mapping[ConditionType, Finding]) -> Finding:
    scaling = found[ConditionType.SCALING_ACTIVE]
    if workqueue.spec.suspend:
        return Finding("False", Reason.SUSPENDED, scaling.message)
    # Starting workers do not make a WorkQueue unready: workers start at each wake.
    decisive = [found[kind] for kind in (ConditionType.QUEUE_DECLARED, ConditionType.DEPTH_KNOWN)]
    workers = [found[kind] for kind in (ConditionType.WORKLOAD_APPLIED, ConditionType.WORKERS_AVAILABLE)]
    decisive += [finding for finding in workers if finding.status == "False"]
    if scaling.reason in {Reason.SCHEDULE_INVALID, *_COUNT_REFUSED}:
        decisive.append(scaling)
    for status_ in ("False", "Unknown"):
        for finding in decisive:
            if finding.status == status_:
                return finding
    return Finding("True", Reason.AS_EXPECTED, "The queue exists and its workers follow its depth.")
