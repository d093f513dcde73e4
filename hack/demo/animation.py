"""Draw a recording as a moving picture: an SVG that CSS animates, so it moves inside an `<img>` too.

The recording is shown in PLAY_SECONDS, whatever its length. Readers who prefer reduced motion see its last moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final
from xml.sax.saxutils import escape

from hack.demo.recording import Recording, Sample
from hack.demo.watch import Workers

PLAY_SECONDS: Final = 12.0
HOLD_SECONDS: Final = 2.0
"""How long the last moment stays before the picture starts again."""

FRAMES_PER_SECOND: Final = 6

WIDTH: Final = 760
LEFT: Final = 24
RIGHT: Final = WIDTH - LEFT
TOP: Final = 104
BOTTOM: Final = 244
PODS: Final = 268
POD: Final = 22
GAP: Final = 6
HEIGHT: Final = PODS + POD + 24

_LOOP: Final = PLAY_SECONDS + HOLD_SECONDS
_PLAYED: Final = 100 * PLAY_SECONDS / _LOOP
"""The percentage of the animation after which the last moment stays."""

_STYLE: Final = """
    svg { --page: #ffffff; --edge: #d0d7de; --ink: #1f2328; --note: #57606a; --waiting: #bc4c00; --backlog: #ffd8b5;
      --busy: #1a7f37; --idle: #aceebb; --changing: #ffffff; --none: #f6f8fa; }
    @media (prefers-color-scheme: dark) {
      svg { --page: #0d1117; --edge: #30363d; --ink: #e6edf3; --note: #9da7b3; --waiting: #f0883e; --backlog: #5a2a0c;
        --busy: #3fb950; --idle: #1c5a2b; --changing: #0d1117; --none: #161b22; }
    }
    text { font: 14px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }
    .title { font-size: 17px; font-weight: 600; }
    .note { font-size: 13px; fill: var(--note); }
    .number { font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; }
    .end { text-anchor: end; }
    .page { fill: var(--page); stroke: var(--edge); }
    .backlog { fill: var(--backlog); stroke: var(--waiting); stroke-width: 1.5; }
    .workers { fill: none; stroke: var(--busy); stroke-width: 2.5; }
    .axis { stroke: var(--edge); }
    .amber { fill: var(--waiting); }
    .green { fill: var(--busy); }
    .pod { stroke: var(--edge); fill: var(--none); }
    .cover { fill: var(--page); transform-box: fill-box; transform-origin: right; }
    .cursor { stroke: var(--note); stroke-dasharray: 2 3; }
    .frame { visibility: hidden; }
    .last { visibility: visible; }
    @media (prefers-reduced-motion: reduce) {
      .frame, .cover, .cursor, .pod { animation: none !important; }
      .cover, .cursor { visibility: hidden; }
    }"""


def svg(recording: Recording) -> str:
    """Return the picture.

    Raises:
        ValueError: the recording has fewer than two samples, or takes no time.
    """
    samples = recording.samples
    if len(samples) < 2 or not samples[-1].seconds > samples[0].seconds:
        raise ValueError("A recording needs two samples at different times.")
    return "\n".join(_Drawing(recording).lines()) + "\n"


class _Drawing:
    """The scales of one recording."""

    def __init__(self, recording: Recording) -> None:
        self._what = recording.what
        self._samples = recording.samples
        self._length = self._samples[-1].seconds
        self._most_waiting = max(sample.row.waiting or 0 for sample in self._samples) or 1
        self._most_workers = max(_places(sample.row.workers) for sample in self._samples) or 1
        self._most_ready = max(sample.row.workers.ready for sample in self._samples)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the file."""
        head = f"{self._what}: from 0 to {self._most_ready} workers and back to 0"
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" role="img" aria-labelledby="title text">'
        )
        yield f'  <title id="title">{escape(head)}</title>'
        yield (
            f'  <desc id="text">A recorded run of {self._length:.0f} seconds. The queue is idle and no worker runs. '
            f"{escape(self._what)} arrive. {self._most_ready} workers start, handle them, and are removed when the "
            "queue is empty.</desc>"
        )
        yield f"  <style>{_STYLE}"
        yield from self._animations()
        yield "  </style>"
        yield f'  <rect class="page" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12"/>'
        yield f'  <text class="title" x="{LEFT}" y="34">{escape(head)}</text>'
        yield (
            f'  <text class="note end" x="{RIGHT}" y="34">{self._length:.0f} s, shown in {PLAY_SECONDS:.0f} s</text>'
        )
        yield from self._curves()
        yield f'  <line class="axis" x1="{LEFT}" y1="{BOTTOM}" x2="{RIGHT}" y2="{BOTTOM}"/>'
        for x, text in zip(_COUNTERS, ("waiting", "workers Ready", "done", "seconds"), strict=True):
            yield f'  <text class="note" x="{x}" y="90">{text}</text>'
        yield from self._frames()
        yield from self._pods()
        yield "</svg>"

    def _animations(self) -> Iterator[str]:
        """Yield the keyframes. The animations of the picture have one length, so they stay in step."""
        yield f"    .frame {{ animation: frame {_LOOP:g}s step-end infinite; }}"
        yield f"    .last {{ animation: last {_LOOP:g}s step-end infinite; }}"
        yield f"    .cover {{ animation: reveal {_LOOP:g}s linear infinite; }}"
        yield f"    .cursor {{ animation: move {_LOOP:g}s linear infinite; }}"
        share = 100 / FRAMES_PER_SECOND / _LOOP
        yield f"    @keyframes frame {{ 0% {{ visibility: visible; }} {share:.3f}% {{ visibility: hidden; }} }}"
        yield (
            f"    @keyframes last {{ 0% {{ visibility: hidden; }} {_PLAYED:.3f}% {{ visibility: visible; }} "
            "100% { visibility: visible; } }"
        )
        yield (
            f"    @keyframes reveal {{ 0% {{ transform: scaleX(1); }} {_PLAYED:.3f}%, 100% "
            "{ transform: scaleX(0); } }"
        )
        yield (
            f"    @keyframes move {{ 0% {{ transform: translateX(0); }} {_PLAYED:.3f}%, 100% "
            f"{{ transform: translateX({RIGHT - LEFT}px); }} }}"
        )
        for place in range(self._most_workers):
            steps = " ".join(
                f"{percent:.2f}% {{ fill: var(--{state}); }}" for percent, state in self._states(place)
            )
            yield f"    @keyframes pod{place} {{ {steps} }}"
            yield f"    .pod{place} {{ animation: pod{place} {_LOOP:g}s step-end infinite; }}"

    def _states(self, place: int) -> Iterator[tuple[float, str]]:
        """Yield when the place of a pod gets another state, as a percentage of the animation."""
        states = ((sample.seconds, _state(sample.row.workers, place)) for sample in self._samples)
        for state, group in groupby(states, key=lambda one: one[1]):
            yield _PLAYED * next(group)[0] / self._length, state

    def _curves(self) -> Iterator[str]:
        for known, group in groupby(self._samples, key=lambda sample: sample.row.waiting is not None):
            if known:  # an unknown count leaves a gap
                yield f'  <path class="backlog" d="{self._area(list(group))}"/>'
        yield f'  <path class="workers" d="{self._steps()}"/>'
        width, height = RIGHT - LEFT + 5, BOTTOM - TOP + 4
        yield f'  <rect class="cover" x="{LEFT - 1}" y="{TOP - 2}" width="{width}" height="{height}"/>'
        yield f'  <line class="cursor" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{BOTTOM}"/>'

    def _area(self, samples: Sequence[Sample]) -> str:
        top = " ".join(
            f"L{self._x(sample):.1f} {self._y((sample.row.waiting or 0) / self._most_waiting):.1f}"
            for sample in samples
        )
        return f"M{self._x(samples[0]):.1f} {BOTTOM} {top} L{self._x(samples[-1]):.1f} {BOTTOM} Z"

    def _steps(self) -> str:
        """Return the line of the Ready workers. It is a little lower than the curve of the backlog at its most."""
        path = f"M{LEFT} {BOTTOM}"
        for ready, group in groupby(self._samples, key=lambda sample: sample.row.workers.ready):
            path += f" H{self._x(next(group)):.1f} V{self._y(0.9 * ready / self._most_workers):.1f}"
        return f"{path} H{RIGHT}"

    def _frames(self) -> Iterator[str]:
        count = int(PLAY_SECONDS * FRAMES_PER_SECOND)
        for number in range(count):
            seconds = self._length * number / count
            current = [sample for sample in self._samples if sample.seconds <= seconds][-1]
            style = f' style="animation-delay: {number / FRAMES_PER_SECOND:.2f}s"'
            yield f'  <g class="frame"{style}>{self._counters(current, seconds)}</g>'
        yield f'  <g class="last">{self._counters(self._samples[-1], self._length)}</g>'

    @staticmethod
    def _counters(sample: Sample, seconds: float) -> str:
        row = sample.row
        waiting = "?" if row.waiting is None else str(row.waiting)
        numbers = (waiting, str(row.workers.ready), str(row.done), f"{seconds:.1f}")
        classes = ("number amber", "number green", "number", "number")
        return "".join(
            f'<text class="{name}" x="{x}" y="70">{number}</text>'
            for x, name, number in zip(_COUNTERS, classes, numbers, strict=True)
        )

    def _pods(self) -> Iterator[str]:
        for place in range(self._most_workers):
            x = LEFT + place * (POD + GAP)
            yield f'  <rect class="pod pod{place}" x="{x}" y="{PODS}" width="{POD}" height="{POD}" rx="5"/>'
        x = RIGHT
        for name, state in reversed(
            (("busy", "busy"), ("idle", "idle"), ("starting or stopping", "changing"))
        ):
            x -= 7 * len(name) + 8
            yield f'  <text class="note" x="{x}" y="{PODS + 16}">{name}</text>'
            x -= 20
            yield (
                f'  <rect x="{x}" y="{PODS + 4}" width="14" height="14" rx="3" stroke="var(--edge)" '
                f'fill="var(--{state})"/>'
            )
            x -= 10

    def _x(self, sample: Sample) -> float:
        return LEFT + (RIGHT - LEFT) * sample.seconds / self._length

    @staticmethod
    def _y(share: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * share


_COUNTERS: Final = (LEFT, LEFT + 150, LEFT + 320, LEFT + 470)


def _places(workers: Workers) -> int:
    """Return how many pods exist or are wanted."""
    return max(workers.desired, workers.existing, workers.ready)


def _state(workers: Workers, place: int) -> str:
    """Return what the pod at this place does. The busy ones come first."""
    if place < min(workers.busy, workers.ready):
        return "busy"
    if place < workers.ready:
        return "idle"
    return "changing" if place < _places(workers) else "none"
