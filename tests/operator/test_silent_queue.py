"""Queues that do not answer beside queues of the same broker that do. A suspended queue hangs as on a frozen node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest
from pika.exceptions import ShortStringTooLong

from tests.support.brokers import PATIENCE, Probe, channel_of, put
from tests.support.passes import api, applied, operator, workqueue
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue.contract.binding import from_url
from workqueue.contract.topology import Queue
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker import channel as channels
from workqueue_operator.broker import connection
from workqueue_operator.broker.channel import CallChannel
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import PolledQueue
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.errors import ReconcileError
from workqueue_operator.reconcile import queue as passes_queue
from workqueue_operator.reconcile.queue import PLACES_PER_NAMESPACE, Lane

HANGING = [f"hanging-{number}" for number in range(20)]
FOREVER = 3600.0
CLASSIC = {"x-queue-type": "classic"}


@contextmanager
def hanging(vhost: VirtualHost, *names: str) -> Iterator[None]:
    """Some queues answer nothing while the context lasts."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(vhost.broker.suspended(name, vhost.name))
        yield


@asynccontextmanager
async def polled(vhost: VirtualHost) -> AsyncIterator[BrokerHandle]:
    """A poller of all queues."""
    pool = BrokerPool(lambda _: None, lambda _: None, 0.02, 60)
    try:
        handle = await pool.handle(("team", "jobs"), from_url(vhost.url))
        await handle.broker.ready()
        for name in (*HANGING, "jobs"):
            await handle.broker.declare_queue(Queue(name, CLASSIC))
            handle.poller.watch(("team", name), name).active = True
        yield handle
    finally:
        await pool.close()


@pytest.fixture
async def broker(vhost: VirtualHost) -> AsyncIterator[Probe]:
    made = Probe(vhost.url)
    await made.ready()
    for name in (*HANGING, "jobs"):
        await made.declare_queue(Queue(name, CLASSIC))
    yield made
    await made.close()


async def test_hanging_queues_delay_no_poll_and_no_question_about_others(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CALL_TIMEOUT", FOREVER)
    async with polled(vhost) as handle, channel_of(vhost) as channel:
        jobs = handle.poller.watch(("team", "jobs"), "jobs")
        with hanging(vhost, *HANGING):
            questions = [
                asyncio.create_task(handle.poller.ask(handle.poller.watch(("team", name), name)))
                for name in HANGING
            ]

            for count in range(1, 4):
                put(channel, "jobs", b"x")
                await until(partial(has_ready, jobs, count))
                assert isinstance(await handle.poller.ask(jobs), QueueCounts)

            assert not any(question.done() for question in questions)
        await asyncio.gather(*questions)


async def test_hanging_queues_delay_no_declaration_of_others(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "DECLARE_TIMEOUT", FOREVER)
    made = Probe(vhost.url)
    try:
        await made.ready()
        for name in HANGING:
            await made.declare_queue(Queue(name, CLASSIC))
        with hanging(vhost, *HANGING):
            declarations = [asyncio.create_task(made.declare_queue(Queue(name, CLASSIC))) for name in HANGING]
            await asyncio.sleep(0)

            await made.declare_queue(Queue("jobs", CLASSIC))

            assert not any(declaration.done() for declaration in declarations)
        await asyncio.gather(*declarations)
    finally:
        await made.close()


async def test_hanging_queue_is_named_and_keeps_few_channels(
    vhost: VirtualHost, broker: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "SILENT_PAUSE", (0.0, 0.0))
    assert broker._declarations is not None
    broker._declarations._seconds = 0.05
    before = channel_count(vhost)
    with hanging(vhost, HANGING[0]):
        for _ in range(20):
            with pytest.raises(ReconcileError, match=HANGING[0]) as raised:
                await broker.declare_queue(Queue(HANGING[0], CLASSIC))
            assert raised.value.reason is Reason.BROKER_TIMEOUT

        assert channel_count(vhost) <= before + channels.SILENT_CALLS


async def test_hanging_queue_is_left_alone_and_asked_again_after_its_late_answer(
    vhost: VirtualHost, broker: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "SILENT_PAUSE", (FOREVER, FOREVER))
    assert broker._questions is not None
    broker._questions._seconds = 0.2
    with hanging(vhost, HANGING[0]):
        for _ in range(3):
            with pytest.raises(ReconcileError):
                await broker.counts(HANGING[0])
        assert broker.told.falls == []

    await until(lambda: broker.told.falls == [(HANGING[0], None)])
    broker._questions._seconds = PATIENCE

    assert (await broker.counts(HANGING[0])).ready == 0


async def test_calls_that_cannot_be_sent_keep_no_place_and_no_channel(
    vhost: VirtualHost, broker: Probe
) -> None:
    before = channel_count(vhost)
    for _ in range(2 * connection.ASKING):
        with pytest.raises(ShortStringTooLong):
            await broker.counts("x" * 300)

    assert (await broker.counts("jobs")).ready == 0
    await until(lambda: channel_count(vhost) <= before + 1)


async def test_silent_broker_with_a_queue_of_the_same_name_delays_no_claim(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile broker may name itself as another one, keep its connection open and answer nothing."""
    pool = BrokerPool(lambda _: None, lambda _: None, 60, 60)
    try:
        mine = await pool.handle(("team", "jobs"), from_url(vhost.url))
        url = vhost.url.replace("127.0.0.1", "localhost")
        theirs = await pool.handle(("other", "jobs"), from_url(url))
        for handle, namespace in ((mine, "team"), (theirs, "other")):
            await handle.broker.ready()
            await handle.broker.declare_queue(Queue("jobs", CLASSIC))
            handle.poller.watch((namespace, "jobs"), "jobs").claimed = True
        asked = 0

        async def silent(_: str, **__: str) -> QueueCounts:
            nonlocal asked
            asked += 1
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(theirs.broker, "counts", silent)

        for _ in range(5):
            assert await pool.claimants("jobs", mine) == [("team", "jobs")]

        assert asked == 1
    finally:
        await pool.close()


async def test_declarations_without_an_answer_leave_places_to_other_passes(vhost: VirtualHost) -> None:
    many = [("team", f"jobs-{number}") for number in range(100)]
    cluster = api(vhost.url)
    cluster.answer("PATCH", "/deployments/jobs-", applied)
    cluster.answer("PATCH", "/poddisruptionbudgets/jobs-", {})
    async with operator(cluster, "team") as passes:
        await passes.run()
        for _, name in many:
            body = workqueue()
            body["metadata"] |= {"name": name, "uid": f"uid-{name}"}
            passes.parts.store.put_workqueue(body)
        queue = passes.parts.queue
        queue.start(passes.reconciler.reconcile, lambda _: False)
        with vhost.broker.frozen():
            for key in many:
                queue.add(key, Lane.RESYNC)

            # So many run only if those before have given their places back.
            await until(lambda: len(queue._running) >= 3 * PLACES_PER_NAMESPACE, 60)

            await queue.stop(0)


async def test_busy_broker_does_not_get_all_passes_at_the_same_time(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster may need 50 ms for each queue. With all passes at the same time, their calls would time out."""
    # The slowness is RabbitMQ's alone.
    monkeypatch.setattr(passes_queue, "PLACE_SECONDS", FOREVER)
    monkeypatch.setattr(channels, "PLACE_SECONDS", FOREVER)
    many = [("team" if number % 2 else "other", f"jobs-{number}") for number in range(100)]
    cluster = api(vhost.url)
    cluster.answer("PATCH", "/deployments/jobs-", applied)
    cluster.answer("PATCH", "/poddisruptionbudgets/jobs-", {})
    async with operator(cluster, "team", "other") as passes:
        await passes.run()
        for namespace, name in many:
            body = workqueue()
            body["metadata"] |= {"namespace": namespace, "name": name, "uid": f"uid-{name}"}
            passes.parts.store.put_workqueue(body)
        begin, most, queue = CallChannel.begin, 0, passes.parts.queue
        monkeypatch.setattr(CallChannel, "begin", lambda self, send: later(begin(self, send), 0.05))
        queue.start(passes.reconciler.reconcile, lambda _: False)

        def are_declared() -> bool:
            nonlocal most
            most = max(most, len(queue._running))
            states = [passes.reconciler._pass_states.get(key) for key in many]
            return all(state is not None and state.queue is not None for state in states)

        for key in many:
            queue.add(key, Lane.RESYNC)
        await until(are_declared, 120)

        await queue.stop(1)
    # 31 to 41 on idle and busy machines; without the rule 71.
    assert most < len(many) / 2


def later(answer: asyncio.Future[Any], seconds: float) -> asyncio.Future[Any]:
    loop = asyncio.get_running_loop()
    late: asyncio.Future[Any] = loop.create_future()

    def settle() -> None:
        error = answer.exception()
        if error is None:
            late.set_result(answer.result())
        else:
            late.set_exception(error)

    answer.add_done_callback(lambda _: loop.call_later(seconds, settle))
    return late


def has_ready(polled: PolledQueue, count: int) -> bool:
    return isinstance(polled.last, QueueCounts) and polled.last.ready == count


def channel_count(vhost: VirtualHost) -> int:
    return int(vhost.broker.evaluate("length(rabbit_channel:list_local())"))
