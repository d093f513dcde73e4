"""Queues that go with their WorkQueue: all of them, and with DeleteIfEmpty not before all are empty."""

from __future__ import annotations

import pytest

from tests.support.brokers import channel_of, put, until
from tests.support.deletion import ASKED, EARLIER, QUEUES, SPEC, deleted, finalizer, let_go, told
from tests.support.rabbitmq import VirtualHost
from workqueue_worker.topology import dead_letter_queue, delay_queue


async def declare(vhost: VirtualHost) -> None:
    async with channel_of(vhost) as channel:
        channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum"})
        others = [
            dead_letter_queue("jobs"),
            *(delay_queue("jobs", delay) for delay in (SPEC, ASKED, EARLIER)),
        ]
        for queue in others:
            channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))


def left(vhost: VirtualHost) -> list[str]:
    return [name for name in QUEUES if vhost.exists(name)]


async def test_delete_takes_every_delay_queue_whose_name_is_known(every_vhost: VirtualHost) -> None:
    await declare(every_vhost)
    async with finalizer(every_vhost) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(every_vhost) == [f"jobs.retry.{EARLIER}s"]
        assert let_go(cluster)


async def test_with_the_management_api_delete_takes_all_of_them(every_vhost: VirtualHost) -> None:
    await declare(every_vhost)
    uri = {"management-uri": every_vhost.broker.management_url}
    async with finalizer(every_vhost, **uri) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(every_vhost) == []
        assert let_go(cluster)


async def test_a_management_api_that_is_away_holds_nothing_up_and_is_told(vhost: VirtualHost) -> None:
    await declare(vhost)
    uri = {"management-uri": f"http://127.0.0.1:{vhost.broker.port}"}
    async with finalizer(vhost, **uri) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(vhost) == [f"jobs.retry.{EARLIER}s"]
        assert let_go(cluster)
        assert "may be left" in told(cluster)


@pytest.mark.parametrize("where", [*QUEUES[:4], f"jobs.retry.{EARLIER}s"])
async def test_delete_if_empty_waits_for_a_message_in_any_of_them(vhost: VirtualHost, where: str) -> None:
    await declare(vhost)
    uri = {"management-uri": vhost.broker.management_url}
    async with (
        finalizer(vhost, hidden_seconds=0, **uri) as (under_test, cluster),
        channel_of(vhost) as channel,
    ):
        put(channel, where, b"x")
        assert await under_test.finalize(deleted("DeleteIfEmpty")) is not None
        assert left(vhost) == QUEUES
        assert not let_go(cluster)
        assert f"{where!r} is in use (1 waiting" in told(cluster)
        channel.queue_purge(where)
        assert await under_test.finalize(deleted("DeleteIfEmpty")) is None
        assert left(vhost) == []
        assert let_go(cluster)


async def test_a_delay_queue_that_looks_empty_is_not_deleted_before_nothing_can_be_hidden_in_it(
    every_vhost: VirtualHost,
) -> None:
    """Its message has expired while the work queue was missing: no passive declaration counts it."""
    await declare(every_vhost)
    delay = f"jobs.retry.{SPEC}s"
    async with finalizer(every_vhost) as (under_test, cluster), channel_of(every_vhost) as channel:
        put(channel, delay, b"x")
        channel.queue_delete("jobs")
        await until(lambda: every_vhost.depth(delay) == (0, 1))
        assert await under_test.finalize(deleted("DeleteIfEmpty")) is not None
        assert left(every_vhost) == QUEUES, "the work queue is back, so that it can return"
        assert not let_go(cluster)
        assert f"{delay!r}" in told(cluster)
