"""The order in which a worker gets messages with priorities, on each supported RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.commands import workqueue
from tests.support.rabbitmq import Broker, VirtualHost
from tests.support.wait import eventually
from tests.support.worker import Workers, publish
from workqueue.contract.topology import BrokerVersion, PriorityOrder, QueueSettings, QueueType, plan

PUBLISHED: Final = [None, 0, 4, 5, 9, 31, 255]
ORDERS: Final = {
    PriorityOrder.IGNORED: PUBLISHED,
    PriorityOrder.TWO_CLASSES: [5, 9, None, 31, 255, 0, 4],
    PriorityOrder.STRICT: [31, 255, 9, 5, None, 4, 0],
}


def handled(vhost: VirtualHost, workers: Workers, queue_type: QueueType) -> list[int | None]:
    """The priorities in the order in which one slot handles messages that all waited."""
    with vhost.connect() as connection:
        for queue in plan(QueueSettings("jobs", type=queue_type)).queues:
            connection.channel().queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
    for priority in PUBLISHED:
        publish(vhost, {"id": priority}, **({} if priority is None else {"priority": priority}))
    worker = workers.start(vhost.url, "--queue-type", queue_type.value)
    eventually(lambda: len(worker.events_of("end")) == len(PUBLISHED))
    return worker.events_of("end")


def test_quorum_queue_orders_by_priority_as_its_broker_does(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    order = BrokerVersion.parse(every_vhost.broker.series).priority_order

    assert handled(every_vhost, workers, QueueType.QUORUM) == ORDERS[order]


def test_classic_queue_ignores_priorities(every_vhost: VirtualHost, workers: Workers) -> None:
    assert handled(every_vhost, workers, QueueType.CLASSIC) == PUBLISHED


def fail_once(vhost: VirtualHost, workers: Workers, *arguments: str, declare: bool = True) -> None:
    """Let messages of a low and of a high priority fail, and wait until both have returned to the queue."""
    publish(vhost, {"id": "low", "do": "fail once"}, priority=1)
    publish(vhost, {"id": "high", "do": "fail once"}, priority=9)
    worker = workers.start(vhost.url, "--max-messages", "2", *arguments, declare=declare)
    assert worker.wait(60) == 0
    eventually(lambda: vhost.depth("jobs").ready == 2)


def declare_queue(vhost: VirtualHost, **arguments: object) -> None:
    with vhost.connect() as connection:
        connection.channel().queue_declare("jobs", durable=True, arguments=arguments)


@pytest.fixture
def strict(rabbitmq_43: Broker) -> Iterator[VirtualHost]:
    """A virtual host on a RabbitMQ whose quorum queues order strictly by priority, with the queue `jobs`."""
    with rabbitmq_43.new_vhost() as vhost:
        with vhost.connect() as connection:
            for queue in plan(QueueSettings("jobs")).queues:
                connection.channel().queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        yield vhost


@pytest.mark.slow
def test_retried_messages_are_ordered_by_priority_again(strict: VirtualHost, workers: Workers) -> None:
    fail_once(strict, workers)
    publish(strict, {"id": "normal"})
    publish(strict, {"id": "higher"}, priority=5)

    worker = workers.start(strict.url)

    eventually(lambda: len(worker.events_of("end")) == 4)
    assert worker.events_of("end") == ["high", "higher", "normal", "low"]


@pytest.mark.slow
def test_retried_messages_of_a_classic_priority_queue_are_ordered_again(
    vhost: VirtualHost, workers: Workers
) -> None:
    declare_queue(vhost, **{"x-max-priority": 9})
    fail_once(vhost, workers, "--queue-type", "Classic", declare=False)
    publish(vhost, {"id": "normal"}, priority=4)

    worker = workers.start(vhost.url, "--queue-type", "Classic", declare=False)

    eventually(lambda: len(worker.events_of("end")) == 3)
    assert worker.events_of("end") == ["high", "normal", "low"]


@pytest.mark.slow
def test_replayed_dead_letters_are_ordered_by_priority_again(strict: VirtualHost, workers: Workers) -> None:
    for name, priority in (("low", 1), ("high", 9)):
        publish(strict, {"id": name, "do": "reject"}, priority=priority)
    assert workers.start(strict.url, "--max-messages", "2").wait(60) == 0

    assert workqueue("dead", "replay", "--queue", "jobs", url=strict.url).code == 0
    publish(strict, {"id": "normal"})
    worker = workers.start(strict.url)

    eventually(lambda: worker.outcomes() == {"acked": 1, "dead_lettered": 2})
    assert worker.events_of("start")[-3:] == ["high", "normal", "low"]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("3.13.7", PriorityOrder.IGNORED),
        ("4.0.5", PriorityOrder.TWO_CLASSES),
        ("4.2.1", PriorityOrder.TWO_CLASSES),
        ("4.3.0", PriorityOrder.STRICT),
    ],
    ids=["3.13", "4.0", "4.2", "4.3"],
)
def test_order_follows_from_the_version(text: str, order: PriorityOrder) -> None:
    assert BrokerVersion.parse(text).priority_order is order
