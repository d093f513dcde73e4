"""What is written: a status only when it changed, numbers not too often, each Event once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import ConditionType, Finding, Reason
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import STATUS_FIELD_MANAGER
from workqueue_operator.reconcile.reporter import EVENT_AGAIN_AFTER, NUMBERS_EVERY, Event, Reporter

NOW = 1000.0
ALL_WELL = Finding("True", Reason.DECLARED, "The queue exists.")
CONFLICT = Finding("False", Reason.QUEUE_CONFLICT, "The queue exists with other arguments.")


def status(**changes: Any) -> dict[str, Any]:
    return {"observedGeneration": 3, "messages": 5, "workers": "1/1", "conditions": [], **changes}


def body(version: int, said: dict[str, Any], uid: str = "uid-1") -> dict[str, Any]:
    """The WorkQueue as the API server has it."""
    metadata = {"namespace": "team", "name": "jobs", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}, "status": said}


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()

    def written(request: Request) -> dict[str, Any]:
        return body(10 * len(made.asked), request.body["status"], request.body["metadata"]["uid"])

    made.answer("PATCH", "/status", written)
    made.answer("POST", "/events", {})
    return made


@pytest.fixture
def woken() -> list[Key]:
    return []


@pytest.fixture
def store(woken: list[Key]) -> Store:
    made = Store(woken.append)
    made.put_workqueue(body(1, {}))
    woken.clear()
    return made


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def reporter(cluster: FakeCluster, store: Store, metrics: Metrics) -> Reporter:
    return Reporter(cluster, store, "operator-1", metrics, clock=SystemClock())


def events(cluster: FakeCluster) -> list[Any]:
    return [request.body for request in cluster.asked if request.method == "POST"]


# -- status


async def test_status_is_applied_to_exactly_this_object(cluster: FakeCluster, reporter: Reporter) -> None:
    await reporter.status(workqueue(), status(), NOW)
    (request,) = cluster.asked
    assert request == Request(
        "PATCH",
        "/apis/workqueue.dev/v1alpha1/namespaces/team/workqueues/jobs/status",
        {"fieldManager": STATUS_FIELD_MANAGER, "force": "true"},
        {
            "apiVersion": "workqueue.dev/v1alpha1",
            "kind": "WorkQueue",
            "metadata": {"name": "jobs", "namespace": "team", "uid": "uid-1"},
            "status": status(),
        },
        "application/apply-patch+yaml",
    )


async def test_condition_metric_covers_unwritten_status(
    reporter: Reporter, store: Store, metrics: Metrics
) -> None:
    def shown() -> set[tuple[str, str, str]]:
        (samples,) = (
            family.samples for family in metrics.workqueues.collect() if family.name == "workqueue_condition"
        )
        assert all(sample.value == 1 for sample in samples)
        return {tuple(sample.labels.values())[2:] for sample in samples}  # type: ignore[misc]

    ready = status(conditions=[{"type": "Ready", "status": "True", "reason": "AsExpected"}])
    blind = status(conditions=[{"type": "Ready", "status": "False", "reason": "BrokerUnreachable"}])
    store.put_workqueue(body(2, ready))
    await reporter.status(workqueue(), ready, NOW)
    assert shown() == {("Ready", "True", "AsExpected")}
    await reporter.status(workqueue(), blind, NOW)
    assert shown() == {("Ready", "False", "BrokerUnreachable")}
    metrics.workqueues.forget(*workqueue().key)
    assert not shown()


def conflict(message: str) -> Event:
    return Event(Reason.QUEUE_CONFLICT, message, "QueueDeclared", warning=True)


async def test_unchanged_status_is_not_written(cluster: FakeCluster, reporter: Reporter) -> None:
    for later in (0, 1, 100):
        assert await reporter.status(workqueue(), status(), NOW + later) is None
    assert len(cluster.asked) == 1


async def test_status_of_earlier_process_is_not_rewritten(
    cluster: FakeCluster, store: Store, reporter: Reporter
) -> None:
    store.put_workqueue(body(2, status()))
    await reporter.status(workqueue(), status(), NOW)
    assert not cluster.asked
    await reporter.status(workqueue(), status(workers="0/1", queueName="q"), NOW)
    assert len(cluster.asked) == 1


def condition(since: str = "2026-01-01T00:00:00Z", **changes: str) -> dict[str, str]:
    return {"type": "Ready", "status": "True", "reason": "AsExpected", "lastTransitionTime": since, **changes}


async def test_new_dead_letter_is_written_immediately(cluster: FakeCluster, reporter: Reporter) -> None:
    await reporter.status(workqueue(), status(deadLetters=0), NOW)

    assert await reporter.status(workqueue(), status(deadLetters=1), NOW + 0.5) is None

    assert len(cluster.asked) == 2


WIPED: dict[str, dict[str, Any]] = {
    "the whole status is gone": {},
    "a condition is gone": status(),
    "a condition says something else": status(conditions=[condition(reason="Nonsense")]),
    "a number is gone": {"observedGeneration": 3, "workers": "1/1", "conditions": [condition()]},
}


@pytest.mark.parametrize("left", WIPED.values(), ids=WIPED)
async def test_wiped_status_enqueues_and_is_rewritten(
    cluster: FakeCluster, store: Store, reporter: Reporter, woken: list[Key], left: dict[str, Any]
) -> None:
    said = status(conditions=[condition()])
    await reporter.status(workqueue(), said, NOW)
    assert woken == [], "our own write is no news"
    store.put_workqueue(body(99, left))
    assert woken == [("team", "jobs")]
    # A condition that is made anew gets another time; that alone must not make two operators race.
    anew = status(conditions=[condition("2026-01-01T00:01:00Z")])
    assert await reporter.status(workqueue(), anew, NOW + 1) == NUMBERS_EVERY - 1
    assert len(cluster.asked) == 1
    assert await reporter.status(workqueue(), said, NOW + NUMBERS_EVERY) is None
    assert cluster.asked[-1].body["status"] == said
    assert len(cluster.asked) == 2


async def test_foreign_conditions_cause_no_status_write(
    cluster: FakeCluster, store: Store, reporter: Reporter
) -> None:
    await reporter.status(workqueue(), status(conditions=[condition()]), NOW)
    theirs = condition(type="example.com/Audited")
    store.put_workqueue(body(99, status(conditions=[theirs, condition()])))
    assert await reporter.status(workqueue(), status(conditions=[condition()]), NOW + 100) is None
    assert len(cluster.asked) == 1


async def test_number_changes_alone_are_delayed(cluster: FakeCluster, reporter: Reporter) -> None:
    await reporter.status(workqueue(), status(), NOW)
    wait = await reporter.status(workqueue(), status(messages=6, workers="2/2"), NOW + 2)
    assert wait == NUMBERS_EVERY - 2
    assert len(cluster.asked) == 1
    assert await reporter.status(workqueue(), status(messages=7), NOW + NUMBERS_EVERY) is None
    assert cluster.asked[-1].body["status"]["messages"] == 7


async def test_other_changes_are_written_immediately(cluster: FakeCluster, reporter: Reporter) -> None:
    await reporter.status(workqueue(), status(), NOW)
    ready = {"type": "Ready", "status": "False", "reason": "BrokerUnreachable"}
    changed = status(messages=6, conditions=[ready])
    assert await reporter.status(workqueue(), changed, NOW + 0.1) is None
    assert len(cluster.asked) == 2


async def test_failed_status_write_is_retried(cluster: FakeCluster, reporter: Reporter) -> None:
    cluster.answer("PATCH", "/status", ClusterError(503, "busy"))
    with pytest.raises(ClusterError):
        await reporter.status(workqueue(), status(), NOW)
    cluster.answer("PATCH", "/status", body(20, status()))
    await reporter.status(workqueue(), status(), NOW)
    assert len(cluster.asked) == 2


async def test_recreated_object_gets_a_new_status(cluster: FakeCluster, reporter: Reporter) -> None:
    await reporter.status(workqueue(), status(), NOW)
    await reporter.status(workqueue(metadata={"uid": "uid-2"}), status(), NOW)
    assert len(cluster.asked) == 2


# -- Events


async def test_transition_sends_one_event(cluster: FakeCluster, reporter: Reporter) -> None:
    for finding in (ALL_WELL, ALL_WELL, CONFLICT, CONFLICT):
        await reporter.transitions(workqueue(), {ConditionType.QUEUE_DECLARED: finding}, NOW)
    assert [(event["type"], event["reason"], event["note"]) for event in events(cluster)] == [
        ("Normal", "Declared", "The queue exists."),
        ("Warning", "QueueConflict", "The queue exists with other arguments."),
    ]
    regarding = events(cluster)[0]["regarding"]
    assert (regarding["namespace"], regarding["name"], regarding["uid"]) == ("team", "jobs", "uid-1")


async def test_restart_repeats_no_event_for_stored_status(cluster: FakeCluster, reporter: Reporter) -> None:
    known = {
        "conditions": [
            {"type": "QueueDeclared", "status": "False", "reason": "QueueConflict", "message": "as before"}
        ]
    }
    await reporter.transitions(workqueue(status=known), {ConditionType.QUEUE_DECLARED: CONFLICT}, NOW)
    assert events(cluster) == []
    await reporter.transitions(workqueue(status=known), {ConditionType.QUEUE_DECLARED: ALL_WELL}, NOW)
    assert [event["reason"] for event in events(cluster)] == ["Declared"]


async def test_ready_and_transient_conditions_send_no_event(cluster: FakeCluster, reporter: Reporter) -> None:
    await reporter.transitions(
        workqueue(),
        {
            ConditionType.READY: CONFLICT,
            ConditionType.DEPTH_KNOWN: Finding("Unknown", Reason.DEPTH_PENDING, "not yet"),
            ConditionType.WORKERS_AVAILABLE: Finding("True", Reason.SCALED_TO_ZERO, "none"),
        },
        NOW,
    )
    assert events(cluster) == []


async def test_scale_in_to_zero_sends_only_its_own_event(cluster: FakeCluster, reporter: Reporter) -> None:
    for finding in (
        Finding("True", Reason.WORKERS_READY, "Workers are Ready."),
        Finding("True", Reason.SCALED_TO_ZERO, "No worker runs."),
        Finding("Unknown", Reason.WORKERS_STARTING, "No worker is Ready yet."),
        Finding("True", Reason.WORKERS_READY, "Workers are Ready once more."),
    ):
        await reporter.transitions(workqueue(), {ConditionType.WORKERS_AVAILABLE: finding}, NOW)
    assert [event["note"] for event in events(cluster)] == ["Workers are Ready once more."]


async def test_repeated_event_is_rate_limited(cluster: FakeCluster, reporter: Reporter) -> None:
    for later in (0, 1, EVENT_AGAIN_AFTER - 1, EVENT_AGAIN_AFTER + 1):
        await reporter.event(workqueue(), conflict("a"), NOW + later)
    assert len(events(cluster)) == 2


async def test_unsendable_event_stops_nothing(cluster: FakeCluster, reporter: Reporter) -> None:
    cluster.answer("POST", "/events", ClusterError(403, "forbidden"))
    await reporter.event(workqueue(), conflict("a"), NOW)


async def test_long_event_note_is_truncated(cluster: FakeCluster, reporter: Reporter) -> None:
    await reporter.event(workqueue(), conflict("a" * 5000), NOW)
    assert len(events(cluster)[0]["note"]) == 1024


# -- memory


async def test_sent_events_are_forgotten_eventually(cluster: FakeCluster, reporter: Reporter) -> None:
    for number in range(1000):
        event = Event(Reason.BACKLOG, f"{number} waiting", "Scale")
        await reporter.event(workqueue(), event, NOW + number * 10)
    assert len(reporter._sent["uid-1"]) <= EVENT_AGAIN_AFTER / 10 + 1


async def test_deleted_workqueue_leaves_nothing_in_the_reporter(
    cluster: FakeCluster, reporter: Reporter
) -> None:
    await reporter.status(workqueue(), status(), NOW)
    await reporter.transitions(workqueue(), {ConditionType.QUEUE_DECLARED: CONFLICT}, NOW)
    reporter.forget("uid-1")
    assert [reporter._written, reporter._told, reporter._sent] == [{}, {}, {}]


async def test_sent_event_is_remembered_until_it_may_repeat(reporter: Reporter) -> None:
    told = [("one", NOW), ("two", NOW + 1), ("three", NOW + EVENT_AGAIN_AFTER)]
    for message, now in told:
        await reporter.event(workqueue(), Event(Reason.DECLARED, message, "Declare"), now)
    assert [message for _, message in reporter._sent["uid-1"]] == ["two", "three"]
