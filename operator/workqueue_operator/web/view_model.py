"""What the page shows, from the objects of the store: rows, one WorkQueue in detail, a sparkline. PURE.

Place in the flow: between the store and the templates. Rows are made from the plain objects: to parse a thousand
WorkQueues for one look would hold up the scaling.
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
"""So many are shown at most; a filter finds the others."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a WorkQueue.

    Attributes:
        advice: what to do about its reason; empty where there is nothing to do.
    """

    type: str
    status: str
    reason: str
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the overview. Counts are None where they are not known.

    Attributes:
        rate: messages that the workers took a second lately.
        spark: points of an SVG polyline, and a sentence that says the same; None before there are two samples.
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
    """A line of depths.

    Attributes:
        lines: points of one SVG polyline for each stretch without a gap.
        sentence: the same for whoever does not see it.
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
    """The row of a WorkQueue.

    Args:
        body: as the API server gave it.
    """
    status = body.get("status") or {}
    found = conditions(body)
    unknown = Condition("Ready", "Unknown", "NotSeenYet", "The operator has not looked at it yet.", "")
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
    """The conditions of a WorkQueue, by type, in their order."""
    return {
        one["type"]: Condition(
            one["type"], one["status"], one["reason"], one["message"], _advice(one["status"], one["reason"])
        )
        for one in (body.get("status") or {}).get("conditions") or ()
    }


def order(body: Mapping[str, Any]) -> tuple[bool, int, str, str]:
    """What needs a look comes first: what is not Ready, then the deepest queue."""
    status = body.get("status") or {}
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ())
    return ready, -int(status.get("messages") or 0), body["metadata"]["namespace"], body["metadata"]["name"]


def matches(body: Mapping[str, Any], words: str) -> bool:
    """Whether namespace/name has every one of the words in it."""
    place = f"{body['metadata']['namespace']}/{body['metadata']['name']}".lower()
    return all(word in place for word in words.lower().split())


def sparkline(depths: Sequence[int | None]) -> Spark | None:
    """The depths as a line; gaps where they were not known."""
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
    """A peak must not get lost between two points."""
    return max((depth for depth in depths if depth is not None), default=None)


def pods(views: Iterable[PodView], statuses: Mapping[str, WorkerStatus], now: datetime) -> list[Pod]:
    """The pods of a WorkQueue, with what their workers say of themselves."""
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
    """The two largest units, as kubectl writes an age."""
    left = max(0, int(seconds))
    for size, unit, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if left >= size:
            rest = left % size // below
            return f"{left // size}{unit}{f'{rest}{small}' if rest else ''}"
    return f"{left}s"


def moment(at: float) -> str:
    """Unix seconds as RFC 3339."""
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
        unknown: of how many WorkQueues the count is not known.
    """

    known: int = 0
    unknown: int = 0

    def add(self, count: Any) -> None:
        """Add a count; None when it is not known."""
        if count is None:
            self.unknown += 1
        else:
            self.known += int(count)


@dataclass(slots=True)
class Summary:
    """All that somebody may see, in a few numbers."""

    workqueues: int = 0
    not_ready: int = 0
    messages: Sum = field(default_factory=Sum)
    retrying: Sum = field(default_factory=Sum)
    dead: Sum = field(default_factory=Sum)
    ready_replicas: Sum = field(default_factory=Sum)
    busy: Sum = field(default_factory=Sum)

    def add(self, body: Mapping[str, Any]) -> None:
        """Count one WorkQueue."""
        status = body.get("status") or {}
        self.workqueues += 1
        self.not_ready += not order(body)[0]
        self.messages.add(status.get("messages"))
        if "workloadRef" not in body["spec"]:
            self.retrying.add(status.get("retrying"))
        self.dead.add(status.get("deadLetters"))
        self.ready_replicas.add(status.get("readyReplicas"))
        self.busy.add(status.get("busyReplicas"))
