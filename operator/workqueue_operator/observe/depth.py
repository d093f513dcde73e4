"""From what the broker and the workers answer to a depth that can be acted on, or to Unknown. Pure.

Place in the flow: `reconcile` gathers the answers, this module judges them, `decide` uses the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..broker.connection import QueueCounts
from ..decide import Depth, Load
from ..errors import Trouble
from ..reasons import Reason, Unknown
from ..views import PodView
from .sweep import Missing
from .workers import WorkerStatus


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered about one queue.

    Attributes:
        counts: the broker's answer, None before the first.
        bell: whether our bell counts among the consumers.
        pods: pods whose worker runs and which are not on their way out.
        statuses: the workers' own answers by pod name; who did not answer is not in it.
        unacknowledged: the exact count from the management API, where there is one.
    """

    counts: QueueCounts | Missing | Trouble | None
    bell: bool
    pods: Sequence[PodView]
    statuses: Mapping[str, WorkerStatus]
    concurrency: int = 1
    unacknowledged: int | None = None


def workers_decide(counts: QueueCounts | Missing | Trouble | None, bell: bool) -> bool:
    """Whether only the workers can say how many messages are in handlers.

    While more messages wait than there are consumers, every consumer has one (prefetch 1). Otherwise some
    may be idle, and the broker does not say which.
    """
    return isinstance(counts, QueueCounts) and counts.ready <= counts.consumers - bell


def judge(answers: Answers, queue: str) -> Depth | Unknown:
    """The depth, unless something speaks against believing the answers."""
    counts = answers.counts
    if counts is None:
        return Unknown(Reason.DEPTH_PENDING, f"The queue {queue!r} has not been asked yet.")
    if isinstance(counts, Missing):
        return Unknown(Reason.QUEUE_NOT_FOUND, f"The queue {queue!r} does not exist.")
    if isinstance(counts, Trouble):
        return Unknown(counts.reason, counts.message)
    if counts.ready == 0 and counts.consumers == 0 and _somebody_consumes(answers):
        return Unknown(
            Reason.DEPTH_IMPLAUSIBLE,
            f"RabbitMQ answers zero messages and zero consumers for queue {queue!r} although there are consumers, "
            "as it does while a quorum queue has no leader. Replicas stay as they are.",
        )
    consumers = max(counts.consumers - answers.bell, 0)
    return Depth(counts.ready, _in_handlers(answers, counts.ready, consumers), consumers)


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


def _somebody_consumes(answers: Answers) -> bool:
    """A Ready worker that does not answer may well consume, so it speaks against a zero too."""
    return answers.bell or any(
        pod.ready and (pod.name not in answers.statuses or answers.statuses[pod.name].consuming)
        for pod in answers.pods
    )


def _in_handlers(answers: Answers, ready: int, consumers: int) -> int:
    if answers.unacknowledged is not None:
        return answers.unacknowledged
    if ready > consumers or (not answers.pods and consumers):
        return consumers
    return sum(
        answers.statuses[pod.name].busy if pod.name in answers.statuses else answers.concurrency
        for pod in answers.pods
    )
