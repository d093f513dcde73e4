"""Inject every fault of tests/faults and print what happened to the messages.

    python -m hack.bench.faults                          run all faults
    python -m hack.bench.faults --write                  and write the table in docs/fault-matrix.md again
    python -m hack.bench.faults --write -k broker        run a part, and update or add its rows alone
    python -m hack.bench.faults --report FILE -k broker  run a part; parts can share a report

All other options are passed to pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "fault-matrix.md"
COLUMNS: Final = (
    "Fault",
    "RabbitMQ",
    "Times injected",
    "Messages sent",
    "Lost",
    "Duplicates, all explained",
    "Seconds to converge, p50",
    "max",
    "Also measured, at most",
    "Date",
)
TEXTS: Final = ("Fault", "RabbitMQ", "Also measured, at most", "Date")
"""The columns that are no numbers."""

_TABLE: Final = re.compile(r"(?<=<!-- faults: generated -->\n).*(?=<!-- end of faults -->)", re.DOTALL)

Row = dict[str, Any]
Line = tuple[str, ...]


def read(report: Path) -> list[Row]:
    """Return the rows of a report, one for each injection (see tests/faults/report.py)."""
    return [json.loads(line) for line in report.read_text().splitlines()]


def table(rows: Sequence[Row]) -> list[Line]:
    """Return one line for each fault and RabbitMQ version, in the order of the first injection."""
    injected: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        injected[row["fault"]][row["rabbitmq"]].append(row)
    return [
        (
            fault,
            rabbitmq or "-",
            str(len(same)),
            *_sums(same),
            *_converged(same),
            _measured(same),
            _date(same),
        )
        for fault, by_version in injected.items()
        for rabbitmq, same in sorted(by_version.items(), key=lambda one: _version(one[0]))
    ]


def _version(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


def _sums(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(f"{sum(row[name] for row in rows):,}" for name in ("sent", "lost", "duplicates"))


def _converged(rows: Sequence[Row]) -> tuple[str, str]:
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    if not seconds:
        return "-", "-"
    return f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"


def _measured(rows: Sequence[Row]) -> str:
    highest: dict[str, float] = {}
    for row in rows:
        for name, value in row["measured"].items():
            highest[name] = max(value, highest.get(name, value))
    return ", ".join(f"{value:g} {name}" for name, value in highest.items())


def _date(rows: Sequence[Row]) -> str:
    return max(str(row["date"]) for row in rows)


def for_terminal(lines: Sequence[Sequence[str]]) -> str:
    """Return the table in columns."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (COLUMNS, *lines)
    )


def for_page(lines: Sequence[Line], head: str) -> str:
    """Return the table in Markdown, below a line that says how it was made."""
    ruler = ["---" if column in TEXTS else "---:" for column in COLUMNS]
    return "\n".join(
        ["", head, "", *(f"| {' | '.join(line)} |" for line in (COLUMNS, ruler, *lines)), "", ""]
    )


def merged(page: str, lines: Sequence[Line]) -> list[Line]:
    """Return the lines of the page's table. Those of the same fault and version are replaced, others are added."""
    cells = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in _lines_of(page) if "|" in line]
    found = {line[:2]: line for line in cells[2:]}
    return list((found | {line[:2]: line for line in lines}).values())


def head_of(page: str) -> str:
    """Return the line above the page's table."""
    return next(line for line in _lines_of(page) if line)


def _lines_of(page: str) -> list[str]:
    found = _TABLE.search(page)
    assert found is not None, f"{PAGE} has no place for the table."
    return found[0].splitlines()


def write(lines: Sequence[Line], *, whole: bool) -> None:
    """Write the table of a whole run, or update the rows of a partial one, between the markers of the page."""
    page = PAGE.read_text()
    if whole:
        head = (
            f"Made by `make faults`, with Kubernetes {_kubernetes()} and Python {platform.python_version()}."
        )
    else:
        head, lines = head_of(page), merged(page, lines)
    PAGE.write_text(_TABLE.sub(lambda _: for_page(lines, head), page))


def _kubernetes() -> str:
    folder = ROOT / ".cluster"
    command = (folder / "bin/kubectl", f"--kubeconfig={folder / 'kubeconfig'}", "version", "--output=json")
    version = json.loads(subprocess.run([*map(str, command)], check=True, capture_output=True).stdout)
    return str(version["serverVersion"]["gitVersion"]).removeprefix("v")


def main() -> int:
    """Run the tests, print the table, and return the exit code of pytest."""
    parser = argparse.ArgumentParser(
        prog="python -m hack.bench.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--write", action="store_true", help="write the table, or its rows of a part, to the page"
    )
    parser.add_argument("--report", type=Path, help="append to the rows of this file")
    arguments, for_pytest = parser.parse_known_args()
    report = arguments.report or Path(tempfile.mkdtemp(prefix="faults-")) / "report"
    report.touch()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/faults", *for_pytest],
        cwd=ROOT,
        env=os.environ | {"FAULTS_REPORT": str(report.resolve())},
        check=False,
    )
    lines = table(read(report))
    print(for_terminal(lines))
    if arguments.write and done.returncode == 0:
        write(lines, whole=not for_pytest and arguments.report is None)
    elif arguments.write:
        print(f"{PAGE.relative_to(ROOT)} is unchanged because a test failed.")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
