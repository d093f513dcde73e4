"""Draw the plot on standard input as PNG: `python -m hack.bench.drawing FILE`.

`plot` runs this module in the benchmarks' own environment, which has matplotlib and no package of this project.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

PALETTE = ("#1b6ca8", "#4fa3d1", "#444444", "#b8b8b8", "#d9822b", "#7a9e4f", "#a05195", "#c94f4f")
"""Two colors for this project, one for the baseline, one for others; then colors for lines."""


def main() -> None:
    """Draw the plot."""
    plot = json.load(sys.stdin)
    panels, columns = plot["panels"], min(plot["columns"], len(plot["panels"]))
    rows = -(-len(panels) // columns)
    width, height = plot["size"]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows + 0.5), squeeze=False, layout="constrained"
    )
    for place, panel in zip(axes.flat, panels, strict=False):
        DRAWN[panel["kind"]](place, panel)
        place.set_title(panel["title"], fontsize=10)
        place.set_xlabel(panel["x_label"])
        place.set_ylabel(panel["y_label"])
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    figure.suptitle(plot["title"], fontsize=12)
    if plot["caption"]:
        figure.supxlabel(plot["caption"], fontsize=8, color="#666666")
    figure.savefig(sys.argv[1], dpi=110)


def bars(place: Any, panel: dict[str, Any]) -> None:
    """Draw horizontal bars, the first on top, each with its spread and its text."""
    (series,) = panel["series"]
    names, values = series["x"], series["y"]
    positions = range(len(names))
    colors = [PALETTE[index] for index in series["colors"]] or PALETTE[0]
    spread = None
    if series["low"]:
        pairs = zip(values, series["low"], series["high"], strict=True)
        spread = list(zip(*((value - low, high - value) for value, low, high in pairs), strict=True))
    place.barh(positions, values, color=colors, xerr=spread, error_kw={"elinewidth": 1, "ecolor": "#888888"})
    place.set_yticks(positions, names)
    place.invert_yaxis()
    most = max([*values, *series["high"]])
    for position, text in zip(positions, series["texts"], strict=False):
        edge = max(values[position], series["high"][position] if series["high"] else 0)
        place.text(edge + most * 0.02, position, text, va="center", fontsize=8)
    place.set_xlim(0, most * 1.3)
    if panel["limit"] is not None:
        place.axvline(panel["limit"], color="#c94f4f", linestyle="--", linewidth=1)


def lines(place: Any, panel: dict[str, Any], how: str = "default") -> None:
    """Draw lines, with a legend if there are several."""
    for number, series in enumerate(panel["series"]):
        color = PALETTE[series["colors"][0] if series["colors"] else number % len(PALETTE)]
        place.plot(series["x"], series["y"], label=series["label"], color=color, drawstyle=how, linewidth=1.3)
    _finish(place, panel)


def steps(place: Any, panel: dict[str, Any]) -> None:
    """Draw values that last until the next value."""
    lines(place, panel, how="steps-post")


def points(place: Any, panel: dict[str, Any]) -> None:
    """Draw a line through points, each with its text."""
    for number, series in enumerate(panel["series"]):
        color = PALETTE[series["colors"][0] if series["colors"] else number % len(PALETTE)]
        place.plot(
            series["x"], series["y"], "o-", label=series["label"], color=color, markersize=4, linewidth=1
        )
        for x, y, text in zip(series["x"], series["y"], series["texts"], strict=False):
            place.annotate(text, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7, color=color)
    _finish(place, panel)


def _finish(place: Any, panel: dict[str, Any]) -> None:
    if panel["x_log"]:
        place.set_xscale("log")
    if panel["y_log"]:
        place.set_yscale("log")
    if panel["limit"] is not None:
        place.axhline(panel["limit"], color="#c94f4f", linestyle="--", linewidth=1)
    place.grid(alpha=0.25)
    if len(panel["series"]) > 1:
        place.legend(fontsize=8, frameon=False)


DRAWN = {"bars": bars, "lines": lines, "steps": steps, "points": points}


if __name__ == "__main__":
    main()
