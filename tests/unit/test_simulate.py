"""The simulation against known facts: the steps of a real KEDA, and laws that hold for any workload."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hack.bench.simulation import oracle, shards
from hack.bench.simulation.jobs import Job, JobMix, bursts, diurnal, heavy, recorded, sparse, steady
from hack.bench.simulation.keda import Keda
from hack.bench.simulation.operator import RING_TO_WRITTEN_SECONDS, Operator
from hack.bench.simulation.outcome import simulate
from hack.bench.simulation.world import START_SECONDS, Autoscaler, World


def workload(
    *jobs: tuple[float, float], per_replica: int = 1, most: int = 20, seconds: float = 2_000
) -> JobMix:
    return JobMix("a test", "", tuple(Job(*job) for job in jobs), seconds, per_replica, most)


def counts(load: JobMix, autoscaler: Autoscaler) -> list[tuple[float, int]]:
    return World(load, autoscaler).run().counts[1:]


def test_keda_model_scales_out_like_real_keda() -> None:
    # Measured with KEDA 2.20, polling every second, 20 long messages from 0: 0.5 s, 2.5 s, then every 15 s.
    load = workload(*[(0.0, 500.0)] * 20, seconds=100)
    steps = counts(load, Keda(load, polling_seconds=1.0, phase=2.5))
    assert [count for _, count in steps] == [1, 4, 8, 16, 20]
    assert [at for at, _ in steps[1:]] == pytest.approx([2.5, 17.5, 32.5, 47.5])


def test_keda_model_scales_to_zero_after_cooldown() -> None:
    load = workload((10.0, 1.0))
    (at_one, one), (at_zero, zero) = counts(load, Keda(load))
    assert (one, zero) == (1, 0)
    assert at_one == 30.0
    # It is last active at 30 s, and polls every 30 s.
    assert at_zero == 330.0


def test_keda_model_stays_within_its_tolerance() -> None:
    # 40 messages ask for 4 replicas of 10 each. 5 % more are too few to change that, 15 % are not.
    few, more = ([(0.0, 1_500.0)] * 40 + [(100.0, 1_500.0)] * extra for extra in (2, 6))
    for jobs, wanted in ((few, [1, 4]), (more, [1, 4, 5])):
        load = workload(*jobs, per_replica=10, seconds=1_000)
        assert [count for _, count in counts(load, Keda(load))] == wanted


def test_operator_model_scales_out_in_one_step_on_a_message() -> None:
    load = workload(*[(5.0, 500.0)] * 20, seconds=100)
    assert counts(load, Operator(load)) == [(5.0 + RING_TO_WRITTEN_SECONDS, 20)]


def test_message_on_idle_queue_waits_for_one_pod_start() -> None:
    load = workload((5.0, 1.0))
    _, outcome = simulate(load, Operator(load))
    assert outcome.waits == [pytest.approx(RING_TO_WRITTEN_SECONDS + START_SECONDS)]
    assert outcome.counts[-1][1] == 0


@pytest.mark.parametrize(
    "make", [sparse, bursts, *(pytest.param(make, marks=pytest.mark.slow) for make in (heavy, recorded))]
)
def test_operator_model_never_stops_a_busy_worker(make: Any) -> None:
    load = make()
    found, outcome = simulate(load, Operator(load))
    assert (found.interrupted, found.repeated) == (0, 0)
    assert len(outcome.waits) == len(load.jobs)


@pytest.mark.parametrize(
    "make",
    [
        sparse,
        bursts,
        *(pytest.param(make, marks=pytest.mark.slow) for make in (steady, diurnal, heavy, recorded)),
    ],
)
def test_messages_start_in_time_at_little_more_than_the_cost_of_an_oracle(make: Any) -> None:
    load = make()
    limit = load.max_wait_seconds

    found, outcome = simulate(load, Operator(load, maxWaitSeconds=limit, scaleInDelaySeconds=0))

    assert sum(wait <= limit for wait in outcome.waits) >= 0.99 * len(load.jobs)
    assert found.replica_hours * 3600 <= 1.2 * oracle.plan(load, limit).replica_seconds


@pytest.mark.parametrize(
    ("jobs", "most", "expected"),
    [
        pytest.param([(0, 5), (0, 5)], 9, oracle.Plan(12, 0), id="one-pod-after-the-other-message"),
        pytest.param([(0, 15), (0, 5)], 9, oracle.Plan(24, 0), id="a-pod-each"),
        pytest.param([(0, 15), (0, 5)], 1, oracle.Plan(22, 1), id="late-at-the-maximum"),
        pytest.param([(0, 5), (16, 5)], 9, oracle.Plan(13, 0), id="an-idle-second-is-cheaper-than-a-start"),
        pytest.param([(0, 5), (80, 5)], 9, oracle.Plan(14, 0), id="a-start-is-cheaper-than-a-minute"),
    ],
)
def test_oracle_plans_the_cheapest_pods(
    jobs: list[tuple[float, float]], most: int, expected: oracle.Plan
) -> None:
    assert oracle.plan(workload(*jobs, most=most), 10) == expected


def test_job_killed_in_its_handler_starts_again() -> None:
    load = workload(*[(0.0, 60.0)] * 4, (0.0, 1_000.0), seconds=6_000)
    found, outcome = simulate(load, Keda(load, cooldown_seconds=0.0))
    assert found.interrupted > 0
    assert found.repeated == sum(wait > 100 for wait in outcome.waits)
    assert len(outcome.waits) == len(load.jobs)


some_jobs = st.lists(st.tuples(st.floats(0, 300), st.floats(0.01, 60)), min_size=1, max_size=40)


@given(some_jobs, st.sampled_from(["ours", "keda"]))
def test_simulation_completes_every_job_and_accounts_for_all_time(
    chosen: list[tuple[float, float]], who: str
) -> None:
    load = workload(*sorted(chosen), seconds=20_000)
    autoscaler: Autoscaler = Operator(load) if who == "ours" else Keda(load)
    world = World(load, autoscaler, grace_seconds=math.inf)
    outcome = world.run()
    assert len(outcome.waits) == len(chosen)
    assert min(outcome.waits) > -1e-6
    assert not world.pods
    assert outcome.replica_seconds >= sum(seconds for _, seconds in chosen) - 1e-6
    assert all(0 <= count <= load.max_replicas for _, count in outcome.counts)


def test_same_seed_gives_same_jobs() -> None:
    assert heavy() == heavy()


# -- very many queues ----------------------------------------------------------------------------------

COSTS = shards.UnitCosts(
    base_mib=70,
    queue_kib=25,
    base_cores=0.005,
    queue_cores=5e-6,
    restart_seconds=0.005,
    wake_seconds=0.01,
    wake_processor_seconds=0.02,
)


def test_more_shards_mean_less_load_each() -> None:
    few, many = (shards.plan(COSTS, number, 10.0) for number in (2, 20))
    assert (few.queues, many.queues) == (50_000, 5_000)
    assert many.memory_mib < few.memory_mib
    assert many.restart_seconds == pytest.approx(few.restart_seconds / 10)
    assert COSTS.wake_seconds <= many.wake_p99 < few.wake_p99
    assert many.fits
    assert not few.fits


def test_wakes_beyond_capacity_queue_without_bound() -> None:
    assert shards.wake_waits(60.0, 0.02) == [math.inf]


def test_operator_that_is_full_at_rest_answers_no_wake_in_time() -> None:
    assert shards.wake_waits(10.0, 0.05, at_rest=0.55) == [math.inf]
    alone, beside = (shards.wake_waits(10.0, 0.05, at_rest) for at_rest in (0.0, 0.3))
    assert sum(alone) < sum(beside)


def test_wake_delay_matches_queueing_theory() -> None:
    # One server, fixed service: mean wait = load / (2 * (1 - load)) services.
    waits = shards.wake_waits(25.0, 0.02, count=200_000)
    assert sum(waits) / len(waits) == pytest.approx(0.5 / (2 * 0.5) * 0.02, rel=0.05)


def test_unit_costs_come_from_operator_benchmark(tmp_path: Path) -> None:
    def rest(figure: str, **raw: Any) -> dict[str, Any]:
        return {"figure": figure, "raw": raw}

    file = tmp_path / "operator.json.gz"
    assert shards.from_results(file) is None
    rows = [
        rest("at rest, 1 WorkQueue, 60 s", resident_mib=70.0, cores=0.005),
        rest("at rest, 1,001 WorkQueues, 60 s", resident_mib=95.0, cores=0.015),
        rest("wake, 1,001 WorkQueues: publish", seconds=[0.02, 0.009, 0.01], processor_seconds_each=0.03),
        rest("operator restarted with 1 WorkQueue, to all", hung=1.5, process=0.5),
        rest("operator restarted with 1,001 WorkQueues, to all", hung=5.5, process=0.5),
    ]
    file.write_bytes(gzip.compress(json.dumps({"rows": rows}).encode()))
    costs = shards.from_results(file)
    assert costs is not None
    assert costs.queue_kib == pytest.approx(25.6)
    assert costs.queue_cores == pytest.approx(1e-5)
    assert costs.restart_seconds == pytest.approx(0.004)
    assert (costs.wake_seconds, costs.wake_processor_seconds) == (0.01, 0.03)
