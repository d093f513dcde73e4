"""The tokens of limits: made once, made again when some are missing, and deleted; on a real RabbitMQ."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.brokers import channel_of, probe
from tests.support.deletion import deleted, finalizer, let_go
from tests.support.fakecluster import FakeCluster
from tests.support.passes import KEY, Passes, api, operator, workqueue
from tests.support.rabbitmq import Depth, VirtualHost, running
from tests.support.wait import until
from workqueue.contract.topology import Limit
from workqueue_operator.api import workqueue as api_model
from workqueue_operator.api.workqueue import Condition, WorkQueueStatus
from workqueue_operator.broker.limits import Limits
from workqueue_operator.kube.store import Store

LIMIT = Limit("jobs.limit.handlers", 3)


def queue_declared(cluster: FakeCluster) -> Condition | None:
    written = [request.body for request in cluster.asked if request.path.endswith("/jobs/status")]
    return WorkQueueStatus.model_validate(written[-1]["status"] if written else {}).condition("QueueDeclared")


def limited(**limits: Any) -> dict[str, Any]:
    body: dict[str, Any] = workqueue()
    body["metadata"]["resourceVersion"] = "2"
    body["spec"]["limits"] = {"concurrency": 3, **limits}
    return body


async def test_tokens_are_made_once(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker:
        await broker.ready()
        limits = Limits()

        await asyncio.gather(limits.ensure(LIMIT, broker), limits.ensure(LIMIT, broker))
        await Limits().ensure(LIMIT, broker)

        assert every_vhost.depth(LIMIT.name) == Depth(3, 0)


@pytest.mark.parametrize("event", ["queue deleted", "filling interrupted", "token taken"])
async def test_missing_tokens_are_made_again(vhost: VirtualHost, event: str) -> None:
    async with probe(vhost.url) as broker, channel_of(vhost) as channel:
        await broker.ready()
        await Limits().ensure(LIMIT, broker)
        if event == "queue deleted":
            channel.queue_delete(LIMIT.name)
        else:
            channel.basic_get(LIMIT.name, auto_ack=True)
        if event == "filling interrupted":
            channel.exchange_delete(LIMIT.name)

        await Limits().ensure(LIMIT, broker)

        assert vhost.depth(LIMIT.name) == Depth(3, 0)


@pytest.mark.parametrize("concurrency", [2, 4], ids=["lower", "higher"])
async def test_changed_limit_makes_other_tokens(vhost: VirtualHost, concurrency: int) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        await Limits().ensure(LIMIT, broker)

        await Limits().ensure(LIMIT._replace(concurrency=concurrency), broker)

        assert vhost.depth(LIMIT.name) == Depth(concurrency, 0)


async def test_held_tokens_are_not_made_again(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker, channel_of(vhost) as channel:
        await broker.ready()
        await Limits().ensure(LIMIT, broker)
        channel.basic_qos(prefetch_count=1)
        for _ in range(2):
            channel.basic_consume(LIMIT.name, lambda *_: None)
        await until(lambda: vhost.depth(LIMIT.name) == Depth(1, 2))

        await Limits().ensure(LIMIT, broker)

        assert vhost.depth(LIMIT.name) == Depth(1, 2)


@pytest.mark.slow
async def test_tokens_survive_a_killed_broker() -> None:
    with running(management=False) as server:
        async with probe(server.url) as broker:
            await broker.ready()
            await Limits().ensure(LIMIT, broker)
        server.save_queues()

        server.restart(kill=True)

        assert server.depth(LIMIT.name) == Depth(3, 0)


async def poll(passes: Passes) -> None:
    """Let the poller look at the tokens now."""
    handle = passes.parts.brokers.known(KEY)
    assert handle is not None
    await handle.poller.ask(handle.poller.watch(KEY, LIMIT.name))


async def test_pass_makes_tokens_and_makes_deleted_ones_again(vhost: VirtualHost) -> None:
    cluster = api(vhost.url)
    cluster.answer("PATCH", "/workqueues/jobs/status", limited())
    async with operator(cluster, "team") as passes, channel_of(vhost) as channel:
        passes.parts.store.put_workqueue(limited())
        await passes.run()
        assert vhost.depth(LIMIT.name) == Depth(3, 0)

        channel.queue_delete(LIMIT.name)
        await until(lambda: not vhost.exists(LIMIT.name))
        await poll(passes)
        await passes.run()

        assert vhost.depth(LIMIT.name) == Depth(3, 0)
        applied = [request.body for request in cluster.asked if request.path.endswith("/jobs-worker")]
        [container] = applied[0]["spec"]["template"]["spec"]["containers"]
        assert {"name": "WORKQUEUE_LIMIT_QUEUE", "value": LIMIT.name} in container["env"]


async def test_forbidden_tokens_are_a_condition_and_scaling_goes_on(vhost: VirtualHost) -> None:
    names = r"jobs(\.dead)?"
    vhost.broker.add_user("narrow", "secret", vhost.name, configure=f"^{names}$", write=".*", read=".*")
    cluster = api(vhost.broker.url_of(vhost.name, "narrow", "secret"))
    cluster.answer("PATCH", "/workqueues/jobs/status", limited())
    try:
        async with operator(cluster, "team") as passes:
            passes.parts.store.put_workqueue(limited())
            due = await passes.run()
            await until(lambda: (found := queue_declared(cluster)) and found.reason == "LimitUnavailable")
        found = queue_declared(cluster)
        assert found is not None
        assert LIMIT.name in found.message
        assert due.after is not None
        assert due.after <= 15
    finally:
        vhost.broker.delete_user("narrow")


async def test_group_is_deleted_with_its_last_workqueue(vhost: VirtualHost) -> None:
    name = "limit.team.shared.handlers"
    leaving, other = deleted("Delete"), limited(group="shared")
    shared = api_model.Limits(concurrency=3, group="shared")
    leaving = leaving.model_copy(update={"spec": leaving.spec.model_copy(update={"limits": shared})})
    other["metadata"] |= {"name": "mail", "uid": "uid-2"}
    store = Store(lambda _: None)
    store.put_workqueue(other)
    async with probe(vhost.url) as broker:
        await broker.ready()
        await Limits().ensure(Limit(name, 3), broker)
    async with finalizer(vhost, store=store) as (made, cluster):
        await until(lambda: _finalized(made, leaving, cluster))
    assert vhost.exists(name)

    async with finalizer(vhost) as (made, cluster):
        await until(lambda: _finalized(made, leaving, cluster))
    assert not vhost.exists(name)


async def _finalized(made: Any, leaving: Any, cluster: FakeCluster) -> bool:
    await made.finalize(leaving)
    return let_go(cluster)
