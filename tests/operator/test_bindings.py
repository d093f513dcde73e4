"""Bindings of a work queue: created as the spec asks, and removed when it no longer does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.brokers import Probe, channel_of, probe, take_all
from tests.support.fakecluster import FakeCluster, Request
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from tests.support.workqueue import workqueue
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker import declare
from workqueue_operator.broker.bindings import Bindings
from workqueue_operator.kube.store import Store
from workqueue_operator.names import ANNOTATION_BINDINGS

Exchange = dict[str, Any]
IMAGES: Exchange = {"name": "images", "type": "Topic"}


class Api:
    """An API server that keeps the annotations of one WorkQueue across restarts of the operator."""

    def __init__(self) -> None:
        self.annotations: dict[str, str] = {}
        self.writes = 0
        self._cluster = FakeCluster()
        self._cluster.answer("PATCH", "/workqueues/jobs", self._patch)

    async def declare(self, exchange: Exchange | None, broker: Probe) -> None:
        """Run the pass of an operator that has just started."""
        seen = self.workqueue(exchange)
        bindings = Bindings(self._cluster, Store(lambda _: None))
        await bindings.announce(seen, broker.binding.display)
        await declare.declare(seen, broker)
        await bindings.remove_unwanted(seen, broker)

    def workqueue(self, exchange: Exchange | None) -> WorkQueue:
        return workqueue(queue={"exchange": exchange}, metadata={"annotations": self.annotations})

    def _patch(self, request: Request) -> dict[str, Any]:
        self.writes += 1
        for name, text in request.body["metadata"]["annotations"].items():
            self.annotations.pop(name, None)
            if text is not None:
                self.annotations[name] = text
        body = self.workqueue(None).model_dump(mode="json", by_alias=True)
        body["metadata"]["resourceVersion"] = str(self.writes)
        return body


async def routed(vhost: VirtualHost, *keys: str) -> list[bytes]:
    """The keys whose messages reach the queue."""
    async with channel_of(vhost) as channel:
        for key in keys:
            channel.basic_publish("images", key, key.encode())
        return [body for body, _ in take_all(channel, "jobs")]


async def test_removed_routing_key_is_unbound_and_foreign_binding_kept(every_vhost: VirtualHost) -> None:
    api = Api()
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        await api.declare(IMAGES | {"routingKeys": ["small", "large"]}, broker)
        channel.queue_bind("jobs", "images", "theirs")
        assert await routed(every_vhost, "small", "large", "theirs") == [b"small", b"large", b"theirs"]

        await api.declare(IMAGES | {"routingKeys": ["large", "new"]}, broker)

        assert await routed(every_vhost, "small", "large", "theirs", "new") == [b"large", b"theirs", b"new"]
        written = api.writes
        await api.declare(IMAGES | {"routingKeys": ["large", "new"]}, broker)
        assert api.writes == written


async def test_removed_exchange_is_unbound(vhost: VirtualHost) -> None:
    api = Api()
    async with probe(vhost.url) as broker, channel_of(vhost) as channel:
        await broker.ready()
        await api.declare(IMAGES | {"routingKeys": ["small"]}, broker)
        channel.queue_bind("jobs", "images", "theirs")

        await api.declare(None, broker)

        assert await routed(vhost, "small", "theirs") == [b"theirs"]
        assert ANNOTATION_BINDINGS not in api.annotations


async def test_binding_is_recorded_before_it_is_created(vhost: VirtualHost) -> None:
    """An operator that dies in between still recognizes the binding as its own."""
    api = Api()
    async with probe(vhost.url) as broker:
        await broker.ready()
        seen = api.workqueue(IMAGES | {"routingKeys": ["small"]})
        await Bindings(api._cluster, Store(lambda _: None)).announce(seen, broker.binding.display)
        await declare.declare(seen, broker)

        await api.declare(IMAGES | {"routingKeys": ["large"]}, broker)

        assert await routed(vhost, "small", "large") == [b"large"]


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", '{"images": 7}'])
async def test_edited_record_removes_no_binding(vhost: VirtualHost, text: str) -> None:
    api = Api()
    async with probe(vhost.url) as broker:
        await broker.ready()
        await api.declare(IMAGES | {"routingKeys": ["small"]}, broker)
        api.annotations[ANNOTATION_BINDINGS] = text

        await api.declare(IMAGES | {"routingKeys": ["large"]}, broker)

        assert await until(lambda: routed(vhost, "small", "large")) == [b"small", b"large"]


async def test_record_of_an_earlier_release_is_read(vhost: VirtualHost) -> None:
    api = Api()
    async with probe(vhost.url) as broker:
        await broker.ready()
        await api.declare(IMAGES | {"routingKeys": ["small", "large"]}, broker)
        api.annotations[ANNOTATION_BINDINGS] = '{"images": ["large", "small"]}'

        await api.declare(IMAGES | {"routingKeys": ["large"]}, broker)

        assert await routed(vhost, "small", "large") == [b"large"]


async def test_moved_workqueue_unbinds_only_what_the_operator_bound_there(vhost: VirtualHost) -> None:
    api = Api()
    both, large = (IMAGES | {"routingKeys": keys} for keys in (["small", "large"], ["large"]))
    with vhost.broker.new_vhost() as other:
        async with probe(vhost.url) as first, probe(other.url) as second, channel_of(other) as channel:
            await first.ready()
            await second.ready()
            await api.declare(both, first)
            await declare.declare(api.workqueue(large), second)
            channel.queue_bind("jobs", "images", "small")

            await api.declare(large, second)
            assert await routed(other, "small", "large") == [b"small", b"large"]

            await api.declare(large, first)
            assert await routed(vhost, "small", "large") == [b"large"]
