"""The order in which a worker gets messages with priorities, on each supported RabbitMQ."""

from __future__ import annotations

from typing import Final

import pytest

from tests.support.rabbitmq import VirtualHost
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
