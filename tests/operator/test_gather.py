"""One gathering for a queue of a real RabbitMQ, with responding and silent workers on the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from tests.support.rabbitmq import VirtualHost
from tests.support.snapshots import Deployments
from tests.support.workqueue import workqueue
from workqueue.contract.binding import from_url
from workqueue.contract.topology import QueueSettings, plan
from workqueue_operator.broker.management import Management
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.clock import SystemClock
from workqueue_operator.kube.views import PodView
from workqueue_operator.scaling.decide import Depth
from workqueue_operator.scaling.depth import QueueReadings, busy_pods, judge, messages_in_stopping_workers
from workqueue_operator.scaling.gather import Connection, Gatherer, GatherState
from workqueue_operator.scaling.place import Place
from workqueue_operator.workers.client import Workers

OURS = workqueue()


@dataclass
class Site:
    """A broker with the queue jobs, and workers by their loopback address.

    Attributes:
        busy: messages in handlers, by address; a worker that is missing here does not respond.
    """

    url: str
    handle: BrokerHandle
    workers: Workers
    management: Management
    busy: dict[str, int] = field(default_factory=dict)

    async def look(self, *pods: PodView) -> QueueReadings:
        gatherer = Gatherer(Deployments(pods), self.workers, self.management, SystemClock())
        place = Place(SystemClock(), self.handle.broker, lambda: None)
        connection = Connection(self.handle, from_url(self.url), place)
        seen, _ = await gatherer.gather(OURS, connection, GatherState(), ring=False)
        return seen.readings


@pytest.fixture
async def site(vhost: VirtualHost) -> AsyncIterator[Site]:
    async def status(request: web.Request) -> web.Response:
        busy = made.busy.get(str(request.url.host))
        if busy is None:
            await asyncio.Event().wait()
        return web.json_response({"slots": 1, "busy": busy, "consuming": False})

    app = web.Application()
    app.router.add_get("/status", status)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    port = runner.addresses[0][1]
    await web.TCPSite(runner, "127.0.0.2", port).start()
    workers, management = Workers(port), Management()
    brokers = BrokerPool(lambda _: None, lambda _: None, 60, 60)
    handle = await brokers.handle(OURS.key, from_url(vhost.url))
    await handle.broker.ready()
    await handle.broker.declare(plan(QueueSettings("jobs")))
    made = Site(vhost.url, handle, workers, management)
    yield made
    await brokers.close()
    await management.close()
    await workers.close()
    await runner.cleanup()


def stopping(name: str, address: str) -> PodView:
    return PodView(name, f"uid-{name}", address, False, True, True, "h", False, None)


async def test_message_in_stopping_worker_is_reported_outside_the_depth(site: Site) -> None:
    site.busy = {"127.0.0.1": 1, "127.0.0.2": 0}

    answers = await site.look(stopping("busy", "127.0.0.1"), stopping("idle", "127.0.0.2"))

    depth = judge(answers, "jobs")
    assert depth == Depth(0, 0, 0)
    assert messages_in_stopping_workers(answers) == 1
    assert busy_pods(answers, depth, 0) == 1


async def test_stopping_worker_with_a_closed_port_has_ended(site: Site) -> None:
    answers = await site.look(stopping("ended", "127.0.0.3"))

    assert busy_pods(answers, judge(answers, "jobs"), 0) == 0


async def test_stopping_worker_that_does_not_answer_is_not_counted_as_idle(site: Site) -> None:
    answers = await site.look(stopping("silent", "127.0.0.1"))

    assert busy_pods(answers, judge(answers, "jobs"), 0) is None
