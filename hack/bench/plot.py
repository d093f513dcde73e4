"""Describe plots. `drawing` draws them in the benchmarks' own environment, which has matplotlib."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hack.bench import environment
from hack.bench.errors import BenchError
from hack.cluster.checkout import CHECKOUT


@dataclass(frozen=True)
class Series:
    """One line or set of bars.

    Attributes:
        label: for the legend. Bars have `texts` instead.
        x: positions, or the names of bars.
        low, high: the ends of each bar's spread.
        texts: printed beside each bar or point.
        colors: indexes into the palette, one for a line and one for each bar. Empty for the defaults.
    """

    label: str
    x: Sequence[float | str]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    texts: Sequence[str] = ()
    colors: Sequence[int] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        kind: horizontal bars, lines, steps (a value lasts until the next one), or points with labels.
        limit: a goal, drawn as a dashed line.
    """

    title: str
    kind: Literal["bars", "lines", "steps", "points"]
    series: Sequence[Series]
    x_label: str = ""
    y_label: str = ""
    x_log: bool = False
    y_log: bool = False
    limit: float | None = None


@dataclass(frozen=True)
class Plot:
    """One image.

    Attributes:
        columns: the number of panels in a row.
        size: width and height of one panel, in inches.
    """

    title: str
    panels: Sequence[Panel]
    columns: int = 2
    size: tuple[float, float] = (5.0, 3.2)
    caption: str = field(default="")


def draw(plot: Plot, file: Path) -> None:
    """Write the plot as PNG.

    Raises:
        BenchError: `drawing` failed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [environment.python(), "-m", "hack.bench.drawing", file],
        input=json.dumps(asdict(plot)).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"Drawing {file.name} failed:\n{done.stderr.decode(errors='replace')[-1000:]}")
