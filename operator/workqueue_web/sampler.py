"""Samples for the page: the depths every 15 s, and the workers' status while a page is open.

All open pages share the workers' answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from workqueue_operator.kube.store import Key, Store
from workqueue_operator.kube.views import PodView
from workqueue_operator.workers.client import Address, Workers, WorkerStatus
from workqueue_web.history import SAMPLE_SECONDS, History

ASK_SECONDS: Final = 5.0
PODS_A_ROUND: Final = 200
"""Pods asked per round. More pods take several rounds."""

STALE_SECONDS: Final = 120.0

logger = logging.getLogger(__name__)


class Sampler:
    """Samples the store and the workers.

    Args:
        workers: the client for their /status.
    """

    def __init__(self, store: Store, workers: Workers) -> None:
        self.history = History()
        self._store = store
        self._workers = workers
        self._statuses: dict[Key, tuple[float, WorkerStatus]] = {}
        self._rates: dict[Key, tuple[float, float | None]] = {}
        self._asked: dict[Key, float] = {}
        self._next = 0
        self._viewers = 0
        self._viewed_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start sampling, in the running event loop."""
        self._tasks = [
            asyncio.create_task(self._repeat(SAMPLE_SECONDS, self._sample), name="page samples"),
            asyncio.create_task(self._repeat(ASK_SECONDS, self._ask), name="page workers"),
        ]

    async def stop(self) -> None:
        """Stop sampling."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Sample the workers while the context lasts, because a page is open."""
        self._viewers += 1
        try:
            yield
        finally:
            self._viewers -= 1
            self._viewed_at = time.monotonic()

    # -- results -------------------------------------------------------------------------------------

    def statuses(self, namespace: str, pods: Sequence[PodView]) -> Mapping[str, WorkerStatus]:
        """Return the last status of each worker, by pod."""
        known = ((pod.name, self._statuses.get((namespace, pod.name))) for pod in pods)
        return {name: entry[1] for name, entry in known if entry is not None}

    def ages(self, namespace: str, pods: Sequence[PodView]) -> Mapping[str, float]:
        """Return how old each of these statuses is, in seconds."""
        now = time.monotonic()
        known = ((pod.name, self._statuses.get((namespace, pod.name))) for pod in pods)
        return {name: now - entry[0] for name, entry in known if entry is not None}

    def rate(self, key: Key) -> float | None:
        """Return the recent deliveries per second to the workers of a WorkQueue; None until all have answered."""
        now = time.monotonic()
        at, rate = self._rates.get(key, (-ASK_SECONDS, None))
        if now - at >= ASK_SECONDS:
            rate = self._rate(key)
            self._rates[key] = (now, rate)
        return rate

    def _rate(self, key: Key) -> float | None:
        running = [pod for pod in self._store.pods_of(key) if pod.running and not pod.terminating]
        statuses = self.statuses(key[0], running)
        if len(statuses) < len(running):
            return None
        return sum(status.deliveries_per_second for status in statuses.values())

    async def ask_now(self, key: Key) -> None:
        """Ask the workers of one WorkQueue, so that its page shows them immediately. Does not ask again soon."""
        now = time.monotonic()
        if now - self._asked.get(key, -ASK_SECONDS) < ASK_SECONDS:
            return
        self._asked[key] = now
        await self._ask_pods(
            [(key[0], pod) for pod in self._store.pods_of(key) if pod.running][:PODS_A_ROUND]
        )

    # -- rounds --------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        self.history.record(
            [
                (body["metadata"]["uid"], _depth(body))
                async for body in self._store.each_workqueue()
                if "uid" in body["metadata"]
            ]
        )

    async def _ask(self) -> None:
        if not self._viewers and time.monotonic() - self._viewed_at > ASK_SECONDS:
            self._statuses.clear()
            self._rates.clear()
            self._asked.clear()
            return
        pods = list(self._store.pods.items())
        start = self._next if self._next < len(pods) else 0
        self._next = start + PODS_A_ROUND
        await self._ask_pods(
            [
                (namespace, pod)
                for (namespace, _), pod in pods[start : start + PODS_A_ROUND]
                if pod.running and not pod.ended
            ]
        )
        oldest = time.monotonic() - STALE_SECONDS
        self._statuses = {pod: entry for pod, entry in self._statuses.items() if entry[0] > oldest}

    async def _ask_pods(self, pods: Sequence[tuple[str, PodView]]) -> None:
        # Pods of two namespaces may have the same name, so the request uses their UIDs.
        names = {pod.uid: (namespace, pod.name) for namespace, pod in pods}
        answers = await self._workers.statuses(
            [Address(pod.uid, pod.uid, pod.ip) for _, pod in pods if pod.ip]
        )
        now = time.monotonic()
        for uid, status in answers.items():
            self._statuses[names[uid]] = (now, status)
        self._rates.clear()

    async def _repeat(self, seconds: float, step: Any) -> None:
        while True:
            try:
                await step()
            except Exception:
                # The page is outdated for a round. An unexpected object must not stop this loop.
                logger.exception("Updating the web page failed.")
            await asyncio.sleep(seconds)


def _depth(body: Mapping[str, Any]) -> int | None:
    status = body.get("status") or {}
    known = any(
        one["type"] == "DepthKnown" and one["status"] == "True" for one in status.get("conditions") or ()
    )
    depth: int | None = status.get("messages") if known else None
    return depth
