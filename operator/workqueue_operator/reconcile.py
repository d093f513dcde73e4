"""One pass over one WorkQueue: observe, decide, act, report, in that order. The only place that calls them.

Place in the flow: whatever changes (spec, Deployment, pods, bell, depth, timer) puts the WorkQueue's key on
the queue here; one pass a key runs at a time, and a key that comes again meanwhile runs once more. A pass
works from what is seen now. What is kept between passes only saves work, but for the scale-in window, which
a restart begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from . import schedule, status
from .act import queues
from .act.retire import Outcome, Retirement
from .act.retire import plan as plan_retirement
from .act.workload import Workload
from .broker.connection import QueueCounts
from .cluster import Cluster, Object, deployment_path
from .decide import Decision, Depth, Hold, Observation, Retire, ScaleOut, Window, decide
from .decide import Workload as WorkloadState
from .errors import ClusterError, LeadershipLostError, Trouble
from .finalize import Finalizer
from .metrics import Metrics
from .model import Wake, WorkQueue
from .names import workload_name
from .observe.brokers import Brokers, Link
from .observe.depth import Answers, is_implausible, judge, load, workers_decide
from .observe.secrets import Secrets
from .observe.store import Key, Store
from .observe.sweep import MISSING, Missing, Watched
from .observe.workers import Address, Workers, WorkerStatus
from .reasons import Finding, Reason, Unknown
from .report import Reporter
from .views import DeploymentView, PodView, deployment_view, pod_views, unsettled

logger = logging.getLogger(__name__)

RING_AGREES_WITHIN: Final = 0.2
"""Seconds for which a passive declare may lag behind a ring (tried: some milliseconds)."""

RING_PAUSE: Final = 0.004
"""Seconds between two looks at a queue that has just rung."""

CONSUMERS_SHOW_WITHIN: Final = 0.5
CONSUMERS_PAUSE: Final = 0.05
"""A passive declare may lag behind a consumer that has just come, too; a leaderless queue goes on lying."""

UNREACHABLE_AFTER: Final = 120.0
"""Seconds after which a worker that cannot be asked is worth a person's attention."""

LOOK_AGAIN: Final = 1.0
"""Seconds until the next pass while workers run that may become idle: only they know when they do."""

LOOK_AGAIN_BUSY_COLUMN: Final = 5.0
SCHEDULE_EVERY: Final = 20.0
BACKOFF: Final = (0.5, 60.0)
GROWTH_SECONDS: Final = 60.0
"""Time over which the growth of the waiting messages is averaged."""


@dataclass(eq=False, slots=True)
class _Memory:
    """What is kept about one WorkQueue between its passes."""

    uid: str
    window: Window
    declared: tuple[int, object] | None = None
    queue: Finding | None = None
    rung_at: float | None = None
    unreachable_since: float | None = None
    proven_hash: str | None = None
    last_scale: dict[str, str] = field(default_factory=dict)
    ready_before: tuple[float, int] | None = None
    growth: float = 0.0
    failures: int = 0


@dataclass(eq=False)
class Parts:
    """What a pass works with, made once at the start of the process."""

    store: Store
    cluster: Cluster
    secrets: Secrets
    brokers: Brokers
    workers: Workers
    workload: Workload
    retirement: Retirement
    reporter: Reporter
    finalizer: Finalizer
    metrics: Metrics


class Reconciler:
    """Runs the passes.

    Args:
        parts: the edges; None only until `start` is called (they need `wake`).
        on_fatal: called when a pass found that this process is not the leader any more.
    """

    def __init__(self, on_fatal: Callable[[BaseException], None]) -> None:
        self._parts: Parts | None = None
        self._on_fatal = on_fatal
        self._memories: dict[Key, _Memory] = {}
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._stopped = False
        self.passes_done = 0

    def start(self, parts: Parts) -> None:
        """Take the edges; passes may run from now on."""
        self._parts = parts

    async def stop(self, patience: float = 5.0) -> None:
        """Begin no pass any more and wait for those that run."""
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        tasks = list(self._running.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # -- the queue of keys ---------------------------------------------------------------------------

    def wake(self, key: Key) -> None:
        """Run a pass over this WorkQueue soon; once more when one is running."""
        if self._stopped or self._parts is None:
            return
        if key in self._running:
            self._again.add(key)
            return
        self._cancel_timer(key)
        self._running[key] = asyncio.create_task(self._run(key), name=f"pass {key[0]}/{key[1]}")

    def rang(self, key: Key) -> None:
        """The bell of this WorkQueue rang: there is at least one message."""
        memory = self._memories.get(key)
        if memory is not None and memory.rung_at is None:
            memory.rung_at = time.monotonic()
        self.wake(key)

    async def _run(self, key: Key) -> None:
        delay: float | None = None
        try:
            delay = await self._guarded_pass(key)
        finally:
            self._running.pop(key, None)
            self.passes_done += 1
            if key in self._again:
                self._again.discard(key)
                self.wake(key)
            elif delay is not None:
                self._set_timer(key, delay)

    def _set_timer(self, key: Key, delay: float) -> None:
        if not self._stopped:
            self._cancel_timer(key)
            self._timers[key] = asyncio.get_running_loop().call_later(delay, self._on_timer, key)

    def _on_timer(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.wake(key)

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    async def _guarded_pass(self, key: Key) -> float | None:
        """A pass, with whatever it raises turned into a delay."""
        assert self._parts is not None  # noqa: S101 - `wake` has looked
        begun = time.monotonic()
        try:
            delay = await self._pass(key, self._parts)
        except LeadershipLostError as error:
            self._on_fatal(error)
            return None
        except ClusterError as error:
            self._parts.metrics.reconcile_errors.labels(Reason.API_UNAVAILABLE.value).inc()
            logger.warning(
                "A pass failed at the API server.",
                extra={
                    "namespace": key[0],
                    "workqueue": key[1],
                    "status": error.status,
                    "detail": error.message,
                },
            )
            return error.retry_after or self._backoff(key)
        except Exception:
            # Whatever nobody thought of must not end the operator, which serves a thousand other queues.
            self._parts.metrics.reconcile_errors.labels(Reason.INTERNAL_ERROR.value).inc()
            logger.exception(
                "A pass failed.",
                extra={"namespace": key[0], "workqueue": key[1], "reason": Reason.INTERNAL_ERROR.value},
            )
            return self._backoff(key)
        finally:
            self._parts.metrics.reconcile_seconds.observe(time.monotonic() - begun)
        if (memory := self._memories.get(key)) is not None:
            memory.failures = 0
        return delay

    def _backoff(self, key: Key) -> float:
        memory = self._memories.get(key)
        failures = 0
        if memory is not None:
            memory.failures += 1
            failures = memory.failures
        first, longest = BACKOFF
        return random.uniform(0.5, 1.0) * min(first * float(2**failures), longest)  # noqa: S311 - jitter

    # -- one pass ------------------------------------------------------------------------------------

    async def _pass(self, key: Key, parts: Parts) -> float | None:
        """Returns after how many seconds the next pass is due, None when only a change is."""
        body = parts.store.workqueue(key)
        if body is None:
            await self._gone(key, parts)
            return None
        memory = self._memory(key, body["metadata"]["uid"], parts)
        try:
            workqueue = WorkQueue.model_validate(body)
        except ValidationError as error:
            logger.warning(
                "A WorkQueue does not fit the schema.",
                extra={
                    "namespace": key[0],
                    "workqueue": key[1],
                    "reason": Reason.SPEC_INVALID.value,
                    "detail": str(error),
                },
            )
            return None
        if workqueue.deleting:
            await parts.brokers.leave(key)
            return await parts.finalizer.finalize(workqueue)
        await parts.finalizer.ensure(workqueue)
        seen, delay = await self._look_and_act(workqueue, memory, parts)
        findings = status.conditions(workqueue, seen)
        self._measure(workqueue, seen, parts.metrics)
        await parts.reporter.transitions(workqueue, findings, time.monotonic())
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        put_off = await parts.reporter.status(
            workqueue, status.status(workqueue, seen, findings, moment), time.monotonic()
        )
        return min((wait for wait in (delay, put_off) if wait is not None), default=None)

    def _memory(self, key: Key, uid: str, parts: Parts) -> _Memory:
        memory = self._memories.get(key)
        if memory is None or memory.uid != uid:
            if memory is not None:
                parts.reporter.forget(memory.uid)
                parts.workload.forget(memory.uid)
            memory = self._memories[key] = _Memory(uid, Window(time.monotonic()))
        return memory

    async def _gone(self, key: Key, parts: Parts) -> None:
        memory = self._memories.pop(key, None)
        self._cancel_timer(key)
        await parts.brokers.leave(key)
        if memory is not None:
            parts.reporter.forget(memory.uid)
            parts.workload.forget(memory.uid)
        parts.metrics.forget(*key)

    async def _look_and_act(
        self, workqueue: WorkQueue, memory: _Memory, parts: Parts
    ) -> tuple[status.Seen, float | None]:
        """Everything between reading the resource and writing its status."""
        known = memory.queue or Finding(
            "Unknown", Reason.DEPTH_PENDING, "The queue has not been declared yet."
        )
        if workqueue.spec.suspend:
            await parts.brokers.leave(workqueue.key)
            decision, memory.window = decide(workqueue.spec, _NOTHING, memory.window, time.monotonic())
            return self._seen(workqueue, parts, status.Seen(known, decision=decision)), None
        try:
            link = await self._connect(workqueue, parts)
        except Trouble as trouble:
            unknown = Unknown(trouble.reason, trouble.message)
            decision, memory.window = self._blind(workqueue, memory, unknown, parts)
            queue = known if known.status == "True" and not _about_secret(trouble) else _finding(trouble)
            seen = status.Seen(queue, depth=unknown, decision=decision, trouble=unknown)
            await self._workload_while_blind(workqueue, parts)
            return self._seen(workqueue, parts, seen), self._backoff_of_trouble(memory)
        try:
            queue = await self._declare(workqueue, memory, link)
        except Trouble as trouble:
            memory.queue = None
            link.broker.take_down_bell(workqueue.queue_name)
            unknown = Unknown(trouble.reason, trouble.message)
            decision, memory.window = self._blind(workqueue, memory, unknown, parts)
            seen = status.Seen(_finding(trouble), depth=unknown, decision=decision, trouble=unknown)
            return self._seen(workqueue, parts, seen), self._backoff_of_trouble(memory)
        memory.failures = 0
        return await self._scale(workqueue, memory, link, queue, parts)

    def _backoff_of_trouble(self, memory: _Memory) -> float:
        memory.failures += 1
        first, longest = BACKOFF
        return min(first * float(2 ** min(memory.failures, 6)), longest / 4)

    def _blind(
        self, workqueue: WorkQueue, memory: _Memory, unknown: Unknown, parts: Parts
    ) -> tuple[Decision, Window]:
        """A decision without a depth: it holds, unless a person has pinned the count."""
        deployment = self._deployment(workqueue, parts)
        workload: WorkloadState | Unknown = unknown
        if deployment is not None:
            view = deployment_view(deployment)
            workload = WorkloadState(view.replicas)
        return decide(workqueue.spec, Observation(workload, unknown), memory.window, time.monotonic())

    async def _workload_while_blind(self, workqueue: WorkQueue, parts: Parts) -> None:
        """A broker that is away does not keep a Deployment from being made or put right."""
        if workqueue.spec.worker is not None:
            with contextlib.suppress(Trouble):
                parts.store.put_deployment(
                    await parts.workload.ensure(workqueue, self._deployment(workqueue, parts))
                )

    async def _connect(self, workqueue: WorkQueue, parts: Parts) -> Link:
        namespace, secret = workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
        link = await parts.brokers.link(workqueue.key, await parts.secrets.binding(namespace, secret))
        try:
            await link.broker.ready()
        except Trouble as trouble:
            if trouble.reason is Reason.AUTHENTICATION_FAILED:
                # A rotated password shows first as a refused login.
                parts.secrets.forget(namespace, secret)
            raise
        return link

    # -- the queue -----------------------------------------------------------------------------------

    async def _declare(self, workqueue: WorkQueue, memory: _Memory, link: Link) -> Finding:
        """Declare when something changed: the plan, the connection, or a queue that has vanished."""
        queue = workqueue.queue_name
        watched = link.sweep.watch(workqueue.key, queue)
        dead = link.sweep.watch(workqueue.key, f"{queue}.dead")
        self._require_first_claim(workqueue, link, queue)
        vanished = watched.last is MISSING or dead.last is MISSING
        state = (link.broker.generation, (link.broker.binding.identity, workqueue.spec.queue))
        if memory.declared == state and not vanished and memory.queue is not None:
            return memory.queue
        was_there = memory.queue is not None and memory.declared is not None and vanished
        if watched.last is MISSING:
            link.broker.mark_vanished(queue)
        finding = await queues.declare(workqueue, link.broker)
        if was_there and workqueue.spec.queue.declare:
            moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            finding = Finding(
                "True",
                Reason.DECLARED_AGAIN,
                f"The queue {queue!r} or its dead-letter queue had been deleted and was declared again at {moment}.",
            )
        finding = queues.consumer_timeout_trouble(workqueue, link.broker) or finding
        memory.declared, memory.queue = state, finding
        watched.last = None
        await link.sweep.ask(dead)
        return finding

    def _require_first_claim(self, workqueue: WorkQueue, link: Link, queue: str) -> None:
        parts = self._parts
        assert parts is not None  # noqa: S101 - a pass runs
        for other in link.sweep.keys_of(queue):
            body = parts.store.workqueue(other)
            if other == workqueue.key or body is None or body["metadata"].get("deletionTimestamp"):
                continue
            if _age(body) < _age(parts.store.workqueue(workqueue.key) or body):
                raise Trouble(
                    Reason.QUEUE_CLAIMED,
                    f"The queue {queue!r} belongs to the older WorkQueue {other[0]}/{other[1]} on the same broker. "
                    "Delete one of the two, or give this one another queue.name in a new WorkQueue.",
                )

    # -- the count -----------------------------------------------------------------------------------

    async def _scale(
        self, workqueue: WorkQueue, memory: _Memory, link: Link, queue: Finding, parts: Parts
    ) -> tuple[status.Seen, float | None]:
        live = await self._ensure_workload(workqueue, parts)
        deployment = live if isinstance(live, Unknown) else deployment_view(live)
        pods = pod_views(parts.store.pods_of(workqueue.key))
        watched = link.sweep.watch(workqueue.key, workqueue.queue_name)
        answers = await self._ask(workqueue, memory, link, watched, pods, parts)
        depth = judge(answers, workqueue.queue_name)
        observation = self._observation(workqueue, memory, deployment, pods, depth, answers)
        decision, memory.window = decide(workqueue.spec, observation, memory.window, time.monotonic())
        decision, deployment = await self._act(
            workqueue, memory, link, decision, deployment, pods, answers.statuses, parts
        )
        pods = pod_views(parts.store.pods_of(workqueue.key))
        doorbell = await self._mind_bell(workqueue, link, watched, deployment, pods, depth, decision)
        rang = memory.rung_at is not None and not isinstance(decision, ScaleOut)
        memory.rung_at = None
        dead = link.sweep.watch(workqueue.key, f"{workqueue.queue_name}.dead")
        seen = status.Seen(
            queue,
            depth=depth,
            deployment=deployment,
            pods=pods,
            decision=decision,
            doorbell=doorbell,
            dead_letters=dead.last.ready if isinstance(dead.last, QueueCounts) else None,
            busy=_busy_pods(answers, depth),
            last_scale=memory.last_scale,
            proven_hash=memory.proven_hash,
        )
        return seen, self._next_look(workqueue, deployment, pods, decision, rang=rang)

    async def _ensure_workload(self, workqueue: WorkQueue, parts: Parts) -> Object | Unknown:
        seen = self._deployment(workqueue, parts)
        if workqueue.spec.worker is None:
            return seen or await self._find_target(workqueue, parts)
        try:
            live = await parts.workload.ensure(workqueue, seen)
        except Trouble as trouble:
            return Unknown(trouble.reason, trouble.message)
        if live is not seen:
            parts.store.put_deployment(live)
        return live

    async def _find_target(self, workqueue: WorkQueue, parts: Parts) -> Object | Unknown:
        ref = workqueue.spec.workload_ref
        assert ref is not None  # noqa: S101 - the model holds exactly one
        parts.store.follow(workqueue.key, workqueue.metadata.namespace, ref.name)
        try:
            live = await parts.cluster.get(deployment_path(workqueue.metadata.namespace, ref.name))
        except ClusterError as error:
            if not error.not_found:
                raise
            return Unknown(
                Reason.WORKLOAD_NOT_FOUND,
                f"The Deployment {ref.name!r} that spec.workloadRef names does not exist. Create it, or correct "
                "the name.",
            )
        parts.store.put_deployment(live)
        return live

    def _deployment(self, workqueue: WorkQueue, parts: Parts) -> Object | None:
        ref = workqueue.spec.workload_ref
        name = ref.name if ref is not None else workload_name(workqueue.metadata.name)
        return parts.store.deployment(workqueue.metadata.namespace, name)

    async def _ask(
        self,
        workqueue: WorkQueue,
        memory: _Memory,
        link: Link,
        watched: Watched,
        pods: list[PodView],
        parts: Parts,
    ) -> Answers:
        """Ask the broker, and where only they know, the workers."""
        broker, queue = link.broker, workqueue.queue_name
        running = [pod for pod in pods if pod.running and not pod.terminating and not pod.marked]
        counts: QueueCounts | Missing | Trouble | None
        if memory.rung_at is not None:
            counts = await self._ask_after_ring(link, watched)
        elif _is_fresh(watched):
            counts = watched.last
        else:
            counts = await link.sweep.ask(watched)
        statuses: Mapping[str, WorkerStatus] = {}
        if running and (workers_decide(counts) or workqueue.spec.scaling.target_drain_seconds is not None):
            statuses = await parts.workers.statuses([Address(pod.name, pod.uid, pod.ip) for pod in running])
        if isinstance(counts, QueueCounts):
            self._follow_growth(memory, counts)
        worker = workqueue.spec.worker
        answers = Answers(
            counts=counts,
            bell_hung_at=broker.bell_hung_at(queue),
            ours=worker is not None,
            pods=running,
            statuses=statuses,
            concurrency=worker.concurrency if worker is not None else 1,
        )
        deadline = time.monotonic() + CONSUMERS_SHOW_WITHIN
        while is_implausible(answers) and time.monotonic() < deadline:
            await asyncio.sleep(CONSUMERS_PAUSE)
            answers = replace(answers, counts=await link.sweep.ask(watched))
        return answers

    async def _ask_after_ring(self, link: Link, watched: Watched) -> QueueCounts | Missing | Trouble:
        """A ring means at least one message, though the count may lag; while it grows, a burst is coming in."""
        deadline = time.monotonic() + RING_AGREES_WITHIN
        before = -1
        while True:
            counts = await link.sweep.ask(watched)
            if not isinstance(counts, QueueCounts) or counts.ready == 1 or 0 < counts.ready == before:
                return counts
            if time.monotonic() >= deadline:
                return counts
            before = counts.ready
            await asyncio.sleep(RING_PAUSE)

    def _follow_growth(self, memory: _Memory, counts: QueueCounts) -> None:
        if memory.ready_before is not None:
            at, ready = memory.ready_before
            span = counts.at - at
            if span <= 0:
                return
            weight = min(span / GROWTH_SECONDS, 1.0)
            memory.growth += weight * ((counts.ready - ready) / span - memory.growth)
        memory.ready_before = (counts.at, counts.ready)

    def _observation(
        self,
        workqueue: WorkQueue,
        memory: _Memory,
        deployment: DeploymentView | Unknown,
        pods: list[PodView],
        depth: Depth | Unknown,
        answers: Answers,
    ) -> Observation:
        try:
            minimum = schedule.minimum_replicas(workqueue.spec, datetime.now(UTC))
        except Trouble as trouble:
            return Observation(Unknown(trouble.reason, trouble.message), depth)
        if isinstance(deployment, Unknown):
            return Observation(deployment, depth, minimum)
        ours = workqueue.spec.worker is not None
        if ours and any(pod.ready and pod.template_hash == deployment.template_hash for pod in pods):
            memory.proven_hash = deployment.template_hash
        proven = memory.proven_hash or workqueue.status.proven_template_hash
        workload = WorkloadState(
            replicas=deployment.replicas,
            proven=not ours or proven == deployment.template_hash,
            unsettled=unsettled(deployment, pods) if ours else None,
            concurrency=answers.concurrency,
        )
        return Observation(workload, depth, minimum, load(answers.statuses, memory.growth))

    async def _act(
        self,
        workqueue: WorkQueue,
        memory: _Memory,
        link: Link,
        decision: Decision,
        deployment: DeploymentView | Unknown,
        pods: list[PodView],
        statuses: Mapping[str, WorkerStatus],
        parts: Parts,
    ) -> tuple[Decision, DeploymentView | Unknown]:
        """Carry the decision out; returns what became of it."""
        if isinstance(deployment, Unknown) or isinstance(decision, Hold):
            if isinstance(deployment, DeploymentView):
                await self._clear_stale_marks(workqueue, deployment, pods, parts)
            return decision, deployment
        if isinstance(decision, ScaleOut):
            # A bell that still hung would get the message on a queue with a single active consumer.
            link.broker.take_down_bell(workqueue.queue_name)
            live = await self._write_replicas(
                workqueue, memory, decision, deployment, decision.replicas, parts
            )
            return decision, deployment if live is None else deployment_view(live)
        return await self._retire(workqueue, memory, link, decision, deployment, pods, statuses, parts)

    async def _write_replicas(
        self,
        workqueue: WorkQueue,
        memory: _Memory,
        decision: ScaleOut | Retire,
        deployment: DeploymentView,
        replicas: int,
        parts: Parts,
    ) -> Object | None:
        live = await parts.workload.scale(workqueue, deployment.name, deployment.replicas, replicas)
        if live is None:
            return None
        now = time.monotonic()
        if memory.rung_at is not None:
            parts.metrics.wake_seconds.observe(now - memory.rung_at)
        direction = "out" if replicas > deployment.replicas else "in"
        parts.metrics.scale.labels(direction, decision.reason.value).inc()
        memory.last_scale = {
            "lastScaleTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastScaleReason": f"{decision.reason.value}: {decision.message}",
        }
        parts.store.put_deployment(live)
        await parts.reporter.event(
            workqueue,
            False,
            decision.reason,
            f"Scaled {direction} from {deployment.replicas} to {replicas}: {decision.message}",
            "Scale",
            now,
        )
        return live

    async def _retire(
        self,
        workqueue: WorkQueue,
        memory: _Memory,
        link: Link,
        decision: Retire,
        deployment: DeploymentView,
        pods: list[PodView],
        statuses: Mapping[str, WorkerStatus],
        parts: Parts,
    ) -> tuple[Decision, DeploymentView]:
        if workqueue.spec.worker is None:
            live = await self._write_replicas(
                workqueue, memory, decision, deployment, decision.replicas, parts
            )
            return decision, deployment if live is None else deployment_view(live)
        chosen = plan_retirement(pods, statuses, deployment.replicas - decision.replicas)

        async def lower(number: int) -> Object | None:
            return await self._write_replicas(
                workqueue, memory, decision, deployment, deployment.replicas - number, parts
            )

        async def confirm_empty() -> bool | None:
            return await self._confirm_empty(workqueue, link)

        outcome = await parts.retirement.carry_out(
            workqueue.metadata.namespace,
            chosen,
            pods,
            link.broker.binding.signing_key,
            lower,
            confirm_empty if decision.only_when_empty else None,
        )
        for answer in outcome.answers.values():
            parts.metrics.retire.labels(answer.value).inc()
        return self._judge_retirement(memory, decision, deployment, outcome)

    def _judge_retirement(
        self, memory: _Memory, decision: Retire, deployment: DeploymentView, outcome: Outcome
    ) -> tuple[Decision, DeploymentView]:
        now = time.monotonic()
        if outcome.deployment is not None:
            memory.unreachable_since = None
            return decision, deployment_view(outcome.deployment)
        if outcome.unreachable:
            memory.unreachable_since = memory.unreachable_since or now
            if now - memory.unreachable_since >= UNREACHABLE_AFTER:
                return Hold(
                    decision.wanted,
                    Reason.RETIRE_UNREACHABLE,
                    f"Worker {outcome.unreachable[0]} does not answer the operator, so that it cannot be asked "
                    "whether it is busy, and stays. Look for a NetworkPolicy between them, and at its log.",
                ), deployment
        else:
            memory.unreachable_since = None
        if outcome.awaited:
            return Hold(
                decision.wanted, Reason.MESSAGES_WAITING, "A message came; the last workers stay."
            ), deployment
        if outcome.doorbell_failed:
            return Hold(
                decision.wanted,
                Reason.DOORBELL_UNAVAILABLE,
                "The bell cannot be hung just now; the last workers stay until it can.",
            ), deployment
        return Hold(
            decision.wanted, Reason.WORKERS_BUSY, "Surplus workers are busy and stay until they are idle."
        ), deployment

    async def _confirm_empty(self, workqueue: WorkQueue, link: Link) -> bool | None:
        """For the step to zero, after all workers have stopped consuming: does nothing wait, and will we hear?"""
        queue = workqueue.queue_name
        watched = link.sweep.watch(workqueue.key, queue)
        push = self._wake_of(workqueue, link, watched) is Wake.PUSH
        if push and not await link.broker.hang_bell(queue):
            counts = await link.sweep.ask(watched)
            return False if isinstance(counts, QueueCounts) and counts.ready else None
        counts = await link.sweep.ask(watched)
        if isinstance(counts, QueueCounts) and counts.ready == 0 and (counts.bell or not push):
            return True
        link.broker.take_down_bell(queue)
        return False

    async def _clear_stale_marks(
        self, workqueue: WorkQueue, deployment: DeploymentView, pods: list[PodView], parts: Parts
    ) -> None:
        """A scale-in that was broken off half-way may have left marks on pods that stay."""
        if workqueue.spec.worker is None or unsettled(deployment, pods) is not None:
            return
        marked = [pod for pod in pods if pod.marked and not pod.terminating]
        if marked:
            await parts.retirement.clear_marks(workqueue.metadata.namespace, marked)

    # -- the bell ------------------------------------------------------------------------------------

    def _wake_of(self, workqueue: WorkQueue, link: Link, watched: Watched) -> Wake:
        """Push where it can be had: not where a bell was refused, nor where its rings would count."""
        borrowed = (
            not workqueue.spec.queue.declare
            and workqueue.spec.scaling.wake is None
            and link.broker.version.nack_counts_as_delivery
        )
        if watched.refusal is not None or borrowed:
            return Wake.POLL
        return workqueue.wake

    async def _mind_bell(
        self,
        workqueue: WorkQueue,
        link: Link,
        watched: Watched,
        deployment: DeploymentView | Unknown,
        pods: list[PodView],
        depth: Depth | Unknown,
        decision: Decision,
    ) -> Unknown | None:
        """Hang or take down the bell, and watch the queue as closely as it has to be.

        Returns:
            Why the queue is polled although Push is wanted, or None.
        """
        queue = workqueue.queue_name
        wake = self._wake_of(workqueue, link, watched)
        asleep = (
            isinstance(deployment, DeploymentView)
            and deployment.replicas == 0
            and all(pod.terminating or pod.marked for pod in pods)
            and isinstance(depth, Depth)
            and depth.ready == 0
            and not isinstance(decision, ScaleOut)
            and decision.wanted == 0
            and decision.reason is not Reason.PINNED
        )
        if isinstance(depth, Unknown) and link.broker.bell_is_up(queue):
            # It does no harm while nothing is known, and it is the first to know.
            watched.active = True
        elif not asleep or wake is Wake.POLL:
            link.broker.take_down_bell(queue)
            idle_pin = (
                isinstance(deployment, DeploymentView)
                and deployment.replicas == 0
                and workqueue.spec.replicas == 0
            )
            watched.active = not idle_pin
        elif await link.broker.hang_bell(queue):
            watched.active = False
        else:
            # It rang at once, or was refused: either way another pass is on its way.
            watched.active = True
        if watched.refusal is None or workqueue.wake is Wake.POLL:
            return None
        return Unknown(
            Reason.DOORBELL_UNAVAILABLE,
            f"The operator may not consume from queue {queue!r}, so that an idle queue is noticed by polling. "
            f"RabbitMQ says: {watched.refusal[1]}. Give its user read permission on the queue.",
        )

    # -- afterwards ----------------------------------------------------------------------------------

    def _next_look(
        self,
        workqueue: WorkQueue,
        deployment: DeploymentView | Unknown,
        pods: list[PodView],
        decision: Decision,
        *,
        rang: bool,
    ) -> float | None:
        delays = []
        if rang:
            # A ring that led to nothing: whoever took the message may hand it back.
            delays.append(LOOK_AGAIN)
        if workqueue.spec.scaling.schedules:
            delays.append(SCHEDULE_EVERY)
        if isinstance(deployment, Unknown):
            delays.append(SCHEDULE_EVERY)
        elif deployment.replicas > 0 or pods:
            surplus = decision.wanted is not None and decision.wanted < deployment.replicas
            open_question = surplus or deployment.replicas > workqueue.spec.scaling.min_replicas
            # With many pods, asking all of them each second would cost more than it tells.
            delays.append(max(LOOK_AGAIN, 0.02 * len(pods)) if open_question else LOOK_AGAIN_BUSY_COLUMN)
        return min(delays, default=None)

    def _seen(self, workqueue: WorkQueue, parts: Parts, seen: status.Seen) -> status.Seen:
        """Add what the store shows of the workload to a pass that ended early."""
        live = self._deployment(workqueue, parts)
        if live is None:
            return seen
        return replace(
            seen, deployment=deployment_view(live), pods=pod_views(parts.store.pods_of(workqueue.key))
        )

    def _measure(self, workqueue: WorkQueue, seen: status.Seen, metrics: Metrics) -> None:
        if isinstance(seen.depth, Depth):
            metrics.messages_ready.labels(*workqueue.key).set(seen.depth.ready)
            metrics.consumers.labels(*workqueue.key).set(seen.depth.consumers)
        if seen.dead_letters is not None:
            metrics.dead_letters.labels(*workqueue.key).set(seen.dead_letters)
        if isinstance(seen.deployment, DeploymentView):
            view = seen.deployment
            for state, count in (
                ("desired", view.replicas),
                ("current", view.current),
                ("ready", view.ready),
            ):
                metrics.replicas.labels(*workqueue.key, state).set(count)
        if seen.busy is not None:
            metrics.replicas.labels(*workqueue.key, "busy").set(seen.busy)


_NOTHING: Final = Observation(
    Unknown(Reason.SUSPENDED, "spec.suspend is true."), Unknown(Reason.SUSPENDED, "spec.suspend is true.")
)

_FRESH: Final = 1.0
"""Seconds for which a sweep's answer counts as now; a sweep of active queues is faster."""


def _is_fresh(watched: Watched) -> bool:
    last = watched.last
    if isinstance(last, (Missing, Trouble)) or last is None:
        return False
    return asyncio.get_running_loop().time() - last.at < _FRESH


def _busy_pods(answers: Answers, depth: Depth | Unknown) -> int | None:
    if not answers.pods:
        return 0
    if answers.statuses:
        return sum(status.busy > 0 for status in answers.statuses.values())
    return min(len(answers.pods), depth.in_handlers) if isinstance(depth, Depth) else None


def _finding(trouble: Trouble) -> Finding:
    return Finding("False", trouble.reason, trouble.message)


def _about_secret(trouble: Trouble) -> bool:
    return trouble.reason in {Reason.SECRET_NOT_FOUND, Reason.SECRET_INVALID, Reason.SECRET_FORBIDDEN}


def _age(body: Mapping[str, Any]) -> tuple[str, str]:
    return body["metadata"]["creationTimestamp"], body["metadata"]["uid"]
