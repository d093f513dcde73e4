"""Parse the command line `python -m hack.bench`. The exit code is 0 when every figure was measured."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Final

from hack.bench import figures, report
from hack.bench.errors import BenchError
from hack.bench.figures import Extent
from hack.bench.probe import Probe
from hack.bench.report import Report, Row
from hack.bench.site import Site
from hack.cluster.checkout import CHECKOUT
from hack.cluster.console import say, step
from hack.cluster.errors import ClusterError
from hack.image.build import DEFAULT_TAG

FULL: Final = Extent()
QUICK: Final = Extent(wakes=10, acks=3, ladders=1, tall=15, rest_seconds=10.0)
OPERATOR: Final = ("wake", "rest", "restart", "ack", "ladder", "tall")
OTHERS: Final = {
    "worker": "hack.bench.worker.figures",
    "publisher": "hack.bench.publisher.figures",
    "delays": "hack.bench.delays",
    "limits": "hack.bench.limits",
    "simulation": "hack.bench.simulation.figures",
}
NEIGHBOURS: Final = "neighbours"
FIGURES: Final = ("worker", "publisher", *OPERATOR, NEIGHBOURS, "simulation")
ON_DEMAND: Final = ("delays", "limits")
"""Only if they are named: the delays take 80 minutes."""

INTERRUPTED: Final = 130


def main() -> int:
    """Measure the selected figures, print them, and write the reports."""
    parser = argparse.ArgumentParser(prog="python -m hack.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples and at most 200 WorkQueues")
    parser.add_argument("--counts", type=_counts, help="numbers of WorkQueues (1,100,1000)")
    parser.add_argument(
        "--only", type=_figures, default=FIGURES, help=f"any of {','.join(FIGURES)}, or {','.join(ON_DEMAND)}"
    )
    parser.add_argument("--image", default=DEFAULT_TAG, help="image of operator and worker (%(default)s)")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "docs/benchmarks", metavar="FOLDER")
    parser.add_argument(
        "--rows", type=_words, help=f"some rows of {NEIGHBOURS}, as in leaderless,silent-pods"
    )
    parser.add_argument(
        "--before",
        metavar="REVISION",
        help=f"measure {NEIGHBOURS} with the operator of a revision, as column `before`",
    )
    parser.add_argument("--name", help="name of the operator's files (operator, or operator-quick)")
    arguments = parser.parse_args()
    try:
        for name in ("worker", "publisher", *ON_DEMAND):
            if name in arguments.only:
                _finish(_other(name, arguments), arguments.output)
        if set(arguments.only) & set(OPERATOR):
            _operator(arguments)
        if NEIGHBOURS in arguments.only:
            _finish(_neighbours(arguments), arguments.output)
        if "simulation" in arguments.only:  # it reads the measured costs of the operator
            _finish(_other("simulation", arguments), arguments.output)
    except (BenchError, ClusterError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _finish(found: Report, folder: Path) -> None:
    report.show(found.rows)
    report.write(folder, found)


def _other(name: str, arguments: argparse.Namespace) -> Report:
    """Measure a family that needs no cluster."""
    found: Report = import_module(OTHERS[name]).measure(quick=arguments.quick, folder=arguments.output)
    return found


def _neighbours(arguments: argparse.Namespace) -> Report:
    from hack.bench.neighbours import figures as neighbours

    return neighbours.measure(
        quick=arguments.quick, folder=arguments.output, rows=arguments.rows, before=arguments.before
    )


def _operator(arguments: argparse.Namespace) -> None:
    counts = arguments.counts or ([1, 200] if arguments.quick else [1, 100, 1000])
    rows: list[Row] = []
    try:
        place = Site(arguments.image)
        with place.made():
            where = report.surroundings(place.versions())
            _measure(place, QUICK if arguments.quick else FULL, counts, arguments.only, rows)
    except BaseException:
        report.show(rows)
        raise
    name = arguments.name or ("operator-quick" if arguments.quick else "operator")
    peers = "KEDA 2.20 on the same kind of machine"
    _finish(Report(name, "The operator, measured", where, rows, peers), arguments.output)


def _measure(place: Site, extent: Extent, counts: list[int], only: tuple[str, ...], rows: list[Row]) -> None:
    with Probe(place) as probe:
        for name, figure in (("ack", figures.first_ack), ("ladder", figures.ladder), ("tall", figures.tall)):
            if name in only:
                with step(f"Measuring: {name}"):
                    rows += figure(probe, place, extent)
        for count in counts:
            if set(only) & {"wake", "rest", "restart"}:
                with step(f"Measuring: {count:,} WorkQueues"):
                    rows += figures.storm(probe, place, count, only.__contains__, extent)


def _counts(text: str) -> list[int]:
    counts = [int(number) for number in text.split(",")]
    if min(counts) < 1:
        raise ValueError
    return counts


def _words(text: str) -> list[str]:
    from hack.bench.neighbours.figures import KNOWN

    chosen = text.split(",")
    if not set(chosen) <= set(KNOWN):
        raise argparse.ArgumentTypeError(f"choose from {','.join(KNOWN)}")
    return chosen


def _figures(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if not set(chosen) <= {*FIGURES, *ON_DEMAND}:
        raise argparse.ArgumentTypeError(f"choose from {','.join((*FIGURES, *ON_DEMAND))}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
