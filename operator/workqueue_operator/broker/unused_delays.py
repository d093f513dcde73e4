"""Delete the delay queues of a work queue that nothing uses.

RabbitMQ cannot delete a quorum queue only if it is empty, and programs that declared a queue publish to it at any
time. Three things together keep their messages:

- The lock keeps programs from declaring the queues, so none finds a queue that is deleted before its first message.
- The bindings are removed first. RabbitMQ returns messages of programs that found the queues earlier, and these
  programs declare the queues again.
- A message that was routed before is still in its first queue when the operator looks again, since each step lasts
  for at least 0.5 s.

All calls use one connection. If it is lost, the lock is lost with it, and no later call is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from pika.channel import Channel

from workqueue.contract.topology import STEPS_MILLISECONDS, Plan, QueueBinding
from workqueue_operator.broker.channel import Send

LOOKS: Final = 3
PAUSE_SECONDS: Final = 0.4
"""A message that moves from one queue to the next is in no count for some milliseconds. Several looks see it."""

ROUTED_SECONDS: Final = 0.1
"""The time from the removal of a binding to the last message that came through it."""

SHORTEST_SECONDS: Final = STEPS_MILLISECONDS[0] / 1000

Ask = Callable[[str, Send], Awaitable[Any]]
"""Makes a call about a queue, by its name, on one connection."""


async def delete(plan: Plan, ask: Ask) -> bool:
    """Delete the delay queues of a plan if they hold no message and none is on its way to them.

    Returns:
        Whether they were deleted.

    Raises:
        ReconcileError: another program has the lock, or the broker refused or did not answer.
        QueueMissingError: one of the queues does not exist.
    """
    assert plan.lock is not None  # noqa: S101 - each plan of delay queues has one
    lock, arguments = plan.lock
    names = [queue.name for queue in reversed(plan.queues)]
    await ask(lock, partial(_declare, name=lock, exclusive=True, arguments=dict(arguments)))
    try:
        for _ in range(LOOKS):
            if not await _are_empty(names, ask):
                return False
            await asyncio.sleep(PAUSE_SECONDS)
        begun = time.monotonic()
        await _each(reversed(plan.bindings), "queue_unbind", ask)
        await asyncio.sleep(ROUTED_SECONDS)
        are_empty = await _are_empty(names, ask)
        if not are_empty or time.monotonic() - begun >= SHORTEST_SECONDS:
            await _each(plan.bindings, "queue_bind", ask)
            return False
        for name in names:
            await ask(name, partial(_delete, name=name))
    finally:
        await ask(lock, partial(_delete, name=lock))
    return True


async def _are_empty(names: Iterable[str], ask: Ask) -> bool:
    for name in names:
        answer = await ask(name, partial(_declare, name=name, passive=True))
        if answer.method.message_count or answer.method.consumer_count:
            return False
    return True


async def _each(bindings: Iterable[QueueBinding], method: str, ask: Ask) -> None:
    for binding in bindings:
        await ask(binding.queue, partial(_change, binding=binding, method=method))


def _declare(channel: Channel, done: Callable[..., None], *, name: str, **options: Any) -> None:
    channel.queue_declare(name, callback=done, **options)


def _delete(channel: Channel, done: Callable[..., None], *, name: str) -> None:
    channel.queue_delete(name, callback=done)


def _change(channel: Channel, done: Callable[..., None], *, binding: QueueBinding, method: str) -> None:
    getattr(channel, method)(binding.queue, binding.exchange, binding.routing_key, callback=done)
