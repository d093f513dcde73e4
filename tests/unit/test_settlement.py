"""What /status asks of the settler, from a thread of its own and without the lock."""

from __future__ import annotations

from typing import Any

import pytest

from workqueue.contract import topology
from workqueue.worker import settlement
from workqueue.worker.settlement import Settler


def test_the_delays_can_be_read_while_a_copy_makes_another_queue_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unused: Any = None
    settler = Settler("jobs", "pod", unused, unused, unused)
    settler.known_queues.add("jobs.retry.10s")
    read_delay = topology.delay_seconds

    def meanwhile(name: str, queue: str) -> int | None:
        settler.known_queues.add(f"jobs.retry.{len(settler.known_queues) + 100}s")
        return read_delay(name, queue)

    monkeypatch.setattr(settlement.topology, "delay_seconds", meanwhile)

    assert settler.delays_seconds == [10]
