"""Messages that wait for a retry: which delay queues of a WorkQueue exist, and how many messages are in them.

Place in the flow: the last look of a pass, after the decision was carried out. Delay queues are never guessed: a
passive declare of a queue that does not exist closes its channel and is an error in RabbitMQ's log, and each of a
thousand WorkQueues has twenty possible delays. Workers say which they have declared, and the WorkQueue's status
keeps that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from workqueue.contract.topology import delay_queue_name
from workqueue_operator.api.workqueue import MOST_RETRY_DELAYS, WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QUEUE_MISSING
from workqueue_operator.broker.pool import BrokerHandle
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.workers.client import WorkerStatus

MISSING_STANDS: Final = 300.0
"""Seconds after which a delay queue that was missing is looked for again, if a worker still names it."""


async def waiting(
    workqueue: WorkQueue,
    pass_state: PassState,
    handle: BrokerHandle,
    statuses: Iterable[WorkerStatus],
    *,
    workers_run: bool,
) -> int | None:
    """Return how many messages wait for a retry; None when that is not known.

    Args:
        statuses: what workers said of themselves in this pass.
        workers_run: whether a worker may be putting messages into the delay queues.
    """
    if workqueue.spec.worker is None:
        return None  # how these workers retry is their own affair
    said = [status.retry_delays for status in statuses]
    delays = _known(workqueue, pass_state, frozenset().union(*(named for named in said if named is not None)))
    total: int | None = 0 if all(named is not None for named in said) else None
    for seconds in sorted(delays):
        queue = delay_queue_name(workqueue.queue_name, seconds)
        answer = await handle.poller.look_in_passing(workqueue.key, queue, warm=workers_run)
        if answer is QUEUE_MISSING:
            delays.discard(seconds)
            pass_state.missing_delays[seconds] = asyncio.get_running_loop().time()
            handle.poller.forget_queue(workqueue.key, queue)
        elif total is not None:
            total = total + answer.ready if isinstance(answer, QueueCounts) else None
    return total


def _known(workqueue: WorkQueue, pass_state: PassState, named: frozenset[int]) -> set[int]:
    """The delays whose queues exist, with those that workers named now."""
    if pass_state.retry_delays is None:
        pass_state.retry_delays = set(workqueue.status.retry_delays_seconds or ())
    now = asyncio.get_running_loop().time()
    for seconds in sorted(named - pass_state.retry_delays):
        missing_at = pass_state.missing_delays.get(seconds)
        may_exist = missing_at is None or now - missing_at >= MISSING_STANDS
        if may_exist and len(pass_state.retry_delays) < MOST_RETRY_DELAYS:
            pass_state.retry_delays.add(seconds)
    return pass_state.retry_delays
