"""Simulate a queue, its workers and a clock, which an autoscaler reads and changes."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from hack.bench.simulation.jobs import Job, JobMix

START_SECONDS: Final = 2.0
"""From the new count to a consuming worker, with the image on the node. An idle local cluster takes 0.6 s."""

GRACE_SECONDS: Final = 30.0
"""The default of terminationGracePeriodSeconds in Kubernetes."""


class State(Enum):
    """The phase of a pod."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(eq=False, slots=True)
class Pod:
    """One worker with one slot.

    Attributes:
        job: the job in its handler.
        until: when the handler will finish.
        stopping: terminating; it takes no further job.
    """

    made: float
    state: State = State.STARTING
    job: Job | None = None
    until: float = 0.0
    stopping: bool = False


@dataclass
class Outcome:
    """The raw outcome of a simulation. Times are in seconds.

    Attributes:
        waits: of each job, from its publish to its last handler.
        replica_seconds: the lifetime of all pods.
        writes: the changes of the replica count.
        interrupted: the terminated busy pods.
        repeated: the jobs that were killed in their handler and redelivered.
        oldest: (time, publish time of the oldest waiting message or None) at each change.
        counts: (time, count) at each change.
    """

    waits: list[float] = field(default_factory=list)
    replica_seconds: float = 0.0
    writes: int = 0
    interrupted: int = 0
    repeated: int = 0
    oldest: list[tuple[float, float | None]] = field(default_factory=list)
    counts: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])


class Autoscaler(Protocol):
    """Reads the world and changes the count."""

    def start(self, world: World) -> None:
        """Set the first timer."""

    def published(self) -> None:
        """React to a new message."""


class World:
    """The state of the simulation at the time `now`.

    Args:
        grace_seconds: the time after which a terminating pod is killed.
    """

    def __init__(
        self, workload: JobMix, autoscaler: Autoscaler, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self.now = 0.0
        self.waiting: deque[Job] = deque()
        self.pods: list[Pod] = []
        self.replicas = 0
        self.handled: deque[tuple[float, float]] = deque()
        """The end and the duration of each job of the last minute."""
        self.outcome = Outcome()
        self._end = workload.seconds
        self._autoscaler = autoscaler
        self._grace = grace_seconds
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for job in workload.jobs:
            self._at(job.published, lambda job=job: self._publish(job))  # type: ignore[misc]

    def run(self) -> Outcome:
        """Run the simulation to the end of the workload."""
        self._autoscaler.start(self)
        while self._events and self._events[0][0] <= self._end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = self._end
        self.outcome.replica_seconds += sum(self.now - pod.made for pod in self.pods)
        return self.outcome

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        """Call `event` after `seconds`."""
        self._at(self.now + seconds, event)

    # Read by an autoscaler --------------------------------------------------------------------------------

    @property
    def staying(self) -> list[Pod]:
        """Return the pods that are not terminating."""
        return [pod for pod in self.pods if not pod.stopping]

    @property
    def in_handlers(self) -> int:
        """Return the number of messages being handled."""
        return sum(pod.job is not None for pod in self.pods)

    # Changed by an autoscaler -----------------------------------------------------------------------------

    def scale(self, replicas: int, leaving: list[Pod] | None = None) -> None:
        """Write the count and remove the pods `leaving`, by default pods that are not Ready, then the youngest."""
        if replicas == self.replicas:
            return
        self.outcome.writes += 1
        self.outcome.counts.append((self.now, replicas))
        self.replicas = replicas
        staying = self.staying
        for _ in range(replicas - len(staying)):
            pod = Pod(self.now)
            self.pods.append(pod)
            self.later(START_SECONDS, lambda pod=pod: self._started(pod))  # type: ignore[misc]
        if leaving is None:
            order = sorted(staying, key=lambda pod: (pod.state is not State.STARTING, -pod.made))
            leaving = order[: len(staying) - replicas] if replicas < len(staying) else []
        for pod in leaving:
            self._stop(pod)

    # Events -----------------------------------------------------------------------------------------------

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), event))

    def _publish(self, job: Job) -> None:
        self.waiting.append(job)
        self._deliver()
        self._autoscaler.published()

    def _started(self, pod: Pod) -> None:
        if pod in self.pods and not pod.stopping:
            pod.state = State.IDLE
            self._deliver()

    def _deliver(self) -> None:
        for pod in self.pods:
            if not self.waiting:
                break
            if pod.state is State.IDLE and not pod.stopping:
                job = self.waiting.popleft()
                pod.state, pod.job, pod.until = State.BUSY, job, self.now + job.seconds
                self._at(pod.until, lambda pod=pod, job=job: self._done(pod, job))  # type: ignore[misc]
        oldest = self.waiting[0].published if self.waiting else None
        if not self.outcome.oldest or self.outcome.oldest[-1][1] != oldest:
            self.outcome.oldest.append((self.now, oldest))

    def _done(self, pod: Pod, job: Job) -> None:
        if pod.job is not job:
            return  # the pod was killed
        self.outcome.waits.append(self.now - job.seconds - job.published)
        self.handled.append((self.now, job.seconds))
        pod.state, pod.job = State.IDLE, None
        if pod.stopping:
            self._gone(pod)
        self._deliver()

    def _stop(self, pod: Pod) -> None:
        pod.stopping = True
        if pod.job is None:
            self._gone(pod)
        else:
            self.outcome.interrupted += 1
            self.later(self._grace, lambda: self._kill(pod))

    def _kill(self, pod: Pod) -> None:
        if pod in self.pods and pod.job is not None:
            self.outcome.repeated += 1
            self.waiting.appendleft(pod.job)
            pod.job = None
            self._gone(pod)
            self._deliver()

    def _gone(self, pod: Pod) -> None:
        self.pods.remove(pod)
        self.outcome.replica_seconds += self.now - pod.made
