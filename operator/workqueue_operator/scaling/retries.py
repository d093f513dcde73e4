"""Messages that wait for a retry or a delay: which delay queues of a WorkQueue exist, and how many they hold.

The operator never guesses which delay queues exist. A passive declare of a missing queue closes its channel and is an
error in RabbitMQ's log, and each of a thousand WorkQueues has 40 possible delay queues. Workers name the delay queues
that they know, and the WorkQueue's status keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from workqueue.contract.topology import (
    LAST,
    STEPS,
    delay_plan,
    earlier_delay_queue_name,
    step_of,
    steps_from,
)
from workqueue_operator.api.workqueue import MOST_RETRY_DELAYS, WorkQueue
from workqueue_operator.broker.connection import QueueCounts, QueueMissingError
from workqueue_operator.broker.depth_poller import QUEUE_MISSING
from workqueue_operator.errors import ReconcileError
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
    """Count the messages that wait for a retry or a delay.

    Returns:
        The count, None when it is not known; and the state for the next pass.
    """
    workqueue, readings = snapshot.workqueue, snapshot.readings
    if workqueue.spec.worker is None:
        return None, state  # the operator does not know how these workers retry
    statuses = [*readings.statuses.values(), *(readings.stopping_statuses or {}).values()]
    total: int | None = 0 if all(map(_names_its_delay_queues, statuses)) else None
    named = frozenset[str]().union(*(named_by(status, workqueue.queue_name) for status in statuses))
    known = workqueue.delay_queues_seen if state.queues is None else state.queues
    queues = _with_named(snapshot, state, known, named)
    missing = {queue: at for queue, at in state.missing.items() if queue in named}
    if named - queues - missing.keys():
        total = None  # there are more than the operator polls
    for queue in sorted(queues):
        answer = await handle.poller.last_answer(workqueue.key, queue, warm=snapshot.workers_run)
        if answer is QUEUE_MISSING and queue in known and await _declare_again(workqueue, queue, handle):
            handle.poller.forget_queue(workqueue.key, queue)
            continue
        if answer is QUEUE_MISSING:
            queues.discard(queue)
            missing[queue] = snapshot.now
            handle.poller.forget_queue(workqueue.key, queue)
        elif total is not None:
            total = total + answer.ready if isinstance(answer, QueueCounts) else None
    return total, RetryState(frozenset(queues), missing)


def named_by(status: WorkerStatus, queue: str) -> frozenset[str]:
    """Return the delay queues that a worker names. Names that are none of this work queue are left out."""
    earlier = {earlier_delay_queue_name(queue, seconds) for seconds in status.retry_delays or ()}
    named = (name for name in status.delay_queues or () if step_of(name, queue) is not None)
    return frozenset(earlier.union(named))


def _names_its_delay_queues(status: WorkerStatus) -> bool:
    return status.delay_queues is not None or status.retry_delays is not None


def _with_named(
    snapshot: Snapshot, state: RetryState, known: frozenset[str], named: frozenset[str]
) -> set[str]:
    """Return the known delay queues and those that workers name now."""
    queues = set(known)
    for queue in sorted(named - queues):
        missing_at = state.missing.get(queue)
        may_exist = missing_at is None or snapshot.now - missing_at >= MISSING_STANDS
        if may_exist and len(queues) < MOST_RETRY_DELAYS:
            queues.add(queue)
    return queues


async def _declare_again(workqueue: WorkQueue, queue: str, handle: Broker) -> bool:
    """Declare a deleted step again: messages on longer steps could not go on without it."""
    step = step_of(queue, workqueue.queue_name)
    if step is None:
        return False
    # The last queue has no plan of its own. The shortest step leads to it.
    steps = steps_from(STEPS[-2] if step == LAST else step)
    try:
        await handle.broker.declare(delay_plan(workqueue.queue_name, steps))
    except (ReconcileError, QueueMissingError):
        return False
    return True
