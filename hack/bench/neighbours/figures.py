"""Run the matrix, compare it with a revision before, and make the report."""

from __future__ import annotations

import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hack.bench import report
from hack.bench.errors import BenchError
from hack.bench.figures import MIB, percentile
from hack.bench.neighbours import image
from hack.bench.neighbours.crowd import CROWDS, Crowd, Figure
from hack.bench.neighbours.lab import Lab, Result, lab
from hack.bench.neighbours.probe import SCALE_IN_SECONDS, WAKE_SECONDS
from hack.bench.neighbours.rows import ROWS, Row, beside
from hack.bench.report import Report
from hack.cluster.checkout import CHECKOUT
from hack.cluster.commands import run
from hack.cluster.console import say, step
from hack.cluster.errors import ClusterError
from hack.cluster.toolchain import KUBERNETES
from tests.support.controlplane import ApiError

Object = dict[str, Any]

CYCLES: Final = 50
QUICK_CYCLES: Final = 5
SECONDS: Final = 180.0
"""After this time a row begins no cycle."""

WAKE_GOAL: Final = 0.1
MEMORY_GOAL: Final = 256 * MIB
GOAL: Final = "wake p99 <= 100 ms, each wake scaled in, <= 256 MiB, no restart, Lease kept"

_BARE: Final = (
    "The bare consumer takes a message from a quorum queue of its own and writes its number into a Deployment, "
    "before each wake. A wake cannot be faster: this is the share of RabbitMQ, the API server and the machine, which "
    "the neighbours keep busy, too."
)

BEFORE: Final = "before"
NOW: Final = "now"
KNOWN: Final[dict[str, Row | Crowd]] = {row.name: row for row in (*ROWS, *CROWDS)}
NEEDED: Final = ("operator", "worker", "manifests")
"""The folders of a revision that the lab uses."""


def measure(
    *, quick: bool, folder: Path, rows: Sequence[str] | None = None, before: str | None = None
) -> Report:
    """Run the matrix, or some rows of it. The results of other rows, and of the other column, stay.

    Args:
        rows: their names; None for all.
        before: measure the operator of this revision, as the column of the results before.

    Raises:
        BenchError: there is no such revision.
    """
    name = "neighbours-quick" if quick else "neighbours"
    columns = _known(report.results_file(folder, name))
    versions = {"Kubernetes": KUBERNETES}
    with _operator_of(before) as (checkout, revision), image.unpacked() as root:
        versions["Python of the image"] = image.version(root)
        for row, figure in _run(checkout, root, [KNOWN[one] for one in rows or KNOWN], versions, quick=quick):
            say(f"{row.name}: {figure.told}")
            columns[BEFORE if before else NOW][row.name] = {
                "revision": revision,
                "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                "load": _load(),
                **asdict(figure),
            }
            # Whatever ends the run, the results so far are kept.
            made = _report(name, columns, versions, revision, quick=quick)
            report.write(folder, made)
    return made


def _report(
    name: str, columns: dict[str, dict[str, Object]], versions: dict[str, str], revision: str, *, quick: bool
) -> Report:
    known = ", ".join(dict.fromkeys(result["revision"] for result in columns[BEFORE].values()))
    return Report(
        name,
        "The operator beside broken neighbours, measured",
        {**report.surroundings(versions), "revision": revision},
        [_row(row, columns, revision, quick=quick) for row in KNOWN.values() if _measured(row, columns)],
        f"before ({known})" if known else "before",
        _descriptions(),
        {"columns": columns},
    )


def told(result: Result) -> str:
    """Return a result in words."""
    wakes = [cycle.wake for cycle in result.cycles if cycle.wake is not None]
    inward = [cycle.scale_in for cycle in result.cycles if cycle.scale_in is not None]
    words = []
    if wakes:
        bare = [cycle.bare for cycle in result.cycles]
        words.append(
            f"wake p50 {_ms(percentile(wakes, 0.5))}, p99 {_ms(percentile(wakes, 0.99))} (n={len(wakes)}); "
            f"bare consumer p50 {_ms(percentile(bare, 0.5))}, p99 {_ms(percentile(bare, 0.99))}"
        )
    if inward:
        words.append(f"scale-in p50 {percentile(inward, 0.5):.1f} s, max {max(inward):.1f} s")
    if failed := next((cycle for cycle in result.cycles if not cycle.complete), None):
        words.append(
            f"**then not woken within {WAKE_SECONDS:.0f} s**"
            if failed.wake is None
            else f"**then not scaled in within {SCALE_IN_SECONDS:.0f} s**"
        )
    life = result.life
    words.append(f"{life.peak / MIB:.0f} MiB, {life.processor / life.seconds:.2f} core")
    if life.restarts:
        words.append(f"**{life.restarts} restarts**")
    words.append("Lease kept" if life.lease_kept else "**Lease lost**")
    return "; ".join(words)


def meets_goal(result: Result) -> bool:
    """Return whether the healthy WorkQueue and the operator noticed nothing of the neighbours."""
    if not result.cycles or not all(cycle.complete for cycle in result.cycles):
        return False
    wakes = [cycle.wake for cycle in result.cycles if cycle.wake is not None]
    life = result.life
    sound = life.restarts == 0 and life.lease_kept and life.peak <= MEMORY_GOAL
    return percentile(wakes, 0.99) <= WAKE_GOAL and sound


def measure_row(made: Lab, row: Row, count: int, cycles: int) -> Figure:
    """Measure one row of the matrix."""
    with beside(made, row, count):
        operator = made.operator
        assert operator is not None
        lease, begun, spent = made.lease(), time.monotonic(), operator.processor()
        found = made.probe(cycles, SECONDS)
        life = operator.life(time.monotonic() - begun, lease_kept=made.lease() == lease)
        life.processor -= spent
        result = Result(found, life)
    return Figure(told(result), meets_goal(result), asdict(result))


def measure_crowd(made: Lab, crowd: Crowd, count: int) -> Figure:
    """Measure one figure of many WorkQueues."""
    made.start_operator()
    return crowd.measure(made, count)


# -- inside ------------------------------------------------------------------------------------------


def _run(
    checkout: Path, root: Path, rows: Sequence[Row | Crowd], versions: dict[str, str], *, quick: bool
) -> Iterator[tuple[Row | Crowd, Figure]]:
    """Measure rows. A lab serves many rows, until one of them fails or leaves too much behind."""
    with ExitStack() as labs:
        made: Lab | None = None
        for row in rows:
            if made is None:
                with step("The control plane, RabbitMQ and the stub kubelet"):
                    made = labs.enter_context(lab(checkout, root))
                versions["RabbitMQ"] = made.broker.version
            count, ended = row.small if quick else row.full, row.last
            try:
                with step(f"Measuring: {row.name}"):
                    figure = (
                        measure_row(made, row, count, QUICK_CYCLES if quick else CYCLES)
                        if isinstance(row, Row)
                        else measure_crowd(made, row, count)
                    )
            except (BenchError, TimeoutError, ApiError, OSError) as error:
                tail = made.operator.log_tail(5) if made.operator is not None else ""
                say(f"{row.name}: {error}\n{tail}")
                figure, ended = Figure(f"not measured: {str(error)[:300]}", False, {}), True
            made.stop_operator()
            if ended:
                made = None
                labs.close()
            yield row, figure


@contextmanager
def _operator_of(revision: str | None) -> Iterator[tuple[Path, str]]:
    """The checkout of a revision and its short name; without one, this checkout."""
    if revision is None:
        yield CHECKOUT, _describe("--dirty")
        return
    with tempfile.TemporaryDirectory(prefix="before-") as folder:
        archive = Path(folder) / "archive.tar"
        command = ["git", "archive", f"--output={archive}", revision, *NEEDED]
        try:
            run(command, doing=f"Reading the revision {revision}", folder=CHECKOUT)
        except ClusterError as error:
            raise BenchError(str(error)) from error
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        yield Path(folder), _describe(revision)


def _describe(what: str) -> str:
    return run(["git", "describe", "--always", what], doing="Asking git", folder=CHECKOUT).strip()


def _known(file: Path) -> dict[str, dict[str, Object]]:
    if not file.exists():
        return {BEFORE: {}, NOW: {}}
    columns: dict[str, dict[str, Object]] = report.read(file)["columns"]
    return columns


def _measured(row: Row | Crowd, columns: dict[str, dict[str, Object]]) -> bool:
    return any(row.name in column for column in columns.values())


def _row(
    row: Row | Crowd, columns: dict[str, dict[str, Object]], revision: str, *, quick: bool
) -> report.Row:
    """Return a row.

    Args:
        revision: of the page. An earlier result, of another revision, names its own.
    """
    now, before = (columns[column].get(row.name) for column in (NOW, BEFORE))
    return report.Row(
        f"`{row.name}`: {row.title.format(row.small if quick else row.full)}",
        _told_now(now, revision) if now else "",
        GOAL if isinstance(row, Row) else row.goal,
        now["met"] if now else None,
        before["told"] if before else "",
        load=(now or before or {})["load"],
    )


def _told_now(result: Object, revision: str) -> str:
    told_then: str = result["told"]
    if result["revision"] == revision:
        return told_then
    return f"{told_then} (revision {result['revision']}, {result['date']})"


def _descriptions() -> str:
    """Return what each row is, from the docstrings of the rows."""
    lines = [f"- `{row.name}`: {_first_line(row)}" for row in KNOWN.values()]
    return f"{_BARE}\n\n## The rows\n\n" + "\n".join(lines)


def _first_line(row: Row | Crowd) -> str:
    text = (row.disturb if isinstance(row, Row) else row.measure).__doc__
    assert text is not None
    return text.splitlines()[0]


def _load() -> float:
    return float(Path("/proc/loadavg").read_text().split()[0])


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
