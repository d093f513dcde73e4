"""The pure parts of the benchmarks."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from hack.bench import environment, faults, report
from hack.bench.errors import BenchError
from hack.bench.figures import percentile
from hack.bench.neighbours.crowd import CROWDS
from hack.bench.neighbours.figures import KNOWN, _told_now, meets_goal, told
from hack.bench.neighbours.lab import Life, Result
from hack.bench.neighbours.probe import Cycle
from hack.bench.neighbours.rows import ROWS
from hack.bench.report import Report, Row
from hack.bench.worker.cases import KINDS, Case
from hack.bench.worker.consumers.tally import SHARED_BYTES, VARIABLE, Tally
from hack.bench.worker.contenders import BASELINE, CONTENDERS, THREADS, Contender, celery, dramatiq
from hack.bench.worker.figures import ratios, rounds, tables
from hack.bench.worker.race import Run
from hack.cluster.checkout import CHECKOUT

START_SECONDS = 30.0
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


def tallied(warm: int, count: int, seconds: float, calls: int) -> list[dict[str, float]]:
    reader, writer = os.pipe()
    with os.fdopen(reader) as lines:
        tally = Tally(writer, warm, count, seconds)
        for _ in range(calls):
            tally.tick()
        os.close(writer)
        return [json.loads(line) for line in lines]


def test_tally_counts_after_warm_up_and_reports_once() -> None:
    (result,) = tallied(warm=10, count=100, seconds=60.0, calls=500)
    assert result["messages"] == 100
    assert result["seconds"] > 0


def test_tally_reports_when_its_time_is_over() -> None:
    (result,) = tallied(warm=10, count=100, seconds=0.0, calls=20)
    assert result["messages"] == 1


def test_tally_reports_nothing_before_its_end() -> None:
    assert tallied(warm=10, count=100, seconds=60.0, calls=109) == []


def test_processes_count_together(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.write_bytes(bytes(SHARED_BYTES))
    reader, writer = os.pipe()
    asked = {"pipe": writer, "warm": 10, "count": 50, "seconds": 60.0, "shared": str(shared)}
    code = (
        "from hack.bench.worker.consumers import tally\nasked = tally.asked()\n"
        "for _ in range(30): asked.tick()\nprint(flush=True)\ninput()"
    )
    with ExitStack() as stack:
        for _ in range(2):  # the first is still there when the second begins to count
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    env={**os.environ, VARIABLE: json.dumps(asked)},
                    cwd=CHECKOUT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[writer],
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], START_SECONDS)[0], "it waits for the other"
        os.close(writer)
        result = json.loads(os.read(reader, 4096))
    os.close(reader)
    assert result["messages"] == 50


def test_ratio_is_calculated_within_its_round() -> None:
    # In the second round the machine was ten times slower for both.
    runs = {BASELINE: [Run(1000, 0), Run(100, 0)], "one": [Run(500, 0), Run(50, 0)]}
    assert ratios(runs, "one") == [0.5, 0.5]


def test_peer_that_stalls_costs_its_row_and_not_the_benchmark() -> None:
    case, calls = Case(slots=1, handler_seconds=0, body=1, warm=0, count=1, rounds=3), []

    def run(contender: Contender, kind: str, _: Case) -> Run:
        calls.append((contender.name, kind))
        if (contender.name, kind) == ("Celery, solo", "quorum"):
            raise BenchError("Celery, solo gave no result in 30 s")
        return Run(1000, 0.001)

    found = rounds(run, case)
    assert calls.count(("Celery, solo", "quorum")) == 1
    assert {kind: len(found[case, kind]) for kind in KINDS} == {"classic": 13, "quorum": 12}
    assert {len(many) for runs in found.values() for many in runs.values()} == {case.rounds}
    (line,) = (line for line in tables(found, [case], "worker").splitlines() if "Celery, solo" in line)
    assert line == "| Celery, solo | 1,000 | 1.00 (1.00 to 1.00) | 1000 µs | no result |  |  |"


def test_contender_of_ours_that_stalls_ends_the_benchmark() -> None:
    def run(contender: Contender, kind: str, case: Case) -> Run:
        if contender.name == THREADS:
            raise BenchError("no result")
        return Run(1000, 0.001)

    with pytest.raises(BenchError):
        rounds(run, Case(slots=1, handler_seconds=0, body=1, warm=0, count=1, rounds=1))


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


QUICK = Cycle(bare=0.01, wake=0.02, scale_in=0.3, asleep=0.1)
WELL = Life(restarts=0, peak=80 * 2**20, processor=1.0, seconds=10.0, lease_kept=True)


def test_neighbour_row_states_wakes_scale_in_and_life() -> None:
    assert told(Result([QUICK, Cycle(0.02, 0.06, 0.5, 0.1)], WELL)) == (
        "wake p50 20 ms, p99 60 ms (n=2); bare consumer p50 10 ms, p99 20 ms; scale-in p50 0.3 s, max 0.5 s; "
        "80 MiB, 0.10 core; Lease kept"
    )


@pytest.mark.parametrize(
    ("last", "wanted"),
    [
        pytest.param(Cycle(0.01, None), "not woken within 60 s", id="no wake"),
        pytest.param(Cycle(0.01, 0.02), "not scaled in within 120 s", id="no scale-in"),
    ],
)
def test_neighbour_row_names_the_incomplete_cycle(last: Cycle, wanted: str) -> None:
    result = Result([QUICK, last], WELL)

    assert wanted in told(result)
    assert not meets_goal(result)


@pytest.mark.parametrize(
    ("cycle", "life"),
    [
        pytest.param(Cycle(0.01, 0.11, 0.3, 0.1), WELL, id="slow wake"),
        pytest.param(QUICK, replace(WELL, restarts=1), id="restart"),
        pytest.param(QUICK, replace(WELL, peak=257 * 2**20), id="memory"),
        pytest.param(QUICK, replace(WELL, lease_kept=False), id="lost Lease"),
    ],
)
def test_neighbour_row_misses_its_goal(cycle: Cycle, life: Life) -> None:
    assert meets_goal(Result([QUICK], WELL))
    assert not meets_goal(Result([cycle], life))


def test_neighbour_rows_have_different_names() -> None:
    assert len(KNOWN) == len(ROWS) + len(CROWDS)


# The fault matrix ----------------------------------------------------------------------------------------

PAGE = """before
<!-- faults: generated -->

Made by hand.

| Fault | RabbitMQ | Times injected |
| --- | --- | ---: |
| killed | 4.0.5 | 1 |
| frozen | 4.0.5 | 2 |

<!-- end of faults -->
after
"""


def injected(fault: str, **measured: float) -> faults.Row:
    return {
        "fault": fault,
        "rabbitmq": "4.0.5",
        "sent": 10,
        "lost": 0,
        "duplicates": 1,
        "unexplained": 0,
        "seconds": 2.0,
        "measured": measured,
        "date": "2026-11-27",
    }


def test_partial_run_replaces_and_adds_its_rows() -> None:
    lines = faults.merged(PAGE, [("killed", "4.0.5", "3"), ("killed", "4.3.6", "1")])

    assert lines == [("killed", "4.0.5", "3"), ("frozen", "4.0.5", "2"), ("killed", "4.3.6", "1")]
    assert faults.head_of(PAGE) == "Made by hand."


def test_row_has_the_highest_of_what_was_measured() -> None:
    [line] = faults.table([injected("killed", handlers=4, seconds=0.5), injected("killed", handlers=5)])

    assert line == (
        "killed",
        "4.0.5",
        "2",
        "20",
        "0",
        "2",
        "2.0",
        "2.0",
        "5 handlers, 0.5 seconds",
        "2026-11-27",
    )


def test_result_of_another_revision_than_the_page_names_its_own() -> None:
    result = {"told": "wake p50 20 ms", "revision": "abc1234", "date": "2026-11-27 20:47 UTC"}

    assert _told_now(result, "abc1234") == "wake p50 20 ms"
    assert _told_now(result, "def5678") == "wake p50 20 ms (revision abc1234, 2026-11-27 20:47 UTC)"
