"""Conditions and numbers: a table of what people see for what was found."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.workqueue import workqueue
from workqueue_operator.api.crd import schema
from workqueue_operator.api.reasons import ConditionType, Finding, Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueueStatus
from workqueue_operator.kube.views import DeploymentView, PodView
from workqueue_operator.reconcile.status import Outcome, conditions, status
from workqueue_operator.scaling.decide import Depth, Hold, Retire, ScaleOut

NOW = "2026-03-04T12:00:00Z"
DECLARED = Finding("True", Reason.DECLARED, "The queue exists.")
IDLE = Hold(0, Reason.IDLE, "Nothing is waiting.")


def deployment(replicas: int = 2, ready: int | None = None, refusal: Unknown | None = None) -> DeploymentView:
    return DeploymentView(
        "jobs-worker", "d", 1, replicas, replicas, replicas if ready is None else ready, True, "h", refusal
    )


def pod(failure: Unknown | None = None, *, ready: bool = False, terminating: bool = False) -> PodView:
    return PodView("p", "u", "10.0.0.1", ready, True, terminating, "h", False, failure)


def seen(**changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "queue": DECLARED,
        "depth": Depth(0, 0, 0),
        "deployment": deployment(0),
        "decision": IDLE,
    }
    return Outcome(**{**fields, **changes})


AWAY = Unknown(Reason.BROKER_UNREACHABLE, "The broker is away.")
PENDING = Unknown(Reason.DEPTH_PENDING, "not yet")
PULL = Unknown(Reason.IMAGE_PULL_FAILED, "no such image")
REFUSED = Unknown(Reason.POD_REFUSED, "quota")
CONFLICT = Finding("False", Reason.QUEUE_CONFLICT, "other arguments")
TAKEN = Unknown(Reason.NAME_CONFLICT, "somebody else's")

TABLE: list[tuple[str, Outcome, dict[str, tuple[str, Reason]]]] = [
    (
        "asleep",
        seen(),
        {
            "QueueDeclared": ("True", Reason.DECLARED),
            "DepthKnown": ("True", Reason.DEPTH_OBSERVED),
            "WorkersAvailable": ("True", Reason.SCALED_TO_ZERO),
            "ScalingActive": ("True", Reason.AS_EXPECTED),
            "Ready": ("True", Reason.AS_EXPECTED),
        },
    ),
    (
        "starting workers",
        seen(deployment=deployment(2, 0), decision=ScaleOut(2, 2, Reason.BACKLOG, "")),
        {"WorkersAvailable": ("Unknown", Reason.WORKERS_STARTING), "Ready": ("True", Reason.AS_EXPECTED)},
    ),
    (
        "Ready workers",
        seen(deployment=deployment(2)),
        {"WorkersAvailable": ("True", Reason.WORKERS_READY), "Ready": ("True", Reason.AS_EXPECTED)},
    ),
    (
        "unreachable broker and a declared queue",
        seen(depth=AWAY, decision=Hold(None, AWAY.reason, AWAY.message)),
        {
            "QueueDeclared": ("True", Reason.DECLARED),
            "DepthKnown": ("False", Reason.BROKER_UNREACHABLE),
            "ScalingActive": ("False", Reason.BROKER_UNREACHABLE),
            "Ready": ("False", Reason.BROKER_UNREACHABLE),
        },
    ),
    (
        "depth before the first answer",
        seen(depth=PENDING, decision=Hold(None, PENDING.reason, PENDING.message)),
        {
            "DepthKnown": ("Unknown", Reason.DEPTH_PENDING),
            "ScalingActive": ("Unknown", Reason.DEPTH_PENDING),
            "Ready": ("Unknown", Reason.DEPTH_PENDING),
        },
    ),
    (
        "conflicting queue arguments",
        seen(queue=CONFLICT, depth=Unknown(Reason.QUEUE_CONFLICT, "other arguments"), decision=None),
        {"QueueDeclared": ("False", Reason.QUEUE_CONFLICT), "Ready": ("False", Reason.QUEUE_CONFLICT)},
    ),
    (
        "image pull failure",
        seen(deployment=deployment(1, 0), pods=[pod(PULL)]),
        {
            "WorkersAvailable": ("False", Reason.IMAGE_PULL_FAILED),
            "Ready": ("False", Reason.IMAGE_PULL_FAILED),
        },
    ),
    (
        "one failed pod among Ready ones",
        seen(deployment=deployment(2, 1), pods=[pod(PULL), pod(ready=True)]),
        {"WorkersAvailable": ("False", Reason.IMAGE_PULL_FAILED)},
    ),
    (
        "failed pod that is terminating",
        seen(deployment=deployment(1), pods=[pod(PULL, terminating=True), pod(ready=True)]),
        {"WorkersAvailable": ("True", Reason.WORKERS_READY)},
    ),
    (
        "refused pods",
        seen(deployment=deployment(1, 0, REFUSED)),
        {"WorkersAvailable": ("False", Reason.POD_REFUSED), "Ready": ("False", Reason.POD_REFUSED)},
    ),
    (
        "foreign Deployment",
        seen(deployment=TAKEN, decision=Hold(None, TAKEN.reason, TAKEN.message)),
        {
            "WorkersAvailable": ("False", Reason.NAME_CONFLICT),
            "ScalingActive": ("False", Reason.NAME_CONFLICT),
            "Ready": ("False", Reason.NAME_CONFLICT),
        },
    ),
    (
        "refused template of a working Deployment",
        seen(deployment=deployment(2), refusal=Unknown(Reason.WORKLOAD_REFUSED, "not signed")),
        {
            "WorkloadApplied": ("False", Reason.WORKLOAD_REFUSED),
            "WorkersAvailable": ("True", Reason.WORKERS_READY),
            "ScalingActive": ("True", Reason.AS_EXPECTED),
            "Ready": ("False", Reason.WORKLOAD_REFUSED),
        },
    ),
    (
        "refused count",
        seen(deployment=deployment(2), decision=Hold(10, Reason.COUNT_REFUSED, "at most 2")),
        {
            "WorkloadApplied": ("True", Reason.WORKLOAD_APPLIED),
            "ScalingActive": ("False", Reason.COUNT_REFUSED),
            "Ready": ("False", Reason.COUNT_REFUSED),
        },
    ),
    (
        "pinned",
        seen(decision=Hold(2, Reason.PINNED, "spec.replicas pins")),
        {"ScalingActive": ("False", Reason.PINNED), "Ready": ("True", Reason.AS_EXPECTED)},
    ),
    (
        "at the maximum",
        seen(decision=Hold(10, Reason.AT_MAXIMUM, "97 waiting ask for 10")),
        {"ScalingActive": ("True", Reason.AT_MAXIMUM), "Ready": ("True", Reason.AS_EXPECTED)},
    ),
    (
        "canary",
        seen(decision=ScaleOut(1, 9, Reason.CANARY, "9 wanted")),
        {"ScalingActive": ("True", Reason.CANARY)},
    ),
    (
        "unreachable worker and a surplus",
        seen(decision=Hold(0, Reason.RETIRE_UNREACHABLE, "p does not answer")),
        {"ScalingActive": ("False", Reason.RETIRE_UNREACHABLE), "Ready": ("True", Reason.AS_EXPECTED)},
    ),
    (
        "unreachable worker and the wanted count",
        seen(
            depth=Depth(0, 0, 1, 20, Unknown(Reason.RETIRE_UNREACHABLE, "p does not answer")),
            decision=Hold(1, Reason.WITHIN_BOUNDS, "0 waiting and 0 to 20 in handlers"),
        ),
        {"ScalingActive": ("False", Reason.RETIRE_UNREACHABLE), "Ready": ("True", Reason.AS_EXPECTED)},
    ),
    (
        "counts that may be those of before, and more messages than workers",
        seen(
            depth=Depth(9, 0, 0, stale=Unknown(Reason.BROKER_TIMEOUT, "p is not answered")),
            decision=Hold(9, Reason.AT_MAXIMUM, "9 waiting"),
        ),
        {
            "DepthKnown": ("False", Reason.BROKER_TIMEOUT),
            "ScalingActive": ("False", Reason.BROKER_TIMEOUT),
            "Ready": ("False", Reason.BROKER_TIMEOUT),
        },
    ),
    (
        "invalid schedule",
        seen(ignored=Unknown(Reason.SCHEDULE_INVALID, "'Europe/Berlinn'")),
        {"ScalingActive": ("False", Reason.SCHEDULE_INVALID), "Ready": ("False", Reason.SCHEDULE_INVALID)},
    ),
    (
        "workers before their first answer",
        seen(
            depth=Depth(0, 0, 1, 20, Unknown(Reason.WORKERS_BUSY, "some have not answered")),
            decision=Hold(1, Reason.WORKERS_BUSY, "some have not answered"),
        ),
        {"ScalingActive": ("True", Reason.WORKERS_BUSY)},
    ),
    (
        "poll instead of push",
        seen(doorbell=Unknown(Reason.DOORBELL_UNAVAILABLE, "no read permission")),
        {"DepthKnown": ("True", Reason.DOORBELL_UNAVAILABLE), "Ready": ("True", Reason.AS_EXPECTED)},
    ),
]


@pytest.mark.parametrize(("given", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_conditions_describe_the_pass(given: Outcome, expected: dict[str, tuple[str, Reason]]) -> None:
    found = conditions(workqueue(), given)
    assert list(found) == list(ConditionType)
    assert {
        kind: (found[ConditionType(kind)].status, found[ConditionType(kind)].reason) for kind in expected
    } == (expected)
    assert all(finding.message for finding in found.values())


def test_zero_count_mentions_finishing_worker() -> None:
    found = conditions(workqueue(), seen(pods=[pod(terminating=True)], busy=1))
    assert found[ConditionType.WORKERS_AVAILABLE].message == (
        "Workers finish their messages and stop; a message on the queue starts one."
    )


def test_suspended_workqueue_has_suspended_conditions() -> None:
    suspended = seen(depth=None, decision=Hold(None, Reason.SUSPENDED, "spec.suspend is true."))
    found = conditions(workqueue(suspend=True), suspended)
    assert found[ConditionType.READY].reason is Reason.SUSPENDED
    assert found[ConditionType.SCALING_ACTIVE].status == "False"


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Hold(10, Reason.AT_MAXIMUM, "97 waiting"), Hold(10, Reason.AT_MAXIMUM, "98 waiting")),
        (Hold(3, Reason.WITHIN_BOUNDS, "3 waiting"), Hold(4, Reason.WITHIN_BOUNDS, "4 waiting")),
        (Retire(1, 1, True, Reason.SURPLUS, "1 in handlers"), ScaleOut(5, 5, Reason.BACKLOG, "50 waiting")),
    ],
    ids=["at the maximum", "within bounds", "scale-in and scale-out"],
)
def test_busy_queue_does_not_rewrite_its_conditions(one: Any, two: Any) -> None:
    """Numbers are in separate fields."""
    first, second = (
        conditions(workqueue(), seen(depth=Depth(depth, depth, 1), decision=decision))
        for depth, decision in ((3, one), (4, two))
    )
    assert first == second


# -- numbers


def fields(given: Outcome, before: dict[str, Any] | None = None) -> dict[str, Any]:
    made = workqueue(status=before, metadata={"generation": 3}, queue={"name": "jobs.v2"})
    return status(made, given, conditions(made, given), NOW)


def test_status_has_numbers_of_a_busy_queue() -> None:
    found = fields(
        seen(
            depth=Depth(1234, 3, 4),
            deployment=deployment(5, 2),
            dead_letters=7,
            retrying=2,
            delay_queues=frozenset({"jobs.v2.retry.60s", "jobs.v2.retry.step.8s", "jobs.v2.retry.last"}),
            busy=2,
            last_scale={"lastScaleTime": NOW, "lastScaleReason": "Backlog: x"},
        )
    )
    found.pop("conditions")
    assert found == {
        "observedGeneration": 3,
        "queueName": "jobs.v2",
        "selector": "workqueue.dev/workqueue=jobs",
        "lastScaleTime": NOW,
        "lastScaleReason": "Backlog: x",
        "messages": 1234,
        "consumers": 4,
        "busyReplicas": 2,
        "deadLetters": 7,
        "retrying": 2,
        "retryDelaysSeconds": [60],
        "delayQueues": ["jobs.v2.retry.last", "jobs.v2.retry.step.8s"],
        "replicas": 5,
        "readyReplicas": 2,
        "desiredReplicas": 5,
    }


def test_unknown_count_is_omitted() -> None:
    before = {
        "messages": 40,
        "consumers": 2,
        "busyReplicas": 1,
        "deadLetters": 3,
        "retrying": 4,
        "replicas": 2,
        "readyReplicas": 2,
        "desiredReplicas": 2,
        "lastScaleTime": "2026-01-01T00:00:00Z",
        "lastScaleReason": "Idle: x",
    }
    found = fields(seen(depth=AWAY, deployment=TAKEN, busy=None, dead_letters=None), before)
    kept = {"replicas", "lastScaleTime", "lastScaleReason"}
    assert before.keys() & found.keys() == kept
    assert {key: found[key] for key in kept} == {key: before[key] for key in kept}


def test_delayed_count_is_kept_when_a_pass_did_not_poll() -> None:
    before = {"retryDelaysSeconds": [10], "delayQueues": ["jobs.v2.retry.high.8s"]}
    found = fields(seen(), before)
    assert {name: found[name] for name in before} == before


def test_status_fits_the_model() -> None:
    parsed = WorkQueueStatus.model_validate(fields(seen(depth=Depth(1, 0, 0), deployment=deployment(1))))
    assert (parsed.ready_replicas, parsed.desired_replicas) == (1, 1)
    assert [condition.type for condition in parsed.conditions] == [kind.value for kind in ConditionType]


# -- times


def ready(found: dict[str, Any]) -> dict[str, Any]:
    return next(condition for condition in found["conditions"] if condition["type"] == "Ready")


def known_as(status_: str, reason: str) -> dict[str, Any]:
    return {
        "conditions": [
            {
                "type": "Ready",
                "status": status_,
                "reason": reason,
                "message": "before",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ]
    }


def test_unchanged_condition_keeps_its_transition_time() -> None:
    assert (
        ready(fields(seen(), known_as("True", "AsExpected")))["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    )


def test_changed_reason_is_no_transition() -> None:
    found = ready(fields(seen(depth=AWAY), known_as("False", "QueueConflict")))
    assert found["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    assert found["reason"] == "BrokerUnreachable"


def test_changed_status_is_a_transition() -> None:
    assert ready(fields(seen(depth=AWAY), known_as("True", "AsExpected")))["lastTransitionTime"] == NOW


def test_new_condition_gets_current_time() -> None:
    found = fields(seen())
    assert {condition["lastTransitionTime"] for condition in found["conditions"]} == {NOW}
    assert {condition["observedGeneration"] for condition in found["conditions"]} == {3}


def test_first_transition_time_is_not_that_of_the_default() -> None:
    """A WorkQueue that no operator has looked at has a condition of 1970, as metav1.Condition requires a time."""
    default = schema()["properties"]["status"]["default"]
    assert {"type", "status", "reason", "message", "lastTransitionTime"} <= default["conditions"][0].keys()
    found = ready(fields(seen(queue=Finding("Unknown", Reason.DEPTH_PENDING, "Not yet.")), default))
    assert (found["status"], found["lastTransitionTime"]) == ("Unknown", NOW)


@pytest.mark.parametrize("reason", [Reason.NAME_CONFLICT, Reason.WORKLOAD_REFUSED])
def test_scale_in_without_a_retirement_key_is_named(reason: Reason) -> None:
    given = seen(deployment=deployment(3), decision=Hold(0, reason, "The Secret is foreign."))
    scaling = conditions(workqueue(), given)[ConditionType.SCALING_ACTIVE]
    assert (scaling.status, scaling.reason) == ("False", reason)
