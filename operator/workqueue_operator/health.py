"""Deep liveness: what is wrong with this process that a restart would mend.

Place in the flow: asked by the liveness probe through `endpoint`. Never the state of the API server or of a
broker: nothing is better after a restart while they are away. A loop that is stuck answers no probe at all.
"""

from __future__ import annotations

import asyncio
from typing import Final

from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.kube.resync import Resync
from workqueue_operator.reconcile.queue import ReconcileQueue

STUCK_PASS_SECONDS: Final = 300.0
"""Every request of a pass has a timeout; together they stay far below this."""

STUCK_SWEEP_SECONDS: Final = 60.0


class Health:
    """Looks at the parts that run for ever."""

    def __init__(self, resync: Resync, keys: ReconcileQueue, brokers: BrokerPool) -> None:
        self._resync = resync
        self._keys = keys
        self._brokers = brokers

    def problem(self) -> str | None:
        """One sentence, or None when all is well."""
        if self._resync.blind:
            return "the watch has brought nothing although a LIST shows changes"
        if self._keys.longest > STUCK_PASS_SECONDS:
            return f"a pass has been running for {self._keys.longest:.0f} s"
        now = asyncio.get_running_loop().time()
        for handle in self._brokers:
            if now - handle.poller.last_round > max(STUCK_SWEEP_SECONDS, 3 * handle.poller.seconds):
                return f"the sweep of {handle.broker.binding.display} has stood still"
        return None
