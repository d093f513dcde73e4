"""KEDA with a HorizontalPodAutoscaler, as their sources and documentation have it, where they differ from nothing.

Place in the flow: an autoscaler for `world`. Between 0 and 1 KEDA's operator decides, at each poll; above 1 the
controller of Kubernetes, every 15 s. The model is kind to them: the count of messages is exact and fresh, includes
those in handlers (which the AMQP protocol of the scaler cannot see), and no request is throttled. Against a run of
KEDA 2.20 with 20 messages from 0 it gives the same counts 15 s apart: 1, 4, 8, 16, 20.
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
"""Without a behavior of its own an HPA goes to twice its count or to 4 in one step, whichever is more."""


class Keda:
    """Scales one queue.

    Args:
        phase: seconds from the beginning to the first poll and the first sync: where in their cycles the first
            message meets them.
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
        """Poll and sync for ever."""
        self._world = world
        world.later(self._phase % self._polling, self._poll)
        world.later(self._phase % SYNC_SECONDS, self._sync)

    def published(self) -> None:
        """Nobody tells it."""

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
        if world.replicas:  # at 0 it is switched off
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
