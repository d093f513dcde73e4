"""One look at a queue: the broker's answer, and where only they know, the workers' or the management API's.

Place in the flow: the first step of a pass that has a connection; `depth.judge` says what the answers mean.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from workqueue.contract.binding import Binding
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import PolledQueue, QueueMissing
from workqueue_operator.broker.management import Management
from workqueue_operator.broker.pool import BrokerHandle
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.views import PodView
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.scaling.depth import QueueReadings, is_implausible, workers_decide
from workqueue_operator.workers.client import Address, Workers, WorkerStatus

FRESH: Final = 1.0
"""Seconds for which a sweep's answer counts as now; the sweep of active queues is faster."""

RING_AGREES_WITHIN: Final = 0.2
RING_SHOWS_PAUSE: Final = 0.001
"""A passive declare may lag behind a ring by some milliseconds (tried; mostly by less than two)."""

RING_PAUSE: Final = 0.004
"""Between two looks at a count that grows."""

CONSUMERS_SHOW_WITHIN: Final = 0.5
CONSUMERS_PAUSE: Final = 0.05
"""It may lag behind a consumer that has just come, too; a leaderless queue goes on lying."""

ASK_WORKERS_EVERY: Final = 10.0
"""Seconds between two questions to workers whose answers the decision does not need, so that one that cannot be asked
is noticed during a backlog, too."""

SILENT_AFTER: Final = 30.0
"""Seconds after which a Ready worker that does not answer is named in a condition: within a minute of its start."""

GROWTH_SECONDS: Final = 60.0
"""Time over which the growth of the waiting messages is averaged."""


class Gatherer:
    """Asks whoever knows."""

    def __init__(self, workers: Workers, management: Management) -> None:
        self._workers = workers
        self._management = management

    async def ask(
        self,
        workqueue: WorkQueue,
        pass_state: PassState,
        handle: BrokerHandle,
        binding: Binding,
        pods: Sequence[PodView],
    ) -> QueueReadings:
        """Everything that can be known about the queue of a WorkQueue now.

        Args:
            binding: this WorkQueue's own; the link may have been made for another one of the same identity.
        """
        polled = handle.poller.watch(workqueue.key, workqueue.queue_name)
        counts = await self._counts(handle, polled, rung=pass_state.waking_since is not None)
        answers = QueueReadings(
            counts=counts,
            doorbell_installed_at=handle.broker.doorbell_installed_at(workqueue.queue_name),
            ours=workqueue.spec.worker is not None,
            single_active=bool(workqueue.spec.queue.single_active_consumer),
            concurrency=workqueue.spec.worker.concurrency if workqueue.spec.worker is not None else 1,
        )
        if workqueue.spec.worker is None:
            unacknowledged = await self._management.unacknowledged(binding, workqueue.queue_name)
            return replace(answers, unacknowledged=unacknowledged)
        running = [pod for pod in pods if pod.running and not pod.terminating and not pod.marked]
        answers = replace(answers, pods=running, stopping=_stopping(pods))
        if workers_decide(counts):
            statuses, answers = await asyncio.gather(
                self._statuses(workqueue, pass_state, counts, running), self.ask_stopping(answers)
            )
        else:
            # Much waits: nothing may hold up the decision, and those that stop do not matter to it.
            statuses = await self._statuses(workqueue, pass_state, counts, running)
        answers = replace(answers, statuses=statuses, unreachable=_unreachable(pass_state, running))
        if isinstance(counts, QueueCounts):
            _follow_growth(pass_state, counts)
        deadline = time.monotonic() + CONSUMERS_SHOW_WITHIN
        while is_implausible(answers) and time.monotonic() < deadline:
            await asyncio.sleep(CONSUMERS_PAUSE)
            answers = replace(answers, counts=await handle.poller.ask(polled))
        return answers

    async def ask_the_rest(self, pass_state: PassState, answers: QueueReadings) -> QueueReadings:
        """Ask, after the decision was carried out, what only people want to know.

        During a backlog the decision needs no worker's answer; now and then they are asked all the same.
        """
        answers = await self.ask_stopping(answers)
        if not answers.pods or time.monotonic() - pass_state.workers_asked_at < ASK_WORKERS_EVERY:
            return answers
        return replace(answers, statuses=await self._ask_workers(pass_state, answers.pods))

    async def ask_stopping(self, answers: QueueReadings) -> QueueReadings:
        """Ask the workers that were told to stop, unless they have been asked."""
        if answers.stopping_statuses is not None:
            return answers
        addresses = [Address(pod.name, pod.uid, pod.ip) for pod in answers.stopping]
        return replace(answers, stopping_statuses=await self._workers.stopping(addresses))

    async def _counts(
        self, handle: BrokerHandle, polled: PolledQueue, *, rung: bool
    ) -> QueueCounts | QueueMissing | ReconcileError:
        if rung:
            return await self._counts_after_ring(handle, polled)
        last = polled.last
        if isinstance(last, QueueCounts) and asyncio.get_running_loop().time() - last.at < FRESH:
            return last
        return await handle.poller.ask(polled)

    async def _counts_after_ring(
        self, handle: BrokerHandle, polled: PolledQueue
    ) -> QueueCounts | QueueMissing | ReconcileError:
        """A ring means at least one message; while the count grows, a burst is coming in."""
        deadline = time.monotonic() + RING_AGREES_WITHIN
        before = -1
        while True:
            counts = await handle.poller.ask(polled)
            if not isinstance(counts, QueueCounts) or counts.ready == 1 or 0 < counts.ready == before:
                return counts
            if time.monotonic() >= deadline:
                return counts
            before = counts.ready
            await asyncio.sleep(RING_PAUSE if counts.ready else RING_SHOWS_PAUSE)

    async def _statuses(
        self,
        workqueue: WorkQueue,
        pass_state: PassState,
        counts: QueueCounts | QueueMissing | ReconcileError,
        running: Sequence[PodView],
    ) -> Mapping[str, WorkerStatus]:
        measured = workqueue.spec.scaling.target_drain_seconds is not None
        if not running or not (measured or workers_decide(counts)):
            return {}
        return await self._ask_workers(pass_state, running)

    async def _ask_workers(
        self, pass_state: PassState, running: Sequence[PodView]
    ) -> Mapping[str, WorkerStatus]:
        pass_state.workers_asked_at = now = time.monotonic()
        answers = await self._workers.statuses([Address(pod.name, pod.uid, pod.ip) for pod in running])
        pass_state.silent_since = {
            pod.uid: pass_state.silent_since.get(pod.uid, now) for pod in running if pod.name not in answers
        }
        return answers


def _unreachable(pass_state: PassState, running: Sequence[PodView]) -> str | None:
    """The name of a Ready worker that has not answered for too long; one that starts is not Ready yet."""
    latest = time.monotonic() - SILENT_AFTER
    silent = (
        pod.name for pod in running if pod.ready and pass_state.silent_since.get(pod.uid, math.inf) <= latest
    )
    return min(silent, default=None)


def _stopping(pods: Sequence[PodView]) -> list[PodView]:
    return [pod for pod in pods if pod.running and pod.terminating]


def _follow_growth(pass_state: PassState, counts: QueueCounts) -> None:
    if pass_state.ready_before is not None:
        at, ready = pass_state.ready_before
        span = counts.at - at
        if span <= 0:
            return
        weight = min(span / GROWTH_SECONDS, 1.0)
        pass_state.growth += weight * ((counts.ready - ready) / span - pass_state.growth)
    pass_state.ready_before = (counts.at, counts.ready)
