"""What /status asks of the settler, from a thread of its own and without the lock."""

from __future__ import annotations

from typing import Any

import pytest

from workqueue.contract import topology
from workqueue.worker import settlement
from workqueue.worker.settlement import Settler


def test_delay_queues_can_be_read_while_a_copy_makes_another_queue_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unused: Any = None
    settler = Settler("jobs", "pod", unused, unused, unused)
    settler.known_queues.add("jobs.retry.step.8s")
    read_step = topology.step_of

    def meanwhile(name: str, queue: str) -> topology.Step | None:
        settler.known_queues.add(f"jobs.other.{len(settler.known_queues)}")
        return read_step(name, queue)

    monkeypatch.setattr(settlement.topology, "step_of", meanwhile)

    assert settler.delay_queues == ["jobs.retry.step.8s"]


def test_delay_queues_of_publishers_are_known_by_the_first_of_each_set() -> None:
    unused: Any = None
    settler = Settler("jobs", "pod", unused, unused, unused)

    for first in ("jobs.retry.step.1s", "jobs.retry.step.500ms", "jobs.retry.high.500ms", "other", None):
        settler.note_delay(first)

    assert settler.delay_queues == [
        "jobs.retry.high.500ms",
        "jobs.retry.step.1s",
        "jobs.retry.step.500ms",
        "jobs.retry.last",
    ]
