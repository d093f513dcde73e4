"""The depth poller and the broker handles: changed counts enqueue, polls never pile up, brokers are independent."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.brokers import channel_of, put
from tests.support.rabbitmq import Broker as Server
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue.contract.binding import from_url
from workqueue.contract.topology import QueueSettings, plan
from workqueue_operator.api.reasons import UNANSWERED
from workqueue_operator.broker import connection, depth_poller
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QUEUE_MISSING, PollAnswer, PolledQueue
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.store import Key

JOBS: Key = ("team", "jobs")
OTHER: Key = ("team", "other")


class Told:
    """Records the enqueued WorkQueues and the rings."""

    def __init__(self) -> None:
        self.woken: list[Key] = []
        self.rang: list[Key] = []


@asynccontextmanager
async def operators(seconds: float = 0.02, idle: float = 0.05) -> AsyncIterator[tuple[BrokerPool, Told]]:
    told = Told()
    brokers = BrokerPool(told.woken.append, told.rang.append, seconds, idle)
    try:
        yield brokers, told
    finally:
        await brokers.close()


async def linked(brokers: BrokerPool, url: str, *names: str, key: Key = JOBS) -> BrokerHandle:
    handle = await brokers.handle(key, from_url(url))
    await handle.broker.ready()
    for name in names:
        await handle.broker.declare(plan(QueueSettings(name)))
    return handle


def rounds(handle: BrokerHandle) -> float | None:
    return handle.poller.alive_at


async def a_round(handle: BrokerHandle) -> None:
    """Wait until a later round over the active queues has ended."""
    for _ in range(2):
        before = rounds(handle)
        await until(lambda before=before: rounds(handle) != before)


@pytest.mark.parametrize("active", [True, False], ids=["an active queue", "an idle queue"])
async def test_only_changed_counts_enqueue_workqueues(vhost: VirtualHost, *, active: bool) -> None:
    async with operators() as (brokers, told), channel_of(vhost) as channel:
        handle = await linked(brokers, vhost.url, "jobs")
        polled = handle.poller.watch(JOBS, "jobs")
        polled.active = active
        await until(lambda: isinstance(polled.last, QueueCounts))
        told.woken.clear()
        answered = polled.answered_at
        await until(lambda: polled.answered_at != answered)
        assert told.woken == []
        put(channel, "jobs", b"1", b"2")
        await until(lambda: JOBS in told.woken)
        await until(lambda: isinstance(polled.last, QueueCounts) and polled.last.ready == 2)


async def test_doorbell_that_rabbitmq_no_longer_counts_enqueues_and_again_when_it_does(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def zeros(_: str) -> QueueCounts:
        return QueueCounts(0, 0, asyncio.get_running_loop().time())

    async with operators() as (brokers, told):
        handle = await linked(brokers, vhost.url, "jobs")
        polled = handle.poller.watch(JOBS, "jobs")
        await until(lambda: polled.last is not None)
        told.woken.clear()
        assert await handle.broker.install_doorbell("jobs")
        await until(lambda: isinstance(polled.last, QueueCounts) and polled.last.doorbell)
        assert not told.woken, "the pass that installs it knows"

        with monkeypatch.context() as leaderless:
            leaderless.setattr(handle.broker, "poll", zeros)
            await until(lambda: told.woken)
            polled.active = True
            told.woken.clear()
        await until(lambda: told.woken)
        assert isinstance(polled.last, QueueCounts)
        assert polled.last.doorbell


async def test_warm_queue_is_polled_more_often_than_idle_queue(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth_poller, "WARM_SECONDS", 0.02)
    async with operators(idle=3600) as (brokers, told), channel_of(vhost) as channel:
        handle = await linked(brokers, vhost.url, "jobs", "idle")
        warm, idle = handle.poller.watch(JOBS, "jobs"), handle.poller.watch(OTHER, "idle")
        warm.warm = True
        put(channel, "jobs", b"1")

        await until(lambda: isinstance(warm.last, QueueCounts) and warm.last.ready == 1)

        assert JOBS in told.woken
        assert idle.last is None


async def test_warm_queue_whose_counts_stay_the_same_is_polled_less_often(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth_poller, "WARM_SECONDS", 0.02)
    monkeypatch.setattr(depth_poller, "STEADY_AFTER", 0.0)
    monkeypatch.setattr(depth_poller, "STEADY_SECONDS", 3600.0)
    async with operators(idle=3600) as (brokers, _), channel_of(vhost) as channel:
        handle = await linked(brokers, vhost.url, "jobs", "other")
        steady, failing = handle.poller.watch(JOBS, "jobs"), handle.poller.watch(OTHER, "other")
        await handle.poller.last_answer(JOBS, "jobs", warm=True)
        steady.warm = failing.warm = True
        put(channel, "jobs", b"1")
        for _ in range(3):
            failing.changed_at = math.inf
            before = failing.answered_at
            await until(lambda before=before: failing.answered_at != before)

        assert isinstance(steady.last, QueueCounts)
        assert steady.last.ready == 0

        monkeypatch.setattr(depth_poller, "STEADY_SECONDS", 0.0)
        await until(lambda: isinstance(steady.last, QueueCounts) and steady.last.ready == 1)


async def test_queue_that_becomes_warm_is_polled_often(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth_poller, "WARM_SECONDS", 0.02)
    monkeypatch.setattr(depth_poller, "STEADY_SECONDS", 3600.0)
    async with operators(idle=3600) as (brokers, _), channel_of(vhost) as channel:
        handle = await linked(brokers, vhost.url, "jobs")
        polled = handle.poller.watch(JOBS, "jobs")
        await handle.poller.last_answer(JOBS, "jobs", warm=False)
        polled.changed_at = -math.inf
        await handle.poller.last_answer(JOBS, "jobs", warm=True)
        put(channel, "jobs", b"1")

        await until(lambda: isinstance(polled.last, QueueCounts) and polled.last.ready == 1)


async def test_cooling_queue_is_polled_one_last_time(vhost: VirtualHost) -> None:
    async with operators(idle=3600) as (brokers, _), channel_of(vhost) as channel:
        handle = await linked(brokers, vhost.url, "jobs")
        first = await handle.poller.last_answer(JOBS, "jobs", warm=True)
        put(channel, "jobs", b"1")
        await until(lambda: vhost.depth("jobs").ready == 1)

        last = await handle.poller.last_answer(JOBS, "jobs", warm=False)

        assert isinstance(first, QueueCounts)
        assert isinstance(last, QueueCounts)
        assert (first.ready, last.ready) == (0, 1)


async def test_missing_queue_and_its_return_are_reported(vhost: VirtualHost) -> None:
    async with operators() as (brokers, told):
        handle = await linked(brokers, vhost.url, "jobs")
        polled = handle.poller.watch(JOBS, "jobs")
        await until(lambda: isinstance(polled.last, QueueCounts))
        told.woken.clear()
        await handle.broker.delete_queue("jobs")
        await until(lambda: polled.last is QUEUE_MISSING and told.woken)
        told.woken.clear()
        await handle.broker.declare(plan(QueueSettings("jobs")))
        await until(lambda: isinstance(polled.last, QueueCounts) and told.woken)


async def test_unregistered_queue_is_no_longer_polled(vhost: VirtualHost) -> None:
    async with operators() as (brokers, _):
        handle = await linked(brokers, vhost.url, "jobs")
        polled = handle.poller.watch(JOBS, "jobs")
        handle.poller.watch(OTHER, "jobs").active = True
        polled.active = True
        assert sorted(handle.poller.keys_of("jobs")) == [JOBS, OTHER]
        handle.poller.forget(JOBS)
        assert (handle.poller.queues_of(JOBS), handle.poller.keys_of("jobs")) == ([], (OTHER,))
        # A pass that still has it.
        polled.active = polled.warm = True
        assert polled not in handle.poller._fast.active
        answered = polled.answered_at
        await a_round(handle)
        assert polled.answered_at == answered


async def test_slow_broker_gets_only_one_poll_round_at_a_time(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with operators(seconds=0.001) as (brokers, _):
        handle = await linked(brokers, vhost.url)
        asked: list[str] = []
        answer = asyncio.Event()

        async def counts(queue: str) -> QueueCounts:
            asked.append(queue)
            await answer.wait()
            return QueueCounts(0, 0, 0.0)

        monkeypatch.setattr(handle.broker, "poll", counts)
        for name in ("one", "two"):
            handle.poller.watch(JOBS, name).active = True
        await until(lambda: len(asked) == 2)
        # Time for many rounds, by the clock of the rounds.
        deadline = asyncio.get_running_loop().time() + 0.05
        await until(lambda: asyncio.get_running_loop().time() > deadline)
        assert sorted(asked) == ["one", "two"]
        answer.set()
        await until(lambda: len(asked) >= 4)


class Counting:
    """A broker that answers each poll at once, notes when, and calls `then` after so many."""

    binding = SimpleNamespace(display="amqp://broker")
    connected = True
    polls_wait = False

    def __init__(self, number: int) -> None:
        self.polled: dict[str, float] = {}
        self.then: Callable[[], None] = lambda: None
        self._number = number

    async def poll(self, queue: str) -> QueueCounts:
        now = asyncio.get_running_loop().time()
        self.polled[queue] = now
        if len(self.polled) == self._number:
            self.then()
        return QueueCounts(0, 0, now)


async def test_round_over_many_idle_queues_rests_between_its_polls() -> None:
    counting = Counting(2 * connection.POLLING)
    broker: Any = counting
    poller = depth_poller.DepthPoller(broker, lambda _: None, 60, 0.3)
    for number in range(3 * connection.POLLING):
        poller.watch(JOBS, f"queue-{number}")

    def forget() -> None:
        poller.forget(JOBS)
        poller.watch(JOBS, "last")

    counting.then = forget

    await until(lambda: "last" in counting.polled)
    await poller.close()

    times = [*counting.polled.values()]
    assert times[connection.POLLING] - times[connection.POLLING - 1] >= 0.3 * depth_poller.IDLE_SPREAD / 3
    assert len(times) == 2 * connection.POLLING + 1, "forgotten queues are not polled"


async def test_poller_that_rests_has_not_stopped() -> None:
    """It rests while no queue is polled often. The liveness check must not take that for a stop."""
    counting = Counting(1)
    broker: Any = counting
    poller = depth_poller.DepthPoller(broker, lambda _: None, 0.01, 60)
    polled, begun = poller.watch(JOBS, "jobs"), asyncio.get_running_loop().time()

    assert poller.alive_at >= begun
    polled.active = True
    assert poller.alive_at >= begun

    await until(lambda: counting.polled)
    await poller.close()


async def test_failed_poll_round_is_followed_by_another(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with operators() as (brokers, _):
        handle = await linked(brokers, vhost.url, "jobs")
        polled = handle.poller.watch(JOBS, "jobs")
        polled.active = True
        with monkeypatch.context() as broken:
            failed: list[str] = []

            async def counts(queue: str) -> QueueCounts:
                failed.append(queue)
                raise RuntimeError("an unexpected error")

            broken.setattr(handle.broker, "poll", counts)
            await until(lambda: failed)
        await until(lambda: isinstance(polled.last, QueueCounts))


async def test_frozen_broker_delays_no_other_broker(vhost: VirtualHost, rabbitmq_43: Server) -> None:
    with rabbitmq_43.new_vhost() as frozen_vhost:
        async with operators() as (brokers, _), channel_of(vhost) as channel:
            alive = await linked(brokers, vhost.url, "jobs")
            stuck = await linked(brokers, frozen_vhost.url, "other", key=OTHER)
            polled, silent = alive.poller.watch(JOBS, "jobs"), stuck.poller.watch(OTHER, "other")
            polled.active = silent.active = True
            await until(lambda: isinstance(silent.last, QueueCounts))
            with rabbitmq_43.frozen():
                # Its limit for an answer is a minute, which no poll of the other broker waits for.
                for count in range(1, 6):
                    put(channel, "jobs", b"x")
                    await until(
                        lambda count=count: (
                            isinstance(polled.last, QueueCounts) and polled.last.ready == count
                        )
                    )
            # Its heartbeats may have ended meanwhile, and with them the connection.
            thawed = asyncio.get_running_loop().time()
            await until(lambda: isinstance(silent.last, QueueCounts) and silent.last.at > thawed)
            assert stuck.broker._polls is not None
            stuck.broker._polls._seconds = 0.5
            with rabbitmq_43.frozen():
                await until(lambda: isinstance(silent.last, ReconcileError))
                assert isinstance(silent.last, ReconcileError)
                assert silent.last.reason in UNANSWERED
                # The metric keeps growing without a response.
                age = stuck.poller.age()
                assert age is not None
                await until(lambda: (stuck.poller.age() or 0) > age)
            await until(lambda: isinstance(silent.last, QueueCounts))


async def test_closed_broker_fails_polls_without_waiting(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONNECT_TIMEOUT", "CALL_TIMEOUT"):
        monkeypatch.setattr(connection, name, 3600.0)
    async with operators() as (brokers, told):
        handle = await linked(brokers, vhost.url, "jobs")
        polled = handle.poller.watch(JOBS, "jobs")
        await brokers.leave(JOBS)
        told.woken.clear()
        assert isinstance(await handle.poller.ask(polled), ReconcileError)
        assert not await handle.broker.install_doorbell("jobs")
        assert told.woken == []
        assert list(brokers) == []


# -- broker handles


async def test_equal_connection_data_share_a_handle_until_last_user_closes_it(vhost: VirtualHost) -> None:
    async with operators() as (brokers, _):
        one, two = await linked(brokers, vhost.url), await linked(brokers, vhost.url, key=OTHER)
        assert one is two
        assert brokers.known(OTHER) is one
        await brokers.leave(JOBS)
        assert one.broker.connected
        await brokers.leave(OTHER)
        assert not one.broker.connected
        assert brokers.known(OTHER) is None
        await brokers.leave(OTHER)


async def test_users_of_a_queue_are_known_across_broker_users(
    vhost: VirtualHost, rabbitmq_43: Server
) -> None:
    vhost.broker.add_user("another", "secret", vhost.name)
    try:
        with vhost.broker.new_vhost() as elsewhere:
            async with operators() as (brokers, _):
                mine = await linked(brokers, vhost.url, "jobs")
                url = vhost.broker.url_of(vhost.name, "another", "secret")
                theirs = await linked(brokers, url, key=OTHER)
                apart = await linked(brokers, elsewhere.url, "jobs", key=("team", "apart"))
                abroad = await linked(brokers, rabbitmq_43.url, key=("team", "abroad"))
                for handle, key in (
                    (mine, JOBS),
                    (theirs, OTHER),
                    (apart, ("team", "apart")),
                    (abroad, ("team", "abroad")),
                ):
                    handle.poller.watch(key, "jobs").claimed = True
                assert mine is not theirs
                for handle in (mine, theirs):
                    assert sorted(await brokers.claimants("jobs", handle)) == [JOBS, OTHER]
                assert await brokers.claimants("jobs", apart) == [("team", "apart")]
                theirs.poller.watch(OTHER, "jobs").claimed = False
                assert await brokers.claimants("jobs", mine) == [JOBS], (
                    "without a declaration there is no claim"
                )
    finally:
        vhost.broker.delete_user("another")


async def test_two_addresses_of_one_broker_are_recognized_as_one(every_vhost: VirtualHost) -> None:
    """The user may declare what the operator's user needs, and nothing else."""
    server = every_vhost.broker
    server.add_user("narrow", "secret", every_vhost.name, configure=r"^jobs(\.dead|\.retry\..*)?$")
    try:
        async with operators() as (brokers, _):
            mine = await linked(brokers, server.url_of(every_vhost.name, "narrow", "secret"), "jobs")
            by_name = every_vhost.url.replace("127.0.0.1", "localhost")
            theirs = await linked(brokers, by_name, key=OTHER)
            mine.poller.watch(JOBS, "jobs").claimed = True
            theirs.poller.watch(OTHER, "jobs").claimed = True

            assert mine is not theirs
            assert sorted(await brokers.claimants("jobs", mine)) == [JOBS, OTHER]
            assert sorted(await brokers.claimants("jobs", theirs)) == [JOBS, OTHER]
    finally:
        server.delete_user("narrow")


@pytest.mark.slow
async def test_two_brokers_with_the_same_name_are_distinguished(
    rabbitmq_43: Server, rabbitmq_310: Server
) -> None:
    """Like the first pods of two StatefulSets, which are both called rabbit@rabbitmq-0."""
    with rabbitmq_43.new_vhost("shared-name"), rabbitmq_310.new_vhost("shared-name"):
        async with operators() as (brokers, _):
            here = await linked(brokers, rabbitmq_43.url_of("shared-name"), "jobs")
            there = await linked(brokers, rabbitmq_310.url_of("shared-name"), "jobs", key=OTHER)
            here.poller.watch(JOBS, "jobs").claimed = True
            there.poller.watch(OTHER, "jobs").claimed = True

            assert here.broker.cluster == there.broker.cluster == "rabbit@localhost"
            assert await brokers.claimants("jobs", here) == [JOBS]
            assert await brokers.claimants("jobs", there) == [OTHER]


async def test_rotated_password_moves_all_users_to_one_new_handle(vhost: VirtualHost) -> None:
    vhost.broker.add_user("rotating", "old", vhost.name)
    try:
        async with operators() as (brokers, told):
            keys: list[Key] = [("team", f"jobs-{number}") for number in range(20)]
            old = from_url(vhost.broker.url_of(vhost.name, "rotating", "old"))
            first = {id(await brokers.handle(key, old)) for key in keys}
            vhost.broker.change_password("rotating", "new")
            handles = await asyncio.gather(
                *(brokers.handle(key, old._replace(password="new")) for key in keys)
            )
            assert len(first) == len({id(handle) for handle in handles}) == 1
            assert list(brokers) == [handles[0]]
            await handles[0].broker.ready()
            await handles[0].broker.declare(plan(QueueSettings("jobs")))
            handles[0].poller.watch(keys[3], "jobs")
            assert await handles[0].broker.install_doorbell("jobs")
            async with channel_of(vhost) as channel:
                put(channel, "jobs", b"x")
            await until(lambda: told.rang == [keys[3]])
    finally:
        vhost.broker.delete_user("rotating")


async def test_leaving_workqueue_keeps_doorbell_of_remaining_one(vhost: VirtualHost) -> None:
    async with operators() as (brokers, _):
        handle = await linked(brokers, vhost.url, "jobs", "mine")
        await linked(brokers, vhost.url, key=OTHER)
        handle.poller.watch(JOBS, "jobs")
        handle.poller.watch(OTHER, "jobs")
        handle.poller.watch(OTHER, "mine")
        assert await handle.broker.install_doorbell("jobs")
        assert await handle.broker.install_doorbell("mine")
        await brokers.leave(OTHER)
        assert handle.broker.has_doorbell("jobs")
        assert not handle.broker.has_doorbell("mine")


async def test_lost_and_restored_connection_enqueue_every_user(vhost: VirtualHost) -> None:
    async with operators() as (brokers, told):
        handle = await linked(brokers, vhost.url)
        await linked(brokers, vhost.url, key=OTHER)
        told.woken.clear()
        vhost.broker.close_connections()
        await until(lambda: handle.broker.generation == 2)
        assert sorted(told.woken) == [JOBS, JOBS, OTHER, OTHER]


async def test_doorbell_refusal_is_remembered_for_a_limited_time(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    vhost.broker.add_user("bell", "secret", vhost.name, read="")
    try:
        async with operators() as (brokers, told):
            handle = await linked(brokers, vhost.broker.url_of(vhost.name, "bell", "secret"))
            async with channel_of(vhost) as channel:
                channel.queue_declare("jobs", durable=True)
            polled = handle.poller.watch(JOBS, "jobs")
            assert not await handle.broker.install_doorbell("jobs")
            assert polled.refusal is not None
            assert polled.refusal[0] == 403
            assert JOBS in told.woken
            monkeypatch.setattr(depth_poller, "REFUSAL_RETRY_SECONDS", 0.0)
            await until(lambda: polled.refusal is None)
    finally:
        vhost.broker.delete_user("bell")


@pytest.mark.parametrize("deleted", [True, False], ids=["the queue is deleted", "its leader moves"])
async def test_cancelled_doorbell_marks_queue_doubtful_until_polled(
    every_vhost: VirtualHost, *, deleted: bool
) -> None:
    """A cancel means that the queue or its leader is gone: only a poll tells which."""
    async with operators(idle=60) as (brokers, told):
        handle = await linked(brokers, every_vhost.url)
        await handle.broker.declare(plan(QueueSettings("jobs")))
        polled = handle.poller.watch(JOBS, "jobs")
        assert await handle.broker.install_doorbell("jobs")
        if deleted:
            await handle.broker.delete_queue("jobs")
        else:
            every_vhost.cancel_consumers("jobs")
        await until(lambda: polled.doubtful)
        assert not handle.broker.has_doorbell("jobs")
        assert JOBS in told.woken
        assert polled.last is not QUEUE_MISSING
        answer = await until(lambda: settled(handle, polled, deleted=deleted))
        assert not polled.doubtful
        if not deleted:
            assert isinstance(answer, QueueCounts)
            assert await until(lambda: handle.broker.install_doorbell("jobs"))


async def settled(handle: BrokerHandle, polled: PolledQueue, *, deleted: bool) -> PollAnswer | None:
    """The reading of a queue once it is gone, or has its process again."""
    answer = await handle.poller.ask(polled)
    return answer if (answer is QUEUE_MISSING) is deleted and not isinstance(answer, ReconcileError) else None


async def test_doorbell_on_missing_queue_reports_it(vhost: VirtualHost) -> None:
    async with operators(idle=60) as (brokers, told):
        handle = await linked(brokers, vhost.url)
        polled = handle.poller.watch(JOBS, "jobs")
        assert not await handle.broker.install_doorbell("jobs")
        assert polled.last is QUEUE_MISSING
        assert JOBS in told.woken
