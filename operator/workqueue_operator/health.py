"""The liveness check: problems of this process that a restart would fix.

It never includes the state of the API server or of a broker, because a restart does not help while they are down. A
blocked event loop does not answer the probe.
"""

from __future__ import annotations

import asyncio
from typing import Final

from workqueue_operator.broker.depth_poller import LONGEST_PAUSE
from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.kube.client import Cluster
from workqueue_operator.kube.resync import Resync
from workqueue_operator.reconcile.queue import ReconcileQueue

STUCK_PASS_SECONDS: Final = 300.0
"""Every request of a pass has a timeout. Their sum is far below this, unless thousands of passes wait for each
other."""

STUCK_POLL_SECONDS: Final = 60.0


class Health:
    """Checks the background tasks.

    Args:
        cluster: the connections of the passes to the API server.
    """

    def __init__(self, cluster: Cluster, resync: Resync, queue: ReconcileQueue, brokers: BrokerPool) -> None:
        self._cluster = cluster
        self._resync = resync
        self._queue = queue
        self._brokers = brokers

    def problem(self) -> str | None:
        """Return the problem in one sentence, or None."""
        if self._resync.blind:
            return "the watch has delivered no event although a LIST shows changes"
        if self._queue.longest > STUCK_PASS_SECONDS and not self._passes_wait():
            return f"a pass has been running for {self._queue.longest:.0f} s"
        now = asyncio.get_running_loop().time()
        for handle in self._brokers:
            longest = max(STUCK_POLL_SECONDS, 2 * LONGEST_PAUSE * handle.poller.seconds)
            if now - handle.poller.alive_at > longest:
                return f"the depth poller of {handle.broker.binding.display} has stopped"
        return None

    def _passes_wait(self) -> bool:
        """Whether passes wait for each other at a slow server. A restart would begin all of them again."""
        return self._cluster.is_full or any(handle.broker.passes_wait for handle in self._brokers)
