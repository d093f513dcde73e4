"""Messages that wait for a retry: which delay queues of a WorkQueue exist, and how many messages they hold.

The operator never guesses the names of delay queues. A passive declare of a missing queue closes its channel and is
an error in RabbitMQ's log, and each of a thousand WorkQueues has twenty possible delays. Workers name the delay
queues that they have declared, and the WorkQueue's status keeps the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from workqueue.contract.topology import delay_queue_name
from workqueue_operator.api.workqueue import MOST_RETRY_DELAYS
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QUEUE_MISSING
from workqueue_operator.ports import Broker
from workqueue_operator.scaling.snapshot import Snapshot

MISSING_STANDS: Final = 300.0
"""Seconds after which the operator asks again about a missing delay queue that a worker still names."""


@dataclass(frozen=True, slots=True)
class RetryState:
    """What `waiting` keeps about the delay queues of one WorkQueue between its passes.

    Attributes:
        delays: seconds of the delay queues that exist; None before the first look.
        missing: the monotonic time at which a delay queue that a worker had named was missing, by its seconds.
    """

    delays: frozenset[int] | None = None
    missing: Mapping[int, float] = field(default_factory=dict)


async def waiting(snapshot: Snapshot, state: RetryState, handle: Broker) -> tuple[int | None, RetryState]:
    """Count the messages that wait for a retry.

    Returns:
        The count, None when it is not known; and the state for the next pass.
    """
    workqueue, readings = snapshot.workqueue, snapshot.readings
    if workqueue.spec.worker is None:
        return None, state  # the operator does not know how these workers retry
    statuses = [*readings.statuses.values(), *(readings.stopping_statuses or {}).values()]
    named = [status.retry_delays for status in statuses]
    delays = _known(snapshot, state, frozenset().union(*(some for some in named if some is not None)))
    missing = dict(state.missing)
    total: int | None = 0 if all(some is not None for some in named) else None
    for seconds in sorted(delays):
        queue = delay_queue_name(workqueue.queue_name, seconds)
        answer = await handle.poller.last_answer(workqueue.key, queue, warm=snapshot.workers_run)
        if answer is QUEUE_MISSING:
            delays.discard(seconds)
            missing[seconds] = snapshot.now
            handle.poller.forget_queue(workqueue.key, queue)
        elif total is not None:
            total = total + answer.ready if isinstance(answer, QueueCounts) else None
    return total, RetryState(frozenset(delays), missing)


def _known(snapshot: Snapshot, state: RetryState, named: frozenset[int]) -> set[int]:
    """The delays whose queues exist, including the delays that workers name now."""
    known = snapshot.workqueue.status.retry_delays_seconds or () if state.delays is None else state.delays
    delays, now = set(known), snapshot.now
    for seconds in sorted(named - delays):
        missing_at = state.missing.get(seconds)
        may_exist = missing_at is None or now - missing_at >= MISSING_STANDS
        if may_exist and len(delays) < MOST_RETRY_DELAYS:
            delays.add(seconds)
    return delays
