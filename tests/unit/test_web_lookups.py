"""Values that take a request: shared by all viewers, read one at a time, never waited for longer than a second."""

from __future__ import annotations

import asyncio

import pytest

from workqueue_web import lookups
from workqueue_web.lookups import Lookups

KEY = ("shop", "thumbs")


class Source:
    """Counts reads. Each read waits until `held` is set."""

    def __init__(self) -> None:
        self.reads = 0
        self.at_once = self.most_at_once = 0
        self.held = asyncio.Event()
        self.held.set()

    async def read(self) -> int:
        self.reads += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.held.wait()
        self.at_once -= 1
        return self.reads


async def test_value_is_read_again_only_when_it_is_out_of_date() -> None:
    now, source = 0.0, Source()
    found: Lookups[int] = Lookups(30.0, lambda: now)

    assert [await found.get(KEY, source.read) for _ in range(3)] == [1, 1, 1]
    now = 30.0

    assert [await found.get(KEY, source.read) for _ in range(3)] == [2, 2, 2]


async def test_viewers_share_a_read_and_reads_run_one_at_a_time() -> None:
    source = Source()
    found: Lookups[int] = Lookups(30.0)
    await asyncio.gather(*(found.get(("shop", str(number % 4)), source.read) for number in range(40)))
    assert (source.reads, source.most_at_once) == (4, 1)


async def test_slow_read_delays_no_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "WAIT_SECONDS", 0.0)
    now, source = 0.0, Source()
    found: Lookups[int] = Lookups(30.0, lambda: now)
    source.held.clear()

    assert await found.get(KEY, source.read) is None
    source.held.set()
    monkeypatch.setattr(lookups, "WAIT_SECONDS", 10.0)
    assert await found.get(KEY, source.read) == 1
    now = 30.0
    source.held.clear()
    monkeypatch.setattr(lookups, "WAIT_SECONDS", 0.0)

    assert await found.get(KEY, source.read) == 1, "the previous value"
    await found.stop()


async def test_failed_read_keeps_previous_value_and_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    now, source = 0.0, Source()
    found: Lookups[int] = Lookups(30.0, lambda: now)

    async def fail() -> int:
        raise KeyError("items")

    await found.get(KEY, source.read)
    now = 30.0

    assert await found.get(KEY, fail) == 1
    assert "Reading a value for the page failed unexpectedly." in caplog.text
    assert await found.get(KEY, source.read) == 2


async def test_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "KEPT", 3)
    source = Source()
    found: Lookups[int] = Lookups(30.0)
    for number in range(10):
        await found.get(("shop", str(number)), source.read)
    assert list(found._known) == [("shop", "7"), ("shop", "8"), ("shop", "9")]
