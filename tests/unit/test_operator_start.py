"""When a process begins to watch: after its first passes, or while it stands by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from workqueue_operator import __main__ as main
from workqueue_operator.clock import SystemClock
from workqueue_operator.config import Config
from workqueue_operator.kube import watch
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.reconcile.queue import NextPass, ReconcileQueue

KEY: Key = ("team", "jobs")


class Process:
    """A process that has listed everything, with one WorkQueue whose pass ends when the test says so."""

    def __init__(self) -> None:
        self.operator = main.Operator(Config())
        self.queue = ReconcileQueue(SystemClock())
        self.pass_ends, self.watches = asyncio.Event(), asyncio.Event()
        self.watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        store = Store(lambda _: None)
        self.watching = asyncio.create_task(self.operator._watch(self.queue, store, ()))

    async def watch(self, *_: object, **__: object) -> None:
        self.watches.set()

    def lead(self) -> None:
        self.begin()
        self.queue.start(self._pass, lambda _: False)
        self.queue.add(KEY)

    async def _pass(self, _: Key) -> NextPass:
        await self.pass_ends.wait()
        return NextPass()

    async def begins_to_watch(self) -> None:
        async with asyncio.timeout(60):
            await self.watches.wait()


@pytest.fixture
async def process(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Process]:
    made = Process()
    monkeypatch.setattr(watch, "run", made.watch)
    yield made
    made.pass_ends.set()
    await made.queue.stop(1)
    assert made.watching is not None
    await made.watching


async def test_leader_watches_after_its_first_passes(process: Process) -> None:
    process.lead()
    await asyncio.sleep(0.05)
    assert not process.watches.is_set()

    process.pass_ends.set()

    await process.begins_to_watch()


async def test_leader_does_not_wait_long_for_its_first_passes(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "WATCH_WITHIN", 0.05)
    process.lead()

    await process.begins_to_watch()

    assert not process.pass_ends.is_set()


async def test_standby_watches(process: Process) -> None:
    process.begin()
    process.operator._stands_by.set()

    await process.begins_to_watch()
