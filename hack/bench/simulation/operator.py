"""Simulate the operator with the real `decide`, called when the operator calls it.

The surroundings of `decide` are a model: the doorbell of an idle queue, the poll twice per second while workers run,
and idle workers that agree to retire.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from typing import Any, Final

from hack.bench.simulation.jobs import JobMix
from hack.bench.simulation.world import START_SECONDS, State, World
from workqueue.contract.handler_times import bucket_of
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueueSpec
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.config import Config
from workqueue_operator.scaling.decide import (
    Depth,
    Hold,
    Load,
    Observation,
    Retire,
    ScaleInWindow,
    ScaleOut,
    decide,
)
from workqueue_operator.scaling.decide import WorkloadState as Deployment
from workqueue_operator.scaling.wait import Waits, WaitState, observe
from workqueue_operator.workers.client import WorkerStatus

RING_TO_WRITTEN_SECONDS: Final = 0.009
"""The measured median time from the publish of one message at 0 replicas to the write of the count."""

POLL_SECONDS: Final = Config().poll_seconds
LOAD_SECONDS: Final = 60.0
"""Workers report their handler times and arrivals of the last minute."""


class Operator:
    """Scales one queue.

    Args:
        scaling: further fields of spec.scaling, such as `scaleInDelaySeconds`. The others have their defaults.
    """

    def __init__(self, workload: JobMix, **scaling: Any) -> None:
        if not scaling.keys() & {"targetDrainSeconds", "maxWaitSeconds"}:
            scaling.setdefault("messagesPerReplica", workload.messages_per_replica)
        self._spec = WorkQueueSpec.model_validate(
            {
                "connectionSecretRef": {"name": "rabbitmq"},
                "worker": {"image": "simulated", "handler": {"python": "simulated:handler"}},
                "scaling": {"maxReplicas": workload.max_replicas, **scaling},
            }
        )
        self._limit = self._spec.scaling.max_wait_seconds
        self._waits: WaitState | None = None
        self._times: Counter[int] = Counter()
        self._window = ScaleInWindow(0.0)
        self._arrivals: deque[float] = deque()
        self._polling = False

    def start(self, world: World) -> None:
        """Do nothing, because the queue starts idle with a doorbell."""
        self._world = world

    def published(self) -> None:
        """Ring the doorbell if there is no worker."""
        self._arrivals.append(self._world.now)
        if not self._polling:
            self._polling = True
            self._world.later(RING_TO_WRITTEN_SECONDS, self._poll)

    def _poll(self) -> None:
        self._decide()
        if self._world.replicas or self._world.waiting:
            self._world.later(POLL_SECONDS, self._poll)
        else:
            self._polling = False

    def _decide(self) -> None:
        world = self._world
        staying = world.staying
        depth = Depth(
            len(world.waiting), world.in_handlers, sum(pod.state is not State.STARTING for pod in staying)
        )
        settling = any(pod.state is State.STARTING for pod in staying)
        unsettled = Unknown(Reason.PODS_SETTLING, "Pods are starting.") if settling else None
        load = Load() if self._spec.scaling.messages_per_replica else self._load()
        if self._limit is not None:
            load = replace(load, waits=self._waited(self._limit))
        seen = Observation(Deployment(world.replicas, unsettled=unsettled), depth, load=load)
        decision, self._window = decide(self._spec, seen, self._window, world.now)
        match decision:
            case ScaleOut(replicas=replicas):
                world.scale(replicas)
            case Retire(replicas=replicas):
                idle = [pod for pod in staying if pod.state is State.IDLE]
                leaving = idle[: world.replicas - replicas]
                world.scale(world.replicas - len(leaving), leaving)
            case Hold():
                pass

    def _waited(self, limit: float) -> Waits:
        world, now = self._world, self._world.now
        handled = len(world.outcome.waits)
        for _, seconds in list(world.handled)[len(world.handled) - handled + self._times.total() :]:
            self._times[bucket_of(seconds)] += 1
        # One worker stands for all: it reports the sum of their counts.
        all_workers = WorkerStatus(
            slots=world.replicas,
            busy=world.in_handlers,
            consuming=True,
            handler_seconds=None,
            deliveries_per_second=0.0,
            received=handled + world.in_handlers,
            handler_times=dict(self._times),
        )
        counts = QueueCounts(len(world.waiting), len(world.staying), now)
        self._waits = observe(self._waits, counts, {"all": all_workers}, limit)
        busy = [now - pod.until + pod.job.seconds for pod in world.staying if pod.job is not None]
        return Waits(self._waits.line.ages, busy, world.replicas, self._waits.times, START_SECONDS)

    def _load(self) -> Load:
        world, since = self._world, self._world.now - LOAD_SECONDS
        while self._arrivals and self._arrivals[0] < since:
            self._arrivals.popleft()
        while world.handled and world.handled[0][0] < since:
            world.handled.popleft()
        handled = [seconds for _, seconds in world.handled]
        return Load(sum(handled) / len(handled) if handled else None, len(self._arrivals) / LOAD_SECONDS)
