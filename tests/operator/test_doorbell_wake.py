"""When a doorbell is installed, on a real RabbitMQ: only on an idle queue, and without cost for messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.brokers import channel_of, probe, put
from tests.support.rabbitmq import VirtualHost
from tests.support.snapshots import snapshot
from tests.support.wait import until
from tests.support.workqueue import workqueue
from workqueue.contract.binding import from_url
from workqueue.contract.topology import QueueSettings, plan
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import Wake, WorkQueue
from workqueue_operator.broker.pool import BrokerHandle, BrokerPool
from workqueue_operator.kube.views import DeploymentView, PodView
from workqueue_operator.scaling import wake
from workqueue_operator.scaling.decide import Decision, Depth, Hold, ScaleOut
from workqueue_operator.scaling.snapshot import Snapshot

OURS = workqueue()
NOBODY = DeploymentView("jobs-worker", "u", 1, 0, 0, 0, rolled_out=True, template_hash="h", refusal=None)
POD = PodView("p", "u", "", True, True, False, "h", False, None)
EMPTY = Depth(0, 0, 0)
IDLE = Hold(0, Reason.IDLE, "…")
OUTAGE = Unknown(Reason.BROKER_TIMEOUT, "…")


@asynccontextmanager
async def linked(url: str, *, declare: bool = True) -> AsyncIterator[BrokerHandle]:
    """A handle of a broker with the queue jobs."""
    brokers = BrokerPool(lambda _: None, lambda _: None, 60, 60)
    try:
        handle = await brokers.handle(OURS.key, from_url(url))
        await handle.broker.ready()
        if declare:
            await handle.broker.declare(plan(QueueSettings("jobs")))
        yield handle
    finally:
        await brokers.close()


@pytest.fixture
def unreadable(vhost: VirtualHost) -> Iterator[str]:
    """The URL of a user who may not consume."""
    vhost.broker.add_user("deaf", "secret", vhost.name, read="^$")
    yield vhost.broker.url_of(vhost.name, "deaf", "secret")
    vhost.broker.delete_user("deaf")


@dataclass(frozen=True)
class Case:
    """What a pass knows at its end, and the resulting state of the doorbell.

    Attributes:
        installed: whether a doorbell is installed afterwards.
        active: whether the queue is polled in each round.
    """

    installed: bool
    active: bool
    spec: dict[str, Any] | None = None
    deployment: DeploymentView | Unknown = NOBODY
    pods: tuple[PodView, ...] = ()
    depth: Depth | Unknown = EMPTY
    decision: Decision = IDLE

    def snapshot(self, one: WorkQueue) -> Snapshot:
        return snapshot(one, deployment=self.deployment, pods=self.pods, depth=self.depth)


CASES = {
    "idle queue without workers": Case(installed=True, active=False),
    "terminating last pods": Case(installed=True, active=False, pods=(replace(POD, terminating=True),)),
    "last pod of a Deployment with count zero": Case(installed=False, active=True, pods=(POD,)),
    "existing workers": Case(installed=False, active=True, deployment=replace(NOBODY, replicas=1)),
    "waiting message": Case(installed=False, active=True, depth=Depth(1, 0, 0)),
    "scale-out": Case(installed=False, active=True, decision=ScaleOut(1, 1, Reason.BACKLOG, "…")),
    "canary for a minimum": Case(installed=False, active=True, decision=Hold(1, Reason.CANARY, "…")),
    "pin to zero": Case(
        installed=False, active=False, spec={"replicas": 0}, decision=Hold(0, Reason.PINNED, "…")
    ),
    "wake Poll": Case(installed=False, active=True, spec={"scaling": {"wake": "Poll"}}),
    "unknown workload": Case(installed=False, active=True, deployment=OUTAGE),
    "unknown depth": Case(installed=False, active=True, depth=OUTAGE),
}


@pytest.mark.parametrize("title", CASES)
async def test_doorbell_is_installed_only_on_idle_wakeable_queue(title: str, vhost: VirtualHost) -> None:
    case = CASES[title]
    one = workqueue(**(case.spec or {}))
    async with linked(vhost.url) as handle:
        assert await wake.adjust_doorbell(case.snapshot(one), case.decision, handle) is None
        assert handle.broker.has_doorbell("jobs") is case.installed
        assert handle.poller.watch(one.key, "jobs").active is case.active


@pytest.mark.parametrize("title", CASES)
async def test_doorbell_is_removed_unless_needed_or_depth_unknown(title: str, vhost: VirtualHost) -> None:
    case = CASES[title]
    async with linked(vhost.url) as handle:
        assert await handle.broker.install_doorbell("jobs")
        seen = case.snapshot(workqueue(**(case.spec or {})))
        await wake.adjust_doorbell(seen, case.decision, handle)
        assert handle.broker.has_doorbell("jobs") is (case.installed or isinstance(case.depth, Unknown))


async def test_operator_without_consume_permission_polls_and_reports_it(
    vhost: VirtualHost, unreadable: str
) -> None:
    async with linked(vhost.url), linked(unreadable, declare=False) as handle:
        await wake.adjust_doorbell(snapshot(OURS), IDLE, handle)
        said = await wake.adjust_doorbell(snapshot(OURS), IDLE, handle)
        assert said is not None
        assert said.reason is Reason.DOORBELL_UNAVAILABLE
        assert "read permission" in said.message
        assert handle.poller.watch(OURS.key, "jobs").active
        polling = workqueue(scaling={"wake": "Poll"})
        assert await wake.adjust_doorbell(snapshot(polling), IDLE, handle) is None


async def test_foreign_queue_is_polled_where_a_ring_counts_as_a_delivery(
    every_vhost: VirtualHost,
) -> None:
    """The operator cannot choose its delivery limit, which may leave no room for rings."""
    counts = every_vhost.broker.series != "4.3"
    async with linked(every_vhost.url) as handle:
        watched = handle.poller.watch(OURS.key, "jobs")
        borrowed = workqueue(queue={"declare": False})
        assert wake.wake_of(borrowed, handle, watched) is (Wake.POLL if counts else Wake.PUSH)
        insisting = workqueue(queue={"declare": False}, scaling={"wake": "Push"})
        assert wake.wake_of(insisting, handle, watched) is Wake.PUSH
        assert wake.wake_of(OURS, handle, watched) is Wake.PUSH


async def test_twenty_rings_leave_delivery_limit_of_message_intact(every_vhost: VirtualHost) -> None:
    """Before 4.3 each ring counts; the declared limit has room for them."""
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs", delivery_limit=1)))
        put(channel, "jobs", b"x")
        for count in range(1, 21):
            await broker.install_doorbell("jobs")
            await until(lambda count=count: len(broker.told.rings) == count)
        await until(lambda: every_vhost.depth("jobs") == (1, 0))
        # The limit allows one redelivery: a worker that dies with the message gets it back once.
        method, _, body = channel.basic_get("jobs")
        assert body == b"x"
        channel.basic_nack(method.delivery_tag)
        await until(lambda: every_vhost.depth("jobs").ready == 1)
        assert every_vhost.depth("jobs.dead") == (0, 0)


async def test_queue_is_confirmed_empty_only_with_a_doorbell(
    every_vhost: VirtualHost,
) -> None:
    async with linked(every_vhost.url) as handle, channel_of(every_vhost) as channel:
        assert await wake.confirm_empty(OURS, handle) is True
        assert handle.broker.has_doorbell("jobs")
        handle.broker.remove_doorbell("jobs")
        put(channel, "jobs", b"x")
        await until(lambda: every_vhost.depth("jobs").ready == 1)
        # It rings immediately, and may be counted or about to be requeued.
        assert await wake.confirm_empty(OURS, handle) is not True
        assert not handle.broker.has_doorbell("jobs")


async def test_empty_queue_without_doorbell_is_confirmed_only_once_polling_is_settled(
    vhost: VirtualHost, unreadable: str
) -> None:
    async with linked(vhost.url), linked(unreadable, declare=False) as handle:
        assert await wake.confirm_empty(OURS, handle) is None
        assert await wake.confirm_empty(OURS, handle) is True, "refused: it is polled from now on"
