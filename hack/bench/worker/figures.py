"""Run all contenders in rounds, and report rows with goals and tables of medians.

A ratio compares two runs of the same round, which are close in time: a busy machine slows both. The reported median
is the median of the ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

from hack.bench import environment, report
from hack.bench.errors import BenchError
from hack.bench.plot import Panel, Plot, Series, draw
from hack.bench.report import Report, Row
from hack.bench.worker.cases import FULL, KINDS, QUICK, SLOTS, Case
from hack.bench.worker.contenders import (
    ASYNC,
    BARE_PROCESSES,
    BASELINE,
    CONTENDERS,
    PREFORK,
    PROCESSES,
    THREADS,
    Contender,
)
from hack.bench.worker.race import Run, Start, Track
from hack.cluster.console import say, step
from tests.support.rabbitmq import DEFAULT, running

Runs: TypeAlias = dict[str, list[Run]]
"""The runs of each contender, by round, for one case and queue type. A peer that gave no result is missing."""

GOALS: Final = {ASYNC: 0.95, THREADS: 0.80}
SLOTS_GOAL: Final = 0.85
PLAIN_THREADS: Final = "pika, threads"
BARE_START: Final = 0.085
"""Seconds in which a bare script handled its first message on the machine for which the goals were set."""

STARTS_WITHIN: Final = {THREADS: 0.10 / BARE_START, ASYNC: 0.20 / BARE_START, PROCESSES: 0.20 / BARE_START}
"""Multiples of a bare script's start, since Python starts twice as fast on some machines as on others."""

PROCESSES_GOAL: Final = 0.85
"""Of the rate of a bare loop with processes, which needs the same two wake-ups for each message."""

ISOLATION_SECONDS: Final = 80e-6
"""How much longer a message may take with a process for each slot than with a thread."""

ISOLATION_BYTES: Final = 12 * 2**20
"""How much more memory the worker itself may use."""

PREFORK_GOAL: Final = 2.0
STARTS: Final = 21
QUICK_STARTS: Final = 5


def measure(*, quick: bool, folder: Path) -> Report:
    """Measure all cases, and write the plots to the folder.

    Raises:
        BenchError: a contender failed that is not a peer.
    """
    cases = QUICK if quick else FULL
    name = "worker-quick" if quick else "worker"
    with running(DEFAULT, management=False) as broker:
        track = Track(broker.url)
        found: dict[tuple[Case, str], Runs] = {}
        for case in cases:
            with step(f"Measuring the worker: {case.title}"):
                found |= rounds(track.run, case)
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
    rows = [
        _row(cases[0], kind, runs, contender, goal)
        for kind, runs in main
        for contender, goal in GOALS.items()
    ]
    if SLOTS in cases:
        rows.append(_row(SLOTS, "quorum", found[SLOTS, "quorum"], THREADS, SLOTS_GOAL))
    for case in (cases[0], SLOTS):
        rows += [
            row for kind in KINDS if case in cases for row in _isolation_rows(case, kind, found[case, kind])
        ]
    rows += [*(_start_row(starts, name) for name in STARTS_WITHIN), _memory_row(starts)]
    raw = [
        {
            "case": asdict(case),
            "title": case.title,
            "kind": kind,
            "runs": {who: [asdict(run) for run in many] for who, many in runs.items()},
        }
        for (case, kind), runs in found.items()
    ]
    more = tables(found, cases, name)
    return Report(name, "The worker, measured", where, rows, "others", more, {"worker": raw})


def ratios(runs: Runs, name: str, base: str = BASELINE) -> list[float]:
    """Return the rate of a contender in each round, as a multiple of another contender's rate."""
    return [run.rate / beside.rate for run, beside in zip(runs[name], runs[base], strict=True)]


def rounds(run: Callable[[Contender, str, Case], Run], case: Case) -> dict[tuple[Case, str], Runs]:
    """Run each contender in each round of a case, on each type of queue.

    A peer that fails takes no further part in the case. So a defect of a peer costs its row and not the benchmark.

    Raises:
        BenchError: a contender failed that is not a peer.
    """
    contenders = [contender for contender in CONTENDERS if contender.takes_part(case)]
    found: dict[tuple[Case, str], Runs] = {
        (case, kind): {contender.name: [] for contender in contenders} for kind in KINDS
    }
    for number in range(case.rounds):
        for kind in KINDS:
            # Each round starts with a different contender, so the order within a round does not favour one.
            for contender in contenders[number:] + contenders[:number]:
                runs = found[case, kind]
                if contender.name not in runs:
                    continue
                try:
                    runs[contender.name].append(run(contender, kind, case))
                except BenchError as error:
                    if not contender.peer:
                        raise
                    say(f"{case.title}, {kind} queue: {error}")
                    del runs[contender.name]
    return found


def _starts(track: Track, count: int) -> dict[str, list[Start]]:
    contenders = [contender for contender in CONTENDERS if contender.name in {BASELINE, *STARTS_WITHIN}]
    found: dict[str, list[Start]] = {contender.name: [] for contender in contenders}
    for _ in range(count):
        for contender in contenders:
            found[contender.name].append(track.start(contender, KINDS[0]))
    return found


def _row(case: Case, kind: str, runs: Runs, name: str, goal: float) -> Row:
    found = ratios(runs, name)
    median = statistics.median(found)
    peers = [PLAIN_THREADS, *(one.name for one in CONTENDERS if one.peer and one.name in runs)]
    return Row(
        f"{name}, {kind} queue: {case.title}",
        f"{median:.2f} x a bare SelectConnection loop ({_spread(found)}, {len(found)} rounds); "
        f"{_median_rate(runs[name])} messages/s",
        f">= {goal:.2f} x",
        median >= goal,
        ", ".join(f"{peer} {statistics.median(ratios(runs, peer)):.2f} x" for peer in peers),
        {"ratios": found},
    )


def _isolation_rows(case: Case, kind: str, runs: Runs) -> list[Row]:
    """Compare processes with threads, with a bare loop that has processes, too, and with Celery's."""
    title = f"{PROCESSES}, {kind} queue: {case.title}: "
    more, bare_more = _more_seconds(runs, PROCESSES, THREADS), _more_seconds(runs, BARE_PROCESSES, BASELINE)
    multiples = ratios(runs, PROCESSES, BARE_PROCESSES)
    median, bare = statistics.median(multiples), _median_rate(runs[BARE_PROCESSES])
    return [
        Row(
            f"{title}multiple of {BARE_PROCESSES}",
            f"{median:.2f} x ({_spread(multiples)}, {len(multiples)} rounds);"
            f" {_median_rate(runs[PROCESSES])} messages/s",
            f">= {PROCESSES_GOAL:.2f} x",
            median >= PROCESSES_GOAL,
            f"{BARE_PROCESSES} {bare} messages/s",
            {"ratios": multiples},
        ),
        Row(
            f"{title}more time for each message than {THREADS}",
            f"median {_microseconds(more)} ({_spread([one * 1e6 for one in more])})",
            f"<= {ISOLATION_SECONDS * 1e6:.0f} µs",
            statistics.median(more) <= ISOLATION_SECONDS,
            f"{BARE_PROCESSES}, more than {BASELINE}: {_microseconds(bare_more)}",
            {"seconds": more, "bare_seconds": bare_more},
        ),
        _prefork_row(title, runs),
    ]


def _more_seconds(runs: Runs, name: str, base: str) -> list[float]:
    return [1 / run.rate - 1 / beside.rate for run, beside in zip(runs[name], runs[base], strict=True)]


def _microseconds(found: Sequence[float]) -> str:
    return f"{statistics.median(found) * 1e6:.0f} µs"


def _prefork_row(title: str, runs: Runs) -> Row:
    title, goal = f"{title}multiple of {PREFORK}", f">= {PREFORK_GOAL:.0f} x"
    if PREFORK not in runs:
        return Row(title, f"{PREFORK} gave no result", goal)
    multiples = ratios(runs, PROCESSES, PREFORK)
    return Row(
        title,
        f"{statistics.median(multiples):.2f} x ({_spread(multiples)})",
        goal,
        statistics.median(multiples) >= PREFORK_GOAL,
        f"{BASELINE} {statistics.median(ratios(runs, BASELINE, PREFORK)):.2f} x,"
        f" {BARE_PROCESSES} {statistics.median(ratios(runs, BARE_PROCESSES, PREFORK)):.2f} x",
        {"ratios": multiples},
    )


def _start_row(starts: dict[str, list[Start]], name: str) -> Row:
    found = [one.seconds / bare.seconds for one, bare in zip(starts[name], starts[BASELINE], strict=True)]
    median, goal = statistics.median(found), STARTS_WITHIN[name]
    return Row(
        f"{name}: start of the worker to its first message in a handler",
        f"{median:.2f} x a script with a bare SelectConnection ({_spread(found)}, {len(found)} rounds);"
        f" {_median_start(starts[name])}",
        f"<= {goal:.2f} x",
        median <= goal,
        f"bare script {_median_start(starts[BASELINE])}",
        {name: [one.seconds for one in starts[name]], "bare": [one.seconds for one in starts[BASELINE]]},
    )


def _median_start(starts: list[Start]) -> str:
    return f"{statistics.median(one.seconds for one in starts):.3f} s"


def _memory_row(starts: dict[str, list[Start]]) -> Row:
    """Compare the worker's own process, without those of the handler."""
    medians = {name: statistics.median(one.resident_bytes for one in found) for name, found in starts.items()}
    more = medians[PROCESSES] - medians[THREADS]
    return Row(
        f"{PROCESSES}: more resident memory of the worker itself than {THREADS}",
        f"{more / 2**20:.1f} MiB ({medians[PROCESSES] / 2**20:.1f} instead of {medians[THREADS] / 2**20:.1f} MiB)",
        f"<= {ISOLATION_BYTES / 2**20:.0f} MiB",
        more <= ISOLATION_BYTES,
        f"a script with a bare SelectConnection {medians[BASELINE] / 2**20:.1f} MiB",
        {"bytes": medians},
    )


def tables(found: dict[tuple[Case, str], Runs], cases: Sequence[Case], name: str) -> str:
    """Return the plot and a table for each case, in Markdown."""
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
                if contender.name not in runs:
                    line += ["no result", "", ""]
                    continue
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
    contenders = [contender for contender in CONTENDERS if contender.name in runs]
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
