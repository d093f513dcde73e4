"""The cases in which RabbitMQ loses or hides messages, found by trying: each is kept here as a test.

Relatives elsewhere: a queue that is recreated under a doorbell (tests/operator/test_broker_doorbell.py) and under a
worker (tests/worker/test_faults.py), and a deletion that waits for hidden messages (tests/operator/test_deletion.py).
"""

from __future__ import annotations

import time

import pytest

from tests.faults.doorbell import frozen_bell
from tests.faults.work import DEAD, DELAY_QUEUE, LAST_QUEUE, QUEUE, Work
from tests.support.brokers import probe
from tests.support.deletion import deleted, finalizer, told
from tests.support.wait import eventually, until
from workqueue.contract.topology import WAKE_ALLOWANCE, QueueType

KINDS = pytest.mark.parametrize(
    "kind", [QueueType.QUORUM, pytest.param(QueueType.CLASSIC, marks=pytest.mark.nightly)]
)

STALLS_SECONDS = 400
"""At-least-once dead-lettering whose target was missing or full looks every 180 s for what it sent 180 s ago."""

KILLS_WITHIN_SECONDS = 5.0
"""A message that kills its worker has done so within this time, the start of a new worker included."""


def test_deleted_delay_and_dead_letter_queues_are_redeclared(work: Work) -> None:
    """The next worker that needs them redeclares them; the message stays unacknowledged until then."""
    work.declare()
    work.start(2)
    with work.through("delay queue and dead-letter queue deleted", within=60, duplicates=False):
        with work.quiet():
            work.delete(DELAY_QUEUE)
            work.delete(DEAD)
        work.publish({"id": "fails", "do": "fail once"}, {"id": "rejected", "do": "reject"})
        eventually(lambda: work.is_dead("rejected"))
    assert work.vhost.exists(DELAY_QUEUE)
    assert work.vhost.exists(DEAD)
    assert work.lost_leases() == 0


@pytest.mark.nightly
@pytest.mark.timeout(STALLS_SECONDS + 120)
@KINDS
def test_delayed_messages_survive_missing_work_queue(work: Work, kind: QueueType) -> None:
    work.declare(kind)
    work.start(2)
    with work.through("work queue missing when a delay ends", within=STALLS_SECONDS), work.quiet():
        strand(work, 5)
        work.delete(QUEUE)
        eventually(lambda: work.vhost.depth(LAST_QUEUE) == (0, 5))
        work.declare(kind)


@pytest.mark.nightly
@pytest.mark.timeout(STALLS_SECONDS + 120)
@KINDS
def test_delayed_messages_survive_full_work_queue(work: Work, kind: QueueType) -> None:
    work.declare(kind, max_length=10)
    work.publish_until_refused()
    strand(work, 5)
    eventually(lambda: work.vhost.depth(LAST_QUEUE) == (0, 5))
    work.start(1)
    work.balance("work queue full when a delay ends", time.monotonic(), STALLS_SECONDS, duplicates=False)


def strand(work: Work, count: int) -> None:
    """Messages that wait for the end of their delay, as a worker leaves them there."""
    work.publish_delayed(*({"id": f"delayed {n}"} for n in range(count)))
    eventually(lambda: work.vhost.depth(DELAY_QUEUE).ready == count)


@pytest.mark.nightly
@pytest.mark.timeout(STALLS_SECONDS + 120)
def test_dead_letters_survive_missing_dead_letter_queue(work: Work) -> None:
    work.declare(limit=2)
    work.start(2)
    with work.through("dead-letter queue missing at the delivery limit", within=STALLS_SECONDS):
        with work.quiet():
            work.delete(DEAD)
            work.publish({"id": "poison", "do": "die"})
            eventually(lambda: given_up(work), 60)
        work.declare(limit=2)
    assert work.ledger.dead["poison"] == 1


def given_up(work: Work) -> bool:
    """Whether the only message is in RabbitMQ's own hands: in those of a worker it would have killed it by now."""
    work.replace_dead()
    held = work.vhost.depth(QUEUE) == (0, 1)
    return held and time.monotonic() - work.last_death > KILLS_WITHIN_SECONDS


@pytest.mark.slow
@KINDS
def test_message_held_by_frozen_operator_is_redelivered(work: Work, kind: QueueType) -> None:
    """RabbitMQ redelivers its message after missed heartbeats."""
    work.declare(kind)
    with frozen_bell(work.vhost.url, QUEUE):
        work.publish(*({"id": number} for number in range(20)))
        eventually(lambda: work.vhost.depth(QUEUE) == (19, 1))
        work.start(1)
        fault = "operator frozen while it holds a ring"
        work.balance(fault, time.monotonic(), within=60, duplicates=False)


@pytest.mark.slow
@KINDS
def test_work_survives_queue_recreated_as_another_type(work: Work, kind: QueueType) -> None:
    other = QueueType.CLASSIC if kind is QueueType.QUORUM else QueueType.QUORUM
    work.declare(kind)
    work.start(2)
    with work.through("queue recreated with another type", within=60):
        for then in (other, kind):
            with work.quiet():
                work.delete(QUEUE)
                work.declare(then)
            work.await_done(20)


@KINDS
async def test_twenty_rings_do_not_count_against_a_message(work: Work, kind: QueueType) -> None:
    """Before RabbitMQ 4.3 each ring counts as a delivery, and the limit allows for them."""
    work.declare(kind, delivery_limit=1)
    async with probe(work.vhost.url) as broker:
        await broker.ready()
        work.publish({"id": "rung", "do": "die once"})
        for rings in range(1, WAKE_ALLOWANCE + 1):
            await broker.install_doorbell(QUEUE)
            await until(lambda rings=rings: len(broker.told.rings) == rings)
    [worker] = work.start(1, "--concurrency", "1", wait=False)
    assert worker.wait() == 70
    over = time.monotonic()
    work.replace_dead()
    work.balance("twenty rings in a row, then a killed worker", over, within=60)
    assert work.ledger.done == {"rung": 1}, work.ledger


@pytest.mark.nightly
@pytest.mark.timeout(STALLS_SECONDS + 120)
async def test_delay_queue_with_hidden_messages_is_not_deleted(work: Work) -> None:
    """Its messages have expired while the work queue was missing: a passive declaration counts none of them."""
    work.declare()
    strand(work, 5)
    work.delete(QUEUE)
    eventually(lambda: work.vhost.depth(LAST_QUEUE) == (0, 5))
    async with finalizer(work.vhost) as (under_test, cluster):

        async def waits_for_them() -> bool:
            assert await under_test.finalize(deleted("DeleteIfEmpty")) is not None, told(cluster)
            return work.vhost.depth(QUEUE).ready == 5

        await until(waits_for_them, STALLS_SECONDS)
    over = time.monotonic()
    work.start(1)
    work.balance("deletion of a delay queue that looks empty", over, within=60, duplicates=False)
