"""`workqueue cancel`: cancel messages by their ids."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from workqueue.amqp import cancelling
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.amqp.session import wait_until_open
from workqueue.cli import connection_options, output
from workqueue.contract import topology

_DAY: Final = 86_400


def add_queue(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the queue and the connection."""
    parser.add_argument("--queue", required=True, help="the work queue")
    connection_options.add_arguments(parser)


def add_arguments(
    parser: argparse.ArgumentParser, add_place: Callable[[argparse.ArgumentParser], None] = add_queue
) -> None:
    """Add the command's arguments.

    Args:
        add_place: adds the arguments for the queue and the connection.
    """
    add_place(parser)
    parser.add_argument("ids", metavar="ID", nargs="+", help="the id of a message")
    parser.add_argument(
        "--discard",
        action="store_true",
        help="drop the messages instead of moving them to the dead-letter queue",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Cancel the messages; return 0 when RabbitMQ has stored that."""
    queue, ids = arguments.queue, arguments.ids
    try:
        cancelling.check(ids, queue)
    except ValueError as error:
        output.warn(f"workqueue cancel: {error}")
        return connection_options.BAD_USAGE
    source = connection_options.binding_source(arguments)
    with PublishPipeline(source, "workqueue cancel") as pipeline:
        wait_until_open(pipeline.connection, source)
        cancelling.cancel(pipeline, ids, queue, discard=arguments.discard)
    days = topology.CANCEL_SECONDS // _DAY
    if arguments.json:
        output.say_json({"queue": queue, "cancelled": ids, "discard": arguments.discard, "days": days})
        return 0
    what = "discarded" if arguments.discard else "moved to the dead-letter queue"
    output.say(
        f"{output.count(len(ids), 'message id')} of {queue} cancelled. A running handler is cancelled now. A message "
        f"that waits, or arrives within {days} days, is {what} when a worker takes it."
    )
    return 0
