"""The pure parts of the benchmarks."""

from __future__ import annotations

import pytest

from hack.bench import report
from hack.bench.figures import percentile
from hack.bench.report import Report, Row

HUNDRED = [float(number) for number in range(1, 101)]


@pytest.mark.parametrize(
    ("samples", "share", "wanted"),
    [
        pytest.param(HUNDRED, 0.5, 50.0, id="the median of a hundred"),
        pytest.param(HUNDRED, 0.99, 99.0, id="the 99th of a hundred"),
        pytest.param([3.0, 1.0, 2.0], 0.99, 3.0, id="of a few the largest"),
        pytest.param([7.0], 0.5, 7.0, id="of one that one"),
    ],
)
def test_a_percentile_is_a_sample(samples: list[float], share: float, wanted: float) -> None:
    assert percentile(samples, share) == wanted


def test_the_table_says_what_was_met_and_under_which_load() -> None:
    where = dict.fromkeys(["date", "processor", "memory_gib", "kernel", "revision"], "?")
    rows = [Row("wake", "9 ms", "15 ms", True, "0.6 s", load=0.5), Row("size", "3", load=2.0)]
    page = report.markdown(Report("operator", "The operator", {**where, "versions": {}}, rows, "KEDA"))
    table = page.splitlines()[-2:]
    assert table == ["| wake | 15 ms | 9 ms | yes | 0.6 s | 0.5 |", "| size |  | 3 |  |  | 2.0 |"]
