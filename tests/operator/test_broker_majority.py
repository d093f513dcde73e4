"""One quorum queue without a majority beside many healthy ones, on three RabbitMQ nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.support.brokers import Probe, put
from tests.support.rabbitmq import DEFAULT, RELEASES, VirtualHost
from tests.support.rabbitmq_cluster import RabbitCluster, rabbit_cluster
from tests.support.wait import until
from tests.support.worker import Workers
from workqueue.contract.topology import Queue
from workqueue_operator.broker import confirmed, doorbell
from workqueue_operator.broker.confirmed import OwnMessage
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.kube.views import PodView
from workqueue_operator.scaling.depth import QueueReadings, is_implausible
from workqueue_operator.workers import client

HEALTHY = [f"healthy-{number}" for number in range(100)]

WAKE_SECONDS = 30.0
"""Far above the wake on a busy machine (printed; below 100 ms), far below the minutes of a blocked channel."""

SILENT_SECONDS = 5.0
"""A queue that has not answered for so long is silent. A healthy one answers within milliseconds."""

TURN_SECONDS = 2.0

_SERIES = [
    pytest.param(series, marks=() if series == DEFAULT else pytest.mark.nightly, id=f"RabbitMQ {series}")
    for series in RELEASES
]


@pytest.fixture(scope="module", params=_SERIES)
def cluster(request: pytest.FixtureRequest) -> Iterator[RabbitCluster]:
    """Three nodes."""
    with rabbit_cluster(request.param) as made:
        yield made


@pytest.fixture
def vhost(cluster: RabbitCluster) -> Iterator[VirtualHost]:
    """A virtual host of the test's own."""
    with cluster.nodes[0].new_vhost() as made:
        yield made


@pytest.fixture(autouse=True)
def _notices_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "ANSWER_SECONDS", SILENT_SECONDS)
    monkeypatch.setattr(confirmed, "TURN_SECONDS", TURN_SECONDS)


class Clocked(Probe):
    """A Broker that notes when each doorbell rings."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.ring_at: dict[str, float] = {}
        self._on_ring = self._note

    def _note(self, queue: str) -> None:
        self.told.rings.append(queue)
        self.ring_at[queue] = time.perf_counter()


@asynccontextmanager
async def clocked(vhost: VirtualHost) -> AsyncIterator[Clocked]:
    """A Broker, with all queues declared."""
    broker = Clocked(vhost.url)
    try:
        await broker.ready()
        for name in ("stuck", *HEALTHY):
            await broker.declare_queue(Queue(name, {"x-queue-type": "quorum"}))
        yield broker
    finally:
        await broker.close()


async def wakes(broker: Clocked, vhost: VirtualHost) -> None:
    """Wake the healthy queues in sequence."""
    found = []
    with vhost.connect() as connection:
        channel = connection.channel()
        for name in HEALTHY:
            published = time.perf_counter()
            await asyncio.to_thread(put, channel, name, b"x")
            await until(lambda name=name: name in broker.ring_at, WAKE_SECONDS)
            found.append(broker.ring_at[name] - published)
    found.sort()
    print(f"wake of {len(found)}: median {found[50] * 1000:.1f} ms, longest {found[-1] * 1000:.1f} ms")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_doorbell_on_queue_without_majority_silences_no_other_doorbell(
    cluster: RabbitCluster, vhost: VirtualHost
) -> None:
    async with clocked(vhost) as broker:
        with cluster.without_majority("stuck", vhost.name):
            attempts = await asyncio.gather(*(broker.install_doorbell(name) for name in ("stuck", *HEALTHY)))

            assert attempts == [False, *[True] * len(HEALTHY)]
            assert broker.doorbell_is_silent("stuck")
            await wakes(broker, vhost)
            assert not await broker.install_doorbell("stuck")

        await until(lambda: broker.install_doorbell("stuck"), seconds=120)
        assert not broker.doorbell_is_silent("stuck")
        assert broker.generation == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_doorbell_removal_on_queue_without_majority_silences_no_other(
    cluster: RabbitCluster, vhost: VirtualHost
) -> None:
    async with clocked(vhost) as broker:
        assert all(await asyncio.gather(*(broker.install_doorbell(name) for name in ("stuck", *HEALTHY))))
        with cluster.without_majority("stuck", vhost.name):
            broker.remove_doorbell("stuck")

            await wakes(broker, vhost)
            await until(lambda: broker.doorbell_is_silent("stuck"))

        counts = (
            "length(rabbit_amqqueue:consumers(element(2, rabbit_amqqueue:lookup(" + resource(vhost) + "))))"
        )
        await until(lambda: vhost.broker.evaluate(counts) == "0", seconds=120)
        assert broker.generation == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_messages_to_queue_without_majority_stop_those_of_no_other(
    cluster: RabbitCluster, vhost: VirtualHost
) -> None:
    async with clocked(vhost) as broker:
        with cluster.without_majority("stuck", vhost.name):
            stuck = [asyncio.create_task(broker.publish_in_turn(message_to("stuck"))) for _ in range(100)]

            async with asyncio.timeout(100 * TURN_SECONDS):
                await asyncio.gather(*(broker.publish_in_turn(message_to(name)) for name in HEALTHY))

            assert not any(task.done() for task in stuck)
        await asyncio.gather(*stuck)


@pytest.mark.slow
async def test_zeros_of_queue_without_majority_are_doubted_after_a_worker_was_asked_to_leave(
    cluster: RabbitCluster, vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(vhost.url, queue="stuck").wait_consuming()
    pod = PodView("a", "uid-a", "10.0.0.1", True, True, False, "h", False, None)

    with cluster.without_majority("stuck", vhost.name):
        await asyncio.to_thread(worker.retire)

        status = client._parse(worker.status())
        assert not status.consuming
        assert is_implausible(
            QueueReadings(counts=QueueCounts(0, 0, 0.0), pods=[pod], statuses={"a": status})
        )


def message_to(queue: str) -> OwnMessage:
    return OwnMessage(queue, "jobs/tick/2026-01-01T00:00:00Z", b"now", None, {})


def resource(vhost: VirtualHost) -> str:
    name = ",".join(map(str, vhost.name.encode()))
    return f'rabbit_misc:r(<<{name}>>, queue, <<"stuck">>)'
