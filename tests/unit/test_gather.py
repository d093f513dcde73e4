"""Which worker is asked when, and which one is named because it does not answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.snapshots import Deployments
from tests.support.workqueue import workqueue
from workqueue.contract.binding import from_url
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.clock import SystemClock
from workqueue_operator.kube.views import PodView
from workqueue_operator.scaling import gather
from workqueue_operator.scaling.depth import QueueReadings
from workqueue_operator.scaling.gather import Connection, Gatherer, GatherState
from workqueue_operator.workers.client import Workers

READY = PodView("jobs-1", "uid-1", "127.0.0.1", True, True, False, "h", False, None)
STARTING = PodView("jobs-0", "uid-0", "127.0.0.1", False, True, False, "h", False, None)
"""Unreachable workers: no process listens on their port."""


class Clock(SystemClock):
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class Site:
    """A queue and its workers, looked at once in a while."""

    clock: Clock
    state: GatherState = field(default_factory=GatherState)

    def ask(self, ready: int, *pods: PodView) -> QueueReadings:
        """One look at a queue with as many consumers as pods."""
        return asyncio.run(self._ask(ready, pods))

    async def _ask(self, ready: int, pods: tuple[PodView, ...]) -> QueueReadings:
        workers = Workers(port=free_port())
        watched = SimpleNamespace(last=QueueCounts(ready, len(pods), self.clock.time))
        handle: Any = SimpleNamespace(
            poller=SimpleNamespace(watch=lambda *_: watched),
            broker=SimpleNamespace(doorbell_installed_at=lambda _: None),
        )
        nobody: Any = None
        try:
            gatherer = Gatherer(Deployments(pods), workers, nobody, self.clock)
            seen, state = await gatherer.gather(
                workqueue(), Connection(handle, from_url("amqp://rabbit/")), self.state, ring=False
            )
            seen, self.state = await gatherer.gather_rest(seen, state)
            return seen.readings
        finally:
            await workers.close()


@pytest.fixture
def site(clock: Clock) -> Site:
    return Site(clock)


@pytest.mark.parametrize("ready", [0, 50], ids=["empty-queue", "backlog"])
def test_silent_worker_is_named_within_a_minute(ready: int, site: Site, clock: Clock) -> None:
    begun, named = clock.time, None

    while named is None and clock.time < begun + 60:
        named = site.ask(ready, READY, STARTING).unreachable
        clock.time += 5

    assert named == "jobs-1"
    assert clock.time - begun > gather.SILENT_AFTER


def test_starting_worker_is_not_named(site: Site, clock: Clock) -> None:
    site.ask(0, STARTING)
    clock.time += 300

    assert site.ask(0, STARTING).unreachable is None


def test_replaced_worker_is_not_named(site: Site, clock: Clock) -> None:
    site.ask(0, READY)
    clock.time += 300
    another = PodView("jobs-2", "uid-2", "127.0.0.1", True, True, False, "h", False, None)

    assert site.ask(0, another).unreachable is None
    assert set(site.state.silent_since) == {"uid-2"}
