"""The tokens of rate limits: published while they are used, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.operator.test_limits import queue_declared
from tests.support.brokers import channel_of, probe
from tests.support.deletion import deleted, finalizer, let_go
from tests.support.passes import KEY, api, operator, workqueue
from tests.support.rabbitmq import Depth, VirtualHost, running
from tests.support.rates import NAME
from tests.support.wait import until
from workqueue.contract.topology import RateLimit
from workqueue_operator.api import workqueue as api_model
from workqueue_operator.broker.connection import Broker
from workqueue_operator.broker.rates import RateFeeder
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.store import Key

LIMIT = RateLimit(NAME, 100, 5)


class Counting:
    """A broker that counts the tokens that are published."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.published = 0

    async def publish_tokens(self, queue: str, body: bytes, count: int) -> int:
        self.published += count
        return await self.broker.publish_tokens(queue, body, count)


def rated(**limits: Any) -> dict[str, Any]:
    body: dict[str, Any] = workqueue()
    body["metadata"]["resourceVersion"] = "2"
    body["spec"]["limits"] = {"ratePerSecond": 100, "burst": 5, **limits}
    return body


async def test_queue_is_filled_with_the_burst(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker:
        await broker.ready()
        feeder = RateFeeder(lambda: True, lambda _: None)
        await feeder.ensure(KEY, LIMIT, broker, is_wanted=False)

        await until(lambda: every_vhost.depth(NAME) == Depth(5, 0))

        await feeder.stop()


async def test_full_queue_gets_one_refused_token_while_it_is_used(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker, channel_of(vhost) as channel:
        await broker.ready()
        counting = Counting(broker)
        channel.queue_declare(NAME, durable=True, arguments=dict(LIMIT.queue.arguments))
        feeder = RateFeeder(lambda: True, lambda _: None)
        feeder.feed(KEY, LIMIT, counting, is_wanted=True)
        await until(lambda: vhost.depth(NAME) == Depth(5, 0))

        channel.basic_get(NAME, auto_ack=True)

        await until(lambda: counting.published > 6)
        await until(lambda: vhost.depth(NAME) == Depth(5, 0))
        await feeder.stop()


async def test_process_that_no_longer_leads_publishes_no_token(vhost: VirtualHost) -> None:
    leads = [True]
    async with probe(vhost.url) as broker:
        await broker.ready()
        counting = Counting(broker)
        feeder = RateFeeder(lambda: leads[0], lambda _: None)
        await feeder.ensure(KEY, LIMIT, broker, is_wanted=True)
        await until(lambda: vhost.depth(NAME).ready > 0)

        leads[0] = False
        feeder.feed(KEY, LIMIT._replace(per_second=1), counting, is_wanted=True)
        await until(
            lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("tokens ")]
        )

        assert counting.published == 0


@pytest.mark.parametrize("burst", [3, 8], ids=["lower", "higher"])
async def test_changed_burst_makes_another_queue(vhost: VirtualHost, burst: int) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        feeder = RateFeeder(lambda: True, lambda _: None)
        await feeder.ensure(KEY, LIMIT, broker, is_wanted=True)

        await feeder.ensure(KEY, LIMIT._replace(burst=burst), broker, is_wanted=True)

        await until(lambda: vhost.depth(NAME) == Depth(burst, 0))
        await feeder.stop()


async def test_deleted_queue_is_told_to_its_workqueues(vhost: VirtualHost) -> None:
    asked: list[Key] = []
    async with probe(vhost.url) as broker, channel_of(vhost) as channel:
        await broker.ready()
        feeder = RateFeeder(lambda: True, asked.append)
        await feeder.ensure(KEY, LIMIT, broker, is_wanted=True)
        await until(lambda: vhost.depth(NAME) == Depth(5, 0))

        channel.queue_delete(NAME)

        await until(lambda: asked == [KEY])
        await feeder.ensure(KEY, LIMIT, broker, is_wanted=True)
        await until(lambda: vhost.depth(NAME) == Depth(5, 0))
        await feeder.stop()


async def test_refused_tokens_are_told_to_its_workqueues(vhost: VirtualHost) -> None:
    asked: list[Key] = []
    vhost.broker.add_user("narrow", "secret", vhost.name, configure=".*", write="^jobs$", read=".*")
    try:
        async with probe(vhost.broker.url_of(vhost.name, "narrow", "secret")) as broker:
            await broker.ready()
            feeder = RateFeeder(lambda: True, asked.append)
            await feeder.ensure(KEY, LIMIT, broker, is_wanted=True)

            await until(lambda: asked == [KEY])

            with pytest.raises(
                ReconcileError, match=r"no permission for tokens for queue 'jobs\.limit\.starts'"
            ):
                await feeder.ensure(KEY, LIMIT, broker, is_wanted=True)
            await feeder.stop()
    finally:
        vhost.broker.delete_user("narrow")


async def test_pass_publishes_tokens_until_the_limit_is_removed(vhost: VirtualHost) -> None:
    cluster = api(vhost.url)
    cluster.answer("PATCH", "/workqueues/jobs/status", rated())
    async with operator(cluster, "team") as passes:
        passes.parts.store.put_workqueue(rated())
        await passes.run()
        await until(lambda: vhost.depth(NAME) == Depth(5, 0))
        applied = [request.body for request in cluster.asked if request.path.endswith("/jobs-worker")]
        [container] = applied[0]["spec"]["template"]["spec"]["containers"]
        assert {"name": "WORKQUEUE_LIMIT_RATE_QUEUE", "value": NAME} in container["env"]

        unlimited = workqueue()
        unlimited["metadata"]["resourceVersion"] = "3"
        passes.parts.store.put_workqueue(unlimited)
        await passes.run()

        assert passes.parts.rates.fed == 0


async def test_limit_is_wanted_while_a_worker_of_another_queue_waits_for_tokens(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[bool] = []

    async def ensure(_feeder: RateFeeder, *_: object, is_wanted: bool) -> None:
        wanted.append(is_wanted)

    monkeypatch.setattr(RateFeeder, "ensure", ensure)
    cluster = api(vhost.url)
    cluster.answer("PATCH", "/workqueues/jobs/status", rated())
    async with operator(cluster, "team") as passes, channel_of(vhost) as channel:
        passes.parts.store.put_workqueue(rated())
        await passes.run()
        channel.queue_declare(NAME, durable=True, arguments=dict(LIMIT.queue.arguments))
        channel.basic_consume(NAME, lambda *_: None)
        handle = passes.parts.brokers.known(KEY)
        assert handle is not None
        await handle.poller.ask(handle.poller.watch(KEY, NAME))

        await passes.run()

    assert wanted == [False, True]


async def test_forbidden_tokens_of_a_rate_are_a_condition(vhost: VirtualHost) -> None:
    names = r"jobs(\.dead)?"
    vhost.broker.add_user("narrow", "secret", vhost.name, configure=f"^{names}$", write=".*", read=".*")
    cluster = api(vhost.broker.url_of(vhost.name, "narrow", "secret"))
    cluster.answer("PATCH", "/workqueues/jobs/status", rated())
    try:
        async with operator(cluster, "team") as passes:
            passes.parts.store.put_workqueue(rated())
            await passes.run()
            await until(lambda: (found := queue_declared(cluster)) and found.reason == "LimitUnavailable")
        found = queue_declared(cluster)
        assert found is not None
        assert NAME in found.message
    finally:
        vhost.broker.delete_user("narrow")


async def test_queue_of_a_rate_is_deleted_with_its_workqueue(vhost: VirtualHost) -> None:
    leaving = deleted("Delete")
    rate = api_model.Limits(rate_per_second=100)
    leaving = leaving.model_copy(update={"spec": leaving.spec.model_copy(update={"limits": rate})})
    async with channel_of(vhost) as channel:
        channel.queue_declare(NAME, durable=True, arguments=dict(LIMIT.queue.arguments))

    async with finalizer(vhost) as (made, cluster):

        async def is_finalized() -> bool:
            await made.finalize(leaving)
            return let_go(cluster)

        await until(is_finalized)

    assert not vhost.exists(NAME)


@pytest.mark.slow
async def test_tokens_are_published_again_after_rabbitmq_was_killed() -> None:
    with running(management=False) as server:
        async with probe(server.url) as broker:
            await broker.ready()
            feeder = RateFeeder(lambda: True, lambda _: None)
            await feeder.ensure(KEY, LIMIT, broker, is_wanted=True)
            await until(lambda: server.depth(NAME) == Depth(5, 0))
            server.save_queues()

            server.restart(kill=True)

            await until(lambda: server.depth(NAME) == Depth(5, 0), 60)
            await feeder.stop()
