"""How many slots start messages within `maxWaitSeconds`: a table of common cases, and laws over generated ones."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workqueue.contract.handler_times import HIGHEST, LOWEST, bucket_of, seconds_of
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueueSpec
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.scaling.decide import (
    Depth,
    Hold,
    Load,
    Observation,
    Retire,
    ScaleInWindow,
    ScaleOut,
    WorkloadState,
    decide,
)
from workqueue_operator.scaling.wait import (
    COHORTS,
    COUNTED,
    HandlerTimes,
    Line,
    Waits,
    busy_seconds,
    needed_slots,
    observe,
)
from workqueue_operator.workers.client import WorkerStatus

TWO_SECONDS = HandlerTimes({bucket_of(2.0): 1.0})
MOSTLY_SHORT = HandlerTimes({bucket_of(2.0): 99.0, bucket_of(3_600.0): 1.0})
LIMIT = 30.0


def needed(waits: Waits, arrivals: float = 0.0, limit: float = LIMIT) -> int:
    return math.ceil(needed_slots(waits, 1.0, arrivals, limit))


CASES: dict[str, tuple[Waits, float, int]] = {
    "nothing waits": (Waits(slots=3, times=TWO_SECONDS), 0.0, 0),
    "one message without a worker": (Waits([(0, 1)], times=TWO_SECONDS), 0.0, 1),
    "a burst without a worker": (Waits([(0, 150)], times=TWO_SECONDS), 0.0, 10),
    "the same burst with enough workers": (Waits([(0, 150)], slots=10, times=TWO_SECONDS), 0.0, 10),
    "the same burst after half of the time": (Waits([(15, 150)], slots=10, times=TWO_SECONDS), 0.0, 20),
    "no handler has returned": (Waits([(0, 150)]), 0.0, 5),
    "no handler has returned, but one runs for long": (Waits([(8, 19)], [8.0], 1), 0.0, 8),
    "a busy slot that is soon free": (Waits([(0, 10)], [1.0], 1, TWO_SECONDS), 0.0, 1),
    "busy slots whose handlers run for an hour": (Waits([(20, 2)], [100.0] * 5, 5, MOSTLY_SHORT), 0.0, 7),
    "a rare long handler": (Waits([(0, 90)], slots=7, times=MOSTLY_SHORT), 0.0, 7),
    "late messages": (Waits([(40, 3)], [1.0], 1, TWO_SECONDS), 0.0, 2),
    "arrivals that fast pods can wait for": (Waits(slots=9, times=TWO_SECONDS), 3.0, 0),
    "arrivals that slow pods cannot wait for": (
        Waits(slots=9, times=TWO_SECONDS, start_seconds=60.0),
        3.0,
        5,
    ),
    "rare arrivals that slow pods cannot wait for": (Waits(times=TWO_SECONDS, start_seconds=60.0), 0.01, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_wait_sets_the_number_of_slots(case: str) -> None:
    waits, arrivals, slots = CASES[case]
    assert needed(waits, arrivals) == slots


# -- the laws ----------------------------------------------------------------------------------------

times = st.one_of(
    st.none(),
    st.dictionaries(st.integers(LOWEST, HIGHEST), st.floats(0.5, 500.0), min_size=1, max_size=8).map(
        HandlerTimes
    ),
)
queues = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500)), max_size=5).map(
    lambda some: sorted(some, reverse=True)
)
all_waits = st.builds(
    lambda waiting, busy, idle, known, start: Waits(waiting, busy, len(busy) + idle, known, start),
    queues,
    st.lists(st.floats(0, 5_000), max_size=6),
    st.integers(0, 6),
    times,
    st.floats(0.5, 120),
)
limits = st.floats(1, 1_000)
rates = st.floats(0, 50)
NEARLY = 1 + 1e-9


def spec(maximum: int) -> WorkQueueSpec:
    return WorkQueueSpec.model_validate(
        {
            "connectionSecretRef": {"name": "rabbitmq"},
            "worker": {"image": "i", "handler": {"python": "m:f"}},
            "scaling": {"maxWaitSeconds": 30, "maxReplicas": maximum, "scaleInDelaySeconds": 0},
        }
    )


@given(all_waits, rates, limits)
def test_more_waiting_messages_never_need_fewer_slots(waits: Waits, rate: float, limit: float) -> None:
    more = replace(waits, waiting=[*waits.waiting, (0.0, 7)])

    assert needed_slots(waits, 1.0, rate, limit) <= needed_slots(more, 1.0, rate, limit) * NEARLY


@given(all_waits, rates, limits, st.floats(0, 50))
def test_older_messages_never_need_fewer_slots(
    waits: Waits, rate: float, limit: float, seconds: float
) -> None:
    older = replace(waits, waiting=[(age + seconds, count) for age, count in waits.waiting])

    assert needed_slots(waits, 1.0, rate, limit) <= needed_slots(older, 1.0, rate, limit) * NEARLY


@example(Waits([(29.1, 2)], [2.8], 4, HandlerTimes({-6: 1.0, 7: 1.0, 18: 3.0, 10: 5.0})), 0.0, 10.0)
@given(all_waits, rates, limits)
def test_fewer_slots_that_are_enough_do_not_ask_for_more(waits: Waits, rate: float, limit: float) -> None:
    count = max(math.ceil(needed_slots(waits, 1.0, rate, limit)), len(waits.busy_seconds))
    fewer = replace(waits, slots=min(count, waits.slots))

    assert needed_slots(fewer, 1.0, rate, limit) <= max(count, len(waits.busy_seconds)) * NEARLY


@given(
    all_waits,
    rates,
    st.builds(Depth, st.integers(0, 500), st.integers(0, 12), st.integers(0, 12)),
    st.integers(0, 12),
    st.integers(1, 8),
)
def test_count_stays_within_the_maximum_and_above_busy_workers(
    waits: Waits, rate: float, depth: Depth, replicas: int, maximum: int
) -> None:
    observation = Observation(WorkloadState(replicas), depth, load=Load(1.0, rate, waits))

    decision, _ = decide(spec(maximum), observation, ScaleInWindow(0.0), 1_000.0)

    if isinstance(decision, ScaleOut):
        assert replicas < decision.replicas <= maximum
    elif isinstance(decision, Retire):
        assert min(depth.in_handlers, replicas) <= decision.replicas < replicas


@given(all_waits, rates, st.integers(0, 12))
def test_unknown_depth_changes_nothing(waits: Waits, rate: float, replicas: int) -> None:
    unknown = Unknown(Reason.BROKER_UNREACHABLE, "The broker is away.")
    observation = Observation(WorkloadState(replicas), unknown, load=Load(1.0, rate, waits))

    decision, _ = decide(spec(8), observation, ScaleInWindow(0.0), 1_000.0)

    assert isinstance(decision, Hold)


# -- handler times -----------------------------------------------------------------------------------


@given(st.floats(0.001, 100_000))
def test_bucket_is_within_a_tenth_of_the_time(seconds: float) -> None:
    assert seconds_of(bucket_of(seconds)) == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, LOWEST), (1e-9, LOWEST), (1.0, 0), (1e9, HIGHEST)])
def test_buckets_have_bounds(seconds: float, bucket: int) -> None:
    assert bucket_of(seconds) == bucket


def test_later_handlers_replace_earlier_ones() -> None:
    found = TWO_SECONDS

    for _ in range(200):
        found = found.add({bucket_of(20.0): 50})

    assert sum(found.weights.values()) == pytest.approx(COUNTED)
    assert found.mean() == pytest.approx(20, rel=0.1)


def test_variation_ignores_what_is_longer() -> None:
    assert TWO_SECONDS.variation(60.0) == 0
    assert 0 < MOSTLY_SHORT.variation(10.0) < MOSTLY_SHORT.variation(100.0)


def test_mean_within_a_limit_ignores_what_is_longer() -> None:
    assert MOSTLY_SHORT.mean() > 30
    assert MOSTLY_SHORT.mean(10.0) < 2.2


def test_idle_slot_starts_at_least_one_message() -> None:
    assert MOSTLY_SHORT.starts(0.0) == 1
    assert MOSTLY_SHORT.starts(0.001) == pytest.approx(1)
    assert TWO_SECONDS.starts(20.0) == pytest.approx(10, rel=0.1)


def test_busy_slot_starts_nothing_before_its_handler_returns() -> None:
    assert MOSTLY_SHORT.starts_when_busy(100.0, 60.0) == 0
    assert TWO_SECONDS.starts_when_busy(0.0, 1.0) == 0
    assert TWO_SECONDS.starts_when_busy(1_000.0, 60.0) == 0
    assert TWO_SECONDS.starts_when_busy(1.0, 60.0) > 29


# -- the waiting messages ----------------------------------------------------------------------------


def line(*looks: tuple[float, int, int], limit: float = LIMIT) -> Line:
    """The line after looks of (seconds, waiting, received since the last look)."""
    found = Line(0.0)
    for look in looks:
        found = found.advance(*look, limit)
    return found


def test_message_counts_from_the_look_before_it() -> None:
    assert line((0, 0, 0), (1, 5, 0), (11, 5, 0)).ages == [(11.0, 5)]


def test_message_that_wakes_the_operator_counts_from_now() -> None:
    assert line((0, 0, 0), (900, 5, 0)).ages == [(0.0, 5)]


def test_oldest_messages_are_received_first() -> None:
    assert line((0, 3, 0), (2, 7, 0), (10, 6, 4)).ages == [(10.0, 3), (0.0, 3)]


def test_shorter_queue_shows_what_workers_did_not_say() -> None:
    assert line((0, 8, 0), (1, 3, 0)).ages == [(1.0, 3)]


def test_message_is_late_once() -> None:
    found = line((0, 4, 0), (29, 3, 1), (31, 2, 1), (60, 2, 0), (90, 0, 2))

    assert (found.arrived, found.late) == (4, 2)


def test_memory_of_a_long_queue_is_limited() -> None:
    found = Line(0.0)

    for second in range(1_000):
        found = found.advance(float(second), 10 * second, 0, LIMIT)

    assert len(found.cohorts) <= COHORTS + 2
    assert sum(count for _, count in found.cohorts) == 9_990
    assert found.late == pytest.approx(9_690, rel=0.01)


@given(st.lists(st.tuples(st.floats(0.1, 5), st.integers(0, 50), st.integers(0, 50)), max_size=30))
def test_line_has_all_waiting_messages_in_order(looks: list[tuple[float, int, int]]) -> None:
    found = Line(0.0)
    for seconds, ready, received in looks:
        found = found.advance(found.at + seconds, ready, received, LIMIT)

        assert sum(count for _, count in found.cohorts) == ready
        assert all(before < after for (before, _), (after, _) in pairwise(found.cohorts))
        assert found.late <= found.arrived


# -- what workers say --------------------------------------------------------------------------------


def worker(received: int | None, handled: int, busy: int = 0, oldest: float | None = None) -> WorkerStatus:
    return WorkerStatus(
        slots=2,
        busy=busy,
        consuming=True,
        handler_seconds=2.0,
        deliveries_per_second=1.0,
        busy_seconds=oldest,
        received=received,
        handler_times={bucket_of(2.0): handled} if handled else {},
    )


def test_counts_of_workers_are_added_up_from_look_to_look() -> None:
    state = observe(None, QueueCounts(6, 0, 0.0), {"a": worker(9, 8), "b": worker(5, 4)}, LIMIT)
    state = observe(state, QueueCounts(6, 0, 1.0), {"a": worker(11, 10), "b": worker(6, 5)}, LIMIT)

    assert state.line.ages == [(1.0, 6)], "three were received, and as many arrived"
    assert state.line.arrived == 9
    assert state.times is not None
    assert sum(state.times.weights.values()) == 15


@pytest.mark.parametrize(
    ("answers", "arrived"),
    [
        pytest.param({"a": worker(2, 2)}, 8, id="container-that-started-again"),
        pytest.param({"a": None}, 6, id="silent-worker"),
        pytest.param({}, 6, id="deleted-worker"),
        pytest.param({"a": worker(None, 0)}, 6, id="worker-of-an-older-release"),
        pytest.param({"a": worker(9, 8), "c": worker(1, 0)}, 7, id="new-worker"),
    ],
)
def test_workers_may_come_and_go(answers: dict[str, WorkerStatus | None], arrived: int) -> None:
    state = observe(None, QueueCounts(6, 0, 0.0), {"a": worker(9, 8)}, LIMIT)
    state = observe(state, QueueCounts(6, 0, 1.0), answers, LIMIT)

    assert state.line.arrived == arrived
    assert set(state.workers) == set(answers)


def test_first_look_counts_only_what_waits() -> None:
    state = observe(None, QueueCounts(6, 0, 500.0), {"a": worker(1_000, 990)}, LIMIT)

    assert state.line.arrived == 6
    assert state.times is not None, "but it knows at once how long handlers take"


def test_only_the_oldest_handler_of_a_worker_has_a_known_age() -> None:
    assert busy_seconds([worker(9, 8), worker(9, 7, busy=2, oldest=4.0)]) == [4.0, 0.0]
