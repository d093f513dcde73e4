"""Gather what one pass knows: the Deployment, the pods, and what the broker and the workers answer.

This is the first step of a pass that has a connection.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Final

from workqueue.contract.binding import Binding
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueue, WorkQueueSpec
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import PollAnswer, PolledQueue
from workqueue_operator.broker.management import Management
from workqueue_operator.kube.views import DeploymentView, PodView, deployment_view, leaving
from workqueue_operator.ports import Broker, Clock, Workers
from workqueue_operator.scaling import schedule, wait
from workqueue_operator.scaling.decide import Depth, wanted_replicas
from workqueue_operator.scaling.depth import QueueReadings, is_implausible, judge, load, workers_decide
from workqueue_operator.scaling.place import Place
from workqueue_operator.scaling.snapshot import Snapshot
from workqueue_operator.workers.apply import Ensured
from workqueue_operator.workers.client import Address, WorkerStatus
from workqueue_operator.workers.target import Targets

FRESH: Final = 1.0
"""Seconds for which the poller's last answer is used; the poller asks about active queues more often."""

FRESH_BESIDE_WORKERS: Final = 0.1
"""The same for a WorkQueue with `maxWaitSeconds`: what workers have received since then would be counted twice."""

RING_AGREES_WITHIN: Final = 0.2
"""Seconds after a ring within which a passive declare must show its message."""

RING_SHOWS_PAUSE: Final = 0.001
"""Seconds between two passive declares after a ring. They lag behind it by a few milliseconds (measured; mostly less
than two)."""

RING_PAUSE: Final = 0.004
"""Seconds between two passive declares while the count grows."""

CONSUMERS_SHOW_WITHIN: Final = 0.5
"""Seconds within which a passive declare shows a new consumer. A queue without a leader never does."""

CONSUMERS_PAUSE: Final = 0.05
"""Seconds between two passive declares until the consumer shows."""

READING_SHARE: Final = 0.1
READING_SECONDS: Final = (1.0, 10.0)
"""While no answer of a worker can change the count, the operator asks the workers after this share of
scaleInDelaySeconds or, if that is longer, of the time for which each busy worker has been busy. A surplus worker then
stays for a tenth longer. It asks not more often than each second and not less often than every 10 s."""

ASK_WORKERS_EVERY: Final = 10.0
"""Seconds between two requests to workers whose answers the decision does not need. They reveal a silent worker
during a backlog too."""

SILENT_AFTER: Final = 30.0
"""Seconds after which a condition names a Ready worker that does not answer, or that RabbitMQ does not answer: within
a minute of its start."""

SILENCE_STANDS: Final = 40.0
"""Seconds without a request to the workers after which it no longer counts who did not answer before. A pass without
a depth asks none."""

GROWTH_SECONDS: Final = 60.0
"""Seconds over which the growth of the backlog is averaged."""


@dataclass(frozen=True, slots=True)
class Connection:
    """The way to the queue of one WorkQueue.

    Attributes:
        binding: the WorkQueue's own. The handle may have been made from another one of the same identity.
        place: of the pass, which gives it back while it waits.
        is_first: whether the pass sets the first doorbell after a start. It leaves an existing Deployment as it is.
    """

    handle: Broker
    binding: Binding
    place: Place
    is_first: bool = False


@dataclass(frozen=True, slots=True)
class GatherState:
    """What `gather` keeps about one WorkQueue between its passes. Times are seconds on the monotonic clock.

    Attributes:
        silent_since: since when a running worker has not answered, by the uid of its pod.
        unanswered_since: since when RabbitMQ has not answered a worker, by the uid of its pod.
        workers_asked_at: when the operator last asked the workers for their status.
        statuses: their answers by pod name.
        consumers: how many consumers the queue had then; -1 when that was unknown.
        ready_before: when the queue was last read, and how many messages were waiting.
        growth: by how many messages a second the backlog has grown over the last minute.
        proven_hash: the hash of the last template that had a Ready pod.
        waits: what `maxWaitSeconds` needs; None with another target.
        handler_seconds: the mean time of a handler, as last measured.
    """

    silent_since: Mapping[str, float] = field(default_factory=dict)
    unanswered_since: Mapping[str, float] = field(default_factory=dict)
    workers_asked_at: float = 0.0
    statuses: Mapping[str, WorkerStatus] = field(default_factory=dict)
    consumers: int = -1
    ready_before: tuple[float, int] | None = None
    growth: float = 0.0
    proven_hash: str | None = None
    waits: wait.WaitState | None = None
    handler_seconds: float | None = None


class Gatherer:
    """Asks the API server, the broker and the workers."""

    def __init__(self, targets: Targets, workers: Workers, management: Management, clock: Clock) -> None:
        self._targets = targets
        self._workers = workers
        self._management = management
        self._clock = clock

    async def gather(
        self, workqueue: WorkQueue, connection: Connection, state: GatherState, *, ring: bool
    ) -> tuple[Snapshot, GatherState]:
        """Gather everything that a decision needs.

        Args:
            ring: whether a ring has arrived since the last pass.

        Returns:
            The snapshot, and the state for the next pass.
        """
        ensured = await self._targets.ensure(
            workqueue, connection.binding.display, state.proven_hash, as_it_is=connection.is_first
        )
        deployment, refusal = _seen_of(ensured)
        pods = self._targets.pods(workqueue)
        minimum = schedule.minimum_replicas(workqueue.spec, self._clock.now())
        with connection.place.waits_for_broker():
            counts = await self._counts(workqueue, connection.handle, ring=ring)
        # From now on it waits for workers.
        connection.place.release()
        worker, asked, exact = workqueue.spec.worker, pods, None
        if worker is None:
            # The operator cannot ask the pods of others.
            asked = []
            exact = await self._management.unacknowledged(connection.binding, workqueue.queue_name)
        readings = QueueReadings(
            counts=counts,
            doorbell_installed_at=connection.handle.broker.doorbell_installed_at(workqueue.queue_name),
            ours=worker is not None,
            pods=_consuming(deployment, asked),
            single_active=bool(workqueue.spec.queue.single_active_consumer),
            concurrency=1 if worker is None else worker.concurrency,
            unacknowledged=exact,
            stopping=_stopping(asked),
            unreported=_unreported(asked, self._clock.now().timestamp()),
            broker=connection.binding.display,
        )
        if worker is not None:
            if self._clock.monotonic() - state.workers_asked_at > SILENCE_STANDS and (
                state.silent_since or state.unanswered_since
            ):
                state = replace(state, silent_since={}, unanswered_since={})
            if self._still_holds(workqueue, readings, state):
                with_last = replace(readings, statuses=state.statuses)
                if not changes_the_count(workqueue.spec, with_last, deployment, minimum.replicas):
                    readings = with_last
            readings, state = await self._ask_who_matters(workqueue, readings, state)
            state = _proven(_with_growth(state, counts), deployment, pods)
            readings = await self._until_plausible(workqueue, connection.handle, readings)
            state = _with_waits(workqueue.spec, state, readings, pods)
            seconds = load(readings.statuses, 0.0).handler_seconds
            if seconds is not None and seconds != state.handler_seconds:
                state = replace(state, handler_seconds=seconds)
        snapshot = Snapshot(
            workqueue=workqueue,
            deployment=deployment,
            pods=pods,
            readings=readings,
            depth=judge(readings, workqueue.queue_name),
            minimum=minimum,
            now=self._clock.monotonic(),
            refusal=refusal,
            growth=state.growth,
            waits=state.waits,
            handler_seconds=state.handler_seconds,
            proven_hash=state.proven_hash,
        )
        return snapshot, state

    async def gather_without_queue(
        self, workqueue: WorkQueue, problem: Unknown, state: GatherState, release: Callable[[], None]
    ) -> tuple[Snapshot, GatherState]:
        """Gather what a decision needs while the depth is unknown: a person may have pinned the count.

        Args:
            problem: why the depth is unknown.
            release: gives back the place of the pass while it waits for workers.
        """
        ensured = await self._targets.ensure(workqueue, proven_hash=state.proven_hash)
        deployment, refusal = _seen_of(ensured)
        pods, pin, worker = self._targets.pods(workqueue), workqueue.spec.replicas, workqueue.spec.worker
        if worker is None:
            # Whether workers of others are busy is unknown, too.
            exact = Unknown(Reason.UNACKNOWLEDGED_UNKNOWN, problem.message)
            readings = QueueReadings(counts=None, ours=False, unacknowledged=exact)
        else:
            consuming = _consuming(deployment, pods)
            readings = QueueReadings(counts=None, pods=consuming, concurrency=worker.concurrency)
            if pin is not None and isinstance(deployment, DeploymentView) and pin < deployment.replicas:
                release()
                readings, state = await self._ask_workers(readings, state)
        snapshot = Snapshot(
            workqueue=workqueue,
            deployment=deployment,
            pods=pods,
            readings=readings,
            depth=problem,
            minimum=schedule.minimum_replicas(workqueue.spec, self._clock.now()),
            now=self._clock.monotonic(),
            refusal=refusal,
            # A pin is carried out at once, without a first pod of a new template alone.
            proven_hash=None if isinstance(deployment, Unknown) else deployment.template_hash,
        )
        return snapshot, state

    async def gather_rest(self, snapshot: Snapshot, state: GatherState) -> tuple[Snapshot, GatherState]:
        """Ask, after the scaling, what only the status shows.

        During a backlog the decision needs no worker's answer. The operator still asks the workers every
        `ASK_WORKERS_EVERY` seconds.
        """
        readings = await self._ask_stopping(snapshot.readings)
        due = self._clock.monotonic() - state.workers_asked_at >= ASK_WORKERS_EVERY
        if readings.pods and due:
            readings, state = await self._ask_workers(readings, state)
        if readings is snapshot.readings:
            return snapshot, state
        return replace(snapshot, readings=readings), state

    def pause(self, readings: QueueReadings) -> float:
        """Return the seconds until workers of which none has answered should be asked again."""
        return 0.0 if readings.statuses else self._workers.pause([_address(pod) for pod in readings.pods])

    async def _ask_who_matters(
        self, workqueue: WorkQueue, readings: QueueReadings, state: GatherState
    ) -> tuple[QueueReadings, GatherState]:
        """Ask those workers whose answers the decision needs."""
        decisive = workers_decide(readings.counts)
        spec = workqueue.spec
        has_rate = spec.limits is not None and spec.limits.rate_per_second is not None
        measured = has_rate or spec.scaling.messages_per_replica is None
        wanted = bool(readings.pods) and not readings.statuses and (measured or decisive)
        if decisive and wanted and readings.stopping:
            (asked, state), stopping = await asyncio.gather(
                self._ask_workers(readings, state), self._ask_stopping(readings)
            )
            readings = replace(asked, stopping_statuses=stopping.stopping_statuses)
        elif wanted:
            # During a backlog nothing may delay the decision, and workers that stop do not change it.
            readings, state = await self._ask_workers(readings, state)
        elif decisive:
            readings = await self._ask_stopping(readings)
        unreachable = self._unreachable(readings.pods, state)
        unanswered = self._unanswered(readings.pods, state)
        if unreachable is not None or unanswered is not None:
            readings = replace(readings, unreachable=unreachable, unanswered=unanswered)
        return readings, state

    def _still_holds(self, workqueue: WorkQueue, readings: QueueReadings, state: GatherState) -> bool:
        """Whether the last answers of the workers are recent, and of the same workers and consumers."""
        return (
            self._clock.monotonic() - state.workers_asked_at
            < _seconds_of_one_reading(workqueue.spec, state.statuses.values())
            and isinstance(readings.counts, QueueCounts)
            and readings.counts.consumers == state.consumers
            and {pod.name for pod in readings.pods} == set(state.statuses)
        )

    async def _until_plausible(
        self, workqueue: WorkQueue, handle: Broker, readings: QueueReadings
    ) -> QueueReadings:
        polled = handle.poller.watch(workqueue.key, workqueue.queue_name)
        deadline = self._clock.monotonic() + CONSUMERS_SHOW_WITHIN
        while is_implausible(readings) and self._clock.monotonic() < deadline:
            await self._clock.sleep(CONSUMERS_PAUSE)
            readings = replace(readings, counts=await handle.poller.ask(polled))
        return readings

    async def _counts(self, workqueue: WorkQueue, handle: Broker, *, ring: bool) -> PollAnswer:
        polled = handle.poller.watch(workqueue.key, workqueue.queue_name)
        if ring:
            return await self._counts_after_ring(handle, polled)
        last = polled.last
        fresh = FRESH if workqueue.spec.scaling.max_wait_seconds is None else FRESH_BESIDE_WORKERS
        if isinstance(last, QueueCounts) and self._clock.monotonic() - last.at < fresh:
            return last
        return await handle.poller.ask(polled)

    async def _counts_after_ring(self, handle: Broker, polled: PolledQueue) -> PollAnswer:
        """A ring means at least one message. While the count grows, a burst is arriving."""
        deadline = self._clock.monotonic() + RING_AGREES_WITHIN
        before = -1
        while True:
            counts = await handle.poller.ask(polled)
            if not isinstance(counts, QueueCounts) or counts.ready == 1 or 0 < counts.ready == before:
                return counts
            if self._clock.monotonic() >= deadline:
                return counts
            before = counts.ready
            await self._clock.sleep(RING_PAUSE if counts.ready else RING_SHOWS_PAUSE)

    async def _ask_workers(
        self, readings: QueueReadings, state: GatherState
    ) -> tuple[QueueReadings, GatherState]:
        now = self._clock.monotonic()
        statuses = await self._workers.statuses([_address(pod) for pod in readings.pods])
        silent_since = {
            pod.uid: state.silent_since.get(pod.uid, now) for pod in readings.pods if pod.name not in statuses
        }
        unanswered_since = {
            pod.uid: state.unanswered_since.get(pod.uid, now)
            for pod in readings.pods
            if pod.name in statuses and not statuses[pod.name].queue_answers
        }
        return (
            replace(readings, statuses=statuses),
            replace(
                state,
                workers_asked_at=now,
                silent_since=silent_since,
                unanswered_since=unanswered_since,
                statuses=statuses,
                consumers=readings.counts.consumers if isinstance(readings.counts, QueueCounts) else -1,
            ),
        )

    async def _ask_stopping(self, readings: QueueReadings) -> QueueReadings:
        """Ask the workers that were told to stop, unless they have been asked."""
        if readings.stopping_statuses is not None or not readings.stopping:
            return readings
        statuses = await self._workers.stopping([_address(pod) for pod in readings.stopping])
        return replace(readings, stopping_statuses=statuses)

    def _unreachable(self, running: Sequence[PodView], state: GatherState) -> str | None:
        """The name of a Ready worker that has been silent for too long. A starting worker is not Ready yet."""
        return self._for_long((pod for pod in running if pod.ready), state.silent_since)

    def _unanswered(self, running: Sequence[PodView], state: GatherState) -> str | None:
        """The name of a worker that RabbitMQ has not answered for too long, unless another one consumes."""
        if any(status.consuming for status in state.statuses.values()):
            return None
        return self._for_long(running, state.unanswered_since)

    def _for_long(self, pods: Iterable[PodView], since: Mapping[str, float]) -> str | None:
        """The first name of a pod whose uid has been in `since` for SILENT_AFTER."""
        latest = self._clock.monotonic() - SILENT_AFTER
        return min((pod.name for pod in pods if since.get(pod.uid, math.inf) <= latest), default=None)


def _seen_of(ensured: Ensured | Unknown) -> tuple[DeploymentView | Unknown, Unknown | None]:
    """The Deployment, or why it cannot be scaled; and why it differs from what the WorkQueue asks for."""
    if isinstance(ensured, Unknown):
        return ensured, ensured
    return deployment_view(ensured.deployment), ensured.refusal


def reading_seconds(spec: WorkQueueSpec, readings: QueueReadings) -> float:
    """Return the seconds between two readings of workers whose answers cannot change the count."""
    answers = (
        readings.statuses.values() if all(pod.name in readings.statuses for pod in readings.pods) else ()
    )
    return max(_seconds_of_one_reading(spec, answers), READING_SECONDS[0])


def _seconds_of_one_reading(spec: WorkQueueSpec, answers: Iterable[WorkerStatus]) -> float:
    """Return for how long the answers of the workers hold.

    Without a scale-in delay, each pass asks while a worker has just become busy, or none is.
    """
    ages = (status.busy_seconds or 0.0 for status in answers if status.busy)
    seconds = max(float(spec.scaling.scale_in_delay_seconds), min(ages, default=0.0))
    return min(seconds * READING_SHARE, READING_SECONDS[1])


def changes_the_count(
    spec: WorkQueueSpec, readings: QueueReadings, deployment: DeploymentView | Unknown, minimum: int
) -> bool:
    """Whether other answers of the workers than these could raise or lower the count now. Pure.

    A waiting message may raise it. While none waits, the count can grow only if the workers have more slots than the
    target allows for them, and it can shrink only while there is a surplus and a worker is idle.
    """
    counts = readings.counts
    if not isinstance(counts, QueueCounts) or isinstance(deployment, Unknown) or counts.ready:
        return True
    idle = any(status.busy == 0 for status in readings.statuses.values())
    if spec.replicas is not None:
        return idle and spec.replicas < deployment.replicas
    measured = load(readings.statuses, 0.0)

    def wanted(in_handlers: int) -> int:
        depth = Depth(0, in_handlers, counts.consumers)
        return min(
            max(wanted_replicas(spec, depth, measured, readings.concurrency), minimum), spec.most_replicas
        )

    busy = sum(status.busy for status in readings.statuses.values())
    grows, shrinks = wanted(counts.consumers) > deployment.replicas, wanted(busy) < deployment.replicas
    return grows or (shrinks and idle)


def _address(pod: PodView) -> Address:
    return Address(pod.name, pod.uid, pod.ip)


def _consuming(deployment: DeploymentView | Unknown, pods: Sequence[PodView]) -> list[PodView]:
    retired = () if isinstance(deployment, Unknown) else leaving(deployment, pods)
    names = {pod.name for pod in retired}
    return [pod for pod in pods if pod.running and not pod.terminating and pod.name not in names]


def _stopping(pods: Sequence[PodView]) -> list[PodView]:
    return [pod for pod in pods if pod.running and pod.terminating]


def _unreported(pods: Sequence[PodView], now: float) -> list[PodView]:
    return [
        pod
        for pod in pods
        if pod.scheduled
        and not pod.running
        and not pod.terminating
        and (pod.restarts_at is None or pod.restarts_at <= now)
    ]


def _proven(state: GatherState, deployment: DeploymentView | Unknown, pods: Sequence[PodView]) -> GatherState:
    """Remember the template hash once one of its pods is Ready."""
    if isinstance(deployment, Unknown) or deployment.template_hash == state.proven_hash:
        return state
    if not any(pod.ready and pod.template_hash == deployment.template_hash for pod in pods):
        return state
    return replace(state, proven_hash=deployment.template_hash)


def _with_growth(state: GatherState, counts: PollAnswer) -> GatherState:
    if not isinstance(counts, QueueCounts):
        return state
    growth = state.growth
    if state.ready_before is not None:
        at, ready = state.ready_before
        span = counts.at - at
        if span <= 0:
            return state
        weight = min(span / GROWTH_SECONDS, 1.0)
        growth += weight * ((counts.ready - ready) / span - growth)
    return replace(state, growth=growth, ready_before=(counts.at, counts.ready))


def _with_waits(
    spec: WorkQueueSpec, state: GatherState, readings: QueueReadings, pods: Sequence[PodView]
) -> GatherState:
    limit, counts = spec.scaling.max_wait_seconds, readings.counts
    if limit is None:
        return state if state.waits is None else replace(state, waits=None)
    if not isinstance(counts, QueueCounts) or is_implausible(readings):
        return state
    answers = {pod.name: readings.statuses.get(pod.name) for pod in readings.pods}
    waits = wait.observe(state.waits, counts, answers, limit)
    starts = [pod.start_seconds for pod in pods if pod.ready and pod.start_seconds is not None]
    if starts:
        waits = replace(waits, start_seconds=median(starts))
    return replace(state, waits=waits)
