"""`workqueue dead`: list, show, replay or purge the dead letters of a work queue.

A command takes at most as many messages as there were at the start. RabbitMQ requeues those that it does not settle
when the command ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from workqueue.amqp.dead_letter_queue import DeadLetterQueue, Replay, purge
from workqueue.amqp.errors import BrokerError
from workqueue.amqp.session import Received, Session
from workqueue.cli import actions, connection_options, output, values
from workqueue.cli.main import INTERRUPTED
from workqueue.cli.progress import progress
from workqueue.contract import durations
from workqueue.contract.dead_letters import DeadLetter, Filter
from workqueue.contract.errors import WorkerError

DEFAULT_LIST_LIMIT: Final = 50
MOST_CANDIDATES: Final = 10
"""Ids that are listed if the one of `show` is ambiguous."""

MOST_ERRORS: Final = 10
"""Messages of a replay whose errors are printed. With --json, all are in the document."""


class AmbiguousIdError(WorkerError):
    """Several messages have an id that begins as the user wrote it. The error lists them."""


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
    subparsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = actions.add(subparsers, add_place, "list", "list the dead letters", _list)
    _add_filters(listing)
    listing.add_argument(*limit, type=values.count, default=DEFAULT_LIST_LIMIT, help="(%(default)s)")

    show = actions.add(
        subparsers, add_place, "show", "show one dead letter with its headers and its body", _show
    )
    show.add_argument("id", nargs="?", help="a message id, or its beginning (default: the first message)")

    replay = actions.add(subparsers, add_place, "replay", "send dead letters back to the work queue", _replay)
    _add_filters(replay)
    replay.add_argument(*limit, type=values.count, help="the largest number to replay")
    replay.add_argument(
        "--keep-attempts",
        action="store_true",
        help="continue the count of attempts instead of starting again",
    )

    purge = actions.add(subparsers, add_place, "purge", "delete dead letters", _purge)
    _add_filters(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def run(arguments: argparse.Namespace) -> int:
    """Run the action; return 0 if all of it was done."""
    return actions.run(arguments, "workqueue dead")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters (default: all)")
    group.add_argument("--id", action="append", default=[], metavar="ID", help="with this message id")
    group.add_argument(
        "--reason",
        action="append",
        default=[],
        help="given up for this reason, as list shows it (Exception, Rejected, TimedOut, Cancelled, ...)",
    )
    group.add_argument(
        "--older-than", type=_duration, metavar="TIME", help="given up longer ago: 90s, 10m, 2h, 7d"
    )


def _list(session: Session, arguments: argparse.Namespace) -> int:
    place = _place(arguments)
    total = place.depth(session)
    found: list[DeadLetter] = []
    wanted = _filter(arguments)
    for _, letter in place.take(session, total):
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
        output.say(_table(found, wide=getattr(arguments, "wide", False)))
    output.say(f"{len(found)} of {output.count(total, 'dead letter')} of {place.owner}.")
    return 0


def _table(letters: Sequence[DeadLetter], *, wide: bool = False) -> str:
    head = ("ID", "FAILED AT (UTC)", "ATTEMPTS", "REASON", *(("WORKER", "BYTES") if wide else ()), "MESSAGE")
    rows = [
        (
            letter.message_id or "-",
            f"{letter.failed_at:%Y-%m-%d %H:%M:%S}" if letter.failed_at else "-",
            str(letter.attempts),
            letter.reason,
            *((letter.worker or "-", str(letter.size)) if wide else ()),
            letter.message,
        )
        for letter in letters
    ]
    return output.table(head, rows, cut=not wide)


def _show(session: Session, arguments: argparse.Namespace) -> int:
    place, wanted = _place(arguments), arguments.id
    shown: tuple[Received, DeadLetter] | None = None
    others: list[DeadLetter] = []
    for received, letter in place.take(session, place.depth(session)):
        if wanted in {None, letter.message_id}:
            shown, others = (received, letter), []
            break
        if letter.message_id.startswith(wanted):
            if shown is None:
                shown = (received, letter)
            else:
                others.append(letter)
    session.give_back_all()
    if shown is None:
        which = f"whose id is {wanted!r} or begins with it" if wanted is not None else "at all"
        raise BrokerError(f"{place.name} holds no message {which}. `dead list` shows the ids.")
    if others:
        raise _ambiguous([shown[1], *others], arguments)
    _say_letter(*shown, as_json=arguments.json)
    return 0


def _ambiguous(letters: Sequence[DeadLetter], arguments: argparse.Namespace) -> AmbiguousIdError:
    more = len(letters) - MOST_CANDIDATES
    lines = [
        f"{len(letters)} ids in {_place(arguments).name} begin with {arguments.id!r}. Give more of the id:",
        _table(letters[:MOST_CANDIDATES]),
        *([f"and {more} more"] if more > 0 else []),
    ]
    return AmbiguousIdError("\n".join(lines))


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
    place = _place(arguments)
    total = place.depth(session)
    replay = Replay(
        place,
        connection_options.binding_source(arguments),
        _filter(arguments),
        limit=arguments.limit,
        keep_attempts=arguments.keep_attempts,
    )
    with progress("replaying", total) as update:
        replay.run(session, total, update)
    if arguments.json:
        output.say_json({"queue": arguments.queue, "replayed": replay.moved, "errors": replay.errors})
    else:
        output.say(f"{output.count(replay.moved, 'message')} replayed to {arguments.queue}.")
    _warn_of(replay.errors)
    if replay.is_interrupted:
        return _interrupted()
    if replay.errors:
        output.warn("Stopped. The other messages are still in the dead-letter queue.")
    return 1 if replay.errors else 0


def _warn_of(errors: Sequence[str]) -> None:
    """Say why messages were not replayed. A lost connection fails each message that waits for its confirm."""
    for error in errors[:MOST_ERRORS]:
        output.warn(error)
    if len(errors) > MOST_ERRORS:
        output.warn(f"And so on for {output.count(len(errors) - MOST_ERRORS, 'other message')}.")


def _purge(session: Session, arguments: argparse.Namespace) -> int:
    place, wanted = _place(arguments), _filter(arguments)
    total = place.depth(session)
    everything = wanted.takes_all and place.named is None
    if not arguments.yes and not actions.agreed_to_drop(
        total, "dead letters", place.owner, everything=everything
    ):
        output.warn("Nothing was dropped. Use --yes to drop without confirmation.")
        return connection_options.BAD_USAGE
    with progress("dropping", total) as update:
        dropped, is_interrupted = purge(session, place, wanted, total, update)
    if arguments.json:
        output.say_json({"queue": place.queue, "dropped": dropped})
    else:
        output.say(f"{output.count(dropped, 'dead letter')} of {place.queue} dropped.")
    return _interrupted() if is_interrupted else 0


def _interrupted() -> int:
    output.warn("Interrupted. The other messages are still in the dead-letter queue.")
    return INTERRUPTED


def _place(arguments: argparse.Namespace) -> DeadLetterQueue:
    return DeadLetterQueue(arguments.queue, arguments.dead_letter_queue)


def _filter(arguments: argparse.Namespace) -> Filter:
    return Filter(
        reasons=frozenset(reason.lower() for reason in arguments.reason),
        message_ids=frozenset(arguments.id),
        failed_before=datetime.now(UTC) - arguments.older_than if arguments.older_than else None,
    )


def _duration(text: str) -> Any:
    try:
        return durations.duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
