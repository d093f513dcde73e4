"""Make the tokens of a limit: a queue with exactly as many messages as handlers may run.

RabbitMQ counts only the tokens that wait, and not the tokens in workers. So a queue is filled once, after it was made
empty, and then sealed with an exchange of the same name. A queue without a seal was not filled completely.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from workqueue.contract.topology import Limit
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker.confirmed import NotPublishedError, OwnMessage, UnconfirmedError
from workqueue_operator.broker.connection import Broker, QueueCounts, QueueMissingError
from workqueue_operator.errors import ReconcileError

LOOKS: Final = 3
LOOK_PAUSE: Final = 0.5
"""Seconds between two looks at a queue that seems to lack tokens: one that is on its way back is in no count."""

FILL_SECONDS: Final = 10.0
"""Time to publish the tokens. RabbitMQ takes none while it has a memory alarm."""

TURN_SECONDS: Final = 10.0
"""Time to wait while another WorkQueue of the group makes the tokens. During a memory alarm each one fails after
FILL_SECONDS, and the last of hundreds would wait for all others."""

AT_ONCE: Final = 20
"""Tokens that are published at the same time."""


class Limits:
    """Makes the tokens of limits. Several WorkQueues may ask for the same ones at the same time."""

    def __init__(self) -> None:
        # For each broker: one that does not answer must not delay the limits of the same name on others.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def ensure(self, limit: Limit, broker: Broker) -> None:
        """Make the tokens, unless they exist. If some are missing, or the limit has changed, all are made again.

        Raises:
            ReconcileError: refused, or no answer.
        """
        async with self._turn(limit, broker):
            try:
                if not await _is_complete(limit, broker):
                    await delete(limit.name, broker)
                    await broker.declare_queue(limit.queue(broker.version))
                    await _fill(limit, broker)
                    await broker.declare_exchange(limit.seal, limit.name)
            except QueueMissingError as error:
                raise ReconcileError(
                    Reason.QUEUE_REFUSED, f"{error} was deleted during its declaration, or its node is down."
                ) from None

    @asynccontextmanager
    async def _turn(self, limit: Limit, broker: Broker) -> AsyncIterator[None]:
        lock = self._locks.setdefault((broker.binding.display, limit.name), asyncio.Lock())
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await lock.acquire()
        except TimeoutError:
            raise ReconcileError(
                Reason.BROKER_TIMEOUT,
                f"The tokens of {limit.name!r} are being made for another WorkQueue, for {TURN_SECONDS:g} s already.",
            ) from None
        try:
            yield
        finally:
            lock.release()


async def delete(name: str, broker: Broker) -> None:
    """Delete the queue of a limit and its seal, if they exist."""
    await broker.delete_exchange(name)
    await broker.delete_queue(name)


def has_enough(limit: Limit, counts: QueueCounts) -> bool:
    """Whether all tokens may exist. A consumer waits for a token or holds one, and no token is held without one."""
    return limit.concurrency - counts.consumers <= counts.ready <= limit.concurrency


async def _is_complete(limit: Limit, broker: Broker) -> bool:
    try:
        await broker.declare_exchange(limit.seal, limit.name, passive=True)
    except QueueMissingError:
        return False
    if await broker.counts_if_there(limit.name) is None:
        return False
    try:
        counts: QueueCounts | None = await broker.declare_queue(limit.queue(broker.version))
    except ReconcileError as problem:
        if problem.reason is Reason.QUEUE_CONFLICT:  # another concurrency
            return False
        raise
    for _ in range(LOOKS):
        if counts is None or has_enough(limit, counts):
            break
        await asyncio.sleep(LOOK_PAUSE)
        counts = await broker.counts_if_there(limit.name)
    return counts is not None and has_enough(limit, counts)


async def _fill(limit: Limit, broker: Broker) -> None:
    token = OwnMessage(limit.name, "token", b"", None, {})
    try:
        async with asyncio.timeout(FILL_SECONDS):
            for start in range(0, limit.concurrency, AT_ONCE):
                count = min(AT_ONCE, limit.concurrency - start)
                await asyncio.gather(*(broker.publish(token) for _ in range(count)))
    except TimeoutError:
        raise ReconcileError(
            Reason.BROKER_TIMEOUT,
            f"RabbitMQ has not confirmed the tokens of {limit.name!r} within {FILL_SECONDS:g} s.",
        ) from None
    except (NotPublishedError, UnconfirmedError) as error:
        raise ReconcileError(
            Reason.QUEUE_REFUSED, f"The tokens of {limit.name!r} could not be published: {error}."
        ) from error
