"""What answers mean: a depth that can be acted on, or unknown, and never a zero that was not seen."""

from __future__ import annotations

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
    busy: int = 0, *, consuming: bool = True, seconds: float | None = None, rate: float = 0.0
) -> WorkerStatus:
    return WorkerStatus(1, busy, consuming, seconds, rate)


A, B = pod("a"), pod("b")

LATER_PASSES: list[tuple[str, dict[str, Any], Depth]] = [
    (
        "an idle queue with our bell",
        {"counts": counts(doorbell=True), "doorbell_installed_at": NOW - 60},
        Depth(0, 0, 0),
    ),
    ("an idle queue without bell or workers", {"counts": counts()}, Depth(0, 0, 0)),
    ("a backlog without workers", {"counts": counts(7)}, Depth(7, 0, 0)),
    (
        "more waits than there are consumers: all are busy",
        {"counts": counts(9, 2), "pods": [A, B]},
        Depth(9, 2, 2),
    ),
    (
        "one of them has a message when the queue has a single active consumer",
        {"counts": counts(9, 2), "pods": [A, B], "single_active": True},
        Depth(9, 1, 2),
    ),
    (
        "fewer wait: the workers say who is busy",
        {"counts": counts(0, 2), "pods": [A, B], "statuses": {"a": worker(1), "b": worker(0)}},
        Depth(0, 1, 2),
    ),
    (
        "a worker that does not answer may be busy",
        {"counts": counts(0, 2), "pods": [A, B], "statuses": {"a": worker(0)}},
        Depth(0, 0, 2, 1, NOT_YET),
    ),
    (
        "with all its slots",
        {"counts": counts(0, 8), "pods": [A, B], "statuses": {"a": worker(2)}, "concurrency": 4},
        Depth(0, 2, 8, 4, NOT_YET),
    ),
    (
        "workers that just start have nothing while something waits",
        {"counts": counts(1, 1), "pods": [A, B, pod("c", ready=False)], "statuses": {"a": worker(1)}},
        Depth(1, 1, 1, 2, NOT_YET),
    ),
    (
        "what was taken since the broker answered is not counted twice",
        {"counts": counts(1, 1), "pods": [A, B], "statuses": {"a": worker(1), "b": worker(1)}},
        Depth(1, 1, 1, 1, NOT_YET),
    ),
    (
        "workers that are not ours may all be busy",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": UNKNOWN_UNACKNOWLEDGED},
        Depth(0, 0, 3, 3, UNKNOWN_UNACKNOWLEDGED),
    ),
    (
        "and surely are while more waits than there are consumers",
        {"counts": counts(4, 3), "ours": False, "unacknowledged": UNKNOWN_UNACKNOWLEDGED},
        Depth(4, 3, 3, 0, UNKNOWN_UNACKNOWLEDGED),
    ),
    (
        "unless the management API knows better",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": 1},
        Depth(0, 1, 3),
    ),
    (
        "a zero of retired workers is believed",
        {"counts": counts(), "pods": [A], "statuses": {"a": worker(0, consuming=False)}},
        Depth(0, 0, 0),
    ),
    (
        "a worker that is not Ready yet need not consume",
        {"counts": counts(), "pods": [pod("a", ready=False)], "statuses": {"a": worker(0, consuming=False)}},
        Depth(0, 0, 0),
    ),
    (
        "a bell that has just been hung may not show yet",
        {"counts": counts(), "doorbell_installed_at": NOW - 1},
        Depth(0, 0, 0),
    ),
    ("messages are believed whatever the consumers", {"counts": counts(3), "pods": [A]}, Depth(3, 0, 0)),
]


@pytest.mark.parametrize(
    ("given", "depth"), [row[1:] for row in LATER_PASSES], ids=[row[0] for row in LATER_PASSES]
)
def test_depth_is_known(given: dict[str, Any], depth: Depth) -> None:
    assert judge(QueueReadings(**given), "jobs") == depth


UNKNOWN: list[tuple[str, dict[str, Any], Reason]] = [
    ("nobody has asked yet", {"counts": None}, Reason.DEPTH_PENDING),
    ("the queue is missing", {"counts": QUEUE_MISSING}, Reason.QUEUE_NOT_FOUND),
    (
        "the broker is away",
        {"counts": ReconcileError(Reason.BROKER_UNREACHABLE, "away")},
        Reason.BROKER_UNREACHABLE,
    ),
    (
        "zero and zero while a worker consumes",
        {"counts": counts(), "pods": [A], "statuses": {"a": worker(0)}},
        Reason.DEPTH_IMPLAUSIBLE,
    ),
    (
        "zero and zero while a Ready worker does not answer",
        {"counts": counts(), "pods": [A, B], "statuses": {"a": worker(0, consuming=False)}},
        Reason.DEPTH_IMPLAUSIBLE,
    ),
    (
        "zero and zero while our bell hangs",
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
    ids=["nothing waits", "some may be idle", "all are busy", "not asked", "missing"],
)
def test_workers_are_asked_only_when_necessary(given: Any, expected: bool) -> None:
    assert workers_decide(given) is expected


BUSY: list[tuple[str, dict[str, Any], int | None]] = [
    ("idle workers", {"counts": counts(0, 2), "pods": [A, B], "statuses": {"a": worker(), "b": worker()}}, 0),
    ("a backlog keeps every pod busy", {"counts": counts(9, 8), "pods": [A, B], "concurrency": 4}, 2),
    ("a backlog beside a pod that starts", {"counts": counts(9, 4), "pods": [A, B], "concurrency": 4}, 1),
    (
        "a backlog with a worker that does not answer",
        {"counts": counts(9, 2), "pods": [A, B], "statuses": {"a": worker(1)}},
        2,
    ),
    (
        "a Ready worker that does not answer",
        {"counts": counts(0, 2), "pods": [A, B], "statuses": {"a": worker()}},
        None,
    ),
    (
        "a worker that is still starting",
        {"counts": counts(0, 1), "pods": [A, pod("c", ready=False)], "statuses": {"a": worker(1)}},
        1,
    ),
    (
        "a stopping worker beside an idle one",
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
        "a stopping worker that does not answer",
        {"counts": counts(), "stopping": [B], "stopping_statuses": {}},
        None,
    ),
    ("a stopping worker that was not asked", {"counts": counts(), "stopping": [B]}, None),
    (
        "a workloadRef of three pods with one message in hand",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": 1},
        1,
    ),
    (
        "a workloadRef whose pods each hold several",
        {"counts": counts(0, 3), "ours": False, "unacknowledged": 30},
        3,
    ),
    (
        "a workloadRef of which nobody knows what is unacknowledged",
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
        "nobody has measured: only the growth is known",
        "a shrinking queue says nothing of arrivals",
        "one worker",
        "weighted by what each has handled",
        "nobody had anything to do lately",
        "one that has not measured yet is left out",
        "never below zero",
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
    """One message and twenty slots a worker gave 1, 2, 4, 8, 12 replicas within seconds, for ever."""
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
