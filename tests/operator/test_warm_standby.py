"""A standby keeps the connections open that its first passes as leader need, and does nothing else with them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.fakecluster import FakeCluster, Request
from tests.support.rabbitmq import Broker as Server
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from tests.support.workqueue import workqueue
from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.broker.warm import WarmBrokers
from workqueue_operator.kube.ownership import Ownership
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Key, Store

KEY: Key = ("team", "jobs")


class Standby:
    """A standby that knows one WorkQueue, and the Secret of its broker."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.woken: list[Key] = []
        self.version = 0
        cluster = FakeCluster()
        cluster.answer("GET", "/secrets/", self._secret)
        self.store = Store(lambda _: None)
        self.secrets = Secrets(cluster, self.woken.append)
        self.brokers = BrokerPool(self.woken.append, self.woken.append, 0.02, 0.02)
        ownership = Ownership(cluster, "ops/me", ["team"], lambda _: None, list)
        self.warm = WarmBrokers(self.store, ownership, self.secrets, self.brokers)
        self.put()

    def put(self, **spec: Any) -> None:
        body = workqueue(**spec).model_dump(by_alias=True, mode="json", exclude_none=True)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.store.put_workqueue(body)

    async def connected(self) -> None:
        await self.warm.once()
        (handle,) = self.brokers
        await handle.broker.ready()

    def _secret(self, _: Request) -> dict[str, Any]:
        return {"data": {"uri": base64.b64encode(self.url.encode()).decode()}}


@asynccontextmanager
async def standby(url: str) -> AsyncIterator[Standby]:
    made = Standby(url)
    try:
        yield made
    finally:
        await made.brokers.close()


async def test_standby_connects_and_neither_declares_nor_consumes(vhost: VirtualHost) -> None:
    async with standby(vhost.url) as made:
        await made.connected()

        assert not vhost.exists("jobs")
        assert channels_in(vhost) == 0


async def test_leader_takes_over_the_open_connection(vhost: VirtualHost) -> None:
    async with standby(vhost.url) as made:
        await made.connected()
        binding = await made.secrets.binding("team", "rabbitmq")

        await made.warm.hand_over()

        handle = await made.brokers.handle(KEY, binding)
        assert handle.broker.connected
        assert handle.broker.generation == 1


async def test_connection_of_a_deleted_workqueue_is_closed(vhost: VirtualHost) -> None:
    async with standby(vhost.url) as made:
        await made.connected()
        made.store.drop("workqueues", made.store.workqueues[KEY])

        await made.warm.hand_over()

        assert list(made.brokers) == []


async def test_standby_follows_a_changed_secret_and_a_suspension(
    vhost: VirtualHost, rabbitmq_43: Server
) -> None:
    with rabbitmq_43.new_vhost() as elsewhere:
        async with standby(vhost.url) as made:
            await made.connected()
            made.url = elsewhere.url
            made.secrets.forget("team", "rabbitmq")

            await made.connected()

            (handle,) = made.brokers
            assert handle.broker.binding.display.endswith(elsewhere.name)

            made.put(suspend=True)
            await made.warm.once()

            assert list(made.brokers) == []


async def test_unreadable_secret_of_one_workqueue_stops_no_other(vhost: VirtualHost) -> None:
    async with standby(vhost.url) as made:
        made.url = "no address"
        await made.warm.once()
        assert list(made.brokers) == []
        made.url = vhost.url
        made.secrets.forget("team", "rabbitmq")

        await made.connected()

        await until(lambda: next(iter(made.brokers)).broker.connected)


def channels_in(vhost: VirtualHost) -> int:
    """How many channels the connections to a virtual host have."""
    name = ",".join(map(str, vhost.name.encode()))
    found = f"[{{vhost, <<{name}>>}}] <- [catch rabbit_channel:info(C, [vhost])]"
    return int(vhost.broker.evaluate(f"length([C || C <- rabbit_channel:list_local(), {found}])"))
