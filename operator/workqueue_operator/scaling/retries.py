"""Messages that wait for a retry: which delay queues of a WorkQueue exist, and how many messages they hold.

The operator never guesses the names of delay queues. A passive declare of a missing queue closes its channel and is
an error in RabbitMQ's log, and each of a thousand WorkQueues has twenty possible delays. Workers name the delay
queues that they have declared, and the WorkQueue's status keeps the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from workqueue.contract.topology import delay_queue_name, is_priority_delay_queue
from workqueue_operator.api.workqueue import MOST_RETRY_DELAYS
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QUEUE_MISSING
from workqueue_operator.ports import Broker
from workqueue_operator.scaling.snapshot import Snapshot
from workqueue_operator.workers.client import WorkerStatus

MISSING_STANDS: Final = 300.0
"""Seconds after which the operator asks again about a missing delay queue that a worker still names."""


@dataclass(frozen=True, slots=True)
class RetryState:
    """What `waiting` keeps about the delay queues of one WorkQueue between its passes.

    Attributes:
        queues: the delay queues that exist; None before the first look.
        missing: the monotonic time at which a delay queue that a worker had named was missing, by its name.
    """

    queues: frozenset[str] | None = None
    missing: Mapping[str, float] = field(default_factory=dict)


async def waiting(snapshot: Snapshot, state: RetryState, handle: Broker) -> tuple[int | None, RetryState]:
    """Count the messages that wait for a retry.

    Returns:
        The count, None when it is not known; and the state for the next pass.
    """
    workqueue, readings = snapshot.workqueue, snapshot.readings
    if workqueue.spec.worker is None:
        return None, state  # the operator does not know how these workers retry
    statuses = [*readings.statuses.values(), *(readings.stopping_statuses or {}).values()]
    total: int | None = 0 if all(status.retry_delays is not None for status in statuses) else None
    named = frozenset[str]().union(*(named_by(status, workqueue.queue_name) for status in statuses))
    queues = _known(snapshot, state, named)
    missing = {queue: at for queue, at in state.missing.items() if queue in named}
    if named - queues - missing.keys():
        total = None  # there are more than the operator polls
    for queue in sorted(queues):
        answer = await handle.poller.last_answer(workqueue.key, queue, warm=snapshot.workers_run)
        if answer is QUEUE_MISSING:
            queues.discard(queue)
            missing[queue] = snapshot.now
            handle.poller.forget_queue(workqueue.key, queue)
        elif total is not None:
            total = total + answer.ready if isinstance(answer, QueueCounts) else None
    return total, RetryState(frozenset(queues), missing)


def named_by(status: WorkerStatus, queue: str) -> frozenset[str]:
    """Return the delay queues that a worker names. Names that are none of this work queue are left out."""
    plain = {delay_queue_name(queue, seconds) for seconds in status.retry_delays or ()}
    return frozenset(
        plain.union(name for name in status.retry_priority_queues if is_priority_delay_queue(name, queue))
    )


def _known(snapshot: Snapshot, state: RetryState, named: frozenset[str]) -> set[str]:
    """The delay queues that exist, including the delay queues that workers name now."""
    queues = set(snapshot.workqueue.delay_queues_seen if state.queues is None else state.queues)
    for queue in sorted(named - queues):
        missing_at = state.missing.get(queue)
        may_exist = missing_at is None or snapshot.now - missing_at >= MISSING_STANDS
        if may_exist and len(queues) < MOST_RETRY_DELAYS:
            queues.add(queue)
    return queues
