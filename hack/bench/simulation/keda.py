"""Model KEDA with a HorizontalPodAutoscaler, after their sources and documentation.

Between 0 and 1 replicas, KEDA's operator decides at each poll. Above 1, the controller of Kubernetes decides every
15 s. The model favours both: the message count is exact, current and includes messages being handled, which KEDA's
scaler cannot see over AMQP, and no request is throttled. For 20 messages at 0 replicas, the model gives the same
counts as a run of KEDA 2.20, 15 s apart: 1, 4, 8, 16, 20.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from hack.bench.simulation.jobs import JobMix
from hack.bench.simulation.world import World

POLLING_SECONDS: Final = 30.0
COOLDOWN_SECONDS: Final = 300.0

SYNC_SECONDS: Final = 15.0
TOLERANCE: Final = 0.1
STABILIZATION_SECONDS: Final = 300.0
SMALLEST_STEP: Final = 4
"""The default behavior of an HPA: one step leads to at most twice the count or to 4, whichever is more."""


class Keda:
    """Scales one queue.

    Args:
        phase: seconds from the start to the first poll and the first sync. It sets the point in both cycles at
            which the first message comes.
    """

    def __init__(
        self,
        workload: JobMix,
        polling_seconds: float = POLLING_SECONDS,
        cooldown_seconds: float = COOLDOWN_SECONDS,
        phase: float = 0.0,
    ) -> None:
        self._target = workload.messages_per_replica
        self._most = workload.max_replicas
        self._polling = polling_seconds
        self._cooldown = cooldown_seconds
        self._phase = phase
        self._last_active = -cooldown_seconds
        self._recommended: deque[tuple[float, int]] = deque()

    def start(self, world: World) -> None:
        """Start the periodic polls and syncs."""
        self._world = world
        world.later(self._phase % self._polling, self._poll)
        world.later(self._phase % SYNC_SECONDS, self._sync)

    def published(self) -> None:
        """Do nothing, because KEDA does not learn of a new message before its next poll."""

    @property
    def _messages(self) -> int:
        return len(self._world.waiting) + self._world.in_handlers

    def _poll(self) -> None:
        world = self._world
        if self._messages:
            self._last_active = world.now
            if world.replicas == 0:
                world.scale(1)
        elif world.replicas and world.now - self._last_active >= self._cooldown:
            world.scale(0)
            self._recommended.clear()
        world.later(self._polling, self._poll)

    def _sync(self) -> None:
        world = self._world
        if world.replicas:  # an HPA does nothing at 0 replicas
            world.scale(self._wanted(world.replicas))
        world.later(SYNC_SECONDS, self._sync)

    def _wanted(self, replicas: int) -> int:
        ratio = self._messages / (self._target * replicas)
        wanted = replicas if abs(1 - ratio) <= TOLERANCE else math.ceil(self._messages / self._target)
        now = self._world.now
        while self._recommended and now - self._recommended[0][0] > STABILIZATION_SECONDS:
            self._recommended.popleft()
        self._recommended.append((now, wanted))
        stable = max(count for _, count in self._recommended)
        return max(1, min(stable, max(2 * replicas, SMALLEST_STEP), self._most))
