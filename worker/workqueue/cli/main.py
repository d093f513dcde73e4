"""The command line `workqueue`. It imports only the module of the command that is used.

A worker must start fast, so nothing here imports anything that `run` does not need.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Final

from workqueue import __version__
from workqueue.contract.errors import WorkerError

COMMANDS: Final = {
    "run": "take messages from a queue and handle them",
    "send": "publish messages and wait for RabbitMQ's confirmation of each",
    "dead": "look at, replay or purge the dead-letter queue",
    "delayed": "list or purge the messages that wait for their delay",
    "cancel": "cancel messages by their ids, whether they run, wait or are delayed",
    "peek": "look at the first messages of a queue without taking them",
    "stats": "show how many messages and consumers a queue has",
}

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C."""

EXIT_CODES: Final = """\
exit codes:
  0  done (run: drained after SIGTERM, --until-empty or --max-messages)
  1  failed
  2  the configuration or the arguments are wrong
  3  run: the handler cannot be loaded or reached
  4  stats: the queue does not exist
"""

USAGE_CHARACTERS: Final = 80
"""The width of a usage line beside an error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: instead of the process's own, for tests.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_missing_streams()
    # argparse makes a formatter for each flag. Without a width each one asks the terminal, which needs shutil.
    asks_help = not {"-h", "--help"}.isdisjoint(words)
    width = None if asks_help else USAGE_CHARACTERS
    parser = argparse.ArgumentParser(
        prog="workqueue",
        description="Job queues on RabbitMQ.",
        epilog=EXIT_CODES,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=width),
    )
    parser.add_argument("--version", action="version", version=f"workqueue {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if asked in COMMANDS and name != asked and not asks_help:
            continue  # to make a parser takes 0.2 ms
        subparser = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[:1].upper()}{summary[1:]}.",
            formatter_class=partial(argparse.HelpFormatter, width=width),
        )
        if name == asked:
            import_module(f"{__package__}.{name}").add_arguments(subparser)
    parsed = parser.parse_args(words)
    command = import_module(f"{__package__}.{parsed.command}")
    gc.enable()  # see `__main__`
    try:
        code: int = command.run(parsed)
    except WorkerError as error:
        from workqueue.cli import output

        if getattr(parsed, "json", False):
            output.say_json({"error": str(error)})
        output.warn(f"workqueue {parsed.command}: {error}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def open_missing_streams() -> None:
    """Open the standard streams that the parent process has closed, as on /dev/null.

    Python sets a missing one to None. A socket could also get its descriptor, and then text that is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)  # as the others, for commands that handle messages
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal of another encoding shows \u2026 for what it lacks. Otherwise a command would fail at its end.
        sys.stdout.reconfigure(errors="backslashreplace")
