"""Messages that wait for a retry: which delay queues of a WorkQueue exist, and how many messages they hold.

The operator never guesses which delay queues exist. A passive declare of a missing queue closes its channel and is an
error in RabbitMQ's log, and each of a thousand WorkQueues has 24 possible steps. Workers name the steps that they
have declared, and the WorkQueue's status keeps them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from workqueue.contract.topology import (
    ALL_STEPS_MILLISECONDS,
    STEPS_MILLISECONDS,
    Plan,
    delay_plan,
    earlier_delay_queue_name,
    step_milliseconds,
    step_name,
    steps_from,
)
from workqueue_operator.api.workqueue import MOST_RETRY_DELAYS, WorkQueue
from workqueue_operator.broker.connection import QueueCounts, QueueMissingError
from workqueue_operator.broker.depth_poller import QUEUE_MISSING
from workqueue_operator.errors import ReconcileError
from workqueue_operator.ports import Broker
from workqueue_operator.scaling.snapshot import Snapshot

MISSING_STANDS: Final = 300.0
"""Seconds after which the operator asks again about a missing delay queue that a worker still names."""


UNUSED_SECONDS: Final = 3600.0
"""How long the steps stay after their last use that a pass has seen."""


@dataclass(frozen=True, slots=True)
class RetryState:
    """What `waiting` keeps about the delay queues of one WorkQueue between its passes.

    Attributes:
        queues: the names of the delay queues that exist; None before the first look.
        unused_since: the monotonic time of the first of the latest looks that have all found the work queue and its
            delay queues empty; None after any other look.
        missing: the monotonic time at which a delay queue that a worker had named was missing.
        removal: deletes the unused steps, beside the passes. Its result says whether they were deleted.
    """

    queues: frozenset[str] | None = None
    unused_since: float | None = None
    missing: Mapping[str, float] = field(default_factory=dict)
    removal: asyncio.Task[bool] | None = None


async def waiting(snapshot: Snapshot, state: RetryState, handle: Broker) -> tuple[int | None, RetryState]:
    """Count the messages that wait for a retry.

    Returns:
        The count, None when it is not known; and the state for the next pass.
    """
    workqueue, readings = snapshot.workqueue, snapshot.readings
    if workqueue.spec.worker is None:
        return None, state  # the operator does not know how these workers retry
    if state.removal is not None:
        if not state.removal.done():
            # The delay queues were empty when this began, and it ends at the first message that it finds. A look at a
            # queue that is being deleted would declare it again.
            return 0, state
        state = _after_removal(workqueue, state, handle, snapshot.now)
    statuses = [*readings.statuses.values(), *(readings.stopping_statuses or {}).values()]
    named = [_named(workqueue, status.retry_delays, status.delay_steps) for status in statuses]
    known = _known_before(workqueue, state)
    queues = _with_named(
        snapshot, state, known, frozenset().union(*(some for some in named if some is not None))
    )
    missing = dict(state.missing)
    total: int | None = 0 if all(some is not None for some in named) else None
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
    counts = readings.counts
    is_unused = total == 0 and isinstance(counts, QueueCounts) and not counts.ready
    since = snapshot.now if state.unused_since is None else state.unused_since
    return total, RetryState(frozenset(queues), since if is_unused and queues else None, missing)


def remove_unused(workqueue: WorkQueue, state: RetryState, handle: Broker, now: float) -> RetryState:
    """Start to delete the steps after nothing has used them for `UNUSED_SECONDS`.

    An idle work queue is not full and not missing, so by then no delay queue holds a message that is in no count
    (`HIDDEN_SECONDS`). The deletion looks several times and takes two seconds, so no pass waits for it.

    Returns:
        The state for the next pass.
    """
    if state.removal is not None or state.unused_since is None or now - state.unused_since < UNUSED_SECONDS:
        return state
    longest = max(_steps(workqueue, state), default=0)
    if not longest:
        return replace(state, unused_since=now)
    plan = delay_plan(workqueue.queue_name, steps_from(longest))
    removal = asyncio.create_task(_remove(plan, handle), name=f"unused delay queues {workqueue.key}")
    return replace(state, unused_since=now, removal=removal)


async def _remove(plan: Plan, handle: Broker) -> bool:
    try:
        return await handle.broker.delete_unused(plan)
    except ReconcileError:
        return False


def _after_removal(workqueue: WorkQueue, state: RetryState, handle: Broker, now: float) -> RetryState:
    """Return the state after the removal has ended."""
    removal, state = state.removal, replace(state, removal=None)
    if removal is None or removal.cancelled() or not removal.result():
        return state
    gone = {step_name(workqueue.queue_name, step) for step in _steps(workqueue, state)}
    for name in gone:
        handle.poller.forget_queue(workqueue.key, name)
    queues = (state.queues or frozenset()) - gone
    return RetryState(queues, None, {**state.missing, **dict.fromkeys(gone, now)})


def _steps(workqueue: WorkQueue, state: RetryState) -> list[int]:
    """The steps whose delay queues exist."""
    found = (step_milliseconds(name, workqueue.queue_name) for name in state.queues or ())
    return [step for step in found if step is not None]


async def _declare_again(workqueue: WorkQueue, queue: str, handle: Broker) -> bool:
    """Declare a deleted step again: messages on longer steps could not go on without it."""
    step = step_milliseconds(queue, workqueue.queue_name)
    if step is None:
        return False
    try:
        await handle.broker.declare(
            delay_plan(workqueue.queue_name, steps_from(max(step, STEPS_MILLISECONDS[0])))
        )
    except (ReconcileError, QueueMissingError):
        return False
    return True


def _known_before(workqueue: WorkQueue, state: RetryState) -> frozenset[str]:
    """The delay queues that the last pass knew, or that the status names."""
    if state.queues is not None:
        return state.queues
    status = workqueue.status
    return _named(workqueue, status.retry_delays_seconds, status.delay_steps) or frozenset()


def _with_named(
    snapshot: Snapshot, state: RetryState, known: frozenset[str], named: frozenset[str]
) -> set[str]:
    """The known delay queues and those that workers name now."""
    queues, now = set(known), snapshot.now
    for queue in sorted(named - queues):
        missing_at = state.missing.get(queue)
        may_exist = missing_at is None or now - missing_at >= MISSING_STANDS
        if may_exist and len(queues) < MOST_RETRY_DELAYS:
            queues.add(queue)
    return queues


def _named(
    workqueue: WorkQueue, delays_seconds: Iterable[int] | None, steps: Iterable[int] | None
) -> frozenset[str] | None:
    """Return the names of delay queues; None if neither is known."""
    if delays_seconds is None and steps is None:
        return None
    queue, known = workqueue.queue_name, frozenset(ALL_STEPS_MILLISECONDS)
    return frozenset(
        (
            *(earlier_delay_queue_name(queue, seconds) for seconds in delays_seconds or ()),
            *(step_name(queue, step) for step in steps or () if step in known),
        )
    )
