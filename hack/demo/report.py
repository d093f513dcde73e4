"""Print the figures of a successful run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hack.demo.board import Screen
from hack.demo.watch import Write
from workqueue_operator.api.workqueue import WorkQueueSpec


@dataclass(frozen=True, slots=True)
class Figures:
    """The measurements of a run.

    Attributes:
        confirmed, wake, first_result: seconds from the publish of one message at 0 replicas until RabbitMQ
            confirmed it, until the replica count was written, and until its result came.
        published: when all the other messages were published, on the clock of `time.monotonic()`.
        scale_out: the increases of the replica count after that.
        last_result: seconds from `published` until the last result.
        zero: seconds from the last result until no pod was left.
    """

    confirmed: float
    wake: float
    first_result: float
    published: float
    scale_out: Sequence[Write]
    last_result: float
    zero: float


def report(screen: Screen, figures: Figures, spec: WorkQueueSpec, total: int, pause: float) -> None:
    """Print the figures.

    Args:
        total: the number of documents.
        pause: seconds that the handler pauses for each document.
    """
    rest = total - 1
    counts = " → ".join(str(count) for count in (0, *(write.after for write in figures.scale_out)))
    writes = "1 write" if len(figures.scale_out) == 1 else f"{len(figures.scale_out)} writes"
    written = f"{_milliseconds(figures.scale_out[0].at - figures.published)}" if figures.scale_out else "?"
    delay = spec.scaling.scale_in_delay_seconds
    confirmed = _milliseconds(figures.confirmed)
    screen.say()
    screen.say(f"all {total} results correct, no message lost", style="bold green")
    screen.say()
    screen.figures(
        (
            (
                "wake",
                _milliseconds(figures.wake),
                f"publish of one message at 0 replicas to replicas written; confirmed after {confirmed}",
            ),
            (
                "first result",
                _seconds(figures.first_result),
                "from the same publish to its result: a pod had to start",
            ),
            ("scale-out", written, f"publish of {rest} messages to replicas written: {counts} in {writes}"),
            (
                "work",
                _seconds(figures.last_result),
                f"to the last result; one worker pauses {rest * pause:.0f} s for them, {pause:g} s for each",
            ),
            ("back to 0", _seconds(figures.zero), f"last result to no pod; scaleInDelaySeconds is {delay}"),
        )
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
