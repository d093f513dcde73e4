"""Fill tables of README.md and docs/sizing.md with the figures in docs/benchmarks.

A figure is computed from the samples, or quoted from the row where no samples are ours: those of KEDA.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any, Final

from hack.bench.report import grid, read, results_file

ROOT: Final = Path(__file__).parents[2]
BENCHMARKS: Final = ROOT / "docs" / "benchmarks"
README: Final = ROOT / "README.md"
SIZING: Final = ROOT / "docs" / "sizing.md"
NONE: Final = "-"

Object = dict[str, Any]


def readme() -> str:
    """Return README.md with its figures."""
    return _filled(README.read_text(), "figures", comparison())


def sizing() -> str:
    """Return docs/sizing.md with the unit costs and the replica-hours."""
    text = _filled(SIZING.read_text(), "unit costs", unit_costs())
    return _filled(text, "replica-hours", replica_hours())


def comparison() -> str:
    """Return the table of five figures."""
    wake, backlog = _row("wake, 1 WorkQueue:"), _row("backlog at 0 replicas that needs 20,")
    rest = _row("at rest, 1,000 WorkQueues,")
    writes = [sample["writes"] for sample in backlog["raw"]["samples"]]
    most_writes = max(map(len, writes))
    written = statistics.median(one[-1][0] for one in writes)
    resident, connections = rest["raw"]["resident_mib"], rest["raw"]["connections"]
    day, rates = _results("simulation")["compared"]["diurnal"], _rates()
    operator, worker, simulation = (
        f"[how](docs/benchmarks/{page}.md)" for page in ("operator", "worker", "simulation")
    )
    lines = [
        (
            "One message at 0 workers, until the count is written",
            f"{_milliseconds(statistics.median(wake['raw']['seconds']))} (median)",
            _peer(wake),
            NONE,
            operator,
        ),
        (
            "Backlog for 20 workers, from 0, until that count is written",
            f"{_milliseconds(written)}, {most_writes} write{'s' if most_writes > 1 else ''}",
            _peer(backlog),
            NONE,
            operator,
        ),
        (
            "Busy workers stopped by scale-ins in a day (simulated)",
            f"{day['workqueue-operator']['interrupted']}",
            f"{day['KEDA, defaults']['interrupted']}",
            NONE,
            simulation,
        ),
        (
            "1,000 idle queues: memory, connections to RabbitMQ",
            f"{resident:.0f} MiB, {connections}",
            _peer(rest),
            NONE,
            operator,
        ),
        (
            "Messages per second of one worker that takes one at a time",
            f"{rates['ours, async']:,.0f} (async), {rates['ours, threads']:,.0f} (threads)",
            NONE,
            f"{rates['Celery, solo']:,.0f} (solo), {rates['Celery, threads']:,.0f} (threads)",
            worker,
        ),
    ]
    celery = _results("worker")["surroundings"]["versions"]["celery"]
    head = ("", "workqueue-operator", "KEDA 2.20 with the HPA", f"Celery {celery}", "Measured")
    return grid(head, lines).replace("---:", "---")


def unit_costs() -> str:
    """Return the table of what the operator and a WorkQueue cost."""
    costs = _results("simulation")["unit_costs"]
    lines = [
        ("memory", f"{costs['base_mib']:.0f} MiB", f"{costs['queue_kib']:.0f} KiB"),
        (
            "processor at rest",
            f"{1000 * costs['base_cores']:.1f} thousandths of a core",
            f"{1e6 * costs['queue_cores']:.0f} millionths of a core",
        ),
        ("a restart, until all doorbells are installed", NONE, f"{1000 * costs['restart_seconds']:.1f} ms"),
        (
            "a wake and its scale-in, processor time",
            NONE,
            f"{1000 * costs['wake_processor_seconds']:.0f} ms for each wake",
        ),
    ]
    return grid(("", "The operator", "Each WorkQueue"), lines)


def replica_hours() -> str:
    """Return the table of the simulated loads."""
    compared = _results("simulation")["compared"]
    contenders = ("workqueue-operator", "KEDA, defaults")
    lines = []
    for load, results in compared.items():
        ours, keda = (results[name] for name in contenders)
        lines.append(
            (
                load,
                f"{ours['replica_hours']:.1f}",
                f"{keda['replica_hours']:.1f}",
                f"{ours['wait_p50']:.1f} s",
                f"{keda['wait_p50']:.1f} s",
                f"{ours['interrupted']}",
                f"{keda['interrupted']}",
            )
        )
    head = (
        "Load",
        "Replica-hours",
        "KEDA's",
        "Median wait",
        "KEDA's",
        "Busy workers stopped",
        "KEDA's",
    )
    return grid(head, lines)


def _filled(text: str, name: str, table: str) -> str:
    """Return the text with the table between the markers of this name."""
    between = re.compile(rf"(?<=<!-- {name}: generated -->\n).*(?=<!-- end of {name} -->)", re.DOTALL)
    filled, count = between.subn(lambda _: f"\n{table}\n\n", text)
    if count != 1:
        raise ValueError(f"The markers of '{name}' occur {count} times instead of once.")
    return filled


def _results(name: str) -> Object:
    return read(results_file(BENCHMARKS, name))


def _row(beginning: str) -> Object:
    """Return the row of the operator's benchmarks whose figure begins like this."""
    (found,) = [row for row in _results("operator")["rows"] if row["figure"].startswith(beginning)]
    return dict(found)


def _rates() -> dict[str, float]:
    """Return the median messages per second of each contender, on a classic queue."""
    case = next(
        one
        for one in _results("worker")["worker"]
        if one["kind"] == "classic" and one["title"] == "1 slot, no-op, 100 B"
    )
    return {
        name: statistics.median(sample["rate"] for sample in samples)
        for name, samples in case["runs"].items()
    }


def _peer(row: Object) -> str:
    """Return the measurement of KEDA in this row."""
    return re.sub(r"^KEDA( and HPA)?, ", "", row["peer"])


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
