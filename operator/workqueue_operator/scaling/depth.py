"""From what the broker and the workers answer to a depth that can be acted on, or to Unknown. Pure.

Place in the flow: `reconcile` gathers the answers, this module judges them, `decide` uses the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QueueMissing
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.views import PodView
from workqueue_operator.names import ENDPOINT_PORT
from workqueue_operator.scaling.decide import Depth, Load
from workqueue_operator.workers.client import WorkerStatus

DOORBELL_SHOWS_AFTER: Final = 2.0
"""Seconds after which a confirmed consumer surely counts in a passive declare (seen: it lags a little)."""


@dataclass(frozen=True, slots=True)
class QueueReadings:
    """What was answered about one queue.

    Attributes:
        counts: the broker's answer, None before the first.
        bell_hung_at: when the broker confirmed our bell, on the clock of `counts.at`; None while none hangs.
        ours: whether the workers are ours, so that they can be asked.
        pods: pods whose worker runs, not retired and not on their way out.
        statuses: the workers' own answers by pod name; who did not answer is not in it.
        single_active: whether RabbitMQ hands messages to one consumer at a time.
        unreachable: a Ready worker that has not answered for `gather.SILENT_AFTER`, by its pod's name.
        unacknowledged: for workers that are not ours, the exact count from the management API.
        stopping: pods that were told to stop and whose worker still runs. They consume no longer, but may have
            messages in handlers.
        stopping_statuses: their answers by pod name; None while they have not been asked.
    """

    counts: QueueCounts | QueueMissing | ReconcileError | None
    doorbell_installed_at: float | None = None
    ours: bool = True
    pods: Sequence[PodView] = ()
    statuses: Mapping[str, WorkerStatus] = field(default_factory=dict)
    unreachable: str | None = None
    single_active: bool = False
    concurrency: int = 1
    unacknowledged: int | Unknown | None = None
    stopping: Sequence[PodView] = ()
    stopping_statuses: Mapping[str, WorkerStatus] | None = None


def workers_decide(counts: QueueCounts | QueueMissing | ReconcileError | None) -> bool:
    """Whether only the workers can say how many messages are in handlers.

    While more messages wait than there are consumers, every consumer has one (prefetch 1). Otherwise some
    may be idle, and the broker does not say which.
    """
    return isinstance(counts, QueueCounts) and counts.ready <= counts.consumers


def judge(answers: QueueReadings, queue: str) -> Depth | Unknown:
    """The depth, unless something speaks against believing the answers."""
    counts = answers.counts
    if counts is None:
        return Unknown(Reason.DEPTH_PENDING, f"The queue {queue!r} has not been asked yet.")
    if isinstance(counts, QueueMissing):
        return Unknown(Reason.QUEUE_NOT_FOUND, f"The queue {queue!r} does not exist.")
    if isinstance(counts, ReconcileError):
        return Unknown(counts.reason, counts.message)
    if is_implausible(answers):
        return Unknown(
            Reason.DEPTH_IMPLAUSIBLE,
            f"RabbitMQ answers zero messages and zero consumers for queue {queue!r} although there are consumers, "
            "as it does while a quorum queue has no leader. Replicas stay as they are.",
        )
    in_handlers, unconfirmed = _in_handlers(answers, counts)
    return Depth(counts.ready, in_handlers, counts.consumers, unconfirmed, _doubt(answers, unconfirmed))


def is_implausible(answers: QueueReadings) -> bool:
    """Whether RabbitMQ says zero and zero although somebody consumes, as a leaderless quorum queue does.

    A Ready worker that does not answer may well consume, so it speaks against a zero too.
    """
    counts = answers.counts
    if not isinstance(counts, QueueCounts) or counts.ready or counts.consumers or counts.doorbell:
        return False
    installed_at = answers.doorbell_installed_at
    doorbell = installed_at is not None and counts.at - installed_at > DOORBELL_SHOWS_AFTER
    return doorbell or any(
        pod.ready and (pod.name not in answers.statuses or answers.statuses[pod.name].consuming)
        for pod in answers.pods
    )


def load(statuses: Mapping[str, WorkerStatus], growth_per_second: float) -> Load:
    """What the workers measured, weighted by what each has handled lately.

    Args:
        growth_per_second: by how much the waiting messages have grown; arrivals are what was taken plus that.
    """
    measured = [status for status in statuses.values() if status.handler_seconds is not None]
    weight = sum(status.deliveries_per_second for status in measured)
    if not measured:
        return Load(None, max(growth_per_second, 0.0))
    if weight > 0:
        seconds = sum((s.handler_seconds or 0.0) * s.deliveries_per_second for s in measured) / weight
    else:
        seconds = sum(s.handler_seconds or 0.0 for s in measured) / len(measured)
    return Load(seconds, max(weight + growth_per_second, 0.0))


def _in_handlers(answers: QueueReadings, counts: QueueCounts) -> tuple[int, int]:
    """Messages that are known to be in a handler, and how many more there may be."""
    if isinstance(answers.unacknowledged, int):
        return answers.unacknowledged, 0
    if counts.ready > counts.consumers:
        return min(counts.consumers, 1) if answers.single_active else counts.consumers, 0
    if not answers.ours:
        return 0, counts.consumers
    busy = sum(answers.statuses[pod.name].busy for pod in answers.pods if pod.name in answers.statuses)
    silent = sum(pod.name not in answers.statuses for pod in answers.pods) * answers.concurrency
    # A message that was taken since the broker answered is among those that wait: it must not ask for a worker twice.
    known = min(busy, counts.consumers) if counts.ready else busy
    return known, busy - known + silent


def _doubt(answers: QueueReadings, unconfirmed: int) -> Unknown | None:
    if isinstance(answers.unacknowledged, Unknown):
        return answers.unacknowledged
    if answers.unreachable is not None:
        return Unknown(
            Reason.RETIRE_UNREACHABLE,
            f"Worker {answers.unreachable} does not answer the operator on port {ENDPOINT_PORT}, so it may be busy "
            "or idle. Replicas still grow with the messages that are known; a worker that does not answer stays. "
            "Look for a NetworkPolicy between the operator and the worker, and at the pod's log.",
        )
    if unconfirmed:
        return Unknown(
            Reason.WORKERS_BUSY, "Some workers have not answered yet; they may be in a handler and stay."
        )
    return None


def messages_in_stopping_workers(answers: QueueReadings) -> int:
    """Return how many messages are known to be in handlers of workers that were told to stop.

    They are no part of the depth: such a message needs no new worker and keeps no other worker from leaving.
    """
    return sum(status.busy for status in (answers.stopping_statuses or {}).values())


def busy_pods(answers: QueueReadings, depth: Depth | Unknown, replicas: int | None) -> int | None:
    """Return how many pods handle a message, those that were told to stop included; None when that is not known.

    Args:
        replicas: pods of the Deployment, None when not known.
    """
    if not isinstance(depth, Depth):
        return None
    if not answers.ours:
        if not isinstance(answers.unacknowledged, int):
            return None
        return min(answers.unacknowledged, answers.unacknowledged if replicas is None else replicas)
    stopping = answers.stopping_statuses or {}
    if any(pod.name not in stopping for pod in answers.stopping):
        return None
    if workers_decide(answers.counts):
        # A worker that is not Ready is still starting: its endpoint is up before it is Ready.
        if any(pod.ready and pod.name not in answers.statuses for pod in answers.pods):
            return None
        staying = sum(status.busy > 0 for status in answers.statuses.values())
    else:
        # Every consumer has a message; a worker without consumers is still starting.
        staying = min(len(answers.pods), math.ceil(depth.in_handlers / answers.concurrency))
    return staying + sum(status.busy > 0 for status in stopping.values())
