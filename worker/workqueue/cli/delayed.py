"""`workqueue delayed`: list or purge the messages that wait for their delay or their next attempt.

A message moves from longer steps to shorter ones. The commands look at the steps in this order, so that they find a
message that moves.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from workqueue.amqp.errors import BrokerError
from workqueue.amqp.session import Received, Session
from workqueue.cli import actions, connection_options, output, values
from workqueue.cli.progress import progress
from workqueue.contract import durations, headers, topology

DEFAULT_LIST_LIMIT: Final = 50


class Delayed(NamedTuple):
    """A message in a delay queue.

    Attributes:
        due_at: None if the headers do not say.
    """

    message_id: str
    due_at: datetime | None
    attempts: int
    size: int

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the JSON output."""
        return {
            "id": self.message_id or None,
            "dueAt": self.due_at,
            "attempts": self.attempts,
            "size": self.size,
        }


def read(received: Received) -> Delayed:
    """Read the headers of a message in a delay queue."""
    found = received.headers
    return Delayed(
        message_id=received.properties.readable().message_id or "",
        due_at=_moment(found.get(headers.DUE_AT)),
        attempts=headers.attempts_made(found),
        size=len(received.body),
    )


def add_queue(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the queue and the connection."""
    parser.add_argument("--queue", required=True, help="the work queue")
    connection_options.add_arguments(parser)


def add_arguments(
    parser: argparse.ArgumentParser,
    add_place: Callable[[argparse.ArgumentParser], None] = add_queue,
    limit: Sequence[str] = ("-n", "--limit"),
) -> None:
    """Add the command's arguments.

    Args:
        add_place: adds the arguments for the queue and the connection.
        limit: names of the option that limits the number.
    """
    subparsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add(
        subparsers, add_place, "list", "list the messages that wait, the next ones first", _list
    )
    listing.add_argument(*limit, type=values.count, default=DEFAULT_LIST_LIMIT, help="(%(default)s)")
    purge = actions.add(subparsers, add_place, "purge", "delete messages that wait", _purge)
    purge.add_argument(
        "--id", action="append", default=[], metavar="ID", help="with this message id (default: all)"
    )
    purge.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def run(arguments: argparse.Namespace) -> int:
    """Run the action; return 0 if all of it was done."""
    return actions.run(arguments, "workqueue delayed")


def _list(session: Session, arguments: argparse.Namespace) -> int:
    counts = _counts(session, arguments.queue)
    # The first messages of each step: a step is in the order of time, except for priorities from RabbitMQ 4.3 on.
    taken = [
        (name, received)
        for name, count in counts.items()
        for received in _take(session, name, min(count, arguments.limit))
    ]
    _give_back(session, arguments.queue, taken)
    latest = datetime.max.replace(tzinfo=UTC)
    found = sorted((read(received) for _, received in taken), key=lambda message: message.due_at or latest)
    shown, total = found[: arguments.limit], sum(counts.values())
    if arguments.json:
        output.say_json(
            {
                "queue": arguments.queue,
                "total": total,
                "queues": [{"name": name, "ready": count} for name, count in counts.items()],
                "messages": [message.as_json() for message in shown],
            }
        )
        return 0
    if shown:
        now = time.time()
        rows = [
            (
                message.message_id or "-",
                f"{message.due_at:%Y-%m-%d %H:%M:%S}" if message.due_at else "-",
                durations.age(message.due_at.timestamp() - now) if message.due_at else "-",
                str(message.attempts),
            )
            for message in shown
        ]
        output.say(output.table(("ID", "DUE AT (UTC)", "IN", "ATTEMPTS"), rows))
    output.say(f"{len(shown)} of {output.count(total, 'delayed message')} of {arguments.queue}.")
    return 0


def _purge(session: Session, arguments: argparse.Namespace) -> int:
    queue, wanted = arguments.queue, frozenset(arguments.id)
    counts = _counts(session, queue)
    total = sum(counts.values())
    if not arguments.yes and not actions.agreed_to_drop(
        total, "delayed messages", queue, everything=not wanted
    ):
        output.warn("Nothing was dropped. Use --yes to drop without confirmation.")
        return connection_options.BAD_USAGE
    dropped, kept = 0, list[tuple[str, Received]]()
    with progress("dropping", total) as update:
        for name, count in counts.items():
            for received in _take(session, name, count):
                if not wanted or received.properties.message_id in wanted:
                    session.ack(received)
                    dropped += 1
                else:
                    kept.append((name, received._replace(body=b"")))
                update(dropped)
        _give_back(session, queue, kept)
    if arguments.json:
        output.say_json({"queue": queue, "dropped": dropped})
    else:
        output.say(f"{output.count(dropped, 'delayed message')} of {queue} dropped.")
    return 0


def _counts(session: Session, queue: str) -> dict[str, int]:
    """Return the messages in each delay queue that exists, in the order in which messages pass them."""
    if session.depth(queue) is None:
        raise BrokerError(f"The queue {queue} does not exist: apply its WorkQueue first.")
    names = [
        *(topology.earlier_delay_queue_name(queue, delay) for delay in topology.EARLIER_DELAYS_SECONDS),
        *(topology.step_name(queue, step) for step in topology.STEPS),
    ]
    return {name: depth.ready for name in names if (depth := session.depth(name)) is not None}


def _take(session: Session, name: str, count: int) -> Iterator[Received]:
    """Take the first messages of a queue, at most `count`."""
    for _ in range(count):
        received = session.get(name)
        if received is None:
            return
        yield received


def _give_back(session: Session, queue: str, taken: Iterable[tuple[str, Received]]) -> None:
    """Requeue messages, by the names of their queues, in the order in which they leave these.

    RabbitMQ keeps them apart from the others and looks only at the first. From 4.3 it delivered them by priority.
    """
    for _, received in sorted(taken, key=lambda one: _leaves_at(queue, *one)):
        session.give_back(received)
    session.give_back_all()


def _leaves_at(queue: str, name: str, received: Received) -> float:
    """Return when a message leaves its delay queue, in Unix milliseconds: its shorter steps come after that."""
    due, step = received.headers.get(headers.DUE_AT), topology.step_of(name, queue)
    if not isinstance(due, int):
        return math.inf
    if step is None or step == topology.LAST:
        return due
    digits = received.routing_key.split(".")[: step.power]
    return due - sum(
        milliseconds
        for milliseconds, digit in zip(topology.STEPS_MILLISECONDS, digits, strict=False)
        if digit == "1"
    )


def _moment(value: object) -> datetime | None:
    if not isinstance(value, int):
        return None
    try:
        return datetime.fromtimestamp(value / 1000, UTC)
    except (OverflowError, OSError, ValueError):
        return None
