"""The data for the templates, from the objects of the store: rows, details, a sparkline. Pure.

Rows are created from the plain objects, because parsing 1,000 WorkQueues for a page on each refresh would be slow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from workqueue.contract import durations
from workqueue_operator.api.reasons import ADVICE, ConditionType, Reason
from workqueue_operator.api.workqueue import timestamp
from workqueue_operator.kube.views import PodView
from workqueue_operator.workers.client import WorkerStatus

WIDTH: Final = 120
POINTS: Final = 60
HEIGHT: Final = 24

_ADVICE: Final = {reason.value: advice for reason, advice in ADVICE.items()}

ROWS: Final = 200
"""Maximum number of rows. A filter finds the other WorkQueues."""

OLD_STATUS_SECONDS: Final = 15.0
"""The age from which a worker's answer is marked. It is usually 5 s old at most."""

RUNBOOKS: Final = {
    Reason.AT_CONCURRENCY_LIMIT.value: "WorkQueueAtLimit",
    Reason.AT_MAXIMUM.value: "WorkQueueAtMaximum",
    Reason.AT_RATE_LIMIT.value: "WorkQueueAtLimit",
    Reason.BROKER_UNREACHABLE.value: "WorkQueueBrokerDown",
    Reason.PINNED.value: "WorkQueuePinned",
    Reason.SUSPENDED.value: "WorkQueueSuspended",
    Reason.WAIT_NOT_MET.value: "WorkQueueStartsLate",
}
"""The alert whose runbook helps with a reason."""

NOT_READY_RUNBOOK: Final = "WorkQueueNotReady"
DEAD_LETTERS_RUNBOOK: Final = "WorkQueueDeadLetters"

SHOWN: Final = {
    "": "All",
    "problems": "Not ready",
    "waiting": "With waiting messages",
    "busy": "With busy workers",
    "dead": "With dead letters",
    "paused": "Paused or pinned",
}
"""What the overview can be limited to, by the value in its address."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a WorkQueue.

    Attributes:
        advice: what to do about its reason; empty if there is nothing to do.
        runbook: the alert whose runbook helps; empty for none.
    """

    type: str
    status: str
    reason: str
    message: str
    advice: str
    runbook: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the overview. Unknown counts are None.

    Attributes:
        ready_replicas: Ready workers that stay.
        leaving: workers that are shutting down, or are about to.
        rate: recent deliveries to the workers, per second.
        spark: the sparkline of depths; None before the second sample.
        is_behind: whether the counts are older than the spec: the operator has not seen its last change.
    """

    namespace: str
    name: str
    ready: Condition
    scaling: str
    messages: int | None
    retrying: int | None
    dead: int | None
    ready_replicas: int | None
    desired: int | None
    busy: int | None
    maximum: int
    rate: float | None
    spark: Spark | None
    leaving: int = 0
    is_behind: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Spark:
    """A sparkline of depths.

    Attributes:
        lines: points of an SVG polyline for each stretch without a gap.
        sentence: the same as text, for screen readers.
    """

    lines: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of the workers.

    Attributes:
        as_of: how old busy, seconds and rate are; empty if they are current.
    """

    name: str
    state: str
    busy: str
    seconds: str
    rate: str
    age: str
    problem: str
    as_of: str = ""


def row(
    body: Mapping[str, Any], depths: Sequence[int | None], rate: float | None, terminating: int = 0
) -> Row:
    """Return the row of a WorkQueue.

    Args:
        body: the object from the API server.
        terminating: number of its pods that are shutting down.
    """
    status = body.get("status") or {}
    found = conditions(body)
    unknown = Condition("Ready", "Unknown", "NotSeenYet", "The operator has not reconciled it yet.", "")
    staying, surplus = _workers(status)
    return Row(
        namespace=body["metadata"]["namespace"],
        name=body["metadata"]["name"],
        ready=found.get("Ready", unknown),
        scaling=found["ScalingActive"].reason if "ScalingActive" in found else "",
        messages=status.get("messages"),
        retrying=status.get("retrying"),
        dead=status.get("deadLetters"),
        ready_replicas=staying,
        desired=status.get("desiredReplicas"),
        busy=status.get("busyReplicas"),
        maximum=_maximum(body["spec"]),
        rate=rate,
        spark=sparkline(depths),
        # A pod that the count no longer includes is terminating a moment later. It must not count twice.
        leaving=max(terminating, surplus),
        is_behind=_is_behind(body),
    )


def _workers(status: Mapping[str, Any]) -> tuple[int | None, int]:
    """Return how many Ready workers stay, and how many are about to leave."""
    ready, desired = status.get("readyReplicas"), status.get("desiredReplicas")
    if ready is None or desired is None:
        return ready, 0
    return min(ready, desired), max(0, ready - desired)


def _is_behind(body: Mapping[str, Any]) -> bool:
    observed = (body.get("status") or {}).get("observedGeneration")
    return observed is not None and observed < body["metadata"].get("generation", 0)


def _maximum(spec: Mapping[str, Any]) -> int:
    """As `WorkQueueSpec.most_replicas`."""
    if (spec.get("queue") or {}).get("singleActiveConsumer"):
        return 1
    most = int((spec.get("scaling") or {}).get("maxReplicas", 10))
    limits, worker = spec.get("limits"), spec.get("worker")
    if limits and limits.get("concurrency") and worker:
        most = min(most, math.ceil(limits["concurrency"] / worker.get("concurrency", 1)))
    return most


def conditions(body: Mapping[str, Any]) -> dict[str, Condition]:
    """Return the conditions of a WorkQueue by type, in their order."""
    return {
        one["type"]: Condition(
            one["type"],
            one["status"],
            one["reason"],
            one["message"],
            _advice(one["status"], one["reason"]),
            _runbook(one["type"], one["status"], one["reason"]),
        )
        for one in (body.get("status") or {}).get("conditions") or ()
    }


def _runbook(kind: str, status: str, reason: str) -> str:
    if reason in RUNBOOKS:
        return RUNBOOKS[reason]
    return NOT_READY_RUNBOOK if kind == ConditionType.READY.value and status != "True" else ""


class Entry(NamedTuple):
    """What the overview needs of a WorkQueue. Entries sort as its rows: not Ready first, then the deepest queue."""

    ready: bool
    shallow: int
    namespace: str
    name: str
    messages: int | None
    retrying: int | None
    has_retries: bool
    dead: int | None
    ready_replicas: int | None
    busy: int | None
    is_held: bool


def entry(body: Mapping[str, Any]) -> Entry:
    """Return the entry of a WorkQueue."""
    status, spec = body.get("status") or {}, body["spec"]
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ())
    return Entry(
        ready=ready,
        shallow=-int(status.get("messages") or 0),
        namespace=body["metadata"]["namespace"],
        name=body["metadata"]["name"],
        messages=status.get("messages"),
        retrying=status.get("retrying"),
        has_retries="workloadRef" not in spec,
        dead=status.get("deadLetters"),
        ready_replicas=_workers(status)[0],
        busy=status.get("busyReplicas"),
        is_held=bool(spec.get("suspend")) or spec.get("replicas") is not None,
    )


@dataclass(frozen=True, slots=True)
class View:
    """Which WorkQueues an overview shows. It is in the address, so that it survives a reload and can be sent.

    Attributes:
        namespace: the only namespace; empty for all.
        words: namespace/name contains every one of them.
        show: a key of `SHOWN`.
    """

    namespace: str = ""
    words: str = ""
    show: str = ""

    @property
    def is_filtered(self) -> bool:
        """Whether it leaves WorkQueues of its namespace out."""
        return bool(self.words or self.show)

    @property
    def query(self) -> str:
        """The query of its address, with the question mark; empty for none."""
        given = {"q": self.words, "show": self.show}
        text = urlencode({name: value for name, value in given.items() if value})
        return f"?{text}" if text else ""

    def takes(self, one: Entry) -> bool:
        """Return whether it shows a WorkQueue."""
        place = f"{one.namespace}/{one.name}".lower()
        return all(word in place for word in self.words.lower().split()) and self._shows(one)

    def _shows(self, one: Entry) -> bool:
        return {
            "problems": not one.ready,
            "waiting": bool(one.messages),
            "busy": bool(one.busy),
            "dead": bool(one.dead),
            "paused": one.is_held,
        }.get(self.show, True)


def sparkline(depths: Sequence[int | None]) -> Spark | None:
    """Return the depths as a sparkline, with gaps for unknown values."""
    known = [depth for depth in depths if depth is not None]
    if len(known) < 2:  # noqa: PLR2004 - one point is no line
        return None
    highest = max(known)
    group = max(1, len(depths) // POINTS)
    drawn = [_highest(depths[start : start + group]) for start in range(0, len(depths), group)]
    step = WIDTH / max(1, len(drawn) - 1)
    lines: list[str] = []
    stretch: list[str] = []
    for number, depth in enumerate([*drawn, None]):
        if depth is not None:
            level = HEIGHT - 1 - (HEIGHT - 2) * depth / max(1, highest)
            stretch.append(f"{number * step:.1f},{level:.1f}")
        elif stretch:
            lines.append(" ".join(stretch))
            stretch = []
    return Spark(
        tuple(lines),
        f"Waiting messages in the last hour: highest {highest}, lowest {min(known)}, last {known[-1]}.",
    )


def _highest(depths: Sequence[int | None]) -> int | None:
    """Return the highest depth, so that no peak is lost between two points."""
    return max((depth for depth in depths if depth is not None), default=None)


def pods(
    views: Iterable[PodView],
    statuses: Mapping[str, WorkerStatus],
    now: datetime,
    ages: Mapping[str, float] | None = None,
) -> list[Pod]:
    """Return the pods of a WorkQueue with the status of their workers.

    Args:
        ages: how old each status is, in seconds.
    """
    shown = []
    for view in views:
        status = statuses.get(view.name)
        seconds = status.handler_seconds if status is not None else None
        old = (ages or {}).get(view.name, 0.0)
        shown.append(
            Pod(
                name=view.name,
                state=_state(view, status),
                busy=f"{status.busy}/{status.slots}" if status is not None else "?",
                seconds=durations.span(seconds) if seconds is not None else "-",
                rate=f"{status.deliveries_per_second:.3g}/s" if status is not None else "?",
                age=durations.age(now.timestamp() - view.created),
                problem=view.failure.message if view.failure is not None and not view.ready else "",
                as_of=f"{durations.age(old)} ago" if old >= OLD_STATUS_SECONDS else "",
            )
        )
    return shown


def moment(at: float) -> str:
    """Format Unix seconds as RFC 3339."""
    return timestamp(datetime.fromtimestamp(at, UTC))


def _state(view: PodView, status: WorkerStatus | None) -> str:
    if view.terminating:
        return "finishing" if status is not None and status.busy else "leaving"
    if status is not None:
        if status.busy:
            return "busy"
        return "idle" if status.consuming else "not consuming"
    if view.running:
        return "running"
    return "failing" if view.failure is not None else "starting"


def _advice(status: str, reason: str) -> str:
    advice = _ADVICE.get(reason, "")
    return "" if status == "True" or advice.startswith("Nothing to do") else advice


@dataclass(slots=True)
class Sum:
    """A sum over WorkQueues.

    Attributes:
        known: the sum of the known counts.
        unknown: number of WorkQueues with an unknown count.
    """

    known: int = 0
    unknown: int = 0

    def add(self, count: Any) -> None:
        """Add a count; None if it is unknown."""
        if count is None:
            self.unknown += 1
        else:
            self.known += int(count)


@dataclass(slots=True)
class Summary:
    """The sums over all WorkQueues that a user may see."""

    workqueues: int = 0
    not_ready: int = 0
    messages: Sum = field(default_factory=Sum)
    retrying: Sum = field(default_factory=Sum)
    dead: Sum = field(default_factory=Sum)
    ready_replicas: Sum = field(default_factory=Sum)
    busy: Sum = field(default_factory=Sum)

    def add(self, one: Entry) -> None:
        """Add a WorkQueue."""
        self.workqueues += 1
        self.not_ready += not one.ready
        self.messages.add(one.messages)
        if one.has_retries:
            self.retrying.add(one.retrying)
        self.dead.add(one.dead)
        self.ready_replicas.add(one.ready_replicas)
        self.busy.add(one.busy)


def by_namespace(entries: Iterable[Entry]) -> list[tuple[str, Summary]]:
    """Return the sums of each namespace: those with a problem first, then by waiting messages."""
    found: dict[str, Summary] = {}
    for one in entries:
        found.setdefault(one.namespace, Summary()).add(one)
    return sorted(found.items(), key=lambda item: (not item[1].not_ready, -item[1].messages.known, item[0]))
