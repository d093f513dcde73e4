"""What is shown and kept: a table on the terminal, and the same as JSON and Markdown in a folder.

Place in the flow: the end.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from hack.bench.figures import Row
from hack.bench.site import Site
from hack.cluster.checkout import CHECKOUT
from hack.cluster.commands import run

Object = dict[str, Any]

MARKS: Final = {True: "yes", False: "no", None: ""}


def surroundings(place: Site) -> Object:
    """Machine and versions."""
    versions = json.loads(place.run("version", "--output=json"))
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
        "kubernetes": versions["serverVersion"]["gitVersion"],
        "rabbitmq": place.rabbitmq("version").strip(),
        "revision": run(
            ["git", "describe", "--always", "--dirty"], doing="Asking git", folder=CHECKOUT
        ).strip(),
    }


def show(rows: Sequence[Row]) -> None:
    """The table."""
    table = Table("figure", "goal", "result", "met", "load", show_lines=True)
    for row in rows:
        style = {True: "green", False: "red"}.get(row.met) if row.met is not None else None
        table.add_row(row.figure, row.goal, row.result, MARKS[row.met], f"{row.load:.1f}", style=style)
    Console(highlight=False).print(table)


def write(folder: Path, name: str, where: Object, rows: Sequence[Row]) -> None:
    """NAME.json with every sample, and NAME.md with the table."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {"surroundings": where, "rows": [asdict(row) for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(where, rows))


def markdown(where: Object, rows: Sequence[Row]) -> str:
    """The table, with what it was measured on."""
    introduction = (
        f"{where['date']}; {where['processor']}, {where['memory_gib']} GiB, Linux {where['kernel']}; Kubernetes "
        f"{where['kubernetes']} on this one node, RabbitMQ {where['rabbitmq']}; revision {where['revision']}. "
        "Made by `python -m hack.bench`; every sample is in the JSON file beside this one. How each figure is "
        "measured is said in README.md."
    )
    lines = [
        "# The operator, measured",
        "",
        introduction,
        "",
        "| figure | goal | result | met | KEDA 2.20 on the same kind of machine | load |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row.figure, row.goal, row.result, MARKS[row.met], row.peer, f"{row.load:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines()
