"""Requests to RabbitMQ's management API, on each supported version."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.brokers import channel_of, put
from tests.support.ports import free_port
from tests.support.rabbitmq import Broker as Server
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue.contract.binding import Binding, from_url
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.broker import management as managing
from workqueue_operator.broker.management import Management

ODD = "a/b %2F?#"
"""A name with every character that a URL must escape."""


@pytest.fixture
async def management() -> AsyncIterator[Management]:
    made = Management()
    yield made
    await made.close()


@pytest.fixture
def odd_vhost(every_rabbitmq: Server) -> Iterator[VirtualHost]:
    with every_rabbitmq.new_vhost(ODD) as made:
        yield made


def binding_of(vhost: VirtualHost) -> Binding:
    return from_url(vhost.url)._replace(management_uri=vhost.broker.management_url)


@pytest.mark.slow
async def test_management_api_returns_exact_unacknowledged_count(
    odd_vhost: VirtualHost, management: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managing, "FRESH", 0.0)
    binding = binding_of(odd_vhost)
    async with channel_of(odd_vhost) as channel:
        channel.queue_declare(ODD, durable=True, arguments={"x-queue-type": "quorum"})
        put(channel, ODD, b"1", b"2", b"3")
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume(ODD, lambda *_: None)

        async def counted() -> bool:
            return await management.unacknowledged(binding, ODD) == 2

        await until(counted)


async def test_management_api_lists_existing_delay_queues(
    odd_vhost: VirtualHost, management: Management
) -> None:
    async with channel_of(odd_vhost) as channel:
        theirs = (f"{ODD}x.retry.1s", f"{ODD}.retry.1", f"{ODD}.retry.1s.dead", f"x{ODD}.retry.1s")
        for name in (ODD, f"{ODD}.dead", f"{ODD}.retry.1s", f"{ODD}.retry.77s", *theirs):
            channel.queue_declare(name, durable=True)
    found = await management.delay_queues(binding_of(odd_vhost), ODD)
    assert isinstance(found, list)
    assert sorted(found) == [f"{ODD}.retry.1s", f"{ODD}.retry.77s"]


@pytest.mark.parametrize("mistake", ["no-listener", "wrong-password", "not-the-api", "missing-queue"])
async def test_unanswered_management_request_is_unknown_and_never_zero(
    vhost: VirtualHost, management: Management, mistake: str
) -> None:
    right = binding_of(vhost)
    wrong = {
        "no-listener": right._replace(management_uri=f"http://127.0.0.1:{free_port()}"),
        "wrong-password": right._replace(password="wrong"),
        "not-the-api": right._replace(management_uri=f"http://127.0.0.1:{vhost.broker.port}"),
        "missing-queue": right,
    }[mistake]
    count = await management.unacknowledged(wrong, "jobs")
    assert isinstance(count, Unknown)
    assert count.reason is Reason.UNACKNOWLEDGED_UNKNOWN
    assert "wrong" not in count.message
    if mistake != "missing-queue":
        assert isinstance(await management.delay_queues(wrong, "jobs"), Unknown)


async def test_unacknowledged_count_without_management_address_is_unknown(
    vhost: VirtualHost, management: Management
) -> None:
    count = await management.unacknowledged(from_url(vhost.url), "jobs")
    assert isinstance(count, Unknown)
    assert "management-uri" in count.message


async def test_delay_queues_are_found_beside_thousands_of_others(
    vhost: VirtualHost, management: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managing, "PAGE", 3)
    wanted = sorted(f"jobs.retry.{seconds}s" for seconds in range(1, 9))
    async with channel_of(vhost) as channel:
        for name in (*wanted, *(f"mail.retry.{seconds}s" for seconds in range(1, 9)), "xjobs.retry.1s"):
            channel.queue_declare(name, durable=True)

    found = await management.delay_queues(binding_of(vhost), "jobs")

    assert isinstance(found, list)
    assert sorted(found) == wanted
