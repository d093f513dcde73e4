"""How often the page asks workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from workqueue_operator.kube.store import Store
from workqueue_operator.workers.client import Address, Workers, WorkerStatus
from workqueue_web.sampler import Sampler


class CountingWorkers:
    """Workers that never answer."""

    def __init__(self) -> None:
        self.asked = 0

    async def statuses(self, addresses: Sequence[Address]) -> dict[str, WorkerStatus]:
        self.asked += len(addresses)
        return {}


def pod(name: str) -> dict[str, object]:
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": name,
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-24T00:00:00Z",
            "labels": {"workqueue.dev/workqueue": "jobs"},
        },
        "status": {
            "podIP": "10.0.0.1",
            "containerStatuses": [{"name": "worker", "state": {"running": {}}}],
        },
    }


async def test_many_page_loads_ask_each_worker_once() -> None:
    store, workers = Store(lambda _: None), CountingWorkers()
    for number in range(3):
        store.put_pod(pod(f"jobs-{number}"))
    sampler = Sampler(store, cast(Workers, workers))
    for _ in range(50):
        await sampler.ask_now(("shop", "jobs"))
    assert workers.asked == 3
