"""What the page keeps and shows is bounded, whatever the cluster and the messages contain."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Self

import pytest

from tests.support.website import workqueue
from workqueue_operator.kube.events import event_body, workqueue_reference
from workqueue_operator.kube.store import Store
from workqueue_web import dead_letters, sampler
from workqueue_web.index import Index
from workqueue_web.lookups import Lookups
from workqueue_web.sampler import Sampler


async def test_deleted_workqueues_need_no_memory_while_no_page_is_open() -> None:
    store = Store(lambda _: None)
    index = Index(store)
    for number in range(100):
        made = workqueue(f"job-{number}")
        store.put_workqueue(made)
        store.drop("workqueues", made)
    store.put_workqueue(workqueue("stays"))

    assert index._changed == {("shop", "stays")}
    await index.refresh()
    assert [one.name for one in index] == ["stays"]
    store.drop("workqueues", workqueue("stays", version=2))
    assert list(index) == []


async def test_slow_read_of_one_workqueue_delays_no_action_of_another() -> None:
    found: Lookups[int] = Lookups(30.0)
    held, entered = asyncio.Event(), list[str]()

    async def slow() -> int:
        await held.wait()
        return 1

    reading = asyncio.create_task(found.get(("shop", "slow"), slow))
    await asyncio.sleep(0)

    async def act(name: str) -> None:
        async with found.alone(("shop", name)):
            entered.append(name)

    await asyncio.wait_for(act("thumbs"), 5)
    own = asyncio.create_task(act("slow"))
    await asyncio.sleep(0)
    assert entered == ["thumbs"], "the read holds messages of its own queue back"
    held.set()
    await asyncio.gather(own, reading)
    assert entered == ["thumbs", "slow"]


async def test_unexpected_object_does_not_stop_the_samples(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sampler, "SAMPLE_SECONDS", 0.0)
    store = Store(lambda _: None)
    broken = workqueue("thumbs")
    broken["status"]["conditions"] = [None]
    store.put_workqueue(broken)
    workers: Any = None
    samples = Sampler(store, workers)
    samples.start()
    try:
        async with asyncio.timeout(10):
            while not caplog.records:  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(0)
            store.put_workqueue(workqueue("thumbs", version=2))
            while not samples.history.rounds:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
    finally:
        await samples.stop()


class Session:
    """A session with dead letters, instead of RabbitMQ."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = reasons

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def depth(self, _: str) -> Any:
        return SimpleNamespace(ready=len(self.reasons))

    def get(self, _: str) -> str:
        return self.reasons.pop()

    def give_back_all(self) -> None:
        return


def test_reason_of_a_hostile_message_is_short_and_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = ["x" * 100_000, "\u202egnp.exe", "Rejected"]
    monkeypatch.setattr(dead_letters, "Session", lambda *_, **__: Session(reasons))
    monkeypatch.setattr(dead_letters.dead_letters, "read", lambda reason, _: SimpleNamespace(reason=reason))

    found = dead_letters.sample(SimpleNamespace(), "jobs")  # type: ignore[arg-type]

    assert sorted(found.counts) == [("Rejected", 1), ("\\u202egnp.exe", 1), ("x" * 60, 1)]


def test_replay_ends_within_its_time_also_while_an_alarm_blocks_publishing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An unconfirmed message fails after `confirm_seconds`, and none is taken after the deadline."""
    asked: dict[str, float] = {}

    class Replay:
        moved, errors = 0, ("blocked",)

        def __init__(self, *_: object, confirm_seconds: float, **__: object) -> None:
            asked["confirm"] = confirm_seconds

        def run(self, *_: object, deadline: float) -> None:
            asked["take"] = deadline - time.monotonic()

    monkeypatch.setattr(dead_letters, "Replay", Replay)
    nothing: Any = None

    dead_letters._replay(nothing, nothing, nothing, 4)

    assert 0 < asked["take"] + asked["confirm"] <= dead_letters.ACTION_SECONDS


@pytest.mark.parametrize("note", ["x" * 2000, "é" * 600, "漢字" * 600, "x" + "😀" * 300, "\udcff" * 2000])
def test_note_of_an_event_fits_the_api_server(note: str) -> None:
    """It counts bytes, and calls them characters: `len(event.Message) > NoteLengthLimit`."""
    event = event_body(
        workqueue_reference("shop", "thumbs", "u"),
        datetime(2026, 1, 1, tzinfo=UTC),
        ("operator", "pod"),
        reason="Backlog",
        action="ScaleOut",
        note=note,
        warning=False,
    )
    size = len(event["note"].encode())
    assert 1020 < size <= 1024
