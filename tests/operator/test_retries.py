"""Messages that wait for a retry, on a real RabbitMQ: counted in existing delay queues."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field, replace

import pytest

from tests.support.brokers import channel_of, put
from tests.support.rabbitmq import VirtualHost
from tests.support.snapshots import NO_WORKERS, snapshot
from tests.support.wait import until
from tests.support.workqueue import workqueue
from workqueue.contract.binding import from_url
from workqueue.contract.topology import QueueSettings, delay_queue, plan
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.scaling import retries
from workqueue_operator.scaling.depth import QueueReadings
from workqueue_operator.scaling.retries import RetryState
from workqueue_operator.workers.client import WorkerStatus

OURS = workqueue()


def worker(*delays: int, priorities: Collection[str] = ()) -> WorkerStatus:
    return WorkerStatus(1, 0, True, None, 0.0, frozenset(delays), retry_priority_queues=frozenset(priorities))


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


async def fill(
    site: Site, vhost: VirtualHost, seconds: int, messages: int, priority: int | None = None
) -> None:
    declared = delay_queue("jobs", seconds, priority)
    await site.handle.broker.declare_queue(declared)
    async with channel_of(vhost) as channel:
        put(channel, declared.name, *[b"x"] * messages)
        await until(lambda: vhost.depth(declared.name).ready >= messages)


async def test_delay_queues_named_by_workers_are_counted(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, 3600, 2)
    await fill(site, vhost, 7200, 3)

    assert await site.waiting(worker(3600), worker(3600, 7200)) == 5


async def test_delay_queues_are_restored_from_status_after_restart(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, 3600, 2)
    ours = workqueue(status={"retryDelaysSeconds": [3600]})

    assert await site.waiting(ours=ours, workers_run=False) == 2


async def test_delay_queues_for_priorities_are_counted(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, 3600, 2)
    await fill(site, vhost, 3600, 3, priority=7)
    await fill(site, vhost, 3600, 4, priority=9)
    ours = workqueue(status={"retryPriorityQueues": ["jobs.retry.3600s.p9"]})

    named = worker(3600, priorities=["jobs.retry.3600s.p7", "other", "jobs.dead"])

    assert await site.waiting(named, ours=ours) == 9
    assert "other" not in site.asked


async def test_more_delay_queues_than_are_polled_make_the_count_unknown(site: Site) -> None:
    many = [f"jobs.retry.{seconds}s.p7" for seconds in range(1, 66)]

    assert await site.waiting(worker(priorities=many)) is None
    assert len(site.asked) == 64


async def test_unnamed_delay_queue_is_not_polled(site: Site) -> None:
    assert await site.waiting(worker()) == 0
    assert site.asked == []


async def test_missing_delay_queue_is_polled_only_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        assert await site.waiting(worker(10)) == 0
    assert site.asked == ["jobs.retry.10s"], "each question would close a channel"
    assert site.state.queues == frozenset()
    assert "jobs.retry.10s" not in site.handle.poller.queues_of(OURS.key)

    monkeypatch.setattr(retries, "MISSING_STANDS", 0.0)
    await site.waiting(worker(10))

    assert len(site.asked) == 2


async def test_delayed_count_is_unknown_while_a_worker_names_no_delay_queues(site: Site) -> None:
    old = WorkerStatus(1, 0, True, None, 0.0)

    assert await site.waiting(worker(), old) is None


async def test_delayed_count_is_unknown_while_broker_is_unreachable(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, 3600, 2)
    await site.handle.broker.close()

    assert await site.waiting(worker(3600)) is None


async def test_foreign_workers_have_no_delay_queues(site: Site) -> None:
    ours = workqueue(workloadRef={"name": "celery"})

    assert await site.waiting(ours=ours) is None


async def test_final_delay_queue_poll_follows_last_worker(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, 3600, 1)
    assert await site.waiting(worker(3600)) == 1
    await fill(site, vhost, 3600, 1)
    await until(lambda: vhost.depth("jobs.retry.3600s").ready == 2)

    assert await site.waiting(workers_run=False) == 2
