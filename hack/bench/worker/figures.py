"""Run all contenders in rounds, and report rows with goals and tables of medians.

A ratio compares two runs of the same round, which are close in time: a busy machine slows both. The reported median
is the median of the ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

from hack.bench import environment, report
from hack.bench.plot import Panel, Plot, Series, draw
from hack.bench.report import Report, Row
from hack.bench.worker.cases import FULL, KINDS, QUICK, Case
from hack.bench.worker.contenders import ASYNC, BASELINE, CONTENDERS, THREADS, Contender
from hack.bench.worker.race import Run, Track
from hack.cluster.console import step
from tests.support.rabbitmq import DEFAULT, running

Runs: TypeAlias = dict[str, list[Run]]
"""The runs of each contender, by round, for one case and queue type."""

GOALS: Final = {ASYNC: 0.95, THREADS: 0.80}
PLAIN_THREADS: Final = "pika, threads"
START_SECONDS: Final = 0.20
STARTS: Final = 21
QUICK_STARTS: Final = 5


def measure(*, quick: bool, folder: Path) -> Report:
    """Measure all cases, and write the plots to the folder.

    Raises:
        BenchError: a contender failed.
    """
    cases = QUICK if quick else FULL
    name = "worker-quick" if quick else "worker"
    with running(DEFAULT, management=False) as broker:
        track = Track(broker.url)
        found: dict[tuple[Case, str], Runs] = {}
        for case in cases:
            with step(f"Measuring the worker: {case.title}"):
                found |= _rounds(track, case)
        with step("Measuring the worker: start"):
            starts = _starts(track, QUICK_STARTS if quick else STARTS)
        track.close()
        where = report.surroundings(
            {
                "RabbitMQ": broker.version,
                **environment.versions("pika", "aio-pika", "celery", "dramatiq"),
            }
        )
    _draw(found, cases, folder, name)
    main = [(kind, found[cases[0], kind]) for kind in KINDS]
    rows = [_row(kind, runs, contender) for kind, runs in main for contender in GOALS]
    raw = [
        {
            "case": asdict(case),
            "title": case.title,
            "kind": kind,
            "runs": {who: [asdict(run) for run in many] for who, many in runs.items()},
        }
        for (case, kind), runs in found.items()
    ]
    more = _tables(found, cases, name)
    return Report(
        name, "The worker, measured", where, [*rows, _start_row(starts)], "others", more, {"worker": raw}
    )


def ratios(runs: Runs, name: str, base: str = BASELINE) -> list[float]:
    """Return the rate of a contender in each round, as a multiple of another contender's rate."""
    return [run.rate / beside.rate for run, beside in zip(runs[name], runs[base], strict=True)]


def _rounds(track: Track, case: Case) -> dict[tuple[Case, str], Runs]:
    contenders = [contender for contender in CONTENDERS if contender.takes_part(case)]
    found: dict[tuple[Case, str], Runs] = {
        (case, kind): {contender.name: [] for contender in contenders} for kind in KINDS
    }
    for number in range(case.rounds):
        for kind in KINDS:
            # Each round starts with a different contender, so the order within a round does not favour one.
            for contender in contenders[number:] + contenders[:number]:
                found[case, kind][contender.name].append(track.run(contender, kind, case))
    return found


def _starts(track: Track, count: int) -> dict[str, list[float]]:
    contenders = [contender for contender in CONTENDERS if contender.name in {BASELINE, ASYNC, THREADS}]
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(count):
        for contender in contenders:
            found[contender.name].append(track.start(contender, KINDS[0]))
    return found


def _row(kind: str, runs: Runs, name: str) -> Row:
    found = ratios(runs, name)
    median, goal = statistics.median(found), GOALS[name]
    peers = [PLAIN_THREADS, *(one.name for one in CONTENDERS if one.peer)]
    return Row(
        f"{name}, {kind} queue: one slot, no-op handler, 100 B",
        f"{median:.2f} x a bare SelectConnection loop ({_spread(found)}, {len(found)} rounds); "
        f"{_median_rate(runs[name])} messages/s",
        f">= {goal:.2f} x",
        median >= goal,
        ", ".join(f"{peer} {statistics.median(ratios(runs, peer)):.2f} x" for peer in peers),
        {"ratios": found},
    )


def _start_row(starts: dict[str, list[float]]) -> Row:
    medians = {name: statistics.median(found) for name, found in starts.items()}
    slower = max(medians[ASYNC], medians[THREADS])
    return Row(
        "start of a worker process to its first message in a handler",
        f"threads {medians[THREADS]:.3f} s ({_spread(starts[THREADS])} s), async {medians[ASYNC]:.3f} s "
        f"({_spread(starts[ASYNC])} s); medians of {len(starts[ASYNC])}",
        f"<= {START_SECONDS:.2f} s",
        slower <= START_SECONDS,
        f"a script with a bare SelectConnection {medians[BASELINE]:.3f} s",
        {"seconds": starts},
    )


def _tables(found: dict[tuple[Case, str], Runs], cases: Sequence[Case], name: str) -> str:
    parts = [f"![Messages per second of each contender]({name}.png)"]
    for case in cases:
        head = [case.title]
        for kind in KINDS:
            head += [f"{kind}, messages/s", f"x {BASELINE}", "processor time each"]
        body = []
        for contender in CONTENDERS:
            if not contender.takes_part(case):
                continue
            line = [contender.name]
            for kind in KINDS:
                runs = found[case, kind]
                many = runs[contender.name]
                processor = statistics.median(run.processor_seconds for run in many)
                found_ratios = ratios(runs, contender.name)
                line += [
                    _median_rate(many),
                    f"{statistics.median(found_ratios):.2f} ({_spread(found_ratios)})",
                    f"{processor * 1e6:.0f} µs",
                ]
            body.append(line)
        parts.append(f"## {case.title[0].upper()}{case.title[1:]}\n\n{report.grid(head, body)}")
    parts.append(
        "Medians over the rounds of a case, with the smallest and the largest in brackets. Each ratio compares "
        "rates of the same round. Processor time is that of the consumer's process for each message."
    )
    return "\n\n".join(parts)


def _draw(found: dict[tuple[Case, str], Runs], cases: Sequence[Case], folder: Path, name: str) -> None:
    panels = [_panel(case, kind, found[case, kind]) for case in cases for kind in KINDS]
    caption = (
        "Medians; whiskers from the smallest to the largest round; x: multiples of a bare SelectConnection."
    )
    draw(Plot("Messages per second, one message at a time", panels, caption=caption), folder / f"{name}.png")


def _panel(case: Case, kind: str, runs: Runs) -> Panel:
    contenders = [contender for contender in CONTENDERS if contender.takes_part(case)]
    rates = [[run.rate for run in runs[contender.name]] for contender in contenders]
    series = Series(
        "",
        x=[contender.name for contender in contenders],
        y=[statistics.median(many) for many in rates],
        low=[min(many) for many in rates],
        high=[max(many) for many in rates],
        texts=[f"{statistics.median(ratios(runs, contender.name)):.2f} x" for contender in contenders],
        colors=[_color(contender) for contender in contenders],
    )
    return Panel(f"{case.title}, {kind}", "bars", [series], x_label="messages/s")


def _color(contender: Contender) -> int:
    if contender.ours:
        return 0
    return 2 if contender.name == BASELINE else 3


def _median_rate(runs: Sequence[Run]) -> str:
    return f"{statistics.median(run.rate for run in runs):,.0f}"


def _spread(values: Sequence[Any]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
