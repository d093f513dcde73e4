"""Plots, described here and drawn by `drawing` in the environment of the benchmarks, which has matplotlib.

Place in the flow: each family describes its plots from its results.
"""

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
        label: for the legend; for bars a text for each bar instead stands in `texts`.
        x: positions; for bars the names of the bars.
        low, high: ends of the spread of each bar.
        texts: written beside each bar.
        color: an index into the palette, or None for the next one; for bars one for each.
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
        kind: horizontal bars, lines, steps (a value that holds until the next), or points with their labels.
        limit: a goal, drawn as a dashed line across the values.
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
    """One picture.

    Attributes:
        columns: panels beside each other.
        size: of one panel, in inches.
    """

    title: str
    panels: Sequence[Panel]
    columns: int = 2
    size: tuple[float, float] = (5.0, 3.2)
    caption: str = field(default="")


def draw(plot: Plot, file: Path) -> None:
    """Write a PNG.

    Raises:
        BenchError: it cannot be drawn.
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
        raise BenchError(f"{file.name} cannot be drawn:\n{done.stderr.decode(errors='replace')[-1000:]}")
