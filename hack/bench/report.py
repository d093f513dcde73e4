"""Print a report as a table, and write it as Markdown and compressed JSON."""

from __future__ import annotations

import gzip
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from hack.cluster.checkout import CHECKOUT
from hack.cluster.commands import run

Object = dict[str, Any]

MARKS: Final = {True: "yes", False: "no", None: ""}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        figure: the name of the measurement.
        result: the result, in words.
        goal: the goal, in words; empty without a goal.
        met: whether the goal was met; None without a goal.
        peer: the best-known peer's figure.
        raw: the samples and numbers, for the JSON file.
        load: the machine's load average over 1 minute, at the end of the measurement.
    """

    figure: str
    result: str
    goal: str = ""
    met: bool | None = None
    peer: str = ""
    raw: Object = field(default_factory=dict)
    load: float = field(default_factory=lambda: float(Path("/proc/loadavg").read_text().split()[0]))


@dataclass(frozen=True)
class Report:
    """The results of one family of benchmarks.

    Attributes:
        name: the name of the files.
        title: the title of the page.
        where: the result of `surroundings()`.
        rows: the rows of the table.
        peers: the heading of the column with the peers' figures.
        more: Markdown that follows the table.
        raw: data that does not belong to a single row, for the JSON file.
    """

    name: str
    title: str
    where: Object
    rows: Sequence[Row]
    peers: str
    more: str = ""
    raw: Object = field(default_factory=dict)


def surroundings(versions: dict[str, str]) -> Object:
    """Return the machine, the versions and the revision.

    Args:
        versions: the versions of the measured programs, by name.
    """
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} x {model}",
        "memory_gib": round(memory / 2**20, 1),
        "kernel": platform.release(),
        "versions": {"Python": platform.python_version(), **versions},
        "revision": run(
            ["git", "describe", "--always", "--dirty"], doing="Asking git", folder=CHECKOUT
        ).strip(),
    }


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("figure", "goal", "result", "met", "load", show_lines=True)
    for row in rows:
        style = {True: "green", False: "red"}.get(row.met) if row.met is not None else None
        table.add_row(row.figure, row.goal, row.result, MARKS[row.met], f"{row.load:.1f}", style=style)
    Console(highlight=False).print(table)


def write(folder: Path, report: Report) -> None:
    """Write NAME.md with the tables and NAME.json.gz with every sample."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(row) for row in report.rows]
    results = {"surroundings": report.where, "rows": rows, **report.raw}
    text = json.dumps(results, indent=1) + "\n"
    # Without a time stamp, equal results give equal files.
    results_file(folder, report.name).write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / f"{report.name}.md").write_text(markdown(report))


def results_file(folder: Path, name: str) -> Path:
    """Return the path of the samples of the report with this name."""
    return folder / f"{name}.json.gz"


def read(file: Path) -> Object:
    """Return all that `write` wrote into the file of the samples."""
    results: Object = json.loads(gzip.decompress(file.read_bytes()))
    return results


def markdown(report: Report) -> str:
    """Return the page: the machine, the table, and the text after it."""
    where, results = report.where, results_file(Path(), report.name)
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    introduction = (
        f"{where['date']}; {where['processor']}, {where['memory_gib']} GiB, Linux {where['kernel']}; {versions}; "
        f"revision {where['revision']}. Made by `python -m hack.bench`; all samples are in "
        f"[{results.name}]({results.name}). The "
        "[overview](README.md) describes how each figure is measured."
    )
    lines = [
        f"# {report.title}",
        "",
        introduction,
        "",
        f"| figure | goal | result | met | {report.peers} | load |",
        "|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        cells = (row.figure, row.goal, row.result, MARKS[row.met], row.peer, f"{row.load:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    if report.more:
        lines += ["", report.more.strip()]
    return "\n".join(lines) + "\n"


def grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with text in the first column and numbers in the others."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines()
