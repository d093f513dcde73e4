"""`kubectl workqueue status`: the state of one WorkQueue with its pods and Events, and an explanation of its
count."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from workqueue.cli import output
from workqueue.contract import durations
from workqueue.contract.worker_api import StatusField
from workqueue_kubectl import explain
from workqueue_kubectl.cluster import Cluster, Found, event_time, resource_name
from workqueue_kubectl.commands.top import STALE, workers
from workqueue_kubectl.errors import KubectlError
from workqueue_kubectl.kubectl import Object
from workqueue_operator.api.workqueue import NEVER, Limits, WorkQueue
from workqueue_operator.kube.views import PodView, existing, pod_view
from workqueue_operator.scaling.wait import HandlerTimes

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

    found: Found
    pods: Sequence[PodView]
    statuses: Mapping[str, Object]
    events: Sequence[Object] | None
    now: datetime

    @property
    def workqueue(self) -> WorkQueue:
        """The WorkQueue."""
        return self.found.workqueue

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
            busy_seconds=[
                status.get(StatusField.BUSY_SECONDS) or 0.0
                for status in statuses.values()
                for _ in range(int(status[StatusField.BUSY]))
            ],
            handler_times=_handler_times(statuses),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Show the WorkQueue. Returns 0 in any state."""
    overview = _read(cluster, arguments.name)
    if arguments.only_name:
        output.say(resource_name(arguments.name))
    elif arguments.json:
        output.say_json(_as_json(overview))
    else:
        output.say("\n".join(_lines(overview, wide=arguments.wide)))
    return 0


def _read(cluster: Cluster, name: str) -> Overview:
    found = cluster.found(name)
    workqueue = found.workqueue
    pods = existing(map(pod_view, cluster.pods(workqueue))) if workqueue.spec.worker is not None else []
    running = [pod.name for pod in pods if pod.running][:ASKED_PODS]
    statuses = cluster.worker_statuses(workqueue.metadata.namespace, running)
    try:
        events = cluster.events(workqueue)
    except KubectlError:
        events = None
    return Overview(found, pods, statuses, events, datetime.now(UTC))


def _busy(statuses: Mapping[str, Object], pods: set[str]) -> int:
    return sum(int(status[StatusField.BUSY]) for pod, status in statuses.items() if pod in pods)


def _handler_times(statuses: Mapping[str, Object]) -> HandlerTimes | None:
    counts: Counter[int] = Counter()
    for status in statuses.values():
        times = status.get(StatusField.HANDLER_TIMES) or {}
        counts.update({int(bucket): int(count) for bucket, count in times.items()})
    return HandlerTimes(counts) if counts else None


def _lines(overview: Overview, *, wide: bool = False) -> list[str]:
    workqueue, now = overview.workqueue, overview.now
    status, most = workqueue.status, workqueue.spec.most_replicas
    least = min(workqueue.spec.scaling.min_replicas, most)

    def known(count: int | None) -> str:
        return "?" if count is None else f"{STALE if overview.found.is_behind else ''}{count}"

    lines = [
        f"WorkQueue   {workqueue.metadata.namespace}/{workqueue.metadata.name}",
        f"Queue       {workqueue.queue_name} ({workqueue.spec.queue.type.value})",
        f"Connection  Secret {workqueue.spec.connection_secret_ref.name}",
        f"Messages    {known(status.messages)} waiting, {known(status.retrying)} retrying",
        f"Dead        {known(status.dead_letters)}",
        f"Workers     {_workers(overview)}, {known(status.busy_replicas)} busy",
        f"Bounds      {least} to {most} {'replica' if most == 1 else 'replicas'}",
        *(
            []
            if workqueue.spec.limits is None
            else [f"Limit       {_limits(workqueue.spec.limits, overview)}"]
        ),
        f"Status      {_written(overview)}",
    ]
    if status.last_scale_time is not None:
        lines.append(f"Last change {_age(now - status.last_scale_time)} ago: {status.last_scale_reason}")
    if status.conditions:
        rows = [
            (
                condition.type,
                condition.status.value,
                condition.reason,
                _age(now - condition.last_transition_time)
                if condition.last_transition_time != NEVER
                else "?",
                condition.message,
            )
            for condition in status.conditions
        ]
        head = ("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE")
        lines += ["", output.table(head, rows, cut=not wide)]
    lines += ["", f"Why the count is {_known(status.desired_replicas)}"]
    lines += [f"  {sentence}" for sentence in explain.why(workqueue, overview.seen, now)]
    lines += ["", "What would change it"]
    lines += [f"  {sentence}" for sentence in explain.what_would_change_it(workqueue, overview.seen, now)]
    if (change := explain.next_change(workqueue, now)) is not None:
        lines.append(f"  {change.sentence}")
    return [*lines, *_pod_lines(overview, wide=wide), *_event_lines(overview, wide=wide)]


def _workers(overview: Overview) -> str:
    """Return how many workers are Ready and leave: of the pods, which are newer than the status."""
    status = overview.workqueue.status
    if overview.workqueue.spec.worker is None:
        ready, leaving = workers(status.ready_replicas, status.desired_replicas)
    else:
        ready = sum(pod.ready and not pod.terminating for pod in overview.pods)
        ready, surplus = workers(ready, status.desired_replicas)
        leaving = sum(pod.terminating for pod in overview.pods) + (surplus or 0)
    text = f"{_known(ready)}/{_known(status.desired_replicas)} ready"
    return f"{text}, {leaving} leaving" if leaving else text


def _limits(limits: Limits, overview: Overview) -> str:
    """Return the limits, and how many messages wait for it in the workers that have answered."""
    waiting = sum(
        int(status.get(StatusField.WAITING_FOR_TOKEN) or 0) for status in overview.statuses.values()
    )
    texts = []
    if limits.concurrency is not None:
        texts.append(f"{limits.concurrency} at the same time")
    if limits.rate_per_second is not None:
        texts.append(f"{limits.rate_per_second:g} per second")
    group = "" if limits.group is None else f" in the group {limits.group}"
    return f"{' and '.join(texts)}{group}, {waiting} waiting in workers"


def _written(overview: Overview) -> str:
    if overview.found.written is None:
        return "the operator has not written it yet"
    age = _age(overview.now - overview.found.written)
    if overview.found.is_behind:
        return f"written {age} ago, before the last change of the spec. {STALE} marks its numbers"
    return f"written {age} ago. The operator writes it when a number changes"


def _pod_lines(overview: Overview, *, wide: bool = False) -> list[str]:
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
                durations.span(recent)
                if status and (recent := status.get(StatusField.RECENT_HANDLER_SECONDS))
                else "-",
                _age(overview.now - datetime.fromtimestamp(pod.created, UTC)),
                (
                    pod.failure.message
                    if pod.failure and not pod.ready
                    else (status or {}).get(StatusField.LAST_ERROR)
                )
                or "",
            )
        )
    head = ("POD", "STATE", "BUSY", "HANDLED", "MEAN", "AGE", "PROBLEM")
    lines = ["", output.table(head, rows, cut=not wide)]
    if any(pod.running and pod.name not in overview.statuses for pod in overview.pods):
        lines.append("?: the worker did not answer. Check that you may get pods/proxy.")
    return lines


def _event_lines(overview: Overview, *, wide: bool = False) -> list[str]:
    if overview.events is None:
        return ["", "Events are not shown: you lack the permission to list events."]
    rows = [
        (
            f"{_age(overview.now - datetime.fromisoformat(event_time(event)))} ago",
            str(event.get("type", "")),
            str(event.get("reason", "")),
            str(event.get("message", "")),
        )
        for event in overview.events[-SHOWN_EVENTS:]
    ]
    if not rows:
        return ["", "No recent Events."]
    return ["", output.table(("EVENT", "TYPE", "REASON", "MESSAGE"), rows, cut=not wide)]


def _state(pod: PodView, status: Object | None) -> str:
    if pod.terminating:
        return "finishing" if status is not None and status[StatusField.BUSY] else "leaving"
    if status is not None:
        if status.get(StatusField.RETIRED):
            return "retired"
        if not status.get(StatusField.CONNECTED):
            return "disconnected"
        return _activity(status)
    if pod.running:
        return "running"
    return "failing" if pod.failure else "starting"


def _activity(status: Object) -> str:
    busy = status[StatusField.BUSY]
    if busy and status.get(StatusField.WAITING_FOR_TOKEN) == busy:
        return "waiting"
    return "busy" if busy else "idle"


def _known(count: int | None) -> str:
    return "?" if count is None else str(count)


def _age(span: timedelta) -> str:
    return durations.age(span.total_seconds())


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
        "statusWritten": overview.found.written,
        "stale": overview.found.is_behind,
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
