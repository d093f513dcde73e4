"""`kubectl workqueue top`: a table of WorkQueues, deepest queue first, updated continuously on a terminal.

Each update is one LIST, because the status of the WorkQueues has all the data.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Final

from workqueue.cli import output
from workqueue_kubectl.cluster import Cluster
from workqueue_kubectl.errors import PluginError
from workqueue_operator.api.reasons import ConditionType
from workqueue_operator.api.workqueue import WorkQueue

INTERVAL: Final = 2.0
_HEAD: Final = (
    "NAMESPACE",
    "NAME",
    "READY",
    "MESSAGES",
    "RETRYING",
    "WORKERS",
    "BUSY",
    "MAX",
    "DEAD",
    "SCALING",
)
_NUMBERS: Final = frozenset({"MESSAGES", "RETRYING", "WORKERS", "BUSY", "MAX", "DEAD"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--once", action="store_true", help="show the table once, as without a terminal")
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=INTERVAL,
        metavar="SECONDS",
        help="pause between two updates (default: %(default)g)",
    )


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Show the table until Ctrl-C. When output is not a terminal, or JSON, print it once."""
    workqueues, unreadable = cluster.workqueues(everywhere=arguments.everywhere)
    if arguments.json:
        output.say_json([_as_json(workqueue) for workqueue in sorted(workqueues, key=_order)])
    elif arguments.once or not sys.stdout.isatty():
        output.say(_text(cluster, workqueues, everywhere=arguments.everywhere))
    else:
        _live(cluster, arguments)
        return 0
    for name in unreadable:
        output.warn(
            f"{name} is left out: this version of the plugin cannot read it. Use the same version as the operator."
        )
    return 0


def _live(cluster: Cluster, arguments: argparse.Namespace) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table_now() -> Group:
        try:
            workqueues, _ = cluster.workqueues(everywhere=arguments.everywhere)
        except PluginError as error:
            return Group(Text(str(error), style="red"))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in _HEAD:
            table.add_column(title, justify="right" if title in _NUMBERS else "left", no_wrap=True)
        for workqueue in sorted(workqueues, key=_order):
            ready = _condition(workqueue, ConditionType.READY)
            table.add_row(*_row(workqueue), style=None if ready.startswith("True") else "yellow")
        where = "all namespaces" if arguments.everywhere else f"namespace {cluster.namespace}"
        return Group(Text(f"{len(workqueues)} WorkQueues, {where}; Ctrl-C to exit\n", style="dim"), table)

    try:
        with Live(table_now(), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(arguments.interval)
                live.update(table_now(), refresh=True)
    except KeyboardInterrupt:
        return


def _text(cluster: Cluster, workqueues: list[WorkQueue], *, everywhere: bool) -> str:
    if not workqueues:
        where = "this cluster" if everywhere else f"the namespace {cluster.namespace}"
        return f"There is no WorkQueue in {where}."
    return output.table(_HEAD, [_row(workqueue) for workqueue in sorted(workqueues, key=_order)])


def _order(workqueue: WorkQueue) -> tuple[int, tuple[str, str]]:
    return -(workqueue.status.messages or 0), workqueue.key


def _row(workqueue: WorkQueue) -> tuple[str, ...]:
    status = workqueue.status
    return (
        *workqueue.key,
        _condition(workqueue, ConditionType.READY),
        _number(status.messages),
        _number(status.retrying),
        f"{_number(status.ready_replicas)}/{_number(status.desired_replicas)}",
        _number(status.busy_replicas),
        str(workqueue.spec.most_replicas),
        _number(status.dead_letters),
        _reason(workqueue, ConditionType.SCALING_ACTIVE),
    )


def _condition(workqueue: WorkQueue, kind: ConditionType) -> str:
    found = workqueue.status.condition(kind.value)
    if found is None:
        return "?"
    return found.status.value if found.status.value == "True" else f"{found.status.value} {found.reason}"


def _reason(workqueue: WorkQueue, kind: ConditionType) -> str:
    found = workqueue.status.condition(kind.value)
    return found.reason if found is not None else "?"


def _number(count: int | None) -> str:
    return "?" if count is None else str(count)


def _as_json(workqueue: WorkQueue) -> dict[str, Any]:
    status = workqueue.status
    ready = status.condition(ConditionType.READY.value)
    scaling = status.condition(ConditionType.SCALING_ACTIVE.value)
    return {
        "namespace": workqueue.metadata.namespace,
        "name": workqueue.metadata.name,
        "ready": ready.status.value if ready else None,
        "reason": ready.reason if ready else None,
        "messages": status.messages,
        "retrying": status.retrying,
        "deadLetters": status.dead_letters,
        "readyReplicas": status.ready_replicas,
        "desiredReplicas": status.desired_replicas,
        "busyReplicas": status.busy_replicas,
        "maxReplicas": workqueue.spec.most_replicas,
        "scaling": scaling.reason if scaling else None,
    }


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:  # noqa: PLR2004 - a sensible range
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds
