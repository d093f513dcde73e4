"""The laws of `decide`, over generated observations, and a table of the cases that people ask about."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
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
    beside_stopping_workers,
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
    "a lowered maximum caps what was wanted before, too": (
        spec(maxReplicas=2),
        seen(5, Depth(0, 0, 5)),
        Window(0).record(NOW - 30, 5, 60),
        (Retire, 2, Reason.SURPLUS),
    ),
    "as many as were wanted lately stay": (
        spec(),
        seen(4, Depth(0, 0, 4)),
        Window(0).record(NOW - 30, 4, 60),
        (Hold, 4, Reason.SCALE_IN_DELAYED),
    ),
    "the window is full to the second": (
        spec(),
        seen(3, Depth(0, 0, 3)),
        Window(NOW - 60).record(NOW - 1, 0, 60),
        (Retire, 0, Reason.IDLE),
    ),
    "a scheduled minimum is capped by the maximum": (
        spec(maxReplicas=2),
        replace(seen(0, Depth(0, 0, 0)), minimum=3),
        Window(NOW),
        (ScaleOut, 2, Reason.BELOW_MINIMUM),
    ),
    "one worker of an unproven template needs no canary": (
        spec(),
        seen(0, Depth(1, 0, 0), proven=False),
        Window(NOW),
        (ScaleOut, 1, Reason.BACKLOG),
    ),
    "a pin waits for a rollout before it lowers": (
        spec(replicas=1),
        seen(4, Depth(0, 0, 4), unsettled=Unknown(Reason.ROLLOUT_UNDER_WAY, "…")),
        Window(NOW),
        (Hold, 4, Reason.ROLLOUT_UNDER_WAY),
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
    "an estimate of one second until a time was measured": (Depth(600, 0, 0), Load(None, 0.0), 1, 10),
    "at least one while a message waits, however fast": (Depth(1, 0, 0), Load(0.0, 0.0), 1, 1),
    "at least one while a message is in a handler": (Depth(0, 1, 1), Load(2.0, 0.0), 1, 1),
    "none when there is nothing": (Depth(0, 0, 0), Load(2.0, 0.0), 1, 0),
}


@pytest.mark.parametrize("case", DRAIN_CASES)
def test_a_target_drain_time(case: str) -> None:
    depth, load, concurrency, replicas = DRAIN_CASES[case]
    assert wanted_replicas(spec(targetDrainSeconds=60), depth, load, concurrency) == replicas


def test_a_target_drain_time_reckons_with_the_slots_of_a_pod() -> None:
    observation = replace(seen(0, Depth(600, 0, 0), concurrency=5), load=Load(2.0, 0.0))
    decision, _ = decide(spec(targetDrainSeconds=60), observation, Window(NOW), NOW)
    assert target(decision, 0) == 4


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


# Small numbers, so that counts often meet each other and the bounds.
close_specs = st.builds(
    lambda low, extra, per, delay, pin, suspend: spec(
        minReplicas=low,
        maxReplicas=max(low + extra, 1),
        messagesPerReplica=per,
        scaleInDelaySeconds=delay,
        **({"replicas": pin} if pin is not None else {}),
        suspend=suspend,
    ),
    st.integers(0, 2),
    st.integers(0, 4),
    st.integers(1, 3),
    st.sampled_from([0, 10]),
    st.one_of(st.none(), st.none(), st.integers(0, 5)),
    st.sampled_from([False] * 7 + [True]),
)
close_observations = st.builds(
    Observation,
    workload=st.builds(
        Workload,
        replicas=st.integers(0, 6),
        proven=st.sampled_from([True, True, False]),
        unsettled=st.sampled_from([None, None, Unknown(Reason.PODS_SETTLING, "…")]),
        concurrency=st.integers(1, 2),
    ),
    depth=st.one_of(
        *[st.builds(Depth, st.integers(0, 6), st.integers(0, 5), st.integers(0, 5))] * 5, st.just(OUTAGE)
    ),
    minimum=st.integers(0, 8),
)
close_windows = st.builds(
    lambda age, samples: _window(age, [(float(ago), wanted) for ago, wanted in samples]),
    st.sampled_from([0.0, 9.0, 10.0, 30.0]),
    st.lists(st.tuples(st.sampled_from([1, 9, 10, 11]), st.integers(0, 6)), max_size=3),
)


Step = tuple[type, int, Reason]


def lawful(a_spec: WorkQueueSpec, seen_: Observation, window: Window) -> Step:
    """The laws once more, flat: the first that applies has the answer."""
    workload, depth, scaling = seen_.workload, seen_.depth, a_spec.scaling
    assert isinstance(workload, Workload)
    now = workload.replicas
    if a_spec.suspend:
        return Hold, now, Reason.SUSPENDED
    if a_spec.replicas is not None:
        return lawful_pin(a_spec.replicas, workload)
    if isinstance(depth, Unknown):
        return Hold, now, depth.reason
    backlog = -(-(depth.ready + depth.in_handlers) // (scaling.messages_per_replica or 1))
    most = scaling.max_replicas
    fewest = min(most, max(scaling.min_replicas, seen_.minimum))
    _, wanted, _ = sorted([fewest, backlog, most])
    if wanted > now:
        return lawful_outward(wanted, workload, Reason.BELOW_MINIMUM if backlog < fewest else Reason.BACKLOG)
    if wanted < now:
        return lawful_inward(a_spec, workload, depth, window, wanted)
    idle = Reason.WITHIN_BOUNDS if depth.ready or depth.in_handlers else Reason.IDLE
    return Hold, now, Reason.AT_MAXIMUM if backlog > most else idle


def lawful_pin(pin: int, workload: Workload) -> Step:
    if pin > workload.replicas:
        return lawful_outward(pin, workload, Reason.PINNED)
    if pin < workload.replicas and workload.unsettled is not None:
        return Hold, workload.replicas, workload.unsettled.reason
    return Hold if pin == workload.replicas else Retire, pin, Reason.PINNED


def lawful_outward(count: int, workload: Workload, reason: Reason) -> Step:
    if workload.proven or count == 1:
        return ScaleOut, count, reason
    return ScaleOut if workload.replicas == 0 else Hold, max(workload.replicas, 1), Reason.CANARY


def lawful_inward(
    a_spec: WorkQueueSpec, workload: Workload, depth: Depth, window: Window, wanted: int
) -> Step:
    now, delay, most = workload.replicas, a_spec.scaling.scale_in_delay_seconds, a_spec.scaling.max_replicas
    lately = max(wanted, *(min(count, most) for at, count in window.peaks if NOW - at < delay), 0)
    if lately >= now or NOW - window.since < delay:
        return Hold, now, Reason.SCALE_IN_DELAYED
    if workload.unsettled is not None:
        return Hold, now, workload.unsettled.reason
    stay = max(lately, -(-depth.in_handlers // workload.concurrency))
    if stay >= now:
        return Hold, now, Reason.WORKERS_BUSY
    return Retire, stay, Reason.SURPLUS if stay else Reason.IDLE


@settings(max_examples=1_500)
@given(close_specs, close_observations, close_windows)
def test_the_step_is_the_one_that_the_laws_ask_for(
    a_spec: WorkQueueSpec, seen_: Observation, window: Window
) -> None:
    decision, _ = decide(a_spec, seen_, window, NOW)
    assert isinstance(seen_.workload, Workload)
    found = type(decision), target(decision, seen_.workload.replicas), decision.reason
    assert found == lawful(a_spec, seen_, window)
    if isinstance(decision, Retire):
        # A person's pin may leave messages without a worker; nothing else may.
        assert decision.only_when_empty is (a_spec.replicas is None)


@settings(max_examples=300)
@given(close_specs, close_observations, close_windows)
def test_what_is_remembered_of_a_step(a_spec: WorkQueueSpec, seen_: Observation, window: Window) -> None:
    decision, after = decide(a_spec, seen_, window, NOW)
    delay = a_spec.scaling.scale_in_delay_seconds
    if a_spec.suspend or a_spec.replicas is not None:
        # What was wanted before says nothing about the time after.
        assert after == Window(NOW)
    elif isinstance(seen_.depth, Unknown):
        assert isinstance(seen_.workload, Workload)
        assert after == window.record(NOW, seen_.workload.replicas, delay)
    else:
        assert decision.wanted is not None
        assert after == window.record(NOW, decision.wanted, delay)


@given(close_specs, close_observations, close_windows)
def test_without_a_workload_nothing_happens_and_nothing_is_forgotten(
    a_spec: WorkQueueSpec, seen_: Observation, window: Window
) -> None:
    missing = Unknown(Reason.WORKLOAD_NOT_FOUND, "…")
    decision, after = decide(a_spec, replace(seen_, workload=missing), window, NOW)
    if a_spec.suspend:
        assert decision.reason is Reason.SUSPENDED
    else:
        assert (decision, after) == (Hold(None, missing.reason, missing.message), window)


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


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 30)), min_size=1, max_size=40))
def test_the_window_remembers_exactly_the_highest_of_its_time(steps: list[tuple[int, int]]) -> None:
    window, now, history = Window(0.0), 0.0, []
    for pause, wanted in steps:
        now += pause
        history.append((now, wanted))
        window = window.record(now, wanted, 20.0)
        assert window.highest == max(count for at, count in history if now - at < 20.0)
        # No more is kept than can still matter, however often it is asked.
        kept = [count for _, count in window.peaks]
        assert kept == sorted(set(kept), reverse=True)


STOPPING = [
    (
        Retire(0, 0, True, Reason.IDLE, "Nothing has waited or been in a handler for 5 s."),
        1,
        "Nothing has waited or been in a handler for 5 s, not counting 1 message in workers that are shutting down.",
    ),
    (Hold(0, Reason.IDLE, "Nothing is waiting."), 0, "Nothing is waiting."),
    (Hold(2, Reason.PINNED, "spec.replicas pins the count to 2."), 3, "spec.replicas pins the count to 2."),
]


@pytest.mark.parametrize(
    ("decision", "messages", "message"), STOPPING, ids=["one-in-hand", "none-in-hand", "pinned"]
)
def test_a_decision_mentions_the_messages_of_stopping_workers(
    decision: Decision, messages: int, message: str
) -> None:
    assert beside_stopping_workers(decision, messages) == replace(decision, message=message)
