"""`kubectl workqueue top`: a table of WorkQueues, deepest queue first, updated continuously on a terminal.

Each update is one LIST, because the status of the WorkQueues has all the data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from workqueue.cli import output
from workqueue.contract import durations
from workqueue_kubectl.cluster import Cluster, Found, resource_name
from workqueue_kubectl.errors import PluginError
from workqueue_operator.api.reasons import ConditionType
from workqueue_operator.api.workqueue import WorkQueue

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL: Final = 2.0
UPDATE_SECONDS: Final = 15.0
"""How long an update may take. Then the numbers on the screen are marked. kubectl itself waits without end."""

STALE: Final = "~"
"""Before a number that is older than the WorkQueue's spec, or than an update that failed."""

_HEAD: Final = (
    "NAMESPACE",
    "NAME",
    "READY",
    "MESSAGES",
    "RETRYING",
    "WORKERS",
    "LEAVING",
    "BUSY",
    "MAX",
    "DEAD",
    "SCALING",
    "UPDATED",
)
_WIDE: Final = ("QUEUE", "CONSUMERS", "LAST SCALED")
_DISPENSABLE: Final = ("MAX", "UPDATED", "LEAVING", "RETRYING", "BUSY", "SCALING", "NAMESPACE")
"""Columns that a narrow terminal leaves out, in this order."""


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
    """Show the table until Ctrl-C. When output is not a terminal, or with -o, print it once."""
    found, unreadable = cluster.workqueues(everywhere=arguments.everywhere)
    found.sort(key=_order)
    if arguments.json:
        output.say_json([_as_json(one) for one in found])
    elif arguments.only_name:
        for one in found:
            output.say(resource_name(one.workqueue.metadata.name))
    elif arguments.once or arguments.wide or not sys.stdout.isatty():
        output.say(_text(cluster, found, arguments))
    else:
        _live(cluster, arguments)
        return 0
    for name in unreadable:
        output.warn(_unreadable(name))
    return 0


def _live(cluster: Cluster, arguments: argparse.Namespace) -> None:
    from rich.live import Live

    # The user has logged in by now: `run` has read the WorkQueues.
    cluster.kubectl.patience = UPDATE_SECONDS
    screen = _Screen(cluster, arguments)
    try:
        with Live(screen.now(), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(arguments.interval)
                live.update(screen.now(), refresh=True)
    except KeyboardInterrupt:
        return


class _Screen:
    """The table on a terminal. After a failed update it shows the last numbers, marked, and their age."""

    def __init__(self, cluster: Cluster, arguments: argparse.Namespace) -> None:
        self._cluster = cluster
        self._arguments = arguments
        self._found: list[Found] = []
        self._unreadable: list[str] = []
        self._read_at: float | None = None

    def now(self) -> RenderableType:
        """Read the WorkQueues and return the screen."""
        from rich.console import Group
        from rich.text import Text

        problem = ""
        try:
            self._found, self._unreadable = self._cluster.workqueues(everywhere=self._arguments.everywhere)
            self._read_at = time.monotonic()
        except PluginError as error:
            problem = str(error)
        self._found.sort(key=_order)
        everywhere = self._arguments.everywhere
        where = "all namespaces" if everywhere else f"namespace {self._cluster.namespace}"
        head = [Text(f"{len(self._found)} WorkQueues, {where}; Ctrl-C to exit", style="dim")]
        if problem:
            age = (
                ""
                if self._read_at is None
                else f" Read {durations.age(time.monotonic() - self._read_at)} ago:"
            )
            head.append(Text(f"{problem}{age}", style="red"))
        titles, *rows = _table(self._found, stale=bool(problem)).splitlines()
        # The first line is the head. Each further line is that of a WorkQueue, because cells have no line breaks.
        lines = [
            Text(line, style="" if _ready(one.workqueue).startswith("True") else "yellow", no_wrap=True)
            for line, one in zip(rows, self._found, strict=True)
        ]
        missing = [Text(_unreadable(name), style="yellow") for name in self._unreadable]
        return Group(*head, Text(), Text(titles, style="bold", no_wrap=True), *lines, *missing)


def _text(cluster: Cluster, found: Sequence[Found], arguments: argparse.Namespace) -> str:
    if not found:
        where = "this cluster" if arguments.everywhere else f"the namespace {cluster.namespace}"
        return f"There is no WorkQueue in {where}."
    return _table(found, wide=arguments.wide)


def _table(found: Sequence[Found], *, wide: bool = False, stale: bool = False) -> str:
    """Return the table. On a terminal it has the columns that fit."""
    now = datetime.now(UTC)
    head = list(_HEAD + (_WIDE if wide else ()))
    rows = [list(_row(one, now, wide=wide, stale=stale)) for one in found]
    edge = None if wide else output.terminal_width()
    for title in _DISPENSABLE:
        if edge is None or _width(head, rows) <= edge:
            break
        column = head.index(title)
        for row in (head, *rows):
            del row[column]
    return output.table(head, rows, cut=not wide)


def _width(head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return sum(widths) + 2 * (len(head) - 1)


def _order(found: Found) -> tuple[int, tuple[str, str]]:
    return -(found.workqueue.status.messages or 0), found.workqueue.key


def _row(found: Found, now: datetime, *, wide: bool = False, stale: bool = False) -> tuple[str, ...]:
    workqueue, status = found.workqueue, found.workqueue.status
    mark = STALE if stale or found.is_behind else ""

    def number(count: int | None) -> str:
        return "?" if count is None else f"{mark}{count}"

    ready, leaving = workers(status.ready_replicas, status.desired_replicas)
    more = (workqueue.queue_name, number(status.consumers), _age(status.last_scale_time, now)) if wide else ()
    return (
        *workqueue.key,
        _ready(workqueue),
        number(status.messages),
        number(status.retrying),
        f"{number(ready)}/{'?' if status.desired_replicas is None else status.desired_replicas}",
        number(leaving),
        number(status.busy_replicas),
        str(workqueue.spec.most_replicas),
        number(status.dead_letters),
        _reason(workqueue, ConditionType.SCALING_ACTIVE),
        _age(found.written, now),
        *more,
    )


def workers(ready: int | None, desired: int | None) -> tuple[int | None, int | None]:
    """Return how many Ready workers stay, and how many are about to leave."""
    if ready is None or desired is None:
        return ready, None
    return min(ready, desired), max(0, ready - desired)


def _age(moment: datetime | None, now: datetime) -> str:
    return "?" if moment is None else durations.age((now - moment).total_seconds())


def _ready(workqueue: WorkQueue) -> str:
    found = workqueue.status.condition(ConditionType.READY.value)
    if found is None:
        return "?"
    return found.status.value if found.status.value == "True" else f"{found.status.value},{found.reason}"


def _reason(workqueue: WorkQueue, kind: ConditionType) -> str:
    found = workqueue.status.condition(kind.value)
    return found.reason if found is not None else "?"


def _unreadable(name: str) -> str:
    return f"{name} is left out: this version of the plugin cannot read it. Use the same version as the operator."


def _as_json(found: Found) -> dict[str, Any]:
    workqueue, status = found.workqueue, found.workqueue.status
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
        "statusWritten": found.written,
        "stale": found.is_behind,
    }


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:  # noqa: PLR2004 - a sensible range
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds
