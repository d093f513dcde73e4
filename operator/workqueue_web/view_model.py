"""The data for the templates, from the objects of the store: rows, details, a sparkline. Pure.

Rows are created from the plain objects, because parsing 1,000 WorkQueues for a page on each refresh would be slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from workqueue_operator.api.reasons import ADVICE
from workqueue_operator.api.workqueue import timestamp
from workqueue_operator.kube.views import PodView
from workqueue_operator.workers.client import WorkerStatus

WIDTH: Final = 120
POINTS: Final = 60
HEIGHT: Final = 24

_ADVICE: Final = {reason.value: advice for reason, advice in ADVICE.items()}

ROWS: Final = 200
"""Maximum number of rows. A filter finds the other WorkQueues."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a WorkQueue.

    Attributes:
        advice: what to do about its reason; empty if there is nothing to do.
    """

    type: str
    status: str
    reason: str
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the overview. Unknown counts are None.

    Attributes:
        rate: recent deliveries to the workers, per second.
        spark: the sparkline of depths; None before the second sample.
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
    """One pod of the workers."""

    name: str
    state: str
    busy: str
    seconds: str
    rate: str
    age: str
    problem: str


def row(body: Mapping[str, Any], depths: Sequence[int | None], rate: float | None) -> Row:
    """Return the row of a WorkQueue.

    Args:
        body: the object from the API server.
    """
    status = body.get("status") or {}
    found = conditions(body)
    unknown = Condition("Ready", "Unknown", "NotSeenYet", "The operator has not reconciled it yet.", "")
    return Row(
        namespace=body["metadata"]["namespace"],
        name=body["metadata"]["name"],
        ready=found.get("Ready", unknown),
        scaling=found["ScalingActive"].reason if "ScalingActive" in found else "",
        messages=status.get("messages"),
        retrying=status.get("retrying"),
        dead=status.get("deadLetters"),
        ready_replicas=status.get("readyReplicas"),
        desired=status.get("desiredReplicas"),
        busy=status.get("busyReplicas"),
        maximum=_maximum(body["spec"]),
        rate=rate,
        spark=sparkline(depths),
    )


def _maximum(spec: Mapping[str, Any]) -> int:
    """As `WorkQueueSpec.most_replicas`."""
    if (spec.get("queue") or {}).get("singleActiveConsumer"):
        return 1
    return int((spec.get("scaling") or {}).get("maxReplicas", 10))


def conditions(body: Mapping[str, Any]) -> dict[str, Condition]:
    """Return the conditions of a WorkQueue by type, in their order."""
    return {
        one["type"]: Condition(
            one["type"], one["status"], one["reason"], one["message"], _advice(one["status"], one["reason"])
        )
        for one in (body.get("status") or {}).get("conditions") or ()
    }


def order(body: Mapping[str, Any]) -> tuple[bool, int, str, str]:
    """Return the sort key of a WorkQueue: those that are not Ready first, then the deepest queue."""
    status = body.get("status") or {}
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ())
    return ready, -int(status.get("messages") or 0), body["metadata"]["namespace"], body["metadata"]["name"]


def matches(body: Mapping[str, Any], words: str) -> bool:
    """Return whether namespace/name contains every word."""
    place = f"{body['metadata']['namespace']}/{body['metadata']['name']}".lower()
    return all(word in place for word in words.lower().split())


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


def pods(views: Iterable[PodView], statuses: Mapping[str, WorkerStatus], now: datetime) -> list[Pod]:
    """Return the pods of a WorkQueue with the status of their workers."""
    shown = []
    for view in views:
        status = statuses.get(view.name)
        seconds = status.handler_seconds if status is not None else None
        shown.append(
            Pod(
                name=view.name,
                state=_state(view, status),
                busy=f"{status.busy}/{status.slots}" if status is not None else "?",
                seconds=f"{seconds:.3g} s" if seconds is not None else "-",
                rate=f"{status.deliveries_per_second:.3g}/s" if status is not None else "?",
                age=age(now.timestamp() - view.created),
                problem=view.failure.message if view.failure is not None and not view.ready else "",
            )
        )
    return shown


def age(seconds: float) -> str:
    """Format an age in its two largest units, as kubectl does."""
    left = max(0, int(seconds))
    for size, unit, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if left >= size:
            rest = left % size // below
            return f"{left // size}{unit}{f'{rest}{small}' if rest else ''}"
    return f"{left}s"


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

    def add(self, body: Mapping[str, Any]) -> None:
        """Add a WorkQueue."""
        status = body.get("status") or {}
        self.workqueues += 1
        self.not_ready += not order(body)[0]
        self.messages.add(status.get("messages"))
        if "workloadRef" not in body["spec"]:
            self.retrying.add(status.get("retrying"))
        self.dead.add(status.get("deadLetters"))
        self.ready_replicas.add(status.get("readyReplicas"))
        self.busy.add(status.get("busyReplicas"))
