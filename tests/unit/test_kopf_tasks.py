"""kopf's tasks: when one of them fails the watch ends with it, and no other task does."""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
import pytest

from workqueue_operator.kube import watch
from workqueue_operator.kube.store import Store


async def fails() -> None:
    await asyncio.sleep(0.01)
    raise RuntimeError("kopf has met something")


async def test_failed_kopf_task_ends_the_watch_but_no_other_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def spawn(**_: Any) -> list[asyncio.Task[Any]]:
        tasks.extend(asyncio.create_task(work) for work in (fails(), asyncio.sleep(3600)))
        return tasks

    monkeypatch.setattr(kopf, "spawn_tasks", spawn)
    watching = asyncio.create_task(
        watch.run(Store(lambda _: None), (), identity="test", started=lambda: None)
    )
    younger = asyncio.create_task(asyncio.sleep(3600))
    with pytest.raises(RuntimeError, match="kopf has met something"):
        await asyncio.wait_for(watching, 60)
    assert [task.done() for task in tasks] == [True, True]
    assert not younger.done()
    younger.cancel()
