"""Recurring messages on a real RabbitMQ: published with confirm, over a connection of their own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from tests.support.brokers import channel_of, probe, put
from tests.support.rabbitmq import Broker, VirtualHost
from tests.support.wait import until
from workqueue.contract.topology import (
    LEDGER_LENGTH,
    Queue,
    QueueBinding,
    QueueSettings,
    ledger,
    plan,
)
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker import channel as channels
from workqueue_operator.broker import confirmed
from workqueue_operator.broker.confirmed import NotPublishedError, OwnMessage, UnconfirmedError
from workqueue_operator.broker.connection import Broker as ConnectedBroker
from workqueue_operator.errors import ReconcileError

LEDGER = ledger("jobs")
MESSAGE = OwnMessage("jobs", "jobs/tick/2026-01-01T00:00:00Z", b"now", "text/plain", {"kind": "tick"})


async def test_message_is_stored_when_publish_returns(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs")))

        await broker.publish(MESSAGE)
        await broker.publish(MESSAGE)

        assert every_vhost.depth("jobs").ready == 2
        async with channel_of(every_vhost) as channel:
            _, properties, body = channel.basic_get("jobs", auto_ack=True)
    assert (properties.message_id, properties.delivery_mode, body) == (MESSAGE.message_id, 2, b"now")
    assert (properties.content_type, properties.headers["kind"]) == ("text/plain", "tick")


async def test_missing_queue_returns_the_message(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()

        with pytest.raises(NotPublishedError, match="does not exist"):
            await broker.publish(MESSAGE)


async def read_until_unknown(broker: ConnectedBroker) -> None:
    while True:
        await broker.read_ledger(LEDGER)


async def note_one(broker: ConnectedBroker) -> None:
    """Publish a message, and wait until its id is in the ledger."""
    await broker.declare(plan(QueueSettings("jobs")))
    await broker.declare_queue(LEDGER)
    await broker.publish(MESSAGE._replace(ledger=LEDGER.name))
    await until(lambda: holds(broker, {MESSAGE.message_id}))


async def holds(broker: ConnectedBroker, ids: set[str]) -> bool:
    return await broker.read_ledger(LEDGER) == ids


async def test_ledger_keeps_the_ids_of_confirmed_messages(every_vhost: VirtualHost) -> None:
    noted = [MESSAGE._replace(message_id=f"jobs/tick/{number}", ledger=LEDGER.name) for number in range(50)]
    async with probe(every_vhost.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs")))
        assert await broker.read_ledger(LEDGER) == set()
        await broker.declare_queue(LEDGER)

        await asyncio.gather(*map(broker.publish, noted))
        await broker.publish(MESSAGE)

        expected = {message.message_id for message in noted}
        await until(lambda: holds(broker, expected))
    async with probe(every_vhost.url) as other:
        await other.ready()
        assert await other.read_ledger(LEDGER) == expected, "a read takes nothing away"


async def test_refused_messages_are_not_in_the_ledger(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        await broker.declare_queue(LEDGER)
        with pytest.raises(NotPublishedError, match="does not exist"):
            await broker.publish(MESSAGE._replace(ledger=LEDGER.name))
        await broker.declare(plan(QueueSettings("jobs", max_length=1)))
        for number in range(20):
            with contextlib.suppress(NotPublishedError):
                await broker.publish(MESSAGE._replace(message_id=str(number), ledger=LEDGER.name))

        kept = vhost.depth("jobs").ready
        assert 1 <= kept < 20
        await until(lambda: holds(broker, set(map(str, range(kept)))))


async def test_ledger_of_another_program_says_nothing(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        await broker.declare_queue(Queue(LEDGER.name, {"x-queue-type": "classic"}))

        assert await broker.read_ledger(LEDGER) == set()


async def test_ledger_is_unknown_while_its_connection_is_blocked(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        await note_one(broker)
        assert broker._publishing is not None
        assert broker._publishing._questions is not None
        broker._publishing._questions._seconds = 1.0
        with vhost.broker.memory_alarm():
            publishing = asyncio.create_task(broker.publish(MESSAGE))
            with pytest.raises(ReconcileError, match="no answer") as raised:
                await read_until_unknown(broker)
            assert raised.value.reason is Reason.BROKER_UNREACHABLE
        await publishing


async def test_ledger_is_unknown_without_a_connection_that_reads_it(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new leader would take a ledger that alone does not answer for empty, after a while."""

    async def no_answer(_: ConnectedBroker) -> None:
        raise ReconcileError(Reason.BROKER_TIMEOUT, "no answer")

    async with probe(vhost.url) as broker:
        await broker.ready()
        await broker.declare_queue(LEDGER)
        async with channel_of(vhost) as channel:
            put(channel, LEDGER.name, b"")
        await until(lambda: vhost.depth(LEDGER.name).ready == 1)
        monkeypatch.setattr(ConnectedBroker, "_publishing_connection", no_answer)

        with pytest.raises(ReconcileError) as raised:
            await broker.read_ledger(LEDGER)

    assert raised.value.reason is Reason.BROKER_UNREACHABLE


async def test_silent_ledger_is_named_and_keeps_few_channels(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the channels that it keeps is missing for the messages of other WorkQueues."""
    monkeypatch.setattr(channels, "SILENT_PAUSE", (0.0, 0.0))
    async with probe(vhost.url) as broker:
        await broker.ready()
        await note_one(broker)
        before = channel_count(vhost)
        monkeypatch.setattr(confirmed, "CALL_TIMEOUT", 0.05)
        assert broker._questions is not None
        broker._questions._seconds = 0.05
        with vhost.broker.suspended(LEDGER.name, vhost.name):
            for _ in range(20):
                with pytest.raises(ReconcileError, match=LEDGER.name) as raised:
                    await broker.read_ledger(LEDGER)
                assert raised.value.reason is Reason.BROKER_TIMEOUT

            assert channel_count(vhost) <= before + channels.SILENT_CALLS


async def test_ledger_leaves_no_dead_letters(vhost: VirtualHost) -> None:
    """A policy may give all queues of a virtual host a dead-letter exchange."""
    everywhere = ("all", ".*", '{"dead-letter-exchange": "amq.fanout"}', "--apply-to", "queues")
    vhost.broker.ctl("set_policy", "-p", vhost.name, *everywhere)
    async with probe(vhost.url) as broker:
        await broker.ready()
        await broker.declare_queue(Queue("graveyard", {"x-queue-type": "classic"}))
        await broker.bind(QueueBinding("amq.fanout", "graveyard", ""))
        await broker.declare_queue(LEDGER)

        async with channel_of(vhost) as channel:
            put(channel, LEDGER.name, *[b""] * (LEDGER_LENGTH + 50))
            channel.queue_declare(LEDGER.name, passive=True)

        await until(lambda: vhost.depth(LEDGER.name).ready == LEDGER_LENGTH)
        assert vhost.depth("graveyard").ready == 0


async def test_full_queue_refuses_the_message(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs", max_length=1)))

        async def publish_until_refused() -> None:
            while True:
                await broker.publish(MESSAGE)

        with pytest.raises(NotPublishedError, match="full"):
            await publish_until_refused()


@pytest.mark.parametrize(
    "wrong",
    [{"headers": {"k" * 256: "tick"}}, {"headers": {"kind": "k" * 2**17}}, {"content_type": "ü" * 255}],
    ids=["long name of a header", "more headers than a frame has room for", "long content type"],
)
async def test_message_that_amqp_cannot_carry_is_refused(vhost: VirtualHost, wrong: dict[str, Any]) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs")))
        await broker.publish(MESSAGE)
        connection = broker._publishing and broker._publishing._connection

        with pytest.raises(NotPublishedError, match="AMQP"):
            await broker.publish(MESSAGE._replace(**wrong))

        await broker.publish(MESSAGE)
        assert broker._publishing is not None
        assert broker._publishing._connection is connection, "others publish over it, too"


async def test_memory_alarm_delays_a_message_and_blocks_nothing_else(
    every_rabbitmq: Broker, every_vhost: VirtualHost
) -> None:
    async with probe(every_vhost.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs")))
        with every_rabbitmq.memory_alarm():
            publishing = asyncio.create_task(broker.publish(MESSAGE))
            await until(lambda: has_blocked(every_rabbitmq))
            assert (await broker.counts("jobs")).ready == 0
            assert not publishing.done()
        await publishing
        await until(lambda: every_vhost.depth("jobs").ready == 1)


async def test_publish_that_was_given_up_leaves_neither_message_nor_channel(vhost: VirtualHost) -> None:
    with vhost.broker.channel_max(8):
        async with probe(vhost.url) as broker:
            await broker.ready()
            await broker.declare(plan(QueueSettings("jobs")))
            await broker.publish(MESSAGE)
            with vhost.broker.memory_alarm():
                for _ in range(5):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(broker.publish(MESSAGE), 0.05)

            await broker.publish(MESSAGE)
            await asyncio.gather(*(broker.publish(MESSAGE) for _ in range(7)))

            # RabbitMQ may have read the first one of the alarm before it blocked the connection.
            assert vhost.depth("jobs").ready in {9, 10}


async def test_many_messages_at_a_time_need_few_channels(vhost: VirtualHost) -> None:
    with vhost.broker.channel_max(64):
        async with probe(vhost.url) as broker:
            await broker.ready()
            await broker.declare(plan(QueueSettings("jobs")))

            await asyncio.gather(*(broker.publish_in_turn(MESSAGE) for _ in range(500)))

        assert vhost.depth("jobs").ready == 500


async def test_queue_without_confirms_leaves_channels_to_the_messages_of_others(vhost: VirtualHost) -> None:
    """A WorkQueue may have a hundred entries, and its queue be on a frozen node."""
    with vhost.broker.channel_max(16):
        async with probe(vhost.url) as broker:
            await broker.ready()
            for name in ("jobs", "stuck"):
                await broker.declare_queue(Queue(name, {"x-queue-type": "classic"}))
            with vhost.broker.suspended("stuck", vhost.name):
                to_stuck = MESSAGE._replace(queue="stuck")
                stuck = [asyncio.create_task(broker.publish_in_turn(to_stuck)) for _ in range(50)]
                for _ in range(20):
                    await broker.publish_in_turn(MESSAGE)

                assert not any(task.done() for task in stuck)
            await asyncio.gather(*stuck)


async def test_message_without_a_channel_is_not_published(vhost: VirtualHost) -> None:
    names = [f"jobs-{number}" for number in range(5)]
    with vhost.broker.channel_max(4):
        async with probe(vhost.url) as broker:
            await broker.ready()
            for name in names:
                await broker.declare_queue(Queue(name, {"x-queue-type": "classic"}))
            with vhost.broker.memory_alarm():
                publishing = [
                    asyncio.create_task(broker.publish_in_turn(MESSAGE._replace(queue=name)))
                    for name in names
                ]
                [refused], waiting = await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
                with pytest.raises(NotPublishedError, match="no free channel"):
                    await refused
            await asyncio.gather(*waiting)


async def test_lost_connection_leaves_the_message_uncertain(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs")))
        with vhost.broker.memory_alarm():
            publishing = asyncio.create_task(broker.publish_in_turn(MESSAGE))
            await until(lambda: has_blocked(vhost.broker))
            vhost.broker.close_connections()
            with pytest.raises(UnconfirmedError):
                await publishing


def has_blocked(server: Broker) -> bool:
    """Whether a connection has published during an alarm, so that RabbitMQ no longer reads from it."""
    states = "[catch rabbit_reader:info(C, [state]) || C <- rabbit_networking:connections()]"
    return "blocked" in server.evaluate(states)


def channel_count(vhost: VirtualHost) -> int:
    return int(vhost.broker.evaluate("length(rabbit_channel:list_local())"))
