"""The pure parts of the benchmarks."""

from __future__ import annotations

import json
import os

import pytest

from hack.bench import environment, report
from hack.bench.figures import percentile
from hack.bench.report import Report, Row
from hack.bench.worker.cases import Case
from hack.bench.worker.consumers.tally import Tally
from hack.bench.worker.contenders import BASELINE, CONTENDERS, celery, dramatiq
from hack.bench.worker.figures import ratios
from hack.bench.worker.race import Run

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
def test_percentile_is_one_of_the_samples(samples: list[float], share: float, wanted: float) -> None:
    assert percentile(samples, share) == wanted


def test_result_table_states_targets_met_and_load() -> None:
    where = dict.fromkeys(["date", "processor", "memory_gib", "kernel", "revision"], "?")
    rows = [Row("wake", "9 ms", "15 ms", True, "0.6 s", load=0.5), Row("size", "3", load=2.0)]
    page = report.markdown(Report("operator", "The operator", {**where, "versions": {}}, rows, "KEDA"))
    table = page.splitlines()[-2:]
    assert table == ["| wake | 15 ms | 9 ms | yes | 0.6 s | 0.5 |", "| size |  | 3 |  |  | 2.0 |"]


def told(warm: int, count: int, seconds: float, calls: int) -> list[dict[str, float]]:
    reader, writer = os.pipe()
    with os.fdopen(reader) as lines:
        tally = Tally(writer, warm, count, seconds)
        for _ in range(calls):
            tally.tick()
        os.close(writer)
        return [json.loads(line) for line in lines]


def test_tally_counts_after_warm_up_and_reports_once() -> None:
    (result,) = told(warm=10, count=100, seconds=60.0, calls=500)
    assert result["messages"] == 100
    assert result["seconds"] > 0


def test_tally_reports_when_its_time_is_over() -> None:
    (result,) = told(warm=10, count=100, seconds=0.0, calls=20)
    assert result["messages"] == 1


def test_tally_reports_nothing_before_its_end() -> None:
    assert told(warm=10, count=100, seconds=60.0, calls=109) == []


def test_ratio_is_calculated_within_its_round() -> None:
    # In the second round the machine was ten times slower for both.
    runs = {BASELINE: [Run(1000, 0), Run(100, 0)], "one": [Run(500, 0), Run(50, 0)]}
    assert ratios(runs, "one") == [0.5, 0.5]


def test_blocking_peer_has_one_slot() -> None:
    eight = Case(slots=8, handler_seconds=0, body=1, warm=0, count=1, rounds=1)
    left_out = [contender.name for contender in CONTENDERS if not contender.takes_part(eight)]
    assert left_out == ["pika BlockingConnection", "Celery, solo"]


def test_peer_messages_carry_the_body() -> None:
    assert json.loads(celery("q", b"xyz").body)[0] == ["xyz"]
    assert json.loads(dramatiq("q", b"xyz").body)["args"] == ["xyz"]


def test_peers_are_locked_with_hashes() -> None:
    assert environment.versions("pika", "celery", "dramatiq", "aio-pika", "matplotlib")
    lines = environment.LOCK.read_text().splitlines()
    named = [number for number, line in enumerate(lines) if "==" in line.split(" ")[0]]
    assert all(lines[number + 1].strip().startswith("--hash=sha256:") for number in named)
