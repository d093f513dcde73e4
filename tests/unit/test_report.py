"""What is written: a status only when it changed, the last one of several, not too often, and each Event once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.fakecluster import FakeCluster, Request
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import ConditionType, Finding, Reason, Unknown
from workqueue_operator.errors import ClusterError, LeadershipLostError
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import STATUS_FIELD_MANAGER
from workqueue_operator.reconcile.outbox import HOLD_CHECK, LONGEST_HOLD, REPORT_AFTER
from workqueue_operator.reconcile.reporter import (
    EVENT_AGAIN_AFTER,
    EVENT_RATE,
    FAILED_AGAIN,
    MOST_EVENTS,
    NUMBERS_EVERY,
    STATUS_EVERY,
    STATUS_RATE,
    Event,
    Reporter,
)
from workqueue_operator.reconcile.status import Outcome
from workqueue_operator.scaling.decide import Depth

ALL_WELL = Finding("True", Reason.DECLARED, "The queue exists.")
CONFLICT = Finding("False", Reason.QUEUE_CONFLICT, "The queue exists with other arguments.")


def status(**changes: Any) -> dict[str, Any]:
    return {"observedGeneration": 3, "messages": 5, "readyReplicas": 1, "conditions": [], **changes}


def body(version: int, said: dict[str, Any], **about: str) -> dict[str, Any]:
    """The WorkQueue as the API server has it."""
    known = {"namespace": "team", "name": "jobs", "uid": "uid-1"}
    metadata = {**known, **about, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}, "status": said}


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()

    def written(request: Request) -> dict[str, Any]:
        return body(10 * len(made.asked), request.body["status"], **request.body["metadata"])

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
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def counts() -> list[str]:
    """The counts that are being written."""
    return []


@pytest.fixture
async def reporter(
    cluster: FakeCluster, store: Store, metrics: Metrics, clock: FakeClock, counts: list[str]
) -> AsyncIterator[Reporter]:
    made = Reporter(cluster, store, "operator-1", metrics, clock=clock, is_urgent=lambda: bool(counts))
    yield made
    await made.flush(0)


@pytest.fixture
def site(reporter: Reporter, cluster: FakeCluster, clock: FakeClock) -> Site:
    return Site(reporter, cluster, clock)


class Site:
    """A reporter, and what it has written."""

    def __init__(self, reporter: Reporter, cluster: FakeCluster, clock: FakeClock) -> None:
        self.reporter = reporter
        self.cluster = cluster
        self.clock = clock

    async def status(self, said: dict[str, Any], name: str = "jobs", uid: str = "uid-1") -> None:
        """Report a status, and let the reporter begin with it."""
        self.reporter.status(workqueue(metadata={"name": name, "uid": uid}), said)
        await self.clock.advance(REPORT_AFTER)

    async def event(self, message: str) -> None:
        self.reporter.event(workqueue(), Event(Reason.QUEUE_CONFLICT, message, "QueueDeclared", warning=True))
        await self.clock.advance(REPORT_AFTER)

    async def transitions(self, *findings: Finding, known: dict[str, Any] | None = None) -> None:
        for finding in findings:
            about = workqueue(status=known or {})
            self.reporter.transitions(about, {ConditionType.QUEUE_DECLARED: finding})
        await self.clock.advance(REPORT_AFTER)

    @property
    def statuses(self) -> list[dict[str, Any]]:
        return [request.body["status"] for request in self.cluster.asked if request.method == "PATCH"]

    @property
    def events(self) -> list[Any]:
        return [request.body for request in self.cluster.asked if request.method == "POST"]


# -- status


async def test_status_is_applied_to_exactly_this_object(site: Site) -> None:
    await site.status(status())

    (request,) = site.cluster.asked
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


async def test_condition_metric_covers_unwritten_status(site: Site, store: Store, metrics: Metrics) -> None:
    def shown() -> set[tuple[str, str, str]]:
        (samples,) = (
            family.samples for family in metrics.workqueues.collect() if family.name == "workqueue_condition"
        )
        assert all(sample.value == 1 for sample in samples)
        return {tuple(sample.labels.values())[2:] for sample in samples}  # type: ignore[misc]

    ready = status(conditions=[{"type": "Ready", "status": "True", "reason": "AsExpected"}])
    blind = status(conditions=[{"type": "Ready", "status": "False", "reason": "BrokerUnreachable"}])
    store.put_workqueue(body(2, ready))
    site.reporter.status(workqueue(), ready)
    assert shown() == {("Ready", "True", "AsExpected")}
    site.reporter.status(workqueue(), blind)
    assert shown() == {("Ready", "False", "BrokerUnreachable")}
    metrics.workqueues.forget(*workqueue().key)
    assert not shown()


async def test_unchanged_status_is_not_written(site: Site) -> None:
    for seconds in (1, 100, 1):
        await site.status(status())
        await site.clock.advance(seconds)

    assert len(site.statuses) == 1


async def test_status_of_earlier_process_is_not_rewritten(site: Site, store: Store) -> None:
    store.put_workqueue(body(2, status()))
    await site.status(status())
    assert not site.statuses

    await site.status(status(readyReplicas=0, queueName="q"))
    await site.clock.advance(STATUS_EVERY)
    assert len(site.statuses) == 1


def condition(since: str = "2026-01-01T00:00:00Z", **changes: str) -> dict[str, str]:
    return {"type": "Ready", "status": "True", "reason": "AsExpected", "lastTransitionTime": since, **changes}


async def test_new_dead_letter_is_written_soon(site: Site) -> None:
    await site.status(status(deadLetters=0))
    await site.status(status(deadLetters=1))
    await site.clock.advance(STATUS_EVERY)

    assert [said["deadLetters"] for said in site.statuses] == [0, 1]


async def test_numbers_are_exact_and_written_at_a_bounded_rate(site: Site) -> None:
    for count in range(1001, 1041):
        await site.status(status(messages=count, deadLetters=count))

    written = [(said["messages"], said["deadLetters"]) for said in site.statuses]
    passed = 40 * REPORT_AFTER
    assert written[0] == (1001, 1001)
    assert len(written) <= 1 + passed / NUMBERS_EVERY
    await site.clock.advance(NUMBERS_EVERY)
    assert site.statuses[-1]["deadLetters"] == 1040


WIPED: dict[str, dict[str, Any]] = {
    "the whole status is gone": {},
    "a condition is gone": status(),
    "a condition says something else": status(conditions=[condition(reason="Nonsense")]),
    "a number is gone": {"observedGeneration": 3, "workers": "1/1", "conditions": [condition()]},
}


@pytest.mark.parametrize("left", WIPED.values(), ids=WIPED)
async def test_wiped_status_enqueues_and_is_rewritten(
    site: Site, store: Store, woken: list[Key], left: dict[str, Any]
) -> None:
    said = status(conditions=[condition()])
    await site.status(said)
    assert woken == [], "our own write is no news"
    store.put_workqueue(body(99, left))
    assert woken == [("team", "jobs")]
    # A condition that is made again gets another time; that alone must not make two operators race.
    again = status(conditions=[condition("2026-01-01T00:01:00Z")])
    await site.status(again)
    await site.clock.advance(NUMBERS_EVERY - 1)
    assert len(site.statuses) == 1
    await site.clock.advance(1)
    assert site.statuses == [said, said]


async def test_foreign_conditions_cause_no_status_write(site: Site, store: Store) -> None:
    await site.status(status(conditions=[condition()]))
    theirs = condition(type="example.com/Audited")
    store.put_workqueue(body(99, status(conditions=[theirs, condition()])))
    await site.status(status(conditions=[condition()]))
    await site.clock.advance(100)

    assert len(site.statuses) == 1


async def test_number_changes_alone_are_delayed_and_the_last_one_is_written(site: Site) -> None:
    await site.status(status())
    await site.clock.advance(2)
    await site.status(status(messages=6, readyReplicas=2))
    await site.status(status(messages=7))
    await site.clock.advance(NUMBERS_EVERY - 2.6)
    assert len(site.statuses) == 1
    await site.clock.advance(0.5)

    assert [said["messages"] for said in site.statuses] == [5, 7]


async def test_other_changes_do_not_wait_for_the_numbers(site: Site) -> None:
    await site.status(status())
    ready = {"type": "Ready", "status": "False", "reason": "BrokerUnreachable"}
    await site.status(status(messages=6))
    await site.status(status(messages=6, conditions=[ready]))
    await site.clock.advance(STATUS_EVERY)

    assert site.statuses[1:] == [status(messages=6, conditions=[ready])]


async def test_status_written_later_keeps_the_time_of_its_transition(site: Site) -> None:
    first, second = condition("2026-01-01T00:00:00Z"), condition("2026-01-01T00:00:09Z")
    await site.status(status())
    await site.status(status(conditions=[first]))
    await site.status(status(messages=9, conditions=[second]))
    await site.clock.advance(STATUS_EVERY)

    assert site.statuses[-1] == status(messages=9, conditions=[first])


async def test_slow_write_delays_no_report_and_the_last_status_follows_it(site: Site) -> None:
    answer = asyncio.Event()

    async def slow(request: Request) -> dict[str, Any]:
        await answer.wait()
        return body(50 + len(site.cluster.asked), request.body["status"])

    site.cluster.answer("PATCH", "/status", slow)
    for number in range(5):
        await site.status(status(queueName=f"q{number}"))
        await site.clock.advance(STATUS_EVERY)
    assert [said["queueName"] for said in site.statuses] == ["q0"]

    answer.set()
    await site.clock.settle()
    await site.clock.advance(STATUS_EVERY)

    assert [said["queueName"] for said in site.statuses] == ["q0", "q4"]


async def test_refused_status_is_retried_with_longer_pauses(site: Site, metrics: Metrics) -> None:
    site.cluster.answer("PATCH", "/status", ClusterError(500, "field not declared"))
    await site.status(status())
    for _ in range(200):
        await site.status(status(messages=6))
        await site.clock.advance(1)
    assert 7 <= len(site.statuses) <= 12, "a change does not shorten the pause"
    failed = metrics.reconcile_errors.labels(Reason.API_UNAVAILABLE.value)._value.get()
    assert failed == len(site.statuses)

    site.cluster.answer("PATCH", "/status", body(20, status(messages=6)))
    await site.clock.advance(FAILED_AGAIN[1] * 1.25)
    count = len(site.statuses)
    await site.clock.advance(1000)
    assert len(site.statuses) == count


async def test_retry_after_is_kept(site: Site) -> None:
    site.cluster.answer("PATCH", "/status", ClusterError(429, "busy", retry_after=30.0))
    await site.status(status())
    await site.clock.advance(29)
    assert len(site.statuses) == 1
    await site.clock.advance(2)
    assert len(site.statuses) == 2


async def test_recreated_object_gets_a_new_status(site: Site) -> None:
    await site.status(status())
    await site.status(status(), uid="uid-2")

    assert len(site.statuses) == 2


# -- limits


def many(site: Site, namespace: str, count: int) -> None:
    for number in range(count):
        about = workqueue(
            metadata={"namespace": namespace, "name": f"jobs-{number}", "uid": f"{namespace}-{number}"}
        )
        site.reporter.status(about, status())


async def test_statuses_of_a_namespace_are_written_at_a_limited_rate(site: Site) -> None:
    many(site, "team", 500)
    await site.clock.advance(REPORT_AFTER)
    assert len(site.statuses) <= STATUS_RATE.burst
    await site.clock.advance(2)
    assert len(site.statuses) == pytest.approx(STATUS_RATE.burst + 2 * STATUS_RATE.per_second, abs=20)
    await site.clock.advance(10)
    assert len(site.statuses) == 500


async def test_reports_wait_while_counts_are_written(site: Site, counts: list[str]) -> None:
    counts.append("jobs-worker")
    await site.status(status())
    await site.event("the first")
    await site.clock.advance(LONGEST_HOLD / 2)
    assert (site.statuses, site.events) == ([], [])
    counts.clear()
    await site.clock.advance(HOLD_CHECK)
    assert (len(site.statuses), len(site.events)) == (1, 1)


async def test_endless_count_writes_hold_reports_for_a_limited_time(site: Site, counts: list[str]) -> None:
    counts.append("jobs-worker")
    await site.status(status())
    await site.clock.advance(LONGEST_HOLD + HOLD_CHECK)
    assert len(site.statuses) == 1


async def test_slow_namespace_does_not_delay_others(site: Site) -> None:
    site.cluster.answer("PATCH", "/namespaces/slow/", lambda _: asyncio.get_running_loop().create_future())
    many(site, "slow", 50)
    many(site, "team", 50)
    await site.clock.advance(REPORT_AFTER)

    written = [request.path.split("/")[5] for request in site.cluster.asked]
    assert (written.count("slow"), written.count("team")) == (STATUS_RATE.together, 50)


async def test_refused_events_do_not_delay_statuses(site: Site) -> None:
    site.cluster.answer("POST", "/events", ClusterError(429, "busy"))
    for number in range(100):
        await site.event(str(number))
    await site.status(status())

    assert len(site.statuses) == 1
    assert len(site.events) > 0


# -- the end


async def test_flush_writes_everything_that_waits(site: Site) -> None:
    many(site, "team", 500)
    await site.status(status(messages=1))
    await site.status(status(messages=2))
    for number in range(100):
        await site.event(str(number))

    await site.reporter.flush(60)

    assert len(site.statuses) == 501, "only the last of several"
    assert site.statuses.count(status(messages=2)) == 1
    assert len(site.events) == 100


async def test_flush_gives_up_after_its_patience(site: Site) -> None:
    site.cluster.answer("PATCH", "/status", lambda _: asyncio.get_running_loop().create_future())
    await site.status(status())

    await site.reporter.flush(0)
    await site.status(status(messages=6))
    await site.event("late")

    assert (len(site.statuses), site.events) == (1, [])


async def test_nothing_is_written_after_the_loss_of_the_lease(site: Site) -> None:
    site.cluster.answer("PATCH", "/status", LeadershipLostError("the Lease has expired"))
    many(site, "team", 50)
    await site.event("one")
    site.cluster.asked.clear()

    await site.clock.advance(100)
    await site.event("two")
    await site.status(status(messages=6))
    await site.reporter.flush(60)

    assert site.cluster.asked == []


# -- Events


async def test_transition_sends_one_event(site: Site) -> None:
    await site.transitions(ALL_WELL, ALL_WELL, CONFLICT, CONFLICT)

    assert [(event["type"], event["reason"], event["note"]) for event in site.events] == [
        ("Normal", "Declared", "The queue exists."),
        ("Warning", "QueueConflict", "The queue exists with other arguments."),
    ]
    regarding = site.events[0]["regarding"]
    assert (regarding["namespace"], regarding["name"], regarding["uid"]) == ("team", "jobs", "uid-1")


async def test_restart_repeats_no_event_for_stored_status(site: Site) -> None:
    known = {
        "conditions": [
            {"type": "QueueDeclared", "status": "False", "reason": "QueueConflict", "message": "as before"}
        ]
    }
    await site.transitions(CONFLICT, known=known)
    assert site.events == []
    await site.transitions(ALL_WELL, known=known)
    assert [event["reason"] for event in site.events] == ["Declared"]


async def test_ready_and_transient_conditions_send_no_event(site: Site) -> None:
    site.reporter.transitions(
        workqueue(),
        {
            ConditionType.READY: CONFLICT,
            ConditionType.DEPTH_KNOWN: Finding("Unknown", Reason.DEPTH_PENDING, "not yet"),
            ConditionType.WORKERS_AVAILABLE: Finding("True", Reason.SCALED_TO_ZERO, "none"),
        },
    )
    await site.clock.advance(REPORT_AFTER)

    assert site.events == []


async def test_scale_in_to_zero_sends_only_its_own_event(site: Site) -> None:
    for finding in (
        Finding("True", Reason.WORKERS_READY, "Workers are Ready."),
        Finding("True", Reason.SCALED_TO_ZERO, "No worker runs."),
        Finding("Unknown", Reason.WORKERS_STARTING, "No worker is Ready yet."),
        Finding("True", Reason.WORKERS_READY, "Workers are Ready once more."),
    ):
        site.reporter.transitions(workqueue(), {ConditionType.WORKERS_AVAILABLE: finding})
    await site.clock.advance(REPORT_AFTER)

    assert [event["note"] for event in site.events] == ["Workers are Ready once more."]


async def test_repeated_event_is_sent_again_after_its_time(site: Site) -> None:
    for seconds in (1, 1, EVENT_AGAIN_AFTER - 3, 2):
        await site.event("a")
        await site.clock.advance(seconds)
    await site.event("a")

    assert len(site.events) == 2


async def test_event_of_a_deleted_workqueue_is_still_sent(site: Site) -> None:
    for number in range(EVENT_RATE.burst):
        await site.event(str(number))
    await site.event("deleted")
    site.reporter.forget("uid-1")
    await site.clock.advance(1)

    assert site.events[-1]["note"] == "deleted"


async def test_events_of_one_namespace_are_limited_in_number(site: Site) -> None:
    for number in range(3 * MOST_EVENTS):
        site.reporter.event(workqueue(), Event(Reason.BACKLOG, f"{number} waiting", "Scale"))
    await site.clock.advance(1000)

    assert len(site.events) == MOST_EVENTS


async def test_long_event_note_is_truncated(site: Site) -> None:
    await site.event("a" * 5000)

    assert len(site.events[0]["note"]) == 1024


# -- memory


async def test_sent_events_are_forgotten_eventually(site: Site) -> None:
    for number in range(1000):
        await site.event(f"{number} waiting")
        await site.clock.advance(10)

    assert len(site.reporter._sent["uid-1"]) <= EVENT_AGAIN_AFTER / 10 + 1


async def test_deleted_workqueue_leaves_nothing_in_the_reporter(site: Site) -> None:
    await site.status(status())
    await site.status(status(messages=6))
    await site.transitions(CONFLICT)
    site.reporter.forget("uid-1")
    await site.clock.advance(NUMBERS_EVERY)

    assert [site.reporter._reports, site.reporter._told, site.reporter._sent] == [{}, {}, {}]
    assert len(site.statuses) == 1


async def test_idle_namespace_leaves_nothing_in_the_reporter(site: Site) -> None:
    for number in range(20):
        many(site, f"team-{number}", 1)
        await site.clock.advance(REPORT_AFTER)

    assert len(site.reporter._statuses) == 1


async def test_suspended_workqueue_shows_no_number_that_nobody_reads(
    cluster: FakeCluster, store: Store, metrics: Metrics, clock: FakeClock
) -> None:
    reporter = Reporter(cluster, store, "operator-1", metrics, clock=clock)
    seen = Outcome(ALL_WELL, depth=Depth(7, 2, 3), retrying=4, dead_letters=5, busy=1)
    nothing = Outcome(ALL_WELL, depth=Unknown(Reason.SUSPENDED, "spec.suspend is true."))
    counts = {"workqueue_messages_ready", "workqueue_consumers", "workqueue_dead_letters"}

    def shown() -> set[str]:
        return {sample.name for family in metrics.registry.collect() for sample in family.samples} & counts

    reporter.measure(workqueue(), seen)
    reporter.measure(workqueue(), nothing)
    assert shown() == counts  # a pending alert survives an outage

    reporter.measure(workqueue(suspend=True), nothing)
    assert shown() == set()

    reporter.measure(workqueue(), seen)
    assert shown() == counts
