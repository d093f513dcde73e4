"""Messages that wait for a retry, on a real RabbitMQ: counted in existing delay queues."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from tests.support.brokers import channel_of, put
from tests.support.rabbitmq import VirtualHost
from tests.support.snapshots import NO_WORKERS, snapshot
from tests.support.wait import until
from tests.support.workqueue import workqueue
from workqueue.contract.binding import from_url
from workqueue.contract.topology import (
    LAST,
    QueueSettings,
    Step,
    delay_plan,
    delay_queue,
    earlier_delay_queue_name,
    plan,
    step_name,
    step_of,
    steps_from,
)
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.scaling import retries
from workqueue_operator.scaling.depth import QueueReadings
from workqueue_operator.scaling.retries import RetryState
from workqueue_operator.workers.client import WorkerStatus

OURS = workqueue()


EIGHT, FOUR = "jobs.retry.step.8s", "jobs.retry.step.4s"


def worker(*queues: str) -> WorkerStatus:
    return WorkerStatus(1, 0, True, None, 0.0, delay_queues=frozenset(queues))


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


LONG = "jobs.retry.step.4096s", "jobs.retry.high.2048s"
"""Steps that no message leaves during a test."""


async def fill(site: Site, vhost: VirtualHost, name: str, messages: int) -> None:
    step = step_of(name, "jobs")
    assert step is not None
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
    await site.handle.broker.declare_queue(delay_queue("jobs", Step(4_096_000))._replace(name=name))
    async with channel_of(vhost) as channel:
        put(channel, name, b"x", b"x")
        await until(lambda: vhost.depth(name).ready == 2)

    assert await site.waiting(earlier_worker(3600), worker()) == 2


async def test_delay_queues_are_restored_from_status_after_restart(site: Site, vhost: VirtualHost) -> None:
    await fill(site, vhost, LONG[0], 2)
    ours = workqueue(status={"delayQueues": [LONG[0], "other"]})

    assert await site.waiting(ours=ours, workers_run=False) == 2
    assert "other" not in site.asked


async def test_more_delay_queues_than_are_polled_make_the_count_unknown(site: Site) -> None:
    assert await site.waiting(earlier_worker(*range(1, 66))) is None
    assert len(site.asked) == 64


async def test_unnamed_delay_queue_is_not_polled(site: Site) -> None:
    assert await site.waiting(worker()) == 0
    assert site.asked == []


async def test_missing_delay_queue_is_polled_only_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        assert await site.waiting(worker(EIGHT, "other")) == 0
    assert site.asked == [EIGHT], "each question would close a channel"
    assert site.state.queues == frozenset()
    assert EIGHT not in site.handle.poller.queues_of(OURS.key)

    monkeypatch.setattr(retries, "MISSING_STANDS", 0.0)
    await site.waiting(worker(EIGHT))

    assert len(site.asked) == 2


@pytest.mark.parametrize(
    "deleted", [Step(4000), Step(4000, is_high=True), LAST], ids=["step", "high", "last"]
)
async def test_deleted_step_is_declared_again(site: Site, vhost: VirtualHost, deleted: Step) -> None:
    """Messages on longer steps could not go on without it."""
    steps = [steps_from(Step(8000, is_high)) for is_high in (False, True)]
    for some in steps:
        await site.handle.broker.declare(delay_plan("jobs", some))
    names = [step_name("jobs", step) for some in steps for step in some]
    await site.waiting(worker(*names))
    await site.handle.broker.delete_queue(step_name("jobs", deleted))

    async def is_declared_again() -> bool:
        await site.waiting(worker(*names))
        return vhost.exists(step_name("jobs", deleted))

    await until(is_declared_again)
    async with channel_of(vhost) as channel:
        for is_high in (False, True):
            for key in ("0.0.0.0.1", "0.0.0.1", "1", "0"):
                exchange = step_name("jobs", Step(500 << key.count("."), is_high))
                channel.basic_publish(exchange, key, b"x", mandatory=True)
    await until(lambda: vhost.depth("jobs").ready == 4)


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
    await until(lambda: vhost.depth(LONG[0]).ready == 2)

    assert await site.waiting(workers_run=False) == 2
