"""The queues of a WorkQueue: declared before it says Ready, declared again when they vanish, deleted on demand.

Place in the flow: the first act of a pass, before the workload; deletion is the last thing that is done for
a WorkQueue. The topology itself is the worker package's, so that operator, worker and publisher agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
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
"""A quorum queue without a leader answers zero for about half a second: one zero is no proof."""

HIDES_SECONDS: Final = 370.0
"""For so long a delay queue may hold messages that no count shows: they expired while their work queue was missing or
full. RabbitMQ looks after them every 180 s, and tries only those again that it sent 180 s ago."""

STAYS_LOOKS: Final = 5
STAYS_PAUSE: Final = 0.2

DEFAULT_CONSUMER_TIMEOUT: Final = 1800
"""Seconds that RabbitMQ lets a consumer hold a message unless told otherwise."""


DeclareCounts: TypeAlias = Mapping[str, QueueCounts]
"""The counts that declaring brought along, by queue."""


async def declare(workqueue: WorkQueue, broker: Broker) -> tuple[Finding, DeclareCounts]:
    """Make sure that the queues exist as the WorkQueue asks. Idempotent.

    Raises:
        Trouble: refused, with the name of what is in the way; nothing was changed then.
    """
    queue = workqueue.queue_name
    if not workqueue.spec.queue.declare:
        counts = await broker.counts_if_there(queue)
        if counts is None:
            raise ReconcileError(
                Reason.QUEUE_NOT_FOUND,
                f"The queue {queue!r} does not exist and queue.declare is false. Create it, or leave "
                "queue.declare out.",
            )
        # Rejected messages need somewhere to go, also where the work queue is somebody else's.
        dead = topology.dead_letter_queue(queue)
        answers: DeclareCounts = {queue: counts, dead.name: await broker.declare_queue(dead)}
        finding = Finding("True", Reason.USED_AS_IT_IS, f"The queue {queue!r} exists and is used as it is.")
        return finding, answers
    try:
        answers = await broker.declare(topology.plan(workqueue.queue_settings))
    except QueueMissingError as error:
        raise ReconcileError(
            Reason.QUEUE_REFUSED, f"{error} vanished while it was being declared; it is tried again."
        ) from None
    return Finding("True", Reason.DECLARED, f"The queue {queue!r} and its dead-letter queue exist."), answers


async def declare_again(
    workqueue: WorkQueue, broker: Broker, names: Sequence[str]
) -> tuple[Finding, DeclareCounts]:
    """Declare queues that have vanished, and see that they stay.

    A bell is cancelled a moment before its queue is gone: what is declared by then goes with it.

    Raises:
        Trouble: as `declare`.
    """
    answers: DeclareCounts = {}
    for _ in range(STAYS_LOOKS):
        _, answers = await declare(workqueue, broker)
        await asyncio.sleep(STAYS_PAUSE)
        if all([await broker.counts_if_there(name) for name in names]):
            break
    when = datetime.now(UTC)
    finding = Finding(
        "True",
        Reason.DECLARED_AGAIN,
        f"{' and '.join(map(repr, names))} had been deleted and was declared again at {when:%Y-%m-%d %H:%M:%S} UTC; "
        "what was in it is gone.",
    )
    return finding, answers


def consumer_timeout_problem(workqueue: WorkQueue, broker: Broker) -> Finding | None:
    """Why a long handler will lose its message, or None.

    From RabbitMQ 4.3 a consumer of a quorum queue brings its own timeout; before, the queue's argument or a
    policy must allow for worker.timeoutSeconds.
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
        f"worker.timeoutSeconds is {worker.timeout_seconds}, but the broker takes a message back after "
        f"{allowed} s unless a policy with consumer-timeout says otherwise. Set queue.consumerTimeoutSeconds "
        "on a new queue, or such a policy.",
    )


def names(workqueue: WorkQueue, listed: Collection[str] = ()) -> list[str]:
    """All queues of a WorkQueue, in the order of deleting.

    A delay queue is made when it is first needed, and only its name tells whose it is: the delays of the spec
    and those that handlers and publishers can ask for are known, those of an earlier spec are not.

    Args:
        listed: delay queues that are known to exist.
    """
    queue = workqueue.queue_name
    delays = sorted({*topology.DELAY_STEPS, *workqueue.spec.retry.delays_seconds})
    derived = [topology.delay_queue_name(queue, delay) for delay in delays]
    return [queue, *derived, *sorted(set(listed).difference(derived)), dead_letter_queue_name(queue)]


async def require_no_messages(queues: Sequence[str], broker: Broker) -> None:
    """DeleteIfEmpty, first look: nothing may wait in any of the queues, though workers may still consume.

    Raises:
        Trouble: something waits.
    """
    for name in queues:
        counts = await broker.counts_if_there(name)
        if counts is not None and counts.ready:
            raise _in_use(name, counts)


async def require_empty(queues: Sequence[str], broker: Broker) -> None:
    """DeleteIfEmpty, last look, after the workers have gone.

    Raises:
        Trouble: something waits, or somebody consumes.
    """
    for look in range(EMPTY_LOOKS):
        if look:
            await asyncio.sleep(EMPTY_PAUSE)
        for name in queues:
            counts = await broker.counts_if_there(name)
            if counts is not None and (counts.ready or counts.consumers):
                raise _in_use(name, counts)


async def require_unused(queue: str, broker: Broker) -> None:
    """Nobody may consume from the work queue, after the workers and our doorbell have gone.

    A consumer that is left belongs to another WorkQueue, another operator, or another program.

    Raises:
        Trouble: somebody consumes.
    """
    for look in range(EMPTY_LOOKS):
        counts = await broker.counts_if_there(queue)
        if counts is None or not counts.consumers:
            return
        if look < EMPTY_LOOKS - 1:
            # RabbitMQ may not have seen the end of a consumer of ours yet.
            await asyncio.sleep(EMPTY_PAUSE)
        else:
            raise _in_use(queue, counts)


async def require_nothing_hidden(workqueue: WorkQueue, queues: Sequence[str], broker: Broker) -> None:
    """DeleteIfEmpty, before the queues have looked empty for `HIDES_SECONDS`: no delay queue may exist.

    The work queue is declared again if it is missing, so that what has expired can return.

    Raises:
        Trouble: there is a delay queue.
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
        f"{' and '.join(map(repr, found))} may hold messages that RabbitMQ does not count: their delay ended while "
        f"{work!r} was missing or full. All queues are deleted when they have been empty for {HIDES_SECONDS:g} s.",
    )


async def delete(workqueue: WorkQueue, queues: Sequence[str], broker: Broker, *, only_empty: bool) -> None:
    """Delete the queues of a WorkQueue in this order, the work queue first. Idempotent.

    Each is looked at immediately before: a quorum queue cannot be deleted on a condition (540).

    Raises:
        Trouble: the broker refused, or a queue is in use after all.
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


def _in_use(queue: str, counts: QueueCounts) -> ReconcileError:
    return ReconcileError(
        Reason.QUEUE_NOT_EMPTY,
        f"The queue {queue!r} is in use ({counts.ready} waiting, {counts.consumers} consuming). It is not deleted "
        "while another program consumes from it, nor with deletionPolicy DeleteIfEmpty while a message waits. Drain "
        "it, stop the consumer, or release the WorkQueue with the annotation "
        'workqueue.dev/abandon-queue: "true", which leaves the queue behind.',
    )
