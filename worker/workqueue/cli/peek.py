"""`workqueue peek`: show the first messages of a queue and put them back.

If the command is killed, RabbitMQ puts them back.
"""

from __future__ import annotations

import argparse
from typing import Any

from workqueue.amqp.errors import BrokerError
from workqueue.amqp.session import Received, Session
from workqueue.cli import connection_options, output, values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--queue", required=True, help="any queue")
    parser.add_argument(
        "-n", type=values.count, default=1, metavar="NUMBER", help="how many (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    connection_options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the messages and return 0."""
    with Session(connection_options.binding_source(arguments), "workqueue peek") as session:
        depth = session.depth(arguments.queue)
        if depth is None:
            raise BrokerError(f"The queue {arguments.queue} does not exist.")
        seen: list[Received] = []
        while len(seen) < min(arguments.n, depth.ready) and (received := session.get(arguments.queue)):
            seen.append(received)
        session.give_back_all()
        if seen and session.version.nack_counts_as_delivery:
            output.warn(
                "Note: before RabbitMQ 4.3, looking at a message of a quorum queue counts as one delivery"
                " towards its delivery limit."
            )
    if arguments.json:
        messages = [_as_json(received) for received in seen]
        output.say_json({"queue": arguments.queue, "ready": depth.ready, "messages": messages})
        return 0
    for number, received in enumerate(seen, 1):
        output.say(f"message {number} of {depth.ready}, id: {received.properties.message_id or '-'}")
        for line in output.header_lines(received.headers):
            output.say(f"  {line}")
        output.say(output.body_text(received.body))
    if not seen:
        output.say(f"{arguments.queue} has no ready message.")
    return 0


def _as_json(received: Received) -> dict[str, Any]:
    properties = received.properties
    fields: dict[str, Any] = {
        "id": properties.message_id,
        "redelivered": received.redelivered,
        "exchange": received.exchange,
        "routingKey": received.routing_key,
        "contentType": properties.content_type,
        "priority": properties.priority,
        "timestamp": properties.timestamp,
        "headers": received.headers,
    }
    return fields | output.body_fields(received.body)
