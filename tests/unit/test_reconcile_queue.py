"""One run a key at a time, once more when it was woken meanwhile, and pauses that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from workqueue_operator.clock import SystemClock
from workqueue_operator.reconcile import queue as module
from workqueue_operator.reconcile.queue import NextPass, ReconcileQueue

KEY = ("team", "jobs")
Kind = Callable[[tuple[str, str]], bool]


def known(_: tuple[str, str]) -> bool:
    return True


def started(runs: Runs, kind: Kind) -> ReconcileQueue:
    keys = ReconcileQueue(SystemClock())
    keys.start(runs, kind)
    return keys


class Runs:
    """Runs that end when the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.running = 0
        self.most = 0
        self.results: asyncio.Queue[NextPass] = asyncio.Queue()
        self.changed = asyncio.Condition()
        self.idle = asyncio.Event()

    async def __call__(self, _: tuple[str, str]) -> NextPass:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await self._tell()
        try:
            return await self.results.get()
        finally:
            self.running -= 1
            self.idle.set()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def wait_idle(self) -> None:
        async with asyncio.timeout(5):
            await self.idle.wait()
        # The task of the run ends in the turn of the loop after this one.
        await asyncio.sleep(0)

    def end(self, count: int) -> None:
        for _ in range(count):
            self.results.put_nowait(NextPass())

    async def wait_begun(self, count: int) -> None:
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: self.begun >= count)


async def test_key_added_during_its_run_runs_exactly_once_more() -> None:
    runs = Runs()
    keys = started(runs, known)
    keys.add(KEY)
    await runs.wait_begun(1)
    for _ in range(5):
        keys.add(KEY)
    runs.results.put_nowait(NextPass())
    await runs.wait_begun(2)
    runs.results.put_nowait(NextPass())
    keys_idle = asyncio.create_task(keys.stop(5))
    await keys_idle
    assert (runs.begun, runs.most) == (2, 1)


async def test_failed_run_keeps_its_pause_after_adding_itself() -> None:
    runs = Runs()
    keys = started(runs, known)
    keys.add(KEY)
    await runs.wait_begun(1)
    keys.add(KEY)
    begun = asyncio.get_running_loop().time()
    runs.results.put_nowait(NextPass(after=0.2, failed=True))
    await runs.wait_begun(2)
    assert asyncio.get_running_loop().time() - begun >= 0.19
    runs.results.put_nowait(NextPass())
    await keys.stop(5)


async def test_external_change_skips_the_pause() -> None:
    runs = Runs()
    keys = started(runs, known)
    keys.add(KEY)
    await runs.wait_begun(1)
    runs.results.put_nowait(NextPass(after=60, failed=True))
    await runs.wait_idle()
    keys.add(KEY)
    await runs.wait_begun(2)
    runs.results.put_nowait(NextPass())
    await keys.stop(5)


async def test_external_change_waits_for_a_firm_pause() -> None:
    runs = Runs()
    keys = started(runs, known)
    keys.add(KEY)
    await runs.wait_begun(1)
    begun = asyncio.get_running_loop().time()
    runs.results.put_nowait(NextPass(after=0.2, failed=True, firm=True))
    await runs.wait_idle()

    keys.add(KEY)
    await runs.wait_begun(2)

    assert asyncio.get_running_loop().time() - begun >= 0.19
    runs.results.put_nowait(NextPass())
    await runs.wait_idle()
    keys.add(KEY)
    await runs.wait_begun(3)
    runs.results.put_nowait(NextPass())
    await keys.stop(5)


async def test_different_keys_run_concurrently() -> None:
    runs = Runs()
    keys = started(runs, known)
    for name in ("a", "b", "c"):
        keys.add(("team", name))
    await runs.wait_begun(3)
    assert runs.most == 3
    runs.end(3)
    await keys.stop(5)


async def test_stop_cancels_slow_runs_and_starts_no_more() -> None:
    runs = Runs()
    keys = started(runs, known)
    keys.add(KEY)
    await runs.wait_begun(1)
    await keys.stop(0.05)
    keys.add(KEY)
    assert (runs.begun, runs.running) == (1, 0)


# -- many at once


def names(count: int) -> list[tuple[str, str]]:
    return [("team", f"jobs-{number}") for number in range(count)]


def beginner(_: tuple[str, str]) -> bool:
    return False


EITHER = pytest.mark.parametrize("kind", [known, beginner])


def woken(runs: Runs, kind: Kind, waiting: list[tuple[str, str]]) -> ReconcileQueue:
    """All of them woken."""
    keys = started(runs, kind)
    for key in waiting:
        keys.add(key)
    return keys


@pytest.fixture
def two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as somebody runs."""
    for kind in ("FIRST_PASSES", "LATER_PASSES"):
        monkeypatch.setattr(module, kind, 2)
        monkeypatch.setattr(module, f"{kind}_SECONDS", 60)


@pytest.mark.usefixtures("two_places")
@EITHER
async def test_queue_limits_concurrent_runs_and_serves_every_key(kind: Kind) -> None:
    runs = Runs()
    keys = started(runs, kind)
    for key in names(7):
        keys.add(key)
        keys.add(key)
    # The two that were under way when they were woken once more run again, the others were only waiting.
    for number in range(9):
        await runs.wait_begun(number + 1)
        runs.results.put_nowait(NextPass())
    await keys.stop(5)
    assert (runs.begun, runs.most) == (9, 2)


@pytest.mark.usefixtures("two_places")
async def test_known_key_does_not_wait_for_new_keys() -> None:
    runs = Runs()
    keys = woken(runs, lambda key: key == KEY, names(5))
    await runs.wait_begun(2)
    keys.add(KEY)
    await runs.wait_begun(3)
    runs.end(9)
    await keys.stop(5)


@pytest.mark.usefixtures("two_places")
@EITHER
async def test_key_waiting_for_dead_broker_yields_its_place(kind: Kind) -> None:
    runs = Runs()
    waiting = names(4)
    keys = woken(runs, kind, waiting)
    await runs.wait_begun(2)
    keys.release_place(waiting[0])
    keys.release_place(waiting[0])
    await runs.wait_begun(3)
    assert runs.begun == 3, "one place, one successor"
    runs.end(4)
    await runs.wait_begun(4)
    await keys.stop(5)


@pytest.mark.usefixtures("two_places")
@EITHER
async def test_slow_run_yields_its_place(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PASSES_SECONDS", "LATER_PASSES_SECONDS"):
        monkeypatch.setattr(module, name, 0.05)
    runs = Runs()
    keys = woken(runs, kind, names(6))
    await runs.wait_begun(6)
    assert runs.running == 6
    runs.end(6)
    await keys.stop(5)


@pytest.mark.usefixtures("two_places")
@EITHER
async def test_waiting_key_does_not_start_after_stop(kind: Kind) -> None:
    runs = Runs()
    keys = woken(runs, kind, names(5))
    await runs.wait_begun(2)
    stopping = asyncio.create_task(keys.stop(5))
    runs.end(2)
    await stopping
    assert runs.begun == 2


# -- rings


async def test_first_ring_counts_until_a_pass_takes_it() -> None:
    keys = ReconcileQueue(SystemClock())
    assert keys.rang_at(KEY) is None
    keys.ring(KEY)
    first = keys.rang_at(KEY)

    keys.ring(KEY)

    assert first is not None
    assert keys.take_ring(KEY) == first
    assert keys.take_ring(KEY) is None


async def test_key_that_is_added_before_the_start_begins_no_pass() -> None:
    runs = Runs()
    keys = ReconcileQueue(SystemClock())
    keys.add(KEY)
    keys.start(runs, known)
    await asyncio.sleep(0)

    assert runs.begun == 0

    await keys.stop(5)
