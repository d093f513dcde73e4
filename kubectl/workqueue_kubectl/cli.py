"""The entry point `kubectl-workqueue`, which kubectl runs as `kubectl workqueue`.

kubectl's own options may be anywhere in the command line. They are passed to every call of kubectl. Each module of
`commands/` has `add_arguments(parser)` and `run(cluster, arguments) -> exit code`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Final

from workqueue import __version__
from workqueue.cli import output
from workqueue.cli.main import INTERRUPTED, open_missing_streams
from workqueue.contract.errors import WorkerError
from workqueue_kubectl.cluster import Cluster
from workqueue_kubectl.errors import PluginError
from workqueue_kubectl.kubectl import Kubectl

COMMANDS: Final = {
    "top": "show queues and workers, updated continuously",
    "status": "show one WorkQueue: conditions, pods, the reason for its replica count, and what would change it",
    "pause": "suspend scaling and declarations; everything else stays unchanged",
    "resume": "continue after pause",
    "scale": "pin the number of workers, or release it",
    "send": "publish messages to the queue and wait for RabbitMQ's confirmation of each",
    "dead": "list, show, replay or purge dead letters",
    "delayed": "list or purge messages that wait for their delay",
    "cancel": "cancel messages by their ids, whether they run, wait or are delayed",
    "recurring": "show recurring messages, or publish one now",
}

FORMS: Final = {
    "top": ("json", "yaml", "name", "wide"),
    "status": ("json", "yaml", "name", "wide"),
    "pause": ("json", "yaml", "name"),
    "resume": ("json", "yaml", "name"),
    "scale": ("json", "yaml", "name"),
    "send": ("json", "yaml"),
    "dead": ("json", "yaml", "wide"),
    "delayed": ("json", "yaml"),
    "cancel": ("json", "yaml"),
    "recurring": ("json", "yaml"),
}
"""What each command can print with -o instead of its text."""

EPILOG: Final = """\
exit codes:
  0    done
  1    failed
  2    invalid arguments, or not confirmed
  130  interrupted by Ctrl-C
"""

OUTPUTS: Final = ("json", "yaml", "name", "wide")

_PASSED_ON: Final = ("context", "kubeconfig", "cluster", "user", "as", "as-group", "request-timeout")
_REPEATED: Final = "as-group"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the command line; defaults to that of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_missing_streams()
    ours, rest = split(words)
    parser = build(command for command in rest if not command.startswith("-"))
    parsed = parser.parse_args(rest)
    form = ours.output
    if form is not None and form not in FORMS[parsed.command]:
        parser.error(
            f"-o {form} is not possible with {parsed.command}: use {' or '.join(FORMS[parsed.command])}"
        )
    parsed.everywhere = ours.all_namespaces
    parsed.json = form in {"json", "yaml"} or getattr(parsed, "json", False)
    parsed.wide, parsed.only_name = form == "wide", form == "name"
    if form != "yaml":
        return _run(ours, parsed)
    with redirect_stdout(io.StringIO()) as document:
        code = _run(ours, parsed)
    _say_yaml(document.getvalue())
    return code


def _say_yaml(document: str) -> None:
    import yaml

    if document:
        output.write(yaml.safe_dump(json.loads(document), sort_keys=False, allow_unicode=output.is_unicode()))


def _run(ours: argparse.Namespace, parsed: argparse.Namespace) -> int:
    try:
        cluster = Cluster(Kubectl(flags(ours)), ours.namespace)
        code: int = import_module(f"{__package__}.commands.{parsed.command}").run(cluster, parsed)
    except (PluginError, WorkerError) as error:
        if parsed.json:
            output.say_json({"error": str(error)})
        output.warn(f"kubectl workqueue {parsed.command}: {error}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def kubectl_options() -> argparse.ArgumentParser:
    """Return a parser of the options that the plugin shares with kubectl."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("as in kubectl")
    group.add_argument("-n", "--namespace", metavar="NAMESPACE")
    group.add_argument("-A", "--all-namespaces", action="store_true", help="all namespaces, only for top")
    group.add_argument("-o", "--output", choices=OUTPUTS, help="another form than text; wide cuts nothing")
    for name in _PASSED_ON:
        # As in kubectl, each --as-group adds a group.
        group.add_argument(f"--{name}", metavar="VALUE", action="append" if name == _REPEATED else "store")
    return parser


def split(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Separate kubectl's options from the other words. Ignores words after `--`."""
    end = words.index("--") if "--" in words else len(words)
    ours, rest = kubectl_options().parse_known_args(words[:end])
    return ours, [*rest, *words[end:]]


def flags(ours: argparse.Namespace) -> list[str]:
    """Return the options as command line flags for kubectl."""
    given = {name: getattr(ours, name.replace("-", "_")) for name in _PASSED_ON}
    return [
        f"--{name}={value}"
        for name, values in given.items()
        if values is not None
        for value in (values if name == _REPEATED else [values])
    ]


def build(asked: Iterable[str]) -> argparse.ArgumentParser:
    """Return the whole parser.

    Args:
        asked: words of the command line. Only the module of the first one, the command, is imported.
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
