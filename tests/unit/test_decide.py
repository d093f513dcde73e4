"""The laws of `decide`, over generated observations, and a table of the cases that people ask about."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue_operator.decide import (
    Decision,
    Depth,
    Hold,
    Load,
    Observation,
    Retire,
    ScaleOut,
    Window,
    Workload,
    decide,
    wanted_replicas,
)
from workqueue_operator.model import WorkQueueSpec
from workqueue_operator.reasons import Reason, Unknown

NOW = 10_000.0
OUTAGE = Unknown(Reason.BROKER_UNREACHABLE, "The broker is away.")


def spec(**changes: Any) -> WorkQueueSpec:
    scaling = {"minReplicas": 0, "maxReplicas": 10, "messagesPerReplica": 10, "scaleInDelaySeconds": 60}
    top = {key: changes.pop(key) for key in ("suspend", "replicas") if key in changes}
    if "targetDrainSeconds" in changes:
        del scaling["messagesPerReplica"]
    return WorkQueueSpec.model_validate(
        {
            "connectionSecretRef": {"name": "rabbitmq"},
            "worker": {"image": "i", "handler": {"python": "m:f"}},
            "scaling": scaling | changes,
            **top,
        }
    )


def seen(replicas: int, depth: Depth | Unknown, **workload: Any) -> Observation:
    return Observation(Workload(replicas, **workload), depth)


def quiet_since(seconds: float, wanted: int = 0) -> Window:
    """A window in which `wanted` was all that was asked for."""
    return Window(NOW - seconds).record(NOW - 1, wanted, 60)


def target(decision: Decision, replicas: int) -> int:
    return replicas if isinstance(decision, Hold) else decision.replicas


CASES: dict[str, tuple[WorkQueueSpec, Observation, Window, tuple[type, int, Reason]]] = {
    "one message on an empty queue starts one worker": (
        spec(),
        seen(0, Depth(1, 0, 0)),
        Window(NOW),
        (ScaleOut, 1, Reason.BACKLOG),
    ),
    "a backlog goes to the needed count in one step": (
        spec(maxReplicas=100),
        seen(0, Depth(1000, 0, 0)),
        Window(NOW),
        (ScaleOut, 100, Reason.BACKLOG),
    ),
    "messages in handlers count": (
        spec(),
        seen(1, Depth(9, 2, 2)),
        Window(NOW),
        (ScaleOut, 2, Reason.BACKLOG),
    ),
    "the maximum caps and says so": (
        spec(),
        seen(10, Depth(1000, 10, 10)),
        Window(NOW),
        (Hold, 10, Reason.AT_MAXIMUM),
    ),
    "the minimum is kept without any message": (
        spec(minReplicas=2),
        seen(0, Depth(0, 0, 0)),
        Window(NOW),
        (ScaleOut, 2, Reason.BELOW_MINIMUM),
    ),
    "a scheduled minimum is kept as well": (
        spec(),
        replace(seen(0, Depth(0, 0, 0)), minimum=3),
        Window(NOW),
        (ScaleOut, 3, Reason.BELOW_MINIMUM),
    ),
    "an outage holds": (
        spec(),
        seen(7, OUTAGE),
        quiet_since(900),
        (Hold, 7, Reason.BROKER_UNREACHABLE),
    ),
    "an outage holds even below the minimum": (
        spec(minReplicas=2),
        seen(0, OUTAGE),
        quiet_since(900),
        (Hold, 0, Reason.BROKER_UNREACHABLE),
    ),
    "an empty queue goes to zero after the delay": (
        spec(),
        seen(3, Depth(0, 0, 3)),
        quiet_since(90),
        (Retire, 0, Reason.IDLE),
    ),
    "not before the window is full": (
        spec(),
        seen(3, Depth(0, 0, 3)),
        quiet_since(30),
        (Hold, 3, Reason.SCALE_IN_DELAYED),
    ),
    "only to the highest count wanted in the window": (
        spec(),
        seen(5, Depth(0, 0, 5)),
        Window(0).record(NOW - 30, 4, 60),
        (Retire, 4, Reason.SURPLUS),
    ),
    "never below the busy workers": (
        spec(),
        seen(5, Depth(0, 3, 5)),
        quiet_since(90, 1),
        (Retire, 3, Reason.SURPLUS),
    ),
    "busy workers all: hold": (
        spec(),
        seen(3, Depth(0, 3, 3)),
        quiet_since(90, 1),
        (Hold, 3, Reason.WORKERS_BUSY),
    ),
    "concurrency counts slots, not pods": (
        spec(),
        seen(5, Depth(0, 3, 15), concurrency=3),
        quiet_since(90, 1),
        (Retire, 1, Reason.SURPLUS),
    ),
    "no inward step while a rollout is under way": (
        spec(),
        seen(3, Depth(0, 0, 3), unsettled=Unknown(Reason.ROLLOUT_UNDER_WAY, "…")),
        quiet_since(90),
        (Hold, 3, Reason.ROLLOUT_UNDER_WAY),
    ),
    "but outward at once": (
        spec(),
        seen(3, Depth(100, 3, 3), unsettled=Unknown(Reason.ROLLOUT_UNDER_WAY, "…")),
        quiet_since(90),
        (ScaleOut, 10, Reason.BACKLOG),
    ),
    "an unproven template sends one pod ahead": (
        spec(),
        seen(0, Depth(100, 0, 0), proven=False),
        Window(NOW),
        (ScaleOut, 1, Reason.CANARY),
    ),
    "and waits for it": (
        spec(),
        seen(1, Depth(100, 0, 0), proven=False),
        Window(NOW),
        (Hold, 1, Reason.CANARY),
    ),
    "a pin raises without knowing the depth": (
        spec(replicas=4),
        seen(1, OUTAGE),
        Window(NOW),
        (ScaleOut, 4, Reason.PINNED),
    ),
    "a pin lowers without delay, asking workers": (
        spec(replicas=1),
        seen(4, Depth(100, 4, 4)),
        Window(NOW),
        (Retire, 1, Reason.PINNED),
    ),
    "suspend wins over the pin": (
        spec(replicas=4, suspend=True),
        seen(1, Depth(5, 0, 0)),
        Window(NOW),
        (Hold, 1, Reason.SUSPENDED),
    ),
    "a lowered maximum shrinks at once when nothing is busy": (
        spec(maxReplicas=2, scaleInDelaySeconds=0),
        seen(5, Depth(100, 2, 5)),
        Window(0),
        (Retire, 2, Reason.SURPLUS),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cases_that_people_ask_about(case: str) -> None:
    a_spec, observation, window, (kind, replicas, reason) = CASES[case]
    assert isinstance(observation.workload, Workload)
    decision, _ = decide(a_spec, observation, window, NOW)
    assert (type(decision), target(decision, observation.workload.replicas), decision.reason) == (
        kind,
        replicas,
        reason,
    )
    assert decision.message


DRAIN_CASES = {
    "the backlog within the time": (Depth(600, 0, 0), Load(2.0, 0.0), 1, 20),
    "Little's law keeps up with a steady load": (Depth(0, 5, 10), Load(2.0, 5.0), 1, 10),
    "slots of one pod share the work": (Depth(600, 0, 0), Load(2.0, 0.0), 4, 5),
    "an estimate until a time was measured": (Depth(60, 0, 0), Load(None, 0.0), 1, 1),
    "at least one while there is anything": (Depth(1, 0, 0), Load(0.001, 0.0), 1, 1),
    "none when there is nothing": (Depth(0, 0, 0), Load(2.0, 0.0), 1, 0),
}


@pytest.mark.parametrize("case", DRAIN_CASES)
def test_a_target_drain_time(case: str) -> None:
    depth, load, concurrency, replicas = DRAIN_CASES[case]
    assert wanted_replicas(spec(targetDrainSeconds=60), depth, load, concurrency) == replicas


# -- the laws ----------------------------------------------------------------------------------------

counts = st.integers(0, 2_000)
depths = st.builds(Depth, ready=counts, in_handlers=st.integers(0, 60), consumers=st.integers(0, 60))
unknowns = st.sampled_from(
    [OUTAGE, Unknown(Reason.DEPTH_IMPLAUSIBLE, "…"), Unknown(Reason.DEPTH_PENDING, "…")]
)
workloads = st.builds(
    Workload,
    replicas=st.integers(0, 60),
    proven=st.booleans(),
    unsettled=st.one_of(st.none(), st.just(Unknown(Reason.ROLLOUT_UNDER_WAY, "…"))),
    concurrency=st.integers(1, 4),
)
observations = st.builds(
    Observation, workload=workloads, depth=st.one_of(depths, unknowns), minimum=st.integers(0, 60)
)


def _window(age: float, samples: list[tuple[float, int]]) -> Window:
    window = Window(NOW - age)
    for ago, wanted in sorted(samples, reverse=True):
        window = window.record(NOW - ago, wanted, 120)
    return window


windows = st.builds(
    _window,
    st.floats(0, 500),
    st.lists(st.tuples(st.floats(0, 120), st.integers(0, 60)), max_size=5),
)
specs = st.builds(
    lambda low, extra, per, delay, pin, suspend: spec(
        minReplicas=low,
        maxReplicas=max(low + extra, 1),
        messagesPerReplica=per,
        scaleInDelaySeconds=delay,
        **({"replicas": pin} if pin is not None else {}),
        suspend=suspend,
    ),
    st.integers(0, 20),
    st.integers(0, 40),
    st.integers(1, 50),
    st.integers(0, 120),
    st.one_of(st.none(), st.none(), st.integers(0, 60)),
    st.sampled_from([False, False, False, True]),
)


@given(specs, observations, windows)
def test_the_same_input_gives_the_same_output(
    a_spec: WorkQueueSpec, seen_: Observation, window: Window
) -> None:
    assert decide(a_spec, seen_, window, NOW) == decide(a_spec, seen_, window, NOW)


@given(specs, observations, windows)
def test_an_unknown_depth_never_changes_the_count(
    a_spec: WorkQueueSpec, seen_: Observation, window: Window
) -> None:
    blind = replace(seen_, depth=OUTAGE)
    decision, _ = decide(a_spec, blind, window, NOW)
    if a_spec.replicas is None:
        assert isinstance(decision, Hold)


@given(specs, observations, windows)
def test_a_suspended_workqueue_holds(a_spec: WorkQueueSpec, seen_: Observation, window: Window) -> None:
    decision, _ = decide(a_spec.model_copy(update={"suspend": True}), seen_, window, NOW)
    assert isinstance(decision, Hold)
    assert decision.reason is Reason.SUSPENDED


@given(specs, observations, windows)
def test_every_step_stays_within_minimum_and_maximum(
    a_spec: WorkQueueSpec, seen_: Observation, window: Window
) -> None:
    decision, _ = decide(a_spec, seen_, window, NOW)
    if not isinstance(decision, Hold) and a_spec.replicas is None and decision.reason is not Reason.CANARY:
        scaling = a_spec.scaling
        busy = seen_.depth.in_handlers if isinstance(seen_.depth, Depth) else 0
        # An inward step stops at the busy workers, which may be more than a maximum that was lowered.
        assert scaling.min_replicas <= decision.replicas <= max(scaling.max_replicas, busy)


@given(specs, observations, windows)
def test_outward_is_one_step(a_spec: WorkQueueSpec, seen_: Observation, window: Window) -> None:
    decision, _ = decide(a_spec, seen_, window, NOW)
    if isinstance(decision, ScaleOut):
        assert isinstance(seen_.workload, Workload)
        assert decision.replicas == (decision.wanted if seen_.workload.proven else min(decision.wanted, 1))
        assert decision.replicas > seen_.workload.replicas


@given(specs, observations, windows)
def test_inward_never_below_the_busy_nor_below_what_was_wanted_lately(
    a_spec: WorkQueueSpec, seen_: Observation, window: Window
) -> None:
    decision, after = decide(a_spec, seen_, window, NOW)
    if isinstance(decision, Retire) and a_spec.replicas is None:
        assert isinstance(seen_.depth, Depth)
        assert isinstance(seen_.workload, Workload)
        assert decision.replicas >= math.ceil(seen_.depth.in_handlers / seen_.workload.concurrency)
        assert decision.replicas >= min(after.highest, a_spec.scaling.max_replicas)
        assert decision.replicas < seen_.workload.replicas
        assert seen_.workload.unsettled is None
        assert NOW - window.since >= a_spec.scaling.scale_in_delay_seconds


@given(specs, observations, windows)
def test_a_pin_is_where_it_goes(a_spec: WorkQueueSpec, seen_: Observation, window: Window) -> None:
    if a_spec.replicas is None or a_spec.suspend:
        return
    decision, _ = decide(a_spec, seen_, window, NOW)
    assert decision.wanted == a_spec.replicas


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 30)), min_size=1, max_size=40))
def test_the_window_remembers_exactly_the_highest_of_its_time(steps: list[tuple[float, int]]) -> None:
    window, now, history = Window(0.0), 0.0, []
    for pause, wanted in steps:
        now += pause
        history.append((now, wanted))
        window = window.record(now, wanted, 20.0)
        assert window.highest == max(count for at, count in history if now - at < 20.0 or at == now)
