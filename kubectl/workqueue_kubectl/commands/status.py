"""`kubectl workqueue status`: the state of one WorkQueue with its pods and Events, and an explanation of its
count."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from workqueue.cli import output
from workqueue.contract.worker_api import StatusField
from workqueue_kubectl import explain
from workqueue_kubectl.cluster import Cluster, event_time
from workqueue_kubectl.errors import KubectlError
from workqueue_kubectl.kubectl import Object
from workqueue_operator.api.workqueue import NEVER, WorkQueue
from workqueue_operator.kube.views import PodView, existing, pod_view

SHOWN_EVENTS: Final = 8
ASKED_PODS: Final = 50
"""Maximum number of workers to ask. Each takes a request through the API server."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The data for the command's output.

    Attributes:
        statuses: the status of each worker that has answered, by pod.
        events: oldest first; None if listing them is forbidden.
    """

    workqueue: WorkQueue
    pods: Sequence[PodView]
    statuses: Mapping[str, Object]
    events: Sequence[Object] | None
    now: datetime

    @property
    def seen(self) -> explain.Seen:
        """The data from the workers that decides about the count."""
        statuses = self.statuses
        staying = {pod.name for pod in self.pods if pod.running and not pod.terminating}
        stopping = {pod.name for pod in self.pods if pod.running and pod.terminating}
        times = [
            found
            for status in statuses.values()
            if (
                found := status.get(StatusField.RECENT_HANDLER_SECONDS)
                or status.get(StatusField.MEAN_HANDLER_SECONDS)
            )
        ]
        return explain.Seen(
            in_handlers=_busy(statuses, staying) if staying <= statuses.keys() else None,
            in_stopping_workers=_busy(statuses, stopping),
            handler_seconds=sum(times) / len(times) if times else None,
            arrivals_per_second=sum(
                status.get(StatusField.ARRIVAL_PER_SECOND) or 0.0 for status in statuses.values()
            ),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Show the WorkQueue. Returns 0 in any state."""
    overview = _read(cluster, arguments.name)
    if arguments.json:
        output.say_json(_as_json(overview))
    else:
        output.say("\n".join(_lines(overview)))
    return 0


def _read(cluster: Cluster, name: str) -> Overview:
    workqueue = cluster.workqueue(name)
    pods = existing(map(pod_view, cluster.pods(workqueue))) if workqueue.spec.worker is not None else []
    running = [pod.name for pod in pods if pod.running][:ASKED_PODS]
    statuses = cluster.worker_statuses(workqueue.metadata.namespace, running)
    try:
        events = cluster.events(workqueue)
    except KubectlError:
        events = None
    return Overview(workqueue, pods, statuses, events, datetime.now(UTC))


def _busy(statuses: Mapping[str, Object], pods: set[str]) -> int:
    return sum(int(status[StatusField.BUSY]) for pod, status in statuses.items() if pod in pods)


def _lines(overview: Overview) -> list[str]:
    workqueue, now = overview.workqueue, overview.now
    status, most = workqueue.status, workqueue.spec.most_replicas
    ready = f"{_known(status.ready_replicas)}/{_known(status.desired_replicas)}"
    least = min(workqueue.spec.scaling.min_replicas, most)
    lines = [
        f"WorkQueue   {workqueue.metadata.namespace}/{workqueue.metadata.name}",
        f"Queue       {workqueue.queue_name} ({workqueue.spec.queue.type.value})",
        f"Connection  Secret {workqueue.spec.connection_secret_ref.name}",
        f"Messages    {_known(status.messages)} waiting, {_known(status.retrying)} retrying",
        f"Dead        {_known(status.dead_letters)}",
        f"Workers     {ready} ready, {_known(status.busy_replicas)} busy",
        f"Bounds      {least} to {most} {'replica' if most == 1 else 'replicas'}",
    ]
    if status.last_scale_time is not None:
        lines.append(f"Last change {_ago(now - status.last_scale_time)} ago: {status.last_scale_reason}")
    if status.conditions:
        rows = [
            (
                condition.type,
                condition.status.value,
                condition.reason,
                _ago(now - condition.last_transition_time)
                if condition.last_transition_time != NEVER
                else "?",
                condition.message,
            )
            for condition in status.conditions
        ]
        lines += ["", output.table(("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"), rows)]
    lines += ["", f"Why the count is {_known(status.desired_replicas)}"]
    lines += [f"  {sentence}" for sentence in explain.why(workqueue, overview.seen, now)]
    lines += ["", "What would change it"]
    lines += [f"  {sentence}" for sentence in explain.what_would_change_it(workqueue, overview.seen, now)]
    if (change := explain.next_change(workqueue, now)) is not None:
        lines.append(f"  {change.sentence}")
    return [*lines, *_pod_lines(overview), *_event_lines(overview)]


def _pod_lines(overview: Overview) -> list[str]:
    if overview.workqueue.spec.workload_ref is not None:
        return []
    if not overview.pods:
        return ["", "No worker runs."]
    rows = []
    for pod in overview.pods:
        status = overview.statuses.get(pod.name)
        rows.append(
            (
                pod.name,
                _state(pod, status),
                f"{status[StatusField.BUSY]}/{status[StatusField.SLOTS]}" if status else "?",
                str(status[StatusField.HANDLED]) if status else "?",
                f"{status[StatusField.RECENT_HANDLER_SECONDS]:.3g} s"
                if status and status[StatusField.RECENT_HANDLER_SECONDS]
                else "-",
                _ago(overview.now - datetime.fromtimestamp(pod.created, UTC)),
                (
                    pod.failure.message
                    if pod.failure and not pod.ready
                    else (status or {}).get(StatusField.LAST_ERROR)
                )
                or "",
            )
        )
    lines = ["", output.table(("POD", "STATE", "BUSY", "HANDLED", "MEAN", "AGE", "PROBLEM"), rows)]
    if any(pod.running and pod.name not in overview.statuses for pod in overview.pods):
        lines.append("?: the worker did not answer. Check that you may get pods/proxy.")
    return lines


def _event_lines(overview: Overview) -> list[str]:
    if overview.events is None:
        return ["", "Events are not shown: you lack the permission to list events."]
    rows = [
        (
            f"{_ago(overview.now - datetime.fromisoformat(event_time(event)))} ago",
            str(event.get("type", "")),
            str(event.get("reason", "")),
            str(event.get("message", "")),
        )
        for event in overview.events[-SHOWN_EVENTS:]
    ]
    if not rows:
        return ["", "No recent Events."]
    return ["", output.table(("EVENT", "TYPE", "REASON", "MESSAGE"), rows)]


def _state(pod: PodView, status: Object | None) -> str:
    if pod.terminating:
        return "finishing" if status is not None and status[StatusField.BUSY] else "leaving"
    if status is not None:
        if status.get(StatusField.RETIRED):
            return "retired"
        if not status.get(StatusField.CONNECTED):
            return "disconnected"
        return "busy" if status[StatusField.BUSY] else "idle"
    if pod.running:
        return "running"
    return "failing" if pod.failure else "starting"


def _known(count: int | None) -> str:
    return "?" if count is None else str(count)


def _ago(span: timedelta) -> str:
    """Format an age in its two largest units, as kubectl does."""
    seconds = max(0, int(span.total_seconds()))
    for size, unit, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // below
            return f"{seconds // size}{unit}{f'{rest}{small}' if rest else ''}"
    return f"{seconds}s"


def _as_json(overview: Overview) -> dict[str, Any]:
    workqueue, seen, now = overview.workqueue, overview.seen, overview.now
    change = explain.next_change(workqueue, now)
    status = workqueue.status.to_wire()
    return {
        "namespace": workqueue.metadata.namespace,
        "name": workqueue.metadata.name,
        "queue": workqueue.queue_name,
        "minReplicas": workqueue.spec.scaling.min_replicas,
        "maxReplicas": workqueue.spec.most_replicas,
        "status": status,
        "inHandlers": seen.in_handlers,
        "inStoppingWorkers": seen.in_stopping_workers,
        "why": explain.why(workqueue, seen, now),
        "whatWouldChangeIt": explain.what_would_change_it(workqueue, seen, now),
        "nextScheduleChange": {"at": change.at.isoformat(), "sentence": change.sentence} if change else None,
        "pods": [
            {
                "name": pod.name,
                "ready": pod.ready,
                "state": _state(pod, overview.statuses.get(pod.name)),
                "worker": overview.statuses.get(pod.name),
            }
            for pod in overview.pods
        ],
        "events": None
        if overview.events is None
        else [
            {
                "at": event_time(event),
                "type": event.get("type"),
                "reason": event.get("reason"),
                "message": event.get("message"),
            }
            for event in overview.events
        ],
    }
