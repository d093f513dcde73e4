"""The depth that follows from the answers: known, or unknown, and never a false zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueueSpec
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QUEUE_MISSING
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.views import PodView
from workqueue_operator.scaling.decide import (
    Depth,
    Hold,
    Load,
    Observation,
    ScaleInWindow,
    WorkloadState,
    decide,
)
from workqueue_operator.scaling.depth import (
    QueueReadings,
    busy_pods,
    is_implausible,
    judge,
    load,
    workers_decide,
)
from workqueue_operator.workers.client import WorkerStatus

NOW = 100.0
NOT_YET = Unknown(
    Reason.WORKERS_BUSY, "Some workers have not answered yet; they may be in a handler and stay."
)
UNKNOWN_UNACKNOWLEDGED = Unknown(Reason.UNACKNOWLEDGED_UNKNOWN, "No management-uri.")


def counts(ready: int = 0, consumers: int = 0, *, doorbell: bool = False) -> QueueCounts:
    return QueueCounts(ready, consumers, NOW, doorbell)


def pod(name: str, *, ready: bool = True) -> PodView:
    return PodView(name, f"uid-{name}", "10.0.0.1", ready, True, False, "h", False, None)


def worker(
    busy: int = 0,
    *,
    consuming: bool = True,
    seconds: float | None = None,
    rate: float = 0.0,
    queue_answers: bool = True,
) -> WorkerStatus:
    return WorkerStatus(1, busy, consuming, seconds, rate, queue_answers=queue_answers)


A, B = pod("a"), pod("b")

LATER_PASSES: list[tuple[str, dict[str, Any], Depth]] = [
    (
        "idle queue with the doorbell",
        {"counts": counts(doorbell=True), "doorbell_installed_at": NOW - 60},
        Depth(0, 0, 0),
    ),
    ("idle queue without doorbell or workers", {"counts": counts()}, Depth(0, 0, 0)),
    ("backlog without workers", {"counts": counts(7)}, Depth(7, 0, 0)),
    (
        "more waiting messages than consumers",
        {"counts": counts(9, 2), "pods": [A, B]},
        Depth(9, 2, 2),
    ),
    (
        "backlog of a single active consumer",
        {"counts": counts(9, 2), "pods": [A, B], "single_active": True},
        Depth(9, 1, 2),
    ),
    (
        "fewer waiting messages than consumers",
        {"counts": counts(0, 2), "pods": [A, B], "statuses": {"a": worker(1), "b": worker(0)}},
        Depth(0, 1, 2),
    ),
    (
        "worker without an answer",
        {"counts": counts(0, 2), "pods": [A, B], "statuses": {"a": worker(0)}},
        Depth(0, 0, 2, 1, NOT_YET),
    ),
    (
        "worker with several slots and without an answer",
        {"counts": counts(0, 8), "pods": [A, B], "statuses": {"a": worker(2)}, "concurrency": 4},
        Depth(0, 2, 8, 4, NOT_YET),
    ),
    (
        "starting workers and a waiting message",
        {"counts": counts(1, 1), "pods": [A, B, pod("c", ready=False)], "statuses": {"a": worker(1)}},
        Depth(1, 1, 1, 2, NOT_YET),
    ),
    (
        "consumer of a worker that the kubelet has not reported yet",
        {"counts": counts(0, 2), "pods": [A], "statuses": {"a": worker()}, "unreported": [B]},
        Depth(0, 0, 2, 1, NOT_YET),
    ),
    (
        "consumers of others beside a starting pod",
        {"counts": counts(0, 5), "unreported": [A], "concurrency": 2},
        Depth(0, 0, 5, 2, NOT_YET),
    ),
    (
        "starting pod that does not consume yet",
        {"counts": counts(0, 1), "pods": [A], "statuses": {"a": worker()}, "unreported": [B]},
        Depth(0, 0, 1),
    ),
    (
        "message received after the broker's answer",
        {"counts": counts(1, 1), "pods": [A, B], "statuses": {"a": worker(1), "b": worker(1)}},
        Depth(1, 1, 1, 1, NOT_YET),
    ),
    (
        "workloadRef with an empty queue and unknown unacknowledged messages",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": UNKNOWN_UNACKNOWLEDGED},
        Depth(0, 0, 3, 3, UNKNOWN_UNACKNOWLEDGED),
    ),
    (
        "workloadRef with a backlog and unknown unacknowledged messages",
        {"counts": counts(4, 3), "ours": False, "unacknowledged": UNKNOWN_UNACKNOWLEDGED},
        Depth(4, 3, 3, 0, UNKNOWN_UNACKNOWLEDGED),
    ),
    (
        "workloadRef with the count of the management API",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": 1},
        Depth(0, 1, 3),
    ),
    (
        "worker whose consumer RabbitMQ did not confirm at the last look",
        {"counts": counts(3, 1), "pods": [A], "unanswered": "a"},
        Depth(3, 1, 1),
    ),
    (
        "zero messages and a retired worker",
        {"counts": counts(), "pods": [A], "statuses": {"a": worker(0, consuming=False)}},
        Depth(0, 0, 0),
    ),
    (
        "zero messages and a worker that is not Ready",
        {"counts": counts(), "pods": [pod("a", ready=False)], "statuses": {"a": worker(0, consuming=False)}},
        Depth(0, 0, 0),
    ),
    (
        "zero consumers and a new doorbell",
        {"counts": counts(), "doorbell_installed_at": NOW - 1},
        Depth(0, 0, 0),
    ),
    ("messages without consumers", {"counts": counts(3), "pods": [A]}, Depth(3, 0, 0)),
]


@pytest.mark.parametrize(
    ("given", "depth"), [row[1:] for row in LATER_PASSES], ids=[row[0] for row in LATER_PASSES]
)
def test_depth_is_known(given: dict[str, Any], depth: Depth) -> None:
    assert judge(QueueReadings(**given), "jobs") == depth


UNKNOWN: list[tuple[str, dict[str, Any], Reason]] = [
    ("no answer yet", {"counts": None}, Reason.DEPTH_PENDING),
    ("missing queue", {"counts": QUEUE_MISSING}, Reason.QUEUE_NOT_FOUND),
    (
        "unreachable broker",
        {"counts": ReconcileError(Reason.BROKER_UNREACHABLE, "away")},
        Reason.BROKER_UNREACHABLE,
    ),
    (
        "zero consumers and a consuming worker",
        {"counts": counts(), "pods": [A], "statuses": {"a": worker(0)}},
        Reason.DEPTH_IMPLAUSIBLE,
    ),
    (
        "zero consumers and a Ready worker without an answer",
        {"counts": counts(), "pods": [A, B], "statuses": {"a": worker(0, consuming=False)}},
        Reason.DEPTH_IMPLAUSIBLE,
    ),
    (
        "zero consumers and a worker that has cancelled its consumer without an answer",
        {"counts": counts(), "pods": [A], "statuses": {"a": worker(consuming=False, queue_answers=False)}},
        Reason.DEPTH_IMPLAUSIBLE,
    ),
    (
        "zero consumers and a terminating worker that has cancelled its consumer without an answer",
        {
            "counts": counts(),
            "stopping": [B],
            "stopping_statuses": {"b": worker(consuming=False, queue_answers=False)},
        },
        Reason.DEPTH_IMPLAUSIBLE,
    ),
    (
        "zero consumers and an installed doorbell",
        {"counts": counts(), "doorbell_installed_at": NOW - 3},
        Reason.DEPTH_IMPLAUSIBLE,
    ),
]


@pytest.mark.parametrize(("given", "reason"), [row[1:] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_depth_is_unknown(given: dict[str, Any], reason: Reason) -> None:
    found = judge(QueueReadings(**given), "jobs")
    assert isinstance(found, Unknown)
    assert found.reason is reason
    if reason is not Reason.BROKER_UNREACHABLE:
        assert "'jobs'" in found.message


def test_counts_while_rabbitmq_answers_no_worker_may_be_stale() -> None:
    """They may be those of before. If only the worker's connection is dead, another worker helps."""
    found = judge(QueueReadings(counts=counts(3), pods=[A], unanswered="a"), "jobs")
    assert isinstance(found, Depth)
    assert (found.ready, found.in_handlers) == (3, 0)
    assert found.stale is not None
    assert found.stale.reason is Reason.BROKER_TIMEOUT
    assert "'jobs'" in found.stale.message


def test_worker_of_another_broker_does_not_contradict_zero() -> None:
    elsewhere = replace(A, broker="amqp://old:5672/")
    readings = QueueReadings(
        counts=counts(), pods=[elsewhere], statuses={"a": worker(0)}, broker="amqp://new:5672/"
    )
    assert not is_implausible(readings)
    assert is_implausible(replace(readings, broker="amqp://old:5672/"))


def test_only_counts_can_be_implausible() -> None:
    assert not is_implausible(QueueReadings(counts=None, pods=[A]))
    assert not is_implausible(QueueReadings(counts=QUEUE_MISSING, pods=[A]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (counts(0, 2), True),
        (counts(2, 2), True),
        (counts(3, 2), False),
        (None, False),
        (QUEUE_MISSING, False),
    ],
    ids=["empty queue", "as many messages as consumers", "backlog", "no answer", "missing queue"],
)
def test_workers_are_asked_only_when_necessary(given: Any, expected: bool) -> None:
    assert workers_decide(given) is expected


BUSY: list[tuple[str, dict[str, Any], int | None]] = [
    ("idle workers", {"counts": counts(0, 2), "pods": [A, B], "statuses": {"a": worker(), "b": worker()}}, 0),
    ("backlog", {"counts": counts(9, 8), "pods": [A, B], "concurrency": 4}, 2),
    ("backlog and a starting pod", {"counts": counts(9, 4), "pods": [A, B], "concurrency": 4}, 1),
    (
        "backlog and a worker without an answer",
        {"counts": counts(9, 2), "pods": [A, B], "statuses": {"a": worker(1)}},
        2,
    ),
    (
        "Ready worker without an answer",
        {"counts": counts(0, 2), "pods": [A, B], "statuses": {"a": worker()}},
        None,
    ),
    (
        "starting worker",
        {"counts": counts(0, 1), "pods": [A, pod("c", ready=False)], "statuses": {"a": worker(1)}},
        1,
    ),
    (
        "stopping worker and an idle one",
        {
            "counts": counts(0, 1),
            "pods": [A],
            "statuses": {"a": worker()},
            "stopping": [B],
            "stopping_statuses": {"b": worker(2)},
        },
        1,
    ),
    (
        "stopping worker without an answer",
        {"counts": counts(), "stopping": [B], "stopping_statuses": {}},
        None,
    ),
    ("stopping worker before the request", {"counts": counts(), "stopping": [B]}, None),
    (
        "workloadRef with three pods and one message",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": 1},
        1,
    ),
    (
        "workloadRef with several messages per pod",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": 30},
        3,
    ),
    (
        "workloadRef with unknown unacknowledged messages",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": Unknown(Reason.UNACKNOWLEDGED_UNKNOWN, "")},
        None,
    ),
]


@pytest.mark.parametrize(("given", "expected"), [row[1:] for row in BUSY], ids=[row[0] for row in BUSY])
def test_busy_pods_are_counted(given: dict[str, Any], expected: int | None) -> None:
    answers = QueueReadings(**given)
    assert busy_pods(answers, judge(answers, "jobs"), 3) == expected


def test_unknown_depth_has_unknown_busy_pods() -> None:
    assert busy_pods(QueueReadings(counts=None), Unknown(Reason.DEPTH_PENDING, ""), 3) is None


# -- load


@pytest.mark.parametrize(
    ("statuses", "growth", "expected"),
    [
        ({}, 2.0, Load(None, 2.0)),
        ({}, -2.0, Load(None, 0.0)),
        ({"a": worker(seconds=2.0, rate=3.0)}, 0.0, Load(2.0, 3.0)),
        ({"a": worker(seconds=1.0, rate=3.0), "b": worker(seconds=5.0, rate=1.0)}, 0.0, Load(2.0, 4.0)),
        ({"a": worker(seconds=1.0), "b": worker(seconds=3.0)}, 1.0, Load(2.0, 1.0)),
        ({"a": worker(), "b": worker(seconds=3.0, rate=1.0)}, 0.0, Load(3.0, 1.0)),
        ({"a": worker(seconds=1.0, rate=3.0)}, -5.0, Load(1.0, 0.0)),
    ],
    ids=[
        "growth without measurements",
        "shrinking queue without measurements",
        "one worker",
        "workers with different rates",
        "idle workers",
        "worker without a measurement",
        "queue that shrinks faster than its deliveries",
    ],
)
def test_load_is_calculated_from_worker_statuses(
    statuses: dict[str, WorkerStatus], growth: float, expected: Load
) -> None:
    assert load(statuses, growth) == expected


# -- what an unreachable worker does to the count


@pytest.mark.parametrize("ready", [0, 9], ids=["empty-queue", "backlog"])
def test_unreachable_worker_is_named(ready: int) -> None:
    depth = judge(QueueReadings(counts=counts(ready, 2), pods=[A, B], unreachable="a"), "jobs")

    assert isinstance(depth, Depth)
    assert depth.doubt is not None
    assert depth.doubt.reason is Reason.RETIRE_UNREACHABLE
    assert "Worker a " in depth.doubt.message


@pytest.mark.parametrize(
    "ours", [True, False], ids=["worker-without-answer", "workload-without-management-api"]
)
def test_unreadable_depth_neither_raises_nor_lowers_the_count(ours: bool) -> None:
    """With one message and twenty slots per worker, the count went to 1, 2, 4, 8 and 12 within seconds and stayed."""
    spec = WorkQueueSpec.model_validate(
        {
            "connectionSecretRef": {"name": "rabbitmq"},
            **(
                {"worker": {"image": "i", "concurrency": 20, "handler": {"python": "m:f"}}}
                if ours
                else {"workloadRef": {"name": "theirs"}}
            ),
            "scaling": {"messagesPerReplica": 10, "maxReplicas": 12, "scaleInDelaySeconds": 5},
        }
    )
    replicas, window = 0, ScaleInWindow(NOW)
    for second in range(60):
        workers = [pod(f"jobs-{number}") for number in range(replicas)]
        depth = judge(
            QueueReadings(
                counts=counts(0 if replicas else 1, 20 * replicas),
                ours=ours,
                pods=workers if ours else (),
                concurrency=20 if ours else 1,
                unacknowledged=None if ours else UNKNOWN_UNACKNOWLEDGED,
            ),
            "jobs",
        )
        workload = WorkloadState(replicas, concurrency=20 if ours else 1)
        decision, window = decide(spec, Observation(workload, depth), window, NOW + second)
        if not isinstance(decision, Hold):
            replicas = decision.replicas
    assert replicas == 1
