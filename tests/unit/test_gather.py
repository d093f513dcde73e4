"""Which worker is asked when, and which one is named because it does not answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.workqueue import workqueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.kube.views import PodView
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.scaling import gather
from workqueue_operator.scaling.decide import ScaleInWindow
from workqueue_operator.scaling.depth import QueueReadings
from workqueue_operator.scaling.gather import Gatherer
from workqueue_operator.workers.client import Workers

READY = PodView("jobs-1", "uid-1", "127.0.0.1", True, True, False, "h", False, None)
STARTING = PodView("jobs-0", "uid-0", "127.0.0.1", False, True, False, "h", False, None)
"""Unreachable workers: no process listens on their port."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the gatherer sees, in seconds; tests move it."""
    now = [1_000.0]
    monkeypatch.setattr(gather, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def ask(pass_state: PassState, ready: int, *pods: PodView) -> QueueReadings:
    """One look at a queue with as many consumers as pods."""

    async def look() -> QueueReadings:
        workers = Workers(port=free_port())
        counts = QueueCounts(ready, len(pods), asyncio.get_running_loop().time())
        watched = SimpleNamespace(last=counts)
        link: Any = SimpleNamespace(
            poller=SimpleNamespace(watch=lambda *_: watched),
            broker=SimpleNamespace(doorbell_installed_at=lambda _: None),
        )
        nobody: Any = None
        try:
            gatherer = Gatherer(workers, nobody)
            answers = await gatherer.ask(workqueue(), pass_state, link, nobody, pods)
            return await gatherer.ask_the_rest(pass_state, answers)
        finally:
            await workers.close()

    return asyncio.run(look())


@pytest.mark.parametrize("ready", [0, 50], ids=["empty-queue", "backlog"])
def test_silent_worker_is_named_within_a_minute(ready: int, clock: list[float]) -> None:
    pass_state = PassState("uid", ScaleInWindow(clock[0]))
    begun, named = clock[0], None

    while named is None and clock[0] < begun + 60:
        named = ask(pass_state, ready, READY, STARTING).unreachable
        clock[0] += 5

    assert named == "jobs-1"
    assert clock[0] - begun > gather.SILENT_AFTER


def test_starting_worker_is_not_named(clock: list[float]) -> None:
    pass_state = PassState("uid", ScaleInWindow(clock[0]))

    ask(pass_state, 0, STARTING)
    clock[0] += 300

    assert ask(pass_state, 0, STARTING).unreachable is None


def test_replaced_worker_is_not_named(clock: list[float]) -> None:
    pass_state = PassState("uid", ScaleInWindow(clock[0]))

    ask(pass_state, 0, READY)
    clock[0] += 300
    another = PodView("jobs-2", "uid-2", "127.0.0.1", True, True, False, "h", False, None)

    assert ask(pass_state, 0, another).unreachable is None
    assert set(pass_state.silent_since) == {"uid-2"}
