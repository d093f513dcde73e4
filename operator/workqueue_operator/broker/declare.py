"""Declare the queues of a WorkQueue, declare deleted queues again, and delete the queues with the WorkQueue.

The topology is in `workqueue.contract`, so that operator, worker and publisher agree.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

from workqueue.contract import topology
from workqueue.contract.topology import dead_letter_queue_name
from workqueue_operator.api.reasons import Finding, Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.connection import Broker, QueueCounts, QueueMissingError
from workqueue_operator.errors import ReconcileError

EMPTY_LOOKS: Final = 3
EMPTY_PAUSE: Final = 0.5
"""A quorum queue without a leader reports zero for about 0.5 s, so a single zero proves nothing."""

HIDDEN_SECONDS: Final = 370.0
"""Seconds for which a delay queue may hold messages that no count shows. They expired while their work queue was
missing or full. RabbitMQ checks them every 180 s, and resends only messages that it first sent at least 180 s ago."""

STAYS_LOOKS: Final = 5
STAYS_PAUSE: Final = 0.2

DEFAULT_CONSUMER_TIMEOUT: Final = 1800
"""RabbitMQ's default consumer timeout, in seconds."""


DeclareCounts: TypeAlias = Mapping[str, QueueCounts]
"""The counts from the answers to declarations, by queue."""


async def declare(workqueue: WorkQueue, broker: Broker) -> tuple[Finding, DeclareCounts]:
    """Declare the queues as the WorkQueue specifies. Idempotent.

    Raises:
        ReconcileError: refused, and nothing was changed. The message names the conflict.
    """
    queue = workqueue.queue_name
    if not workqueue.spec.queue.declare:
        counts = await broker.counts_if_there(queue)
        if counts is None:
            raise ReconcileError(
                Reason.QUEUE_NOT_FOUND,
                f"The queue {queue!r} does not exist and queue.declare is false. Create it, or set queue.declare to "
                "true.",
            )
        # Workers need a dead-letter queue also when the operator does not declare the work queue.
        answers: DeclareCounts = {queue: counts, **await _dead_letter_queue(workqueue, broker)}
        finding = Finding(
            "True", Reason.USED_AS_IT_IS, f"The queue {queue!r} exists. The operator does not change it."
        )
        return finding, answers
    plan = topology.plan(workqueue.queue_settings)
    # First: RabbitMQ stalls without an error if it cannot dead-letter.
    required = await _dead_letter_queue(workqueue, broker) if plan.required else {}
    try:
        answers = {**await broker.declare(plan), **required}
    except QueueMissingError as error:
        raise ReconcileError(
            Reason.QUEUE_REFUSED, f"{error} was deleted during the declaration. The operator retries."
        ) from None
    if (problem := await _bind_to_others(plan, broker)) is not None:
        return Finding("False", problem.reason, problem.message), answers
    return both_exist(queue), answers


def both_exist(queue: str) -> Finding:
    """Return the finding about a queue that is as the WorkQueue specifies."""
    return Finding("True", Reason.DECLARED, f"The queue {queue!r} and its dead-letter queue exist.")


async def _dead_letter_queue(workqueue: WorkQueue, broker: Broker) -> DeclareCounts:
    """Declare the dead-letter queue, or find the one that the user names.

    Raises:
        ReconcileError: the one that the user names does not exist.
    """
    name = workqueue.spec.queue.dead_letter_queue
    if name is None:
        dead = topology.dead_letter_queue(workqueue.queue_name)
        return {dead.name: await broker.declare_queue(dead)}
    counts = await broker.counts_if_there(name)
    if counts is None:
        raise ReconcileError(
            Reason.DEAD_LETTER_QUEUE_NOT_FOUND,
            f"The queue {name!r} that queue.deadLetterQueue names does not exist. Create it, or correct the name.",
        )
    return {name: counts}


async def _bind_to_others(plan: topology.Plan, broker: Broker) -> ReconcileError | None:
    """Bind the queue to exchanges that the operator does not declare. A missing one does not stop the others.

    Returns:
        The problem with the first missing exchange, or None.
    """
    first = None
    for binding in plan.bindings:
        if plan.declares(binding.exchange):
            continue
        try:
            await broker.bind(binding)
        except ReconcileError as problem:
            if problem.reason is not Reason.EXCHANGE_NOT_FOUND:
                raise
            first = first or problem
    return first


async def declare_again(
    workqueue: WorkQueue, broker: Broker, names: Sequence[str]
) -> tuple[Finding, DeclareCounts]:
    """Declare deleted queues again, and check that they stay.

    RabbitMQ cancels the doorbell shortly before it deletes the queue. A declaration in between is lost with the
    queue.

    Raises:
        ReconcileError: as `declare`.
    """
    answers: DeclareCounts = {}
    for _ in range(STAYS_LOOKS):
        found, answers = await declare(workqueue, broker)
        await asyncio.sleep(STAYS_PAUSE)
        if all([await broker.counts_if_there(name) for name in names]):
            break
    if found.status == "False":
        return found, answers
    when = datetime.now(UTC)
    finding = Finding(
        "True",
        Reason.DECLARED_AGAIN,
        f"{' and '.join(map(repr, names))} had been deleted and was declared again at {when:%Y-%m-%d %H:%M:%S} UTC. "
        "Its messages are lost.",
    )
    return finding, answers


def consumer_timeout_problem(workqueue: WorkQueue, broker: Broker) -> Finding | None:
    """Return a finding if RabbitMQ would requeue the message of a long-running handler.

    Since RabbitMQ 4.3, a consumer of a quorum queue sets its own timeout. Before, the queue's argument or a policy
    must exceed worker.timeoutSeconds.
    """
    worker, settings = workqueue.spec.worker, workqueue.queue_settings
    if worker is None:
        return None
    allowed = settings.consumer_timeout_seconds or DEFAULT_CONSUMER_TIMEOUT
    own = settings.type is topology.QueueType.QUORUM and broker.version.consumer_timeout_as_consumer_argument
    if own or worker.timeout_seconds < allowed:
        return None
    return Finding(
        "True",
        Reason.CONSUMER_TIMEOUT_TOO_SHORT,
        f"worker.timeoutSeconds is {worker.timeout_seconds}, but RabbitMQ requeues a message after {allowed} s "
        "unless a policy sets another consumer-timeout. Set queue.consumerTimeoutSeconds on a new queue, or set such "
        "a policy.",
    )


def names(workqueue: WorkQueue, listed: Collection[str] = ()) -> list[str]:
    """Return all queues of a WorkQueue, in the order of deletion. A dead-letter queue that the user names is not one.

    Workers and publishers declare delay queues at first use. Earlier releases declared one for each delay; those of
    an earlier spec are only in `listed`.

    Args:
        listed: delay queues that are known to exist.
    """
    queue = workqueue.queue_name
    delays = sorted({*topology.EARLIER_DELAYS_SECONDS, *workqueue.spec.retry.delays})
    derived = [
        *(topology.step_name(queue, step) for step in topology.STEPS),
        *(topology.earlier_delay_queue_name(queue, delay) for delay in delays),
    ]
    dead = [] if workqueue.spec.queue.dead_letter_queue else [dead_letter_queue_name(queue)]
    return [queue, *derived, *sorted(set(listed).difference(derived)), *dead]


async def require_no_messages(queues: Sequence[str], broker: Broker) -> None:
    """Check for DeleteIfEmpty, before the workers stop, that no message is waiting in any queue.

    Raises:
        ReconcileError: a message is waiting.
    """
    for name in queues:
        counts = await broker.counts_if_there(name)
        if counts is not None and counts.ready:
            raise _in_use(name, counts)


async def require_empty(queues: Sequence[str], broker: Broker) -> None:
    """Check for DeleteIfEmpty, after the workers have stopped, that all queues are empty and unused.

    Raises:
        ReconcileError: a message is waiting, or a consumer exists.
    """
    for look in range(EMPTY_LOOKS):
        if look:
            await asyncio.sleep(EMPTY_PAUSE)
        for name in queues:
            counts = await broker.counts_if_there(name)
            if counts is not None and (counts.ready or counts.consumers):
                raise _in_use(name, counts)


async def require_unused(queue: str, broker: Broker) -> None:
    """Check, after the workers and the doorbell are gone, that the work queue has no consumer.

    A remaining consumer belongs to another WorkQueue, another operator or another program.

    Raises:
        ReconcileError: a consumer exists.
    """
    for look in range(EMPTY_LOOKS):
        counts = await broker.counts_if_there(queue)
        if counts is None or not counts.consumers:
            return
        if look < EMPTY_LOOKS - 1:
            # RabbitMQ may still count a consumer that has just stopped.
            await asyncio.sleep(EMPTY_PAUSE)
        else:
            raise _in_use(queue, counts)


async def require_nothing_hidden(workqueue: WorkQueue, queues: Sequence[str], broker: Broker) -> None:
    """Check for DeleteIfEmpty, until the queues have been empty for `HIDDEN_SECONDS`, that no delay queue exists.

    A missing work queue is declared again, so that expired messages can return to it.

    Raises:
        ReconcileError: a delay queue exists.
    """
    work = workqueue.queue_name
    delays = [name for name in queues if topology.is_delay_queue(name, work)]
    found = [name for name in delays if await broker.counts_if_there(name) is not None]
    if not found:
        return
    if await broker.counts_if_there(work) is None:
        await declare(workqueue, broker)
    raise ReconcileError(
        Reason.QUEUE_NOT_EMPTY,
        f"{' and '.join(map(repr, found))} may hold messages that RabbitMQ does not count, because their delay ended "
        f"while {work!r} was missing or full. The operator deletes all queues after they have been empty for "
        f"{HIDDEN_SECONDS:g} s.",
    )


async def conflicts(workqueue: WorkQueue, broker: Broker) -> bool:
    """Return whether the queue exists with other arguments, so that another program has declared it.

    Only a declaration finds that out. Otherwise `delete` would delete the messages of another program, and the
    conditional deletion of a Classic queue that is a quorum queue would close the whole connection (540).
    """
    if not workqueue.spec.queue.declare or await broker.counts_if_there(workqueue.queue_name) is None:
        return False
    try:
        await broker.declare_queue(topology.work_queue(workqueue.queue_settings))
    except ReconcileError as problem:
        if problem.reason is not Reason.QUEUE_CONFLICT:
            raise
        return True
    return False


async def delete(workqueue: WorkQueue, queues: Sequence[str], broker: Broker, *, only_empty: bool) -> None:
    """Delete the queues of a WorkQueue in the given order, the work queue first. Idempotent.

    Each queue is polled immediately before its deletion, because RabbitMQ has no conditional deletion of quorum
    queues (540).

    Raises:
        ReconcileError: the broker refused, or a queue is in use.
    """
    work = workqueue.queue_name
    classic = workqueue.spec.queue.declare and workqueue.queue_settings.type is topology.QueueType.CLASSIC
    for name in queues:
        counts = await broker.counts_if_there(name)
        if counts is None:
            continue
        if (only_empty and counts.ready) or (name == work and counts.consumers):
            raise _in_use(name, counts)
        conditional = classic and name == work
        try:
            await broker.delete_queue(name, if_unused=conditional, if_empty=conditional and only_empty)
        except ReconcileError as problem:
            if conditional and problem.reason is Reason.QUEUE_CONFLICT:
                raise _in_use(name, counts) from problem
            raise
    for step in topology.STEPS[:-1]:
        await broker.delete_exchange(topology.step_name(work, step))
    with _only_own():
        for stream in topology.cancels_plan(work).queues:
            await _delete_declared(stream, broker)
        await broker.delete_exchange(topology.cancels_name(work))
    if workqueue.spec.recurring or workqueue.status.recurring:
        with _only_own():
            await _delete_declared(topology.ledger(work), broker)


@contextlib.contextmanager
def _only_own() -> Iterator[None]:
    """Leave alone what another program has made with a name of ours.

    Without permission, there is nothing: operator and workers, which make it, have the same user.
    """
    try:
        yield
    except ReconcileError as problem:
        if problem.reason not in {Reason.QUEUE_CONFLICT, Reason.PERMISSION_DENIED}:
            raise


async def _delete_declared(queue: topology.Queue, broker: Broker) -> None:
    """Delete a queue, if it exists. The declaration raises QueueConflict for a queue of another program."""
    if await broker.counts_if_there(queue.name) is not None:
        await broker.declare_queue(queue)
        await broker.delete_queue(queue.name)


def _in_use(queue: str, counts: QueueCounts) -> ReconcileError:
    return ReconcileError(
        Reason.QUEUE_NOT_EMPTY,
        f"The queue {queue!r} is in use ({counts.ready} waiting, {counts.consumers} consuming). The operator does "
        "not delete it while another program consumes from it or, with deletionPolicy DeleteIfEmpty, while messages "
        "are waiting. Empty the queue, stop the consumer, or keep the queue and release the WorkQueue with the "
        'annotation workqueue.dev/abandon-queue: "true".',
    )
