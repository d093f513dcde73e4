"""What the commands with several actions, `dead` and `delayed`, have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from workqueue.amqp.session import Session
from workqueue.cli import connection_options


def add(
    actions: Any, add_place: Callable[[argparse.ArgumentParser], None], name: str, summary: str, act: Any
) -> argparse.ArgumentParser:
    """Add an action, and return its parser.

    Args:
        actions: the command's subparsers.
        add_place: adds the arguments for the queue and the connection.
        act: called with the session and the arguments; returns the exit code.
    """
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}."
    )
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.set_defaults(act=act)
    return parser


def run(arguments: argparse.Namespace, name: str) -> int:
    """Run the action over a connection with this name; return 0 if all of it was done."""
    with Session(connection_options.binding_source(arguments), name) as session:
        code: int = arguments.act(session, arguments)
        return code


def agreed_to_drop(total: int, what: str, queue: str, *, everything: bool) -> bool:
    """Ask a person on a terminal. Return False without one.

    Args:
        what: the messages in words, such as "dead letters".
        everything: whether all of the `total` messages would be dropped.
    """
    if not sys.stdin.isatty():
        return False
    which = f"all {total}" if everything else f"the matching ones of {total}"
    sys.stderr.write(f"Drop {which} {what} of {queue}? This cannot be undone. [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
