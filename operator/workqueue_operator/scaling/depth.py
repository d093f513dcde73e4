"""Turn the answers of the broker and the workers into a depth, or into Unknown. PURE.

`gather` collects the answers, this module judges them, `decide` uses the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from workqueue.contract.worker_api import PORT
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import PollAnswer, QueueMissing
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.views import PodView
from workqueue_operator.scaling.decide import Depth, Load
from workqueue_operator.workers.client import WorkerStatus

DOORBELL_SHOWS_AFTER: Final = 2.0
"""Seconds after which a passive declare must count a confirmed consumer (measured: it lags a little)."""


@dataclass(frozen=True, slots=True)
class QueueReadings:
    """The answers about one queue.

    Attributes:
        counts: the broker's answer; None before the first.
        doorbell_installed_at: when the broker confirmed the doorbell, on the clock of `counts.at`; None without one.
        ours: whether the WorkQueue has workers of its own, which the operator can ask.
        pods: pods whose worker runs and is neither retired nor terminating.
        statuses: the workers' answers by pod name, without the workers that did not answer.
        single_active: whether RabbitMQ delivers to one consumer at a time.
        unreachable: the pod name of a Ready worker that has not answered for `gather.SILENT_AFTER`.
        unanswered: the pod name of a worker that RabbitMQ has not answered for as long, while no worker consumes.
        unacknowledged: for the workers of a workloadRef, the exact count from the management API.
        stopping: terminating pods whose worker still runs. They no longer consume, but may have messages in handlers.
        stopping_statuses: their answers by pod name; None before the operator has asked them.
        unreported: pods whose worker may run although the kubelet has not reported it yet.
        broker: the broker of these counts. A pod with another one does not consume from this queue.
    """

    counts: PollAnswer | None
    doorbell_installed_at: float | None = None
    ours: bool = True
    pods: Sequence[PodView] = ()
    statuses: Mapping[str, WorkerStatus] = field(default_factory=dict)
    unreachable: str | None = None
    unanswered: str | None = None
    single_active: bool = False
    concurrency: int = 1
    unacknowledged: int | Unknown | None = None
    stopping: Sequence[PodView] = ()
    stopping_statuses: Mapping[str, WorkerStatus] | None = None
    unreported: Sequence[PodView] = ()
    broker: str = ""


def workers_decide(counts: PollAnswer | None) -> bool:
    """Whether only the workers know how many messages they handle.

    While more messages wait than consumers exist, every consumer has one (prefetch 1). Otherwise some consumers
    may be idle, and the broker does not show which.
    """
    return isinstance(counts, QueueCounts) and counts.ready <= counts.consumers


def judge(answers: QueueReadings, queue: str) -> Depth | Unknown:
    """Return the depth, or Unknown when the answers are missing or implausible."""
    counts = answers.counts
    if counts is None:
        return Unknown(Reason.DEPTH_PENDING, f"The operator has not read the counts of queue {queue!r} yet.")
    if isinstance(counts, QueueMissing):
        return Unknown(Reason.QUEUE_NOT_FOUND, f"The queue {queue!r} does not exist.")
    if isinstance(counts, ReconcileError):
        return Unknown(counts.reason, counts.message)
    if is_implausible(answers):
        return Unknown(
            Reason.DEPTH_IMPLAUSIBLE,
            f"RabbitMQ reports zero messages and zero consumers for queue {queue!r} although it has consumers, as it "
            "does while a quorum queue has no leader. The count does not change until RabbitMQ reports them.",
        )
    in_handlers, unconfirmed = _in_handlers(answers, counts)
    return Depth(
        counts.ready,
        in_handlers,
        counts.consumers,
        unconfirmed,
        doubt=_doubt(answers, unconfirmed),
        stale=_stale(answers, counts, queue),
    )


def is_implausible(answers: QueueReadings) -> bool:
    """Whether RabbitMQ reports zero messages and consumers although a consumer exists, or may exist.

    RabbitMQ does that while a quorum queue has no leader. A Ready worker that does not answer may consume, and so may
    one that RabbitMQ does not answer: a worker that was asked to leave gives its consumer up in vain. A terminating
    worker that does not answer proves nothing: its node may be lost.
    """
    counts = answers.counts
    if not isinstance(counts, QueueCounts) or counts.ready or counts.consumers or counts.doorbell:
        return False
    installed_at = answers.doorbell_installed_at
    doorbell = installed_at is not None and counts.at - installed_at > DOORBELL_SHOWS_AFTER
    if doorbell or any(map(_may_consume, (answers.stopping_statuses or {}).values())):
        return True
    return any(
        pod.ready and ((status := answers.statuses.get(pod.name)) is None or _may_consume(status))
        for pod in answers.pods
        if pod.broker in {"", answers.broker}
    )


def _may_consume(status: WorkerStatus) -> bool:
    return status.consuming or not status.queue_answers


def load(
    statuses: Mapping[str, WorkerStatus], growth_per_second: float, last_handler_seconds: float | None = None
) -> Load:
    """Return the workers' measurements, weighted by each worker's recent deliveries.

    Args:
        growth_per_second: of the backlog. Arrivals are the deliveries plus the growth.
        last_handler_seconds: the last known mean time of a handler.
    """
    measured = [status for status in statuses.values() if status.handler_seconds is not None]
    weight = sum(status.deliveries_per_second for status in measured)
    seconds = None
    if weight > 0:
        seconds = sum((s.handler_seconds or 0.0) * s.deliveries_per_second for s in measured) / weight
    elif measured:
        seconds = sum(s.handler_seconds or 0.0 for s in measured) / len(measured)
    arrivals = max(weight + growth_per_second, 0.0)
    return Load(seconds, arrivals, last_handler_seconds=last_handler_seconds)


def _in_handlers(answers: QueueReadings, counts: QueueCounts) -> tuple[int, int]:
    """Return the number of messages that are known to be in a handler, and how many more may be."""
    if isinstance(answers.unacknowledged, int):
        return answers.unacknowledged, 0
    if counts.ready > counts.consumers:
        return min(counts.consumers, 1) if answers.single_active else counts.consumers, 0
    if not answers.ours:
        return 0, counts.consumers
    busy = sum(answers.statuses[pod.name].busy for pod in answers.pods if pod.name in answers.statuses)
    silent = sum(pod.name not in answers.statuses for pod in answers.pods) * answers.concurrency
    # A message that a worker has taken since the broker answered still counts as waiting. It must not count twice.
    known = min(busy, counts.consumers) if counts.ready else busy
    return known, busy - known + silent + _in_unreported(answers, counts)


def _in_unreported(answers: QueueReadings, counts: QueueCounts) -> int:
    """Return how many messages workers may handle that the kubelet has not reported yet: as many as they consume."""
    reported = sum(
        answers.statuses[pod.name].slots if pod.name in answers.statuses else answers.concurrency
        for pod in answers.pods
    )
    return min(max(counts.consumers - reported, 0), len(answers.unreported) * answers.concurrency)


def _doubt(answers: QueueReadings, unconfirmed: int) -> Unknown | None:
    if isinstance(answers.unacknowledged, Unknown):
        return answers.unacknowledged
    if answers.unreachable is not None:
        return Unknown(
            Reason.RETIRE_UNREACHABLE,
            f"Worker {answers.unreachable} does not answer the operator on port {PORT}, so it may be busy "
            "or idle. Replicas still grow with the messages that are known; a worker that does not answer stays. "
            "Look for a NetworkPolicy between the operator and the worker, and at the pod's log.",
        )
    if unconfirmed:
        return Unknown(
            Reason.WORKERS_BUSY, "Some workers have not answered yet; they may be in a handler and stay."
        )
    return None


def _stale(answers: QueueReadings, counts: QueueCounts, queue: str) -> Unknown | None:
    if answers.unanswered is None or counts.consumers:
        return None
    return Unknown(
        Reason.BROKER_TIMEOUT,
        f"RabbitMQ does not answer worker {answers.unanswered}, which asks for messages of queue {queue!r}, and may "
        "report counts of before. Replicas still grow with these counts, and none is removed. Check the members of "
        "the queue (`rabbitmq-queues quorum_status`) and RabbitMQ's alarms.",
    )


def messages_in_stopping_workers(answers: QueueReadings) -> int:
    """Return how many messages terminating workers are known to handle.

    The depth does not include them: such a message needs no new worker, and no other worker must stay for it.
    """
    return sum(status.busy for status in (answers.stopping_statuses or {}).values())


def busy_pods(answers: QueueReadings, depth: Depth | Unknown, replicas: int | None) -> int | None:
    """Return how many pods handle a message, including terminating pods; None when that is unknown.

    Args:
        replicas: pods of the Deployment; None when unknown.
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
