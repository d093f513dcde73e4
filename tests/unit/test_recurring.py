"""Recurring messages: recorded before and after they are published, through failures and takeovers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.fakecluster import FakeCluster, Request
from tests.support.workqueue import workqueue
from workqueue.contract.topology import LEDGER_MILLISECONDS, Queue
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker.confirmed import NotPublishedError, OwnMessage, UnconfirmedError
from workqueue_operator.errors import ClusterError, LeadershipLostError, ReconcileError
from workqueue_operator.kube.store import Store
from workqueue_operator.metrics import Metrics
from workqueue_operator.reconcile.recurring import (
    AGAIN_SECONDS,
    LEDGER_AGAIN_SECONDS,
    LEDGER_PATIENCE_SECONDS,
    RecurringRunner,
)
from workqueue_operator.reconcile.reporter import Reporter

EVERY_MINUTE = {"name": "tick", "everySeconds": 60, "body": "now"}


class FakeBroker:
    """Remembers what was published. `fails` raises for the next messages."""

    def __init__(self) -> None:
        self.published: list[OwnMessage] = []
        self.declared: list[str] = []
        self.ledgers: dict[str, set[str]] = {}
        self.generation = 1
        self.refuses_ledgers = False
        self.ledgers_are_silent = False
        self.confirms = asyncio.Event()
        self.confirms.set()
        self.fails: list[Exception] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    async def publish_in_turn(self, message: OwnMessage) -> None:
        self.before()
        await self.confirms.wait()
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails.pop(0)
        self.published.append(message)
        if message.ledger in self.ledgers:
            self.ledgers[message.ledger].add(message.message_id)
        self.after()

    async def declare_queue(self, queue: Queue) -> object:
        if self.refuses_ledgers:
            raise ReconcileError(Reason.PERMISSION_DENIED, "no permission")
        if self.ledgers_are_silent:
            raise ReconcileError(Reason.BROKER_TIMEOUT, "no answer")
        self.declared.append(queue.name)
        return self.ledgers.setdefault(queue.name, set())

    async def read_ledger(self, ledger: Queue) -> set[str]:
        if self.fails:
            raise self.fails.pop(0)
        if self.ledgers_are_silent:
            raise ReconcileError(Reason.BROKER_TIMEOUT, "no answer")
        return self.ledgers.get(ledger.name, set())


class Site:
    """An API server with one WorkQueue, a broker, and the leader's runner."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.entries = list(entries or [EVERY_MINUTE])
        self.clock, self.cluster, self.broker = FakeClock(), FakeCluster(), FakeBroker()
        self.recorded: list[dict[str, Any]] = []
        self.fails_to_record = 0
        self.cluster.answer("GET", "/workqueues/jobs", lambda _: self.live())
        self.cluster.answer("PATCH", "/workqueues/jobs/status", self._record)
        self.cluster.answer("POST", "/events", {})
        self.take_over()

    def take_over(self) -> None:
        """Another process leads now. It knows nothing but the API server."""
        self.metrics = Metrics()
        reporter = Reporter(self.cluster, Store(lambda _: None), "me", self.metrics, clock=self.clock)
        self.asks: list[Any] = []
        self.runner = RecurringRunner(self.cluster, reporter, self.metrics, self.clock, self.asks.append)

    def counted(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("workqueue_recurring_total", {"outcome": outcome})

    def live(self) -> dict[str, Any]:
        made = workqueue(recurring=self.entries, status={"recurring": self.recorded})
        return made.model_dump(mode="json", by_alias=True, exclude_none=True)

    def _record(self, request: Request) -> Any:
        if self.fails_to_record:
            self.fails_to_record -= 1
            return ClusterError(503, "away")
        self.recorded = request.body["status"]["recurring"]
        return self.live()

    async def look(self) -> float | None:
        """Make passes until nothing is due; returns the seconds until the next look."""
        while True:
            due = self.runner.look(workqueue(recurring=self.entries), self.broker)
            if due is not None:
                return due
            await self.clock.settle()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await self.look()

    def ids(self) -> list[str]:
        return [message.message_id for message in self.broker.published]

    async def events(self) -> Counter[str]:
        """The reasons of the Events. They are sent within a second."""
        await self.clock.advance(1)
        return Counter(one.body["reason"] for one in self.cluster.asked if one.path.endswith("/events"))


async def test_message_has_its_body_headers_and_an_id_of_name_and_slot() -> None:
    site = Site(EVERY_MINUTE | {"headers": {"kind": "tick"}, "contentType": "text/plain"})
    assert await site.look() == pytest.approx(20.0)

    await site.pass_time(20)

    assert site.broker.published == [
        OwnMessage(
            "jobs", "jobs/tick/2026-01-01T00:17:00Z", b"now", "text/plain", {"kind": "tick"}, "jobs.recurring"
        )
    ]
    assert await site.events() == {}


async def test_slot_is_recorded_before_and_after_it_is_published() -> None:
    site = Site()
    await site.look()
    during: list[Any] = []
    site.broker.before = lambda: during.extend(site.recorded)

    await site.pass_time(20)

    assert during[0]["publishing"] == "2026-01-01T00:17:00Z"
    assert "publishing" not in site.recorded[0]
    assert site.recorded[0]["published"] == site.recorded[0]["slot"] == "2026-01-01T00:17:00Z"


async def test_takeover_repeats_no_published_slot() -> None:
    site = Site()
    await site.look()
    await site.pass_time(20)
    site.take_over()

    await site.look()
    await site.pass_time(60)

    assert site.ids() == ["jobs/tick/2026-01-01T00:17:00Z", "jobs/tick/2026-01-01T00:18:00Z"]
    assert await site.events() == {}


async def test_takeover_publishes_the_slots_of_the_failover() -> None:
    site = Site(EVERY_MINUTE | {"everySeconds": 2})
    await site.look()
    site.take_over()

    await site.pass_time(7)

    assert len(site.ids()) == 3
    assert await site.events() == {}


async def kill_after_publish(site: Site) -> None:
    """Publish a slot, and end the leader before it has recorded that."""
    site.broker.after = lambda: setattr(site, "fails_to_record", 10)
    await site.pass_time(20)
    site.fails_to_record, site.broker.after = 0, lambda: None
    site.take_over()


async def test_takeover_reads_in_the_ledger_what_was_published() -> None:
    site = Site(EVERY_MINUTE, EVERY_MINUTE | {"name": "other"})
    await site.look()
    await kill_after_publish(site)

    await site.look()

    assert len(site.ids()) == len(set(site.ids())) == 2
    assert [one["published"] for one in site.recorded] == ["2026-01-01T00:17:00Z"] * 2
    assert await site.events() == {}


async def test_leader_that_stops_in_order_leaves_no_doubt() -> None:
    site = Site()
    await site.look()
    site.broker.refuses_ledgers = True
    await site.clock.advance(20)
    site.runner.look(workqueue(recurring=site.entries), site.broker)
    await site.runner.stop(5)
    site.take_over()

    await site.look()

    assert site.ids() == ["jobs/tick/2026-01-01T00:17:00Z"]
    assert await site.events() == {}


async def test_takeover_waits_for_a_broker_that_cannot_be_reached() -> None:
    site = Site()
    await site.look()
    await kill_after_publish(site)
    site.broker.fails = [ReconcileError(Reason.BROKER_UNREACHABLE, "away")]

    assert await site.look() == AGAIN_SECONDS
    await site.pass_time(AGAIN_SECONDS)

    assert len(site.ids()) == 1
    assert await site.events() == {}


async def test_ledger_is_declared_again_before_it_expires() -> None:
    site = Site()
    await site.look()
    assert site.broker.declared == [], "nothing is due"

    for _ in range(60):
        await site.pass_time(60)

    assert site.broker.declared == ["jobs.recurring"] * (2 * 3_600_000 // LEDGER_MILLISECONDS)


async def test_ledger_is_declared_again_on_another_connection() -> None:
    """RabbitMQ may have lost its queues, and a changed Secret leads to another RabbitMQ."""
    site = Site()
    await site.look()
    await site.pass_time(20)

    site.broker.generation += 1
    await site.pass_time(60)
    before, site.broker = site.broker, FakeBroker()
    await site.pass_time(60)

    assert before.declared == ["jobs.recurring"] * 2
    assert site.broker.declared == ["jobs.recurring"]
    assert [len(before.ledgers["jobs.recurring"]), len(site.broker.ledgers["jobs.recurring"])] == [2, 1]


async def test_ledger_that_did_not_answer_is_declared_soon() -> None:
    site = Site()
    await site.look()
    site.broker.ledgers_are_silent = True
    await site.pass_time(20)
    site.broker.ledgers_are_silent = False

    await site.pass_time(LEDGER_AGAIN_SECONDS)

    assert [message.ledger for message in site.broker.published] == ["", "jobs.recurring"]


async def test_silent_ledger_makes_a_new_leader_miss_no_slot() -> None:
    site = Site()
    await site.look()
    await kill_after_publish(site)
    site.broker.ledgers_are_silent = True

    await site.look()
    for _ in range(round(LEDGER_PATIENCE_SECONDS / AGAIN_SECONDS) - 1):
        await site.pass_time(AGAIN_SECONDS)
        assert len(site.ids()) == 1
    await site.pass_time(AGAIN_SECONDS)
    await site.pass_time(60)

    assert Counter(site.ids()) == {"jobs/tick/2026-01-01T00:17:00Z": 2, "jobs/tick/2026-01-01T00:18:00Z": 1}
    assert await site.events() == {"RecurringUncertain": 1}


async def test_message_without_a_confirm_does_not_bind_a_workqueue_to_its_broker() -> None:
    """A user may change the Secret because RabbitMQ has a memory alarm."""
    site = Site()
    await site.look()
    old, site.broker.confirms = site.broker, asyncio.Event()
    await site.clock.advance(20)
    assert site.runner.look(workqueue(recurring=site.entries), old) is None
    await site.clock.settle()

    site.broker = FakeBroker()
    await site.look()
    old.confirms.set()
    await site.clock.settle()

    assert old.published == []
    assert site.ids() == ["jobs/tick/2026-01-01T00:17:00Z"]
    assert site.asks == [("team", "jobs")] * len(site.asks)
    assert await site.events() == {"RecurringUncertain": 1}


async def test_suspended_entry_gives_up_a_message_that_was_refused() -> None:
    site = Site()
    await site.look()
    site.broker.fails = [NotPublishedError("the queue is full")]
    await site.pass_time(20)
    site.entries = [EVERY_MINUTE | {"suspend": True}]

    await site.pass_time(AGAIN_SECONDS)
    site.entries = [EVERY_MINUTE]
    await site.pass_time(20)
    assert site.ids() == []
    await site.pass_time(60)

    assert site.ids() == ["jobs/tick/2026-01-01T00:18:00Z"]
    assert await site.events() == {"RecurringFailed": 1, "RecurringMissed": 1}


async def test_message_is_published_without_a_ledger() -> None:
    site = Site()
    await site.look()
    site.broker.refuses_ledgers = True

    await site.pass_time(20)

    assert [message.ledger for message in site.broker.published] == [""]
    assert await site.events() == {}


@pytest.mark.parametrize("was_published", [False, True])
async def test_takeover_in_the_middle_publishes_again_and_says_so(was_published: bool) -> None:
    site = Site()
    await site.look()
    site.broker.refuses_ledgers = True
    if was_published:
        site.broker.before = lambda: setattr(site, "fails_to_record", 10)
    else:
        site.broker.fails = [UnconfirmedError("the connection was lost")]
    await site.clock.advance(20)
    site.runner.look(workqueue(recurring=site.entries), site.broker)
    await site.clock.settle()
    await site.runner.stop(0)
    site.fails_to_record, site.broker.before = 0, lambda: None
    site.take_over()

    await site.look()
    await site.clock.settle()

    assert set(site.ids()) == {"jobs/tick/2026-01-01T00:17:00Z"}
    assert await site.events() == {"RecurringUncertain": 1}


async def test_takeover_says_so_although_its_first_record_fails() -> None:
    site = Site()
    await site.look()
    site.broker.refuses_ledgers = True
    site.broker.before = lambda: setattr(site, "fails_to_record", 10)
    await site.pass_time(20)
    site.fails_to_record, site.broker.before = 1, lambda: None
    site.take_over()

    await site.look()
    await site.pass_time(AGAIN_SECONDS)

    assert site.ids() == ["jobs/tick/2026-01-01T00:17:00Z"] * 2
    assert await site.events() == {"RecurringUncertain": 1}


async def test_event_is_there_before_the_message_is_published_again() -> None:
    """A leader that ends after it has recorded the message cannot send it, and no other leader knows of it."""
    site = Site()
    await site.look()
    site.broker.fails = [UnconfirmedError("the connection was lost")]
    await site.clock.advance(20)
    site.runner.look(workqueue(recurring=site.entries), site.broker)
    await site.clock.settle()
    site.take_over()
    before: list[str] = []
    site.broker.before = lambda: before.extend(site.cluster.paths("POST"))

    await site.look()

    assert len(before) == 1
    assert before[0].endswith("/events")


async def test_process_that_no_longer_leads_publishes_nothing_again() -> None:
    """It learns that from the Event, and its successor publishes the message."""
    site = Site()
    await site.look()
    site.broker.refuses_ledgers = True
    await kill_after_publish(site)
    site.cluster.answer("POST", "/events", LeadershipLostError("another process leads"))

    await site.look()

    assert len(site.ids()) == 1


async def test_nothing_is_published_that_is_not_recorded() -> None:
    site = Site()
    await site.look()
    site.fails_to_record = 1
    await site.clock.advance(20)

    assert await site.look() == AGAIN_SECONDS
    assert site.ids() == []

    await site.pass_time(AGAIN_SECONDS)
    assert len(site.ids()) == 1
    assert await site.events() == {}


async def test_refused_message_is_tried_again_until_it_is_published() -> None:
    site = Site()
    await site.look()
    site.broker.fails = [NotPublishedError("the queue is full")] * 3

    await site.pass_time(20)
    for _ in range(3):
        assert site.ids() == []
        await site.pass_time(AGAIN_SECONDS)

    assert site.ids() == ["jobs/tick/2026-01-01T00:17:00Z"]
    assert await site.events() == {"RecurringFailed": 1}
    assert [site.counted(outcome) for outcome in ("RecurringFailed", "Published")] == [3, 1]


async def test_long_outage_is_named() -> None:
    site = Site()
    await site.look()

    await site.pass_time(3600)

    assert len(site.ids()) == 1, "that of the last minute"
    assert await site.events() == {"RecurringMissed": 1}


async def test_body_comes_from_a_configmap() -> None:
    source = {"configMapKeyRef": {"name": "texts", "key": "tick"}}
    site = Site({"name": "tick", "everySeconds": 60, "bodyFrom": source})
    await site.look()

    await site.pass_time(20)
    await site.clock.settle()
    assert await site.events() == {"RecurringFailed": 1}

    site.cluster.answer("GET", "/configmaps/texts", {"data": {"tick": "from there"}})
    await site.pass_time(AGAIN_SECONDS)
    assert [message.body for message in site.broker.published] == [b"from there"]


async def test_removed_entry_leaves_the_status() -> None:
    site = Site()
    await site.look()
    site.entries = []

    site.runner.look(workqueue(recurring=[], status={"recurring": site.recorded}), site.broker)
    await site.clock.settle()

    assert site.recorded == []


async def test_leader_killed_around_a_thousand_slots_loses_none() -> None:
    """Each process is killed at another step: before and after each record, and around the publishing."""
    site = Site(EVERY_MINUTE | {"everySeconds": 1})
    await site.look()
    for second in range(1000):
        await site.clock.advance(1)
        if second % 10 == 0:
            site.runner.look(workqueue(recurring=site.entries), site.broker)
            for _ in range(second // 10):
                await asyncio.sleep(0)
            await site.runner.stop(0)
            site.take_over()
        await site.look()

    sent = Counter(site.ids())
    assert len(sent) == 1000
    await site.clock.settle()
    assert sum(sent.values()) - 1000 <= (await site.events())["RecurringUncertain"]
