"""What /status asks of the settler, from a thread of its own and without the lock."""

from __future__ import annotations

from typing import Any

import pytest

from workqueue.contract import topology
from workqueue.worker import settlement
from workqueue.worker.settlement import Settler


def test_steps_can_be_read_while_a_copy_makes_another_queue_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unused: Any = None
    settler = Settler("jobs", "pod", unused, unused, unused)
    settler.known_queues.add("jobs.retry.step.8s")
    read_step = topology.step_milliseconds

    def meanwhile(name: str, queue: str) -> int | None:
        settler.known_queues.add(f"jobs.other.{len(settler.known_queues)}")
        return read_step(name, queue)

    monkeypatch.setattr(settlement.topology, "step_milliseconds", meanwhile)

    assert settler.delay_steps == [8000]
