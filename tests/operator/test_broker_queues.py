"""Declarations, polls and refusals over the operator's connection, on each supported RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from tests.support.brokers import channel_of, probe, put, take_all
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from tests.support.workqueue import workqueue
from workqueue.contract.topology import Exchange, ExchangeType, QueueSettings, QueueType, plan
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.connection import QueueMissingError
from workqueue_operator.broker.declare import declare
from workqueue_operator.errors import ReconcileError

TYPES = pytest.mark.parametrize("queue_type", list(QueueType), ids=lambda kind: kind.value)


@pytest.fixture
def limited(every_vhost: VirtualHost) -> Iterator[str]:
    """The URL of a user who may open the virtual host but do nothing in it."""
    every_vhost.broker.add_user("limited", "secret", every_vhost.name, configure="", write="", read="")
    yield every_vhost.broker.url_of(every_vhost.name, "limited", "secret")
    every_vhost.broker.delete_user("limited")


@TYPES
async def test_second_declare_changes_nothing(every_vhost: VirtualHost, queue_type: QueueType) -> None:
    exchange = Exchange("images", ExchangeType.TOPIC, ("thumb.*", "icon"))
    wanted = plan(QueueSettings("jobs", queue_type, exchange=exchange, max_length=10))
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        await broker.declare(wanted)
        for key in ("thumb.small", "icon"):
            channel.basic_publish("images", key, key.encode(), mandatory=True)
        await broker.declare(wanted)
        assert [body for body, _ in take_all(channel, "jobs")] == [b"thumb.small", b"icon"]
        assert every_vhost.exists("jobs.dead")


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"type": QueueType.CLASSIC}, "x-"),
        ({"max_length": 5}, "x-max-length"),
        ({"message_ttl_seconds": 9}, "x-message-ttl"),
        ({"single_active_consumer": True}, "x-single-active-consumer"),
    ],
    ids=["another type", "another length", "another time to live", "a single active consumer"],
)
async def test_declare_conflict_names_the_argument_and_changes_nothing(
    every_vhost: VirtualHost, changes: dict[str, object], argument: str
) -> None:
    first = QueueSettings("jobs")
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        await broker.declare(plan(first))
        put(channel, "jobs", b"kept")
        with pytest.raises(ReconcileError) as caught:
            await broker.declare(plan(first._replace(**changes)))  # type: ignore[arg-type]
        assert caught.value.reason is Reason.QUEUE_CONFLICT
        assert f"'{argument}" in caught.value.message
        assert "'jobs'" in caught.value.message
        await broker.declare(plan(first))
        assert take_all(channel, "jobs") == [(b"kept", 0)]


async def test_publisher_may_declare_a_classic_queue_before_and_after_the_operator(
    every_vhost: VirtualHost,
) -> None:
    wanted = plan(QueueSettings("hello", QueueType.CLASSIC))
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()

        channel.queue_declare("hello", durable=True)
        await broker.declare(wanted)
        await broker.delete_queue("hello")
        await broker.declare(wanted)
        channel.queue_declare("hello", durable=True)

        put(channel, "hello", b"Hello World!")
        assert take_all(channel, "hello") == [(b"Hello World!", 0)]


async def test_conflict_with_publisher_declaration_offers_both_remedies(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        channel.queue_declare("hello", durable=True)

        with pytest.raises(ReconcileError) as caught:
            await broker.declare(plan(QueueSettings("hello")))

        assert caught.value.reason is Reason.QUEUE_CONFLICT
        assert "Classic without limits and TTL" in caught.value.message
        assert "passively" in caught.value.message


@pytest.mark.parametrize("exchange", [Exchange("images"), None], ids=["with an exchange", "without one"])
@pytest.mark.parametrize("theirs", ["jobs", "jobs.dead"], ids=["the work queue", "the dead-letter queue"])
async def test_declare_conflict_creates_nothing(
    every_vhost: VirtualHost, theirs: str, exchange: Exchange | None
) -> None:
    """Neither the exchange nor the other queue, which would be left over after the name is corrected."""
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        channel.queue_declare(theirs, durable=True, arguments={"x-max-length": 7})
        with pytest.raises(ReconcileError, match=theirs) as caught:
            await broker.declare(plan(QueueSettings("jobs", exchange=exchange)))
        assert caught.value.reason is Reason.QUEUE_CONFLICT
        assert {name for name in ("jobs", "jobs.dead") if every_vhost.exists(name)} == {theirs}
        with pytest.raises(ChannelClosedByBroker, match="no exchange 'images'"):
            channel.exchange_declare("images", passive=True)


async def test_exchange_of_another_type_is_a_conflict_and_creates_nothing(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        channel.exchange_declare("images", "direct", durable=True)
        with pytest.raises(ReconcileError, match="'images'") as caught:
            await broker.declare(
                plan(QueueSettings("jobs", exchange=Exchange("images", ExchangeType.FANOUT)))
            )
        assert caught.value.reason is Reason.QUEUE_CONFLICT
        assert "type" in caught.value.message
        assert not every_vhost.exists("jobs.dead")
        assert not every_vhost.exists("jobs")


@TYPES
async def test_counts_are_live_and_exclude_the_doorbell(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs", queue_type)))
        empty = await broker.counts("jobs")
        assert (empty.ready, empty.consumers, empty.doorbell) == (0, 0, False)
        assert await broker.install_doorbell("jobs")
        await until(lambda: counted(broker, "jobs", (0, 0, True)))
        broker.remove_doorbell("jobs")
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume("jobs", lambda *_: None)
        put(channel, "jobs", b"1", b"2", b"3")
        await until(lambda: counted(broker, "jobs", (2, 1, False)))


@TYPES
async def test_declare_returns_the_counts(every_vhost: VirtualHost, queue_type: QueueType) -> None:
    """A pass that has declared need not poll."""
    wanted = plan(QueueSettings("jobs", queue_type))
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        made = await broker.declare(wanted)
        assert {name: (counts.ready, counts.consumers) for name, counts in made.items()} == {
            "jobs": (0, 0),
            "jobs.dead": (0, 0),
        }
        put(channel, "jobs", b"1", b"2")
        assert (await broker.declare(wanted))["jobs"].ready == 2


async def counted(broker, queue: str, wanted: tuple[int, int, bool]) -> bool:  # type: ignore[no-untyped-def]
    seen = await broker.counts(queue)
    return (seen.ready, seen.consumers, seen.doorbell) == wanted


async def test_missing_queue_does_not_disturb_other_requests(
    every_vhost: VirtualHost,
) -> None:
    async with probe(every_vhost.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs")))
        answers = await asyncio.gather(
            *(broker.counts("jobs" if number % 2 else "nothing") for number in range(40)),
            return_exceptions=True,
        )
        assert {type(answer).__name__ for answer in answers[::2]} == {"QueueMissingError"}
        assert {type(answer).__name__ for answer in answers[1::2]} == {"QueueCounts"}
        await broker.delete_queue("nothing")
        await broker.delete_queue("jobs")
        with pytest.raises(QueueMissingError):
            await broker.counts("jobs")


async def test_denied_permission_names_user_and_action(every_vhost: VirtualHost, limited: str) -> None:
    async with probe(limited) as broker:
        await broker.ready()
        with pytest.raises(ReconcileError) as caught:
            await broker.declare(plan(QueueSettings("jobs")))
        assert caught.value.reason is Reason.PERMISSION_DENIED
        assert "'limited'" in caught.value.message
        assert "'jobs.dead'" in caught.value.message


async def test_foreign_exclusive_queue_is_refused_with_broker_message(
    every_vhost: VirtualHost,
) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        channel.queue_declare("jobs", exclusive=True)
        with pytest.raises(ReconcileError, match="RESOURCE_LOCKED") as caught:
            await broker.declare(plan(QueueSettings("jobs")))
        assert caught.value.reason is Reason.QUEUE_REFUSED


async def test_operator_works_during_memory_alarm(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        await broker.declare(plan(QueueSettings("one")))
        put(channel, "one", b"x")
        with every_vhost.broker.memory_alarm():
            await broker.declare(plan(QueueSettings("two")))
            assert (await broker.counts("one")).ready == 1
            assert await broker.install_doorbell("two")
            await broker.install_doorbell("one")
            await until(lambda: broker.told.rings == ["one"])
            await broker.delete_queue("two")
        assert broker.generation == 1


def bound(*bindings: dict[str, Any], **queue: Any) -> WorkQueue:
    return workqueue(queue={"bindings": list(bindings), **queue})


async def test_queue_is_bound_to_exchanges_of_others(every_vhost: VirtualHost) -> None:
    wanted = bound(
        {"exchange": "amq.topic", "routingKey": "orders.#"},
        {"exchange": "documents", "arguments": {"format": "pdf", "pages": 1}},
        exchange={"name": "documents", "type": "Headers"},
    )
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        for _ in range(2):
            finding, _ = await declare(wanted, broker)
            assert finding.status == "True"
        channel.basic_publish("amq.topic", "orders.new", b"topic", mandatory=True)
        matching = pika.BasicProperties(headers={"format": "pdf", "pages": 1})
        channel.basic_publish("documents", "", b"headers", matching, mandatory=True)
        with pytest.raises(UnroutableError):
            channel.basic_publish(
                "documents", "", b"", pika.BasicProperties(headers={"format": "pdf"}), mandatory=True
            )
        assert [body for body, _ in take_all(channel, "jobs")] == [b"topic", b"headers"]
        for binding in plan(wanted.queue_settings).bindings:
            await broker.unbind(binding)
        with pytest.raises(UnroutableError):
            channel.basic_publish("documents", "", b"", matching, mandatory=True)


@pytest.mark.parametrize("declares", [True, False], ids=["declared-queue", "existing-queue"])
async def test_dead_letter_queue_of_others_is_required_and_unchanged(
    every_vhost: VirtualHost, declares: bool
) -> None:
    wanted = workqueue(queue={"deadLetterQueue": "failed", "declare": declares})
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        if not declares:
            channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum"})
        with pytest.raises(ReconcileError, match=r"'failed' that queue.deadLetterQueue names") as missing:
            await declare(wanted, broker)
        assert missing.value.reason is Reason.DEAD_LETTER_QUEUE_NOT_FOUND
        assert every_vhost.exists("jobs") is not declares

        channel.queue_declare("failed", durable=True)
        put(channel, "failed", b"theirs")
        await until(lambda: every_vhost.depth("failed").ready == 1)
        finding, answers = await declare(wanted, broker)

        assert finding.status == "True"
        assert {name: counts.ready for name, counts in answers.items()} == {"jobs": 0, "failed": 1}
        assert not every_vhost.exists("jobs.dead")


async def test_missing_exchange_is_named_and_stops_nothing_else(every_vhost: VirtualHost) -> None:
    wanted = bound({"exchange": "theirs"}, {"exchange": "amq.topic", "routingKey": "a"})
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        finding, answers = await declare(wanted, broker)
        assert (finding.status, finding.reason) == ("False", Reason.EXCHANGE_NOT_FOUND)
        assert "'theirs'" in finding.message
        assert answers["jobs"].ready == 0
        channel.basic_publish("amq.topic", "a", b"", mandatory=True)
        channel.exchange_declare("theirs", "fanout", durable=True)
        finding, _ = await declare(wanted, broker)
        assert finding.status == "True"
        channel.basic_publish("theirs", "", b"", mandatory=True)
