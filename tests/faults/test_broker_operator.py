"""RabbitMQ forgets: the real operator declares everything again, and real pods go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pika.exceptions
import pytest

from tests.faults.site import Site
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.workqueues import WorkQueueUnderTest

pytestmark = pytest.mark.nightly


def delete_queues(place: Site, workqueue: WorkQueueUnderTest) -> None:
    for queue in (workqueue.name, f"{workqueue.name}.dead"):
        place.lab.channel.queue_delete(queue)


def delete_vhost(place: Site, workqueue: WorkQueueUnderTest) -> None:
    place.broker.delete_vhost(place.lab.vhost)
    make_vhost_again(place, workqueue)


def wipe(place: Site, workqueue: WorkQueueUnderTest) -> None:
    place.broker.wipe()
    place.broker.add_vhost(place.lab.vhost)
    place.broker.add_user(place.lab.vhost, place.lab.password, place.lab.vhost)
    make_vhost_again(place, workqueue)


def make_vhost_again(place: Site, workqueue: WorkQueueUnderTest) -> None:
    """What is not the operator's to make: the virtual host, its user's permissions, the tests' results queue."""
    place.broker.add_vhost(place.lab.vhost)
    place.broker.allow(place.lab.vhost, place.lab.vhost)
    with suppress(pika.exceptions.AMQPError):
        place.lab.close()
    place.lab.reconnect()
    results = f"{workqueue.name}.results"
    place.lab.channel.queue_declare(results, durable=True, arguments={"x-queue-type": "quorum"})


FAULTS = {
    "queues deleted, with the operator": delete_queues,
    "virtual host deleted, with the operator": delete_vhost,
    "all data wiped, with the operator": wipe,
}


@pytest.mark.parametrize("awake", [False, True], ids=["asleep", "with a worker"])
@pytest.mark.parametrize("fault", FAULTS)
def test_operator_redeclares_what_rabbitmq_lost(place: Site, fault: str, *, awake: bool) -> None:
    forget: Callable[[Site, WorkQueueUnderTest], None] = FAULTS[fault]
    place.operator.start().wait_serving()
    workqueue = place.workqueue(scaling={"minReplicas": int(awake)}).apply()
    ledger = Ledger()
    place.wait_converged(lambda: place.converged(workqueue, int(awake)))
    place.publish(workqueue, ledger, 5)
    place.settle(workqueue, ledger)
    forget(place, workqueue)
    over = time.monotonic()
    eventually(lambda: exists(place, workqueue), 60, "the queues are declared again")
    eventually(lambda: len(ledger.confirmed) == 25 or publish(workqueue, ledger), 60, "20 more are confirmed")
    place.settle(workqueue, ledger)
    place.report.ledger(fault, place.broker.version, ledger, round(time.monotonic() - over, 1))
    workqueue.delete()


def publish(workqueue: WorkQueueUnderTest, ledger: Ledger) -> None:
    """Publish one more message; a queue that was just declared may refuse it."""
    number = len(ledger.confirmed) + len(ledger.unconfirmed)
    try:
        workqueue.publish([{"id": number, "seconds": 0.1}])
    except (pika.exceptions.NackError, pika.exceptions.UnroutableError) as error:
        ledger.sent(number, error)
    else:
        ledger.sent(number)


def exists(place: Site, workqueue: WorkQueueUnderTest) -> bool:
    return all(
        place.broker.exists(queue, place.lab.vhost) for queue in (workqueue.name, f"{workqueue.name}.dead")
    )
