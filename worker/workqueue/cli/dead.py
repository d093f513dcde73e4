"""`workqueue dead`: list, show, replay or purge the dead letters of a work queue.

A replay publishes the message to the work queue, waits for the confirm, and only then acknowledges the dead
letter. If it is killed at any moment, each message is in at least one of the two queues. RabbitMQ requeues
the others when the command ends. A command takes at most as many messages as there were at the start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from workqueue.amqp.errors import BrokerError, NotSent
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.amqp.session import Received, Session, wait_until_open
from workqueue.cli import connection_options, output, values
from workqueue.cli.progress import progress
from workqueue.contract import dead_letters
from workqueue.contract.dead_letters import DeadLetter, Filter
from workqueue.contract.topology import dead_letter_queue_name

DEFAULT_LIST_LIMIT: Final = 50
_LOOK_SECONDS: Final = 0.1


def add_queue(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the queue and the connection."""
    parser.add_argument("--queue", required=True, help="the work queue")
    parser.add_argument(
        "--dead-letter-queue",
        metavar="NAME",
        help="the dead-letter queue, if it is not QUEUE.dead; only dead letters of QUEUE are taken from it",
    )
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
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = _action(actions, add_place, "list", "list the dead letters", _list)
    _add_filters(listing)
    listing.add_argument(*limit, type=values.count, default=DEFAULT_LIST_LIMIT, help="(%(default)s)")

    show = _action(actions, add_place, "show", "show one dead letter with its headers and its body", _show)
    show.add_argument("id", nargs="?", help="a message id (default: the first)")

    replay = _action(actions, add_place, "replay", "send dead letters back to the work queue", _replay)
    _add_filters(replay)
    replay.add_argument(*limit, type=values.count, help="the largest number to replay")
    replay.add_argument(
        "--keep-attempts",
        action="store_true",
        help="continue the count of attempts instead of starting again",
    )

    purge = _action(actions, add_place, "purge", "delete dead letters", _purge)
    _add_filters(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def run(arguments: argparse.Namespace) -> int:
    """Run the action; return 0 if all of it was done."""
    with Session(connection_options.binding_source(arguments), "workqueue dead") as session:
        code: int = arguments.act(session, arguments)
        return code


def _action(
    actions: Any, add_place: Callable[[argparse.ArgumentParser], None], name: str, summary: str, act: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}."
    )
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.set_defaults(act=act)
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters (default: all)")
    group.add_argument("--id", action="append", default=[], metavar="ID", help="with this message id")
    group.add_argument(
        "--reason",
        action="append",
        default=[],
        help="given up for this reason, as list shows it (Exception, Rejected, TimedOut, DeliveryLimit, ...)",
    )
    group.add_argument(
        "--older-than", type=_duration, metavar="TIME", help="given up longer ago: 90s, 10m, 2h, 7d"
    )


def _list(session: Session, arguments: argparse.Namespace) -> int:
    total = _depth(session, arguments)
    found: list[DeadLetter] = []
    wanted = _filter(arguments)
    for _, letter in _take(session, arguments, total):
        if wanted.takes(letter):
            found.append(letter)
        if len(found) == arguments.limit:
            break
    session.give_back_all()
    if arguments.json:
        output.say_json(
            {"queue": arguments.queue, "total": total, "messages": [letter.as_json() for letter in found]}
        )
        return 0
    if found:
        rows = [
            (
                letter.message_id or "-",
                f"{letter.failed_at:%Y-%m-%d %H:%M:%S}" if letter.failed_at else "-",
                str(letter.attempts),
                letter.reason,
                letter.message.partition("\n")[0],
            )
            for letter in found
        ]
        output.say(output.table(("ID", "FAILED AT (UTC)", "ATTEMPTS", "REASON", "MESSAGE"), rows))
    output.say(f"{len(found)} of {output.count(total, 'dead letter')} of {_owner(arguments)}.")
    return 0


def _show(session: Session, arguments: argparse.Namespace) -> int:
    for received, letter in _take(session, arguments, _depth(session, arguments)):
        if arguments.id in {None, letter.message_id}:
            session.give_back_all()
            _say_letter(received, letter, as_json=arguments.json)
            return 0
    which = f"the id {arguments.id}" if arguments.id else "any id"
    raise BrokerError(f"{_place(arguments)} holds no message with {which}.")


def _say_letter(received: Received, letter: DeadLetter, *, as_json: bool) -> None:
    if as_json:
        output.say_json(
            letter.as_json()
            | {"traceback": letter.traceback or None, "headers": received.headers}
            | output.body_fields(received.body)
        )
        return
    output.say(f"id: {letter.message_id or '-'}")
    output.say(f"reason: {letter.reason}")
    for line in output.header_lines(received.headers):
        output.say(f"  {line}")
    output.say(f"body ({output.count(letter.size, 'byte')}):")
    output.say(output.body_text(received.body))


def _replay(session: Session, arguments: argparse.Namespace) -> int:
    queue, wanted = arguments.queue, _filter(arguments)
    total = _depth(session, arguments)
    if session.depth(queue) is None:
        raise BrokerError(f"The queue {queue} does not exist: apply its WorkQueue first. Nothing was moved.")
    tally = _Tally(session)
    source = connection_options.binding_source(arguments)
    with (
        PublishPipeline(source, "workqueue dead replay") as publisher,
        progress("replaying", total) as update,
    ):
        wait_until_open(publisher.connection, source)
        begun = 0
        for received, letter in _take(session, arguments, total):
            if tally.errors or begun == arguments.limit:
                break
            if wanted.takes(letter):
                begun += 1
                properties, kept = dead_letters.replay_properties(
                    received, keep_attempts=arguments.keep_attempts
                )
                copy = Outgoing.with_properties(properties, queue, received.body, kept)
                try:
                    publisher.publish(copy).add_done_callback(partial(tally.settled, received))
                except NotSent as error:
                    tally.errors.append(str(error))
            update(tally.moved)
        while not publisher.wait(_LOOK_SECONDS):
            update(tally.moved)
    try:
        session.give_back_all()  # RabbitMQ answers this after all acknowledgements
    except BrokerError as error:
        tally.errors.append(f"{error} Replayed messages may still be dead letters too; compare their ids.")
    return _say_tally(tally, arguments)


class _Tally:
    """The results of a replay. Written in the publisher's thread."""

    def __init__(self, session: Session) -> None:
        self.moved = 0
        self.errors: list[str] = []
        self._session = session

    def settled(self, received: Received, future: Future[None]) -> None:
        error = future.exception()
        if error is None:
            self._session.ack(received)
            self.moved += 1
        else:
            self.errors.append(str(error))


def _say_tally(tally: _Tally, arguments: argparse.Namespace) -> int:
    if arguments.json:
        output.say_json({"queue": arguments.queue, "replayed": tally.moved, "errors": tally.errors})
    else:
        output.say(f"{output.count(tally.moved, 'message')} replayed to {arguments.queue}.")
    for error in tally.errors:
        output.warn(error)
    if tally.errors:
        output.warn("Stopped. The other messages are still in the dead-letter queue.")
    return 1 if tally.errors else 0


def _purge(session: Session, arguments: argparse.Namespace) -> int:
    queue, wanted = arguments.queue, _filter(arguments)
    total = _depth(session, arguments)
    everything = wanted.takes_all and arguments.dead_letter_queue is None
    if not arguments.yes and not _agreed(total, _owner(arguments), everything=everything):
        output.warn("Nothing was dropped. Use --yes to drop without confirmation.")
        return connection_options.BAD_USAGE
    dropped = 0
    with progress("dropping", total) as update:
        # Not queue.purge, which would also drop dead letters that have arrived since the count.
        for received, letter in _take(session, arguments, total):
            if wanted.takes(letter):
                session.ack(received)
                dropped += 1
            update(dropped)
        session.give_back_all()
    if arguments.json:
        output.say_json({"queue": queue, "dropped": dropped})
    else:
        output.say(f"{output.count(dropped, 'dead letter')} of {queue} dropped.")
    return 0


def _agreed(total: int, queue: str, *, everything: bool) -> bool:
    if not sys.stdin.isatty():
        return False
    what = f"all {total}" if everything else f"the matching ones of {total}"
    sys.stderr.write(f"Drop {what} dead letters of {queue}? This cannot be undone. [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _place(arguments: argparse.Namespace) -> str:
    """Return the dead-letter queue."""
    name: str = arguments.dead_letter_queue or dead_letter_queue_name(arguments.queue)
    return name


def _owner(arguments: argparse.Namespace) -> str:
    """Return the queue that the number of all dead letters is about."""
    owner: str = arguments.dead_letter_queue or arguments.queue
    return owner


def _depth(session: Session, arguments: argparse.Namespace) -> int:
    name = _place(arguments)
    depth = session.depth(name)
    if depth is None:
        raise BrokerError(
            f"The queue {name} does not exist: is {arguments.queue} the name of the work queue?"
        )
    return depth.ready


def _take(
    session: Session, arguments: argparse.Namespace, total: int
) -> Iterator[tuple[Received, DeadLetter]]:
    """Take messages one by one, at most `total`. Dead letters that arrive later are left for the next command.

    A dead-letter queue that the user names may be shared. Messages of other work queues are requeued at the end.
    """
    queue = arguments.queue
    for _ in range(total):
        received = session.get(_place(arguments))
        if received is None:
            return
        if arguments.dead_letter_queue is None or dead_letters.is_of(received, queue):
            yield received, dead_letters.read(received, queue)


def _filter(arguments: argparse.Namespace) -> Filter:
    return Filter(
        reasons=frozenset(reason.lower() for reason in arguments.reason),
        message_ids=frozenset(arguments.id),
        failed_before=datetime.now(UTC) - arguments.older_than if arguments.older_than else None,
    )


def _duration(text: str) -> Any:
    try:
        return dead_letters.duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
