"""The entry point `kubectl-workqueue`, which kubectl runs as `kubectl workqueue`.

Place in the flow: the options that kubectl itself has are taken out first, wherever they stand, and go to
every call of kubectl; the rest belongs to one command of `commands/`, each with `add_arguments(parser)` and
`run(cluster, arguments) -> exit code`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Final

from workqueue import __version__
from workqueue.contract.errors import WorkerError
from workqueue_kubectl.cluster import Cluster
from workqueue_kubectl.errors import PluginError
from workqueue_kubectl.kubectl import Kubectl

COMMANDS: Final = {
    "top": "show queues and workers, again and again",
    "status": "show one WorkQueue: conditions, pods, why it is at its count, and what would change that",
    "pause": "stop scaling and declaring; everything stays as it is",
    "resume": "go on after pause",
    "scale": "pin the number of workers, or release it",
    "send": "publish messages to the queue and wait for RabbitMQ's confirmation of each",
    "dead": "look at, replay or purge the dead letters",
}

EPILOG: Final = """\
exit codes:
  0  done
  1  failed
  2  the arguments are wrong
"""

_PASSED_ON: Final = ("context", "kubeconfig", "cluster", "user", "as", "as-group", "request-timeout")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: instead of the process's own, for tests.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    ours, rest = split(words)
    parser = build(command for command in rest if not command.startswith("-"))
    parsed = parser.parse_args(rest)
    parsed.everywhere, parsed.json = (
        ours.all_namespaces,
        ours.output == "json" or getattr(parsed, "json", False),
    )
    try:
        cluster = Cluster(Kubectl(flags(ours)), ours.namespace)
        code: int = import_module(f"{__package__}.commands.{parsed.command}").run(cluster, parsed)
    except (PluginError, WorkerError) as error:
        if parsed.json:
            print(json.dumps({"error": str(error)}, ensure_ascii=False))  # noqa: T201
        print(f"kubectl workqueue {parsed.command}: {error}", file=sys.stderr)  # noqa: T201 - a command line talks
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def kubectl_options() -> argparse.ArgumentParser:
    """A parser of the options that mean what they mean to kubectl."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("as for kubectl")
    group.add_argument("-n", "--namespace", metavar="NAMESPACE")
    group.add_argument("-A", "--all-namespaces", action="store_true", help="with top")
    group.add_argument("-o", "--output", choices=["json"], help="one JSON document instead of text")
    for name in _PASSED_ON:
        group.add_argument(f"--{name}", metavar="VALUE")
    return parser


def split(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Take kubectl's options out of the words; what stands behind `--` is left alone."""
    end = words.index("--") if "--" in words else len(words)
    ours, rest = kubectl_options().parse_known_args(words[:end])
    return ours, [*rest, *words[end:]]


def flags(ours: argparse.Namespace) -> list[str]:
    """The options as kubectl takes them."""
    given = {name: getattr(ours, name.replace("-", "_")) for name in _PASSED_ON}
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def build(asked: Iterable[str]) -> argparse.ArgumentParser:
    """The whole parser.

    Args:
        asked: the command, first, if any; only that one is imported.
    """
    options = kubectl_options()
    parser = argparse.ArgumentParser(
        prog="kubectl workqueue",
        description="WorkQueues: job queues on RabbitMQ and their workers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[options],
    )
    parser.add_argument("--version", action="version", version=f"kubectl-workqueue {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    first = next(iter(asked), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.", parents=[options]
        )
        if name == first:
            import_module(f"{__package__}.commands.{name}").add_arguments(command)
    return parser
