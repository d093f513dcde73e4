"""Cancel messages by their ids: write it into the stream of the work queue, and tell all workers that run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future

from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract import topology
from workqueue.contract.cancels import LONGEST_ID_BYTES, Cancel


def check(message_ids: Sequence[str], queue: str) -> None:
    """Check the arguments of `cancel`.

    Raises:
        ValueError: a message with such an id, or such a queue, cannot exist.
        TypeError: an id is not a text.
    """
    if not queue:
        raise ValueError("Give the work queue of the message.")
    topology.check_queue_name(queue)
    if not message_ids:
        raise ValueError("Give the id of at least one message.")
    for message_id in message_ids:
        if not isinstance(message_id, str):
            raise TypeError(f"A message id is a text, not a {type(message_id).__name__}.")
        if not 0 < len(message_id.encode()) <= LONGEST_ID_BYTES:
            raise ValueError(f"A message id has 1 to {LONGEST_ID_BYTES} bytes. This one is {message_id!r}.")


def declare(pipeline: PublishPipeline, queue: str) -> Future[bool]:
    """Declare what holds the cancels of a work queue.

    Declared each time: a WorkQueue that is deleted and made again has a new one.

    The future raises:
        DeclareError: RabbitMQ refused, such as one without streams.
        BrokerError: the work queue does not exist, the connection was lost, or it timed out.
    """
    return pipeline.declare_plan(topology.cancels_plan(queue))


def messages(message_ids: Sequence[str], queue: str, *, discard: bool) -> list[Outgoing]:
    """Return what to publish for each id."""
    exchange, at = topology.cancels_name(queue), round(time.time() * 1000)
    return [
        Outgoing(
            "",
            Cancel(message_id, at, discard).encode(),
            exchange=exchange,
            content_type="application/json",
        )
        for message_id in message_ids
    ]


def cancel(pipeline: PublishPipeline, message_ids: Sequence[str], queue: str, *, discard: bool) -> None:
    """Cancel messages, and return when RabbitMQ has stored that.

    Raises:
        BrokerError: it may or may not have stored it. Cancel again.
    """
    declare(pipeline, queue).result()
    stored = [pipeline.publish(message) for message in messages(message_ids, queue, discard=discard)]
    for one in stored:
        one.result()
