"""`workqueue stats`: how many messages and consumers a work queue and its other queues have.

It uses passive declarations, which are live and need no plug-in and no more permissions than a worker has.
They cannot list queues, so the names of all possible delay queues are looked up.
"""

from __future__ import annotations

import argparse
from typing import Final

from workqueue.amqp.session import QueueDepth, Session
from workqueue.cli import connection_options, output
from workqueue.contract import topology
from workqueue.contract.topology import PriorityOrder

_PRIORITIES: Final = {
    PriorityOrder.IGNORED: "ignored",
    PriorityOrder.TWO_CLASSES: "two messages with 5 or more for each other one",
    PriorityOrder.STRICT: "0 to 31, higher ones first",
}

NO_QUEUE: Final = 4
"""Exit code. 1 means that RabbitMQ cannot be reached or refused."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--queue", required=True, help="the work queue")
    parser.add_argument(
        "--delays",
        type=_delays,
        default=frozenset(),
        metavar="SECONDS,...",
        help="further retry delays of an earlier release, whose queues may still hold messages",
    )
    parser.add_argument(
        "--dead-letter-queue", metavar="NAME", help="the dead-letter queue, if it is not QUEUE.dead"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    connection_options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the counts; return 0, or 4 if the queue does not exist."""
    queue = arguments.queue
    delays = sorted({*topology.EARLIER_DELAYS_SECONDS, *arguments.delays})
    names = [
        arguments.dead_letter_queue or topology.dead_letter_queue_name(queue),
        *(topology.step_name(queue, step) for step in topology.STEPS),
        *(topology.earlier_delay_queue_name(queue, delay) for delay in delays),
    ]
    with Session(connection_options.binding_source(arguments), "workqueue stats") as session:
        work = session.depth(queue)
        version = session.version
        around = {name: depth for name in names if (depth := session.depth(name)) is not None}
    found = ({} if work is None else {queue: work}) | around
    if arguments.json:
        output.say_json(
            {
                "queue": queue,
                "exists": work is not None,
                "priorities": version.priority_order,
                "queues": [{"name": name, **_as_json(depth)} for name, depth in found.items()],
            }
        )
    elif found:
        rows = [(name, str(depth.ready), str(depth.consumers)) for name, depth in found.items()]
        output.say(output.table(("QUEUE", "READY", "CONSUMERS"), rows))
        broker = f"RabbitMQ {version.major}.{version.minor}"
        output.say(f"Priorities in a quorum queue of {broker}: {_PRIORITIES[version.priority_order]}.")
    if work is None:
        output.warn(f"The queue {queue} does not exist.")
        return NO_QUEUE
    return 0


def _as_json(depth: QueueDepth) -> dict[str, int]:
    return {"ready": depth.ready, "consumers": depth.consumers}


def _delays(text: str) -> frozenset[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole seconds such as 1,10,60")
    return frozenset(map(int, words))
