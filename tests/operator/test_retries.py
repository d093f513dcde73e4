"""Messages that wait for a retry, on a real RabbitMQ: counted in existing delay queues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest

from tests.support.brokers import channel_of, put
from tests.support.rabbitmq import VirtualHost
from tests.support.snapshots import NO_WORKERS, snapshot
from tests.support.wait import until
from tests.support.workqueue import workqueue
from workqueue import Publisher
from workqueue import publisher as publisher_module
from workqueue.amqp.errors import Returned
from workqueue.contract.binding import from_url
from workqueue.contract.topology import (
    QueueSettings,
    delay_plan,
    delay_queue,
    delay_route,
    earlier_delay_queue_name,
    plan,
    step_name,
    steps_from,
)
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker import unused_delays
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.errors import ReconcileError
from workqueue_operator.scaling import retries
from workqueue_operator.scaling.depth import QueueReadings
from workqueue_operator.scaling.retries import RetryState
from workqueue_operator.workers.client import WorkerStatus

OURS = workqueue()


EIGHT, FOUR = (step_name("jobs", step) for step in (8000, 4000))


def worker(*steps: int) -> WorkerStatus:
    return WorkerStatus(1, 0, True, None, 0.0, frozenset(), frozenset(steps))


def earlier_worker(*delays: int) -> WorkerStatus:
    return WorkerStatus(1, 0, True, None, 0.0, frozenset(delays))


@dataclass
class Site:
    """A broker with the queue jobs.

    Attributes:
        asked: the polled queues, in order.
    """

    handle: BrokerHandle
    state: RetryState = field(default_factory=RetryState)
    asked: list[str] = field(default_factory=list)

    async def waiting(
        self, *said: WorkerStatus, ours: WorkQueue = OURS, workers_run: bool = True
    ) -> int | None:
        statuses = {str(number): status for number, status in enumerate(said)}
        seen = snapshot(
            ours,
            deployment=replace(NO_WORKERS, replicas=int(workers_run)),
            readings=QueueReadings(counts=None, statuses=statuses),
        )
        count, self.state = await retries.waiting(seen, self.state, self.handle)
        return count


@pytest.fixture
async def site(vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    brokers = BrokerPool(lambda _: None, lambda _: None, 60, 60)
    handle = await brokers.handle(OURS.key, from_url(vhost.url))
    await handle.broker.ready()
    await handle.broker.declare(plan(QueueSettings("jobs")))
    made = Site(handle)
    counts = handle.broker.counts

    async def noted(queue: str) -> QueueCounts:
        made.asked.append(queue)
        return await counts(queue)

    monkeypatch.setattr(handle.broker, "counts", noted)
    yield made
    await brokers.close()


LONG = 4_096_000, 2_048_000
"""Steps that no message leaves during a test."""


async def fill(site: Site, vhost: VirtualHost, step: int, messages: int) -> None:
    declared = delay_queue("jobs", step)
    await site.handle.broker.declare_queue(declared)
    async with channel_of(vhost) as channel:
        put(channel, declared.name, *[b"x"] * messages)
        await until(lambda: vhost.depth(declared.name).ready >= messages)


async def test_delay_queues_named_by_workers_are_counted(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, LONG[0], 2)
    await fill(site, vhost, LONG[1], 3)

    assert await site.waiting(worker(LONG[0]), worker(*LONG)) == 5


async def test_delay_queues_of_an_earlier_release_are_counted(site: Site, vhost: VirtualHost) -> None:
    name = earlier_delay_queue_name("jobs", 3600)
    await site.handle.broker.declare_queue(delay_queue("jobs", LONG[0])._replace(name=name))
    async with channel_of(vhost) as channel:
        put(channel, name, b"x", b"x")
        await until(lambda: vhost.depth(name).ready == 2)

    assert await site.waiting(earlier_worker(3600), worker()) == 2


async def test_delay_queues_are_restored_from_status_after_restart(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, LONG[0], 2)
    ours = workqueue(status={"delaySteps": [LONG[0]]})

    assert await site.waiting(ours=ours, workers_run=False) == 2


async def test_unnamed_delay_queue_is_not_polled(site: Site) -> None:
    assert await site.waiting(worker()) == 0
    assert site.asked == []


async def test_missing_delay_queue_is_polled_only_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        assert await site.waiting(worker(8000)) == 0
    assert site.asked == [EIGHT], "each question would close a channel"
    assert site.state.queues == frozenset()
    assert EIGHT not in site.handle.poller.queues_of(OURS.key)

    monkeypatch.setattr(retries, "MISSING_STANDS", 0.0)
    await site.waiting(worker(8000))

    assert len(site.asked) == 2


async def test_deleted_step_is_declared_again(site: Site, vhost: VirtualHost) -> None:
    """Messages on longer steps could not go on without it."""
    await site.handle.broker.declare(delay_plan("jobs", steps_from(8000)))
    steps = steps_from(8000)
    await site.waiting(worker(*steps))
    await site.handle.broker.delete_queue(FOUR)

    async def is_declared_again() -> bool:
        await site.waiting(worker(*steps))
        return vhost.exists(FOUR)

    await until(is_declared_again)
    async with channel_of(vhost) as channel:
        channel.basic_publish(EIGHT, "0.0.0.1.1", b"x", mandatory=True)
        await until(lambda: vhost.depth(EIGHT).ready == 1)
        channel.basic_publish(FOUR, "0.0.0.1", b"x", mandatory=True)
        await until(lambda: vhost.depth(FOUR).ready == 1)


async def test_delayed_count_is_unknown_while_a_worker_names_no_delay_queues(site: Site) -> None:
    old = WorkerStatus(1, 0, True, None, 0.0)

    assert await site.waiting(worker(), old) is None


async def test_delayed_count_is_unknown_while_broker_is_unreachable(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, LONG[0], 2)
    await site.handle.broker.close()

    assert await site.waiting(worker(LONG[0])) is None


async def test_foreign_workers_have_no_delay_queues(site: Site) -> None:
    ours = workqueue(workloadRef={"name": "celery"})

    assert await site.waiting(ours=ours) is None


async def test_final_delay_queue_poll_follows_last_worker(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, LONG[0], 1)
    assert await site.waiting(worker(LONG[0])) == 1
    await fill(site, vhost, LONG[0], 1)
    await until(lambda: vhost.depth(step_name("jobs", LONG[0])).ready == 2)

    assert await site.waiting(workers_run=False) == 2


STEPS = steps_from(2000)
ROUTE = delay_route("jobs", 3.5)


async def unused(site: Site) -> RetryState:
    """The state after the steps have been unused for long enough."""
    await site.handle.broker.declare(ROUTE.plan)
    await site.waiting(worker(*STEPS))
    return replace(site.state, unused_since=-retries.UNUSED_SECONDS)


async def removed(site: Site, state: RetryState) -> RetryState:
    """Delete the unused steps beside the passes, and return the state of the first pass after that."""
    site.state = retries.remove_unused(OURS, state, site.handle, 0.0)
    await site.waiting()
    assert site.state.queues == state.queues, "the pass does not wait for the deletion"
    assert site.state.removal is not None
    await site.state.removal
    await site.waiting()
    assert site.state.removal is None
    return site.state


async def test_unused_steps_are_deleted_and_declared_again_on_demand(every_vhost: VirtualHost) -> None:
    brokers = BrokerPool(lambda _: None, lambda _: None, 60, 60)
    handle = await brokers.handle(OURS.key, from_url(every_vhost.url))
    await handle.broker.ready()
    await handle.broker.declare(plan(QueueSettings("jobs")))
    site = Site(handle)
    state = await unused(site)
    with Publisher(every_vhost.url) as publisher:
        await asyncio.to_thread(publisher.publish, b"before", queue="jobs", delay=0.5)
        await until(lambda: every_vhost.depth("jobs").ready == 1)

        after = await removed(site, state)

        assert [name for name in ROUTE.queues if every_vhost.exists(name)] == []
        assert after.queues == frozenset()
        await asyncio.to_thread(publisher.publish, b"after", queue="jobs", delay=0.5)
    await until(lambda: every_vhost.depth("jobs").ready == 2)
    await brokers.close()


async def test_steps_with_a_message_are_not_deleted(site: Site, vhost: VirtualHost) -> None:
    state = await unused(site)
    with Publisher(vhost.url) as publisher:
        await asyncio.to_thread(publisher.publish, b"x", queue="jobs", delay=3.5)

        after = await removed(site, state)

        assert after == replace(state, unused_since=None)
        assert all(vhost.exists(name) for name in ROUTE.queues)
    await until(lambda: vhost.depth("jobs").ready == 1)


async def test_steps_are_not_deleted_while_a_program_declares_them(site: Site, vhost: VirtualHost) -> None:
    state = await unused(site)
    async with channel_of(vhost) as channel:
        channel.queue_declare("jobs.retry.lock", exclusive=True)

        after = await removed(site, state)

    assert after.queues == state.queues
    assert all(vhost.exists(name) for name in ROUTE.queues)


async def test_no_message_is_lost_while_steps_are_deleted_again_and_again(
    site: Site, vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused_delays, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(publisher_module, "SAFE_AFTER_SECONDS", 0.0)
    count = 0
    end = time.monotonic() + 5

    def publish() -> int:
        sent = 0
        while time.monotonic() < end:
            with Publisher(vhost.url) as publisher:
                for _ in range(3):
                    with suppress(Returned):
                        publisher.publish(b"x", queue="jobs", delay=0.5)
                        sent += 1
        return sent

    publishing = asyncio.create_task(asyncio.to_thread(publish))
    while not publishing.done():
        with suppress(ReconcileError):
            count += await site.handle.broker.delete_unused(delay_plan("jobs", steps_from(500)))

    sent = await publishing
    await until(lambda: vhost.depth("jobs").ready == sent, 30)
    assert count, "the queues were deleted in between"


@pytest.mark.parametrize(
    ("before", "total", "ready", "since"),
    [(None, 0, 0, 0.0), (-5.0, 0, 0, -5.0), (-5.0, 1, 0, None), (-5.0, 0, 1, None), (-5.0, 0, None, None)],
    ids=["first-look", "still-unused", "delayed-message", "waiting-message", "unknown-depth"],
)
async def test_steps_are_unused_while_work_queue_and_steps_are_empty(
    site: Site, vhost: VirtualHost, before: float | None, total: int, ready: int | None, since: float | None
) -> None:
    await fill(site, vhost, LONG[0], total)
    site.state = RetryState(frozenset({step_name("jobs", LONG[0])}), before)
    counts = None if ready is None else QueueCounts(ready, 0, at=0.0)
    seen = snapshot(
        OURS, deployment=replace(NO_WORKERS, replicas=1), readings=QueueReadings(counts=counts, statuses={})
    )

    _, after = await retries.waiting(replace(seen, now=0.0), site.state, site.handle)

    assert after.unused_since == since
