"""The laws of `decide`, over generated observations, and a table of common cases."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueueSpec
from workqueue_operator.scaling.decide import (
    Decision,
    Depth,
    Hold,
    Load,
    Observation,
    Retire,
    ScaleInWindow,
    ScaleOut,
    Trim,
    WorkloadState,
    beside_stopping_workers,
    decide,
    wanted_replicas,
)

NOW = 10_000.0
SINGLE = {"singleActiveConsumer": True}
OUTAGE = Unknown(Reason.BROKER_UNREACHABLE, "The broker is away.")
SETTLING = Unknown(Reason.PODS_SETTLING, "3 of 10 pods exist.")
STALE = Unknown(Reason.BROKER_TIMEOUT, "RabbitMQ does not answer worker a.")
SILENT = Unknown(Reason.RETIRE_UNREACHABLE, "Worker a does not answer.")


def spec(**changes: Any) -> WorkQueueSpec:
    scaling = {"minReplicas": 0, "maxReplicas": 10, "messagesPerReplica": 10, "scaleInDelaySeconds": 60}
    top = {key: changes.pop(key) for key in ("suspend", "replicas", "queue", "limits") if key in changes}
    if changes.keys() & {"targetDrainSeconds", "maxWaitSeconds"}:
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
    return Observation(WorkloadState(replicas, **workload), depth)


def at_handler_seconds(seconds: float, observation: Observation) -> Observation:
    return replace(observation, load=Load(last_handler_seconds=seconds))


def quiet_since(seconds: float, wanted: int = 0) -> ScaleInWindow:
    """A window in which `wanted` was all that was asked for."""
    return ScaleInWindow(NOW - seconds).record(NOW - 1, wanted, 60)


def target(decision: Decision, replicas: int) -> int:
    return replicas if isinstance(decision, Hold) else decision.replicas


CASES: dict[str, tuple[WorkQueueSpec, Observation, ScaleInWindow, tuple[type, int, Reason]]] = {
    "first message on an empty queue": (
        spec(),
        seen(0, Depth(1, 0, 0)),
        ScaleInWindow(NOW),
        (ScaleOut, 1, Reason.BACKLOG),
    ),
    "large backlog without workers": (
        spec(maxReplicas=100),
        seen(0, Depth(1000, 0, 0)),
        ScaleInWindow(NOW),
        (ScaleOut, 100, Reason.BACKLOG),
    ),
    "messages in handlers": (
        spec(),
        seen(1, Depth(9, 2, 2)),
        ScaleInWindow(NOW),
        (ScaleOut, 2, Reason.BACKLOG),
    ),
    "backlog beyond the maximum": (
        spec(),
        seen(10, Depth(1000, 10, 10)),
        ScaleInWindow(NOW),
        (Hold, 10, Reason.AT_MAXIMUM),
    ),
    "waiting time that the maximum is too low for": (
        spec(maxWaitSeconds=30),
        seen(10, Depth(10_000, 10, 10)),
        ScaleInWindow(NOW),
        (Hold, 10, Reason.WAIT_NOT_MET),
    ),
    "waiting time that more workers can meet": (
        spec(maxWaitSeconds=30),
        seen(0, Depth(100, 0, 0)),
        ScaleInWindow(NOW),
        (ScaleOut, 4, Reason.BACKLOG),
    ),
    "waiting time of an idle queue": (
        spec(maxWaitSeconds=30),
        seen(3, Depth(0, 0, 3)),
        quiet_since(90),
        (Retire, 0, Reason.IDLE),
    ),
    "backlog without workers beyond the limit": (
        spec(limits={"concurrency": 5}),
        seen(0, Depth(1000, 0, 0)),
        ScaleInWindow(NOW),
        (ScaleOut, 5, Reason.BACKLOG),
    ),
    "backlog beyond the limit": (
        spec(limits={"concurrency": 5}),
        seen(5, Depth(1000, 5, 5)),
        ScaleInWindow(NOW),
        (Hold, 5, Reason.AT_CONCURRENCY_LIMIT),
    ),
    "backlog beyond the maximum below the limit": (
        spec(limits={"concurrency": 50}),
        seen(10, Depth(1000, 10, 10)),
        ScaleInWindow(NOW),
        (Hold, 10, Reason.AT_MAXIMUM),
    ),
    "backlog without workers beyond the rate": (
        spec(limits={"ratePerSecond": 10}),
        at_handler_seconds(0.2, seen(0, Depth(1000, 0, 0))),
        ScaleInWindow(NOW),
        (ScaleOut, 3, Reason.BACKLOG),
    ),
    "backlog beyond the rate": (
        spec(limits={"ratePerSecond": 10}),
        at_handler_seconds(0.2, seen(3, Depth(1000, 3, 3))),
        ScaleInWindow(NOW),
        (Hold, 3, Reason.AT_RATE_LIMIT),
    ),
    "backlog beyond the rate while handlers become faster": (
        spec(limits={"ratePerSecond": 10}),
        at_handler_seconds(0.1, seen(3, Depth(1000, 3, 3))),
        ScaleInWindow(NOW - 90).record(NOW - 1, 3, 60),
        (Hold, 3, Reason.SCALE_IN_DELAYED),
    ),
    "backlog beyond a rate with unknown handler times": (
        spec(limits={"ratePerSecond": 10}),
        seen(0, Depth(1000, 0, 0)),
        ScaleInWindow(NOW),
        (ScaleOut, 10, Reason.BACKLOG),
    ),
    "backlog beyond the maximum below the rate": (
        spec(limits={"ratePerSecond": 100}),
        at_handler_seconds(0.2, seen(10, Depth(1000, 10, 10))),
        ScaleInWindow(NOW),
        (Hold, 10, Reason.AT_MAXIMUM),
    ),
    "minimum above the rate": (
        spec(limits={"ratePerSecond": 10}, minReplicas=5),
        at_handler_seconds(0.2, seen(5, Depth(1000, 5, 5))),
        ScaleInWindow(NOW),
        (Hold, 5, Reason.AT_RATE_LIMIT),
    ),
    "single active consumer without a worker": (
        spec(queue=SINGLE),
        seen(0, Depth(1000, 0, 0)),
        ScaleInWindow(NOW),
        (ScaleOut, 1, Reason.BACKLOG),
    ),
    "single active consumer with its worker": (
        spec(queue=SINGLE),
        seen(1, Depth(1000, 1, 1)),
        ScaleInWindow(NOW),
        (Hold, 1, Reason.SINGLE_ACTIVE_CONSUMER),
    ),
    "standby workers of a single active consumer": (
        spec(queue=SINGLE),
        seen(3, Depth(1000, 1, 3)),
        quiet_since(90, 3),
        (Retire, 1, Reason.SURPLUS),
    ),
    "scheduled minimum with a single active consumer": (
        spec(queue=SINGLE),
        replace(seen(1, Depth(0, 0, 1)), minimum=3),
        quiet_since(90, 1),
        (Hold, 1, Reason.IDLE),
    ),
    "minimum without messages": (
        spec(minReplicas=2),
        seen(0, Depth(0, 0, 0)),
        ScaleInWindow(NOW),
        (ScaleOut, 2, Reason.BELOW_MINIMUM),
    ),
    "scheduled minimum without messages": (
        spec(),
        replace(seen(0, Depth(0, 0, 0)), minimum=3),
        ScaleInWindow(NOW),
        (ScaleOut, 3, Reason.BELOW_MINIMUM),
    ),
    "outage of the broker": (
        spec(),
        seen(7, OUTAGE),
        quiet_since(900),
        (Hold, 7, Reason.BROKER_UNREACHABLE),
    ),
    "outage below the minimum": (
        spec(minReplicas=2),
        seen(0, OUTAGE),
        quiet_since(900),
        (Hold, 0, Reason.BROKER_UNREACHABLE),
    ),
    "empty queue after the delay": (
        spec(),
        seen(3, Depth(0, 0, 3)),
        quiet_since(90),
        (Retire, 0, Reason.IDLE),
    ),
    "empty queue before the window is full": (
        spec(),
        seen(3, Depth(0, 0, 3)),
        quiet_since(30),
        (Hold, 3, Reason.SCALE_IN_DELAYED),
    ),
    "empty queue with an earlier peak in the window": (
        spec(),
        seen(5, Depth(0, 0, 5)),
        ScaleInWindow(0).record(NOW - 30, 4, 60),
        (Retire, 4, Reason.SURPLUS),
    ),
    "some busy workers": (
        spec(),
        seen(5, Depth(0, 3, 5)),
        quiet_since(90, 1),
        (Retire, 3, Reason.SURPLUS),
    ),
    "only busy workers": (
        spec(),
        seen(3, Depth(0, 3, 3)),
        quiet_since(90, 1),
        (Hold, 3, Reason.WORKERS_BUSY),
    ),
    "busy slots of pods with concurrency": (
        spec(),
        seen(5, Depth(0, 3, 15), concurrency=3),
        quiet_since(90, 1),
        (Retire, 1, Reason.SURPLUS),
    ),
    "unconfirmed slots alone": (
        spec(),
        seen(1, Depth(0, 0, 20, 20, SILENT), concurrency=20),
        quiet_since(90),
        (Hold, 1, Reason.RETIRE_UNREACHABLE),
    ),
    "waiting messages and unconfirmed slots": (
        spec(),
        seen(1, Depth(25, 0, 20, 20, SILENT), concurrency=20),
        quiet_since(90),
        (ScaleOut, 3, Reason.BACKLOG),
    ),
    "some workers without an answer": (
        spec(),
        seen(5, Depth(0, 0, 5, 2, SILENT)),
        quiet_since(90),
        (Retire, 2, Reason.SURPLUS),
    ),
    "stale counts and a surplus": (
        spec(),
        seen(5, Depth(2, 0, 0, stale=STALE)),
        quiet_since(90),
        (Hold, 5, Reason.BROKER_TIMEOUT),
    ),
    "stale counts and a backlog": (
        spec(),
        seen(1, Depth(25, 0, 0, stale=STALE)),
        quiet_since(90),
        (ScaleOut, 3, Reason.BACKLOG),
    ),
    "only workers without an answer": (
        spec(),
        seen(2, Depth(0, 0, 2, 2, SILENT)),
        quiet_since(90),
        (Hold, 2, Reason.RETIRE_UNREACHABLE),
    ),
    "enough busy workers and one without an answer": (
        spec(),
        seen(2, Depth(0, 2, 3, 1, SILENT)),
        quiet_since(90),
        (Hold, 2, Reason.WORKERS_BUSY),
    ),
    "refused pods on an empty queue": (
        spec(),
        seen(10, Depth(0, 0, 3), existing=3, unsettled=SETTLING),
        ScaleInWindow(NOW).record(NOW - 1, 10, 60),
        (Trim, 3, Reason.POD_REFUSED),
    ),
    "refused pods with messages in handlers": (
        spec(),
        seen(10, Depth(0, 45, 45), existing=3, unsettled=SETTLING),
        ScaleInWindow(NOW).record(NOW - 1, 10, 60),
        (Trim, 5, Reason.POD_REFUSED),
    ),
    "refused pods with a backlog for them": (
        spec(),
        seen(10, Depth(97, 3, 3), existing=3, unsettled=SETTLING),
        quiet_since(90, 10),
        (Hold, 10, Reason.WITHIN_BOUNDS),
    ),
    "refused pods with a smaller backlog within the delay": (
        spec(),
        seen(10, Depth(5, 3, 3), existing=3, unsettled=SETTLING),
        quiet_since(90, 10),
        (Hold, 10, Reason.SCALE_IN_DELAYED),
    ),
    "refused pods with a smaller backlog after the delay": (
        spec(),
        seen(10, Depth(5, 3, 3), existing=3, unsettled=SETTLING),
        quiet_since(90, 4),
        (Trim, 4, Reason.POD_REFUSED),
    ),
    "existing pods after the refusal": (
        spec(),
        seen(3, Depth(0, 0, 3), existing=3),
        quiet_since(90, 0),
        (Retire, 0, Reason.IDLE),
    ),
    "refused pods beyond a pin": (
        spec(replicas=1),
        seen(10, OUTAGE, existing=3, unsettled=SETTLING),
        ScaleInWindow(NOW),
        (Trim, 3, Reason.POD_REFUSED),
    ),
    "refused pods and workers without an answer": (
        spec(),
        seen(10, Depth(0, 0, 60, 60, SILENT), existing=3, unsettled=SETTLING, concurrency=20),
        ScaleInWindow(NOW),
        (Trim, 3, Reason.POD_REFUSED),
    ),
    "scale-in during a rollout": (
        spec(),
        seen(3, Depth(0, 0, 3), unsettled=Unknown(Reason.ROLLOUT_UNDER_WAY, "…")),
        quiet_since(90),
        (Hold, 3, Reason.ROLLOUT_UNDER_WAY),
    ),
    "scale-out during a rollout": (
        spec(),
        seen(3, Depth(100, 3, 3), unsettled=Unknown(Reason.ROLLOUT_UNDER_WAY, "…")),
        quiet_since(90),
        (ScaleOut, 10, Reason.BACKLOG),
    ),
    "backlog for an unproven template": (
        spec(),
        seen(0, Depth(100, 0, 0), proven=False),
        ScaleInWindow(NOW),
        (ScaleOut, 1, Reason.CANARY),
    ),
    "canary that is not Ready": (
        spec(),
        seen(1, Depth(100, 0, 0), proven=False),
        ScaleInWindow(NOW),
        (Hold, 1, Reason.CANARY),
    ),
    "higher pin with an unknown depth": (
        spec(replicas=4),
        seen(1, OUTAGE),
        ScaleInWindow(NOW),
        (ScaleOut, 4, Reason.PINNED),
    ),
    "lower pin with busy workers": (
        spec(replicas=1),
        seen(4, Depth(100, 4, 4)),
        ScaleInWindow(NOW),
        (Retire, 1, Reason.PINNED),
    ),
    "suspended WorkQueue with a pin": (
        spec(replicas=4, suspend=True),
        seen(1, Depth(5, 0, 0)),
        ScaleInWindow(NOW),
        (Hold, 1, Reason.SUSPENDED),
    ),
    "lowered maximum without a delay": (
        spec(maxReplicas=2, scaleInDelaySeconds=0),
        seen(5, Depth(100, 2, 5)),
        ScaleInWindow(0),
        (Retire, 2, Reason.SURPLUS),
    ),
    "lowered maximum with an earlier peak in the window": (
        spec(maxReplicas=2),
        seen(5, Depth(0, 0, 5)),
        ScaleInWindow(0).record(NOW - 30, 5, 60),
        (Retire, 2, Reason.SURPLUS),
    ),
    "present count within the window": (
        spec(),
        seen(4, Depth(0, 0, 4)),
        ScaleInWindow(0).record(NOW - 30, 4, 60),
        (Hold, 4, Reason.SCALE_IN_DELAYED),
    ),
    "window that is full to the second": (
        spec(),
        seen(3, Depth(0, 0, 3)),
        ScaleInWindow(NOW - 60).record(NOW - 1, 0, 60),
        (Retire, 0, Reason.IDLE),
    ),
    "scheduled minimum beyond the maximum": (
        spec(maxReplicas=2),
        replace(seen(0, Depth(0, 0, 0)), minimum=3),
        ScaleInWindow(NOW),
        (ScaleOut, 2, Reason.BELOW_MINIMUM),
    ),
    "one message for an unproven template": (
        spec(),
        seen(0, Depth(1, 0, 0), proven=False),
        ScaleInWindow(NOW),
        (ScaleOut, 1, Reason.BACKLOG),
    ),
    "lower pin during a rollout": (
        spec(replicas=1),
        seen(4, Depth(0, 0, 4), unsettled=Unknown(Reason.ROLLOUT_UNDER_WAY, "…")),
        ScaleInWindow(NOW),
        (Hold, 4, Reason.ROLLOUT_UNDER_WAY),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_decision_for_common_cases(case: str) -> None:
    a_spec, observation, window, (kind, replicas, reason) = CASES[case]
    assert isinstance(observation.workload, WorkloadState)
    decision, _ = decide(a_spec, observation, window, NOW)
    assert (type(decision), target(decision, observation.workload.replicas), decision.reason) == (
        kind,
        replicas,
        reason,
    )
    assert decision.message


DRAIN_CASES = {
    "backlog alone": (Depth(600, 0, 0), Load(2.0, 0.0), 1, 20),
    "steady load": (Depth(0, 5, 10), Load(2.0, 5.0), 1, 10),
    "several slots per pod": (Depth(600, 0, 0), Load(2.0, 0.0), 4, 5),
    "no measured handler time": (Depth(600, 0, 0), Load(None, 0.0), 1, 10),
    "one waiting message of a fast handler": (Depth(1, 0, 0), Load(0.0, 0.0), 1, 1),
    "one message in a handler": (Depth(0, 1, 1), Load(2.0, 0.0), 1, 1),
    "no messages": (Depth(0, 0, 0), Load(2.0, 0.0), 1, 0),
}


@pytest.mark.parametrize("case", DRAIN_CASES)
def test_target_drain_time_sets_the_count(case: str) -> None:
    depth, load, concurrency, replicas = DRAIN_CASES[case]
    assert wanted_replicas(spec(targetDrainSeconds=60), depth, load, concurrency) == replicas


def test_target_drain_time_counts_unconfirmed_slots_and_arrivals() -> None:
    depth, load = Depth(0, 5, 30, 10, SILENT), Load(2.0, 5.0)

    assert wanted_replicas(spec(targetDrainSeconds=60), replace(depth, unconfirmed=0), load, 1) == 10
    assert wanted_replicas(spec(targetDrainSeconds=60), depth, load, 1) == 20


def test_target_drain_time_considers_slots_per_pod() -> None:
    observation = replace(seen(0, Depth(600, 0, 0), concurrency=5), load=Load(2.0, 0.0))
    decision, _ = decide(spec(targetDrainSeconds=60), observation, ScaleInWindow(NOW), NOW)
    assert target(decision, 0) == 4


def test_waiting_time_is_named_when_it_cannot_be_met() -> None:
    decision, _ = decide(spec(maxWaitSeconds=30), seen(10, Depth(10_000, 10, 10)), ScaleInWindow(NOW), NOW)

    assert decision.message.endswith(" to start within 30 s, but scaling.maxReplicas is 10.")


def test_waiting_time_counts_unconfirmed_slots() -> None:
    depth = Depth(0, 5, 30, 10, SILENT)

    assert wanted_replicas(spec(maxWaitSeconds=30), replace(depth, unconfirmed=0), Load(2.0), 1) == 1
    assert wanted_replicas(spec(maxWaitSeconds=30), depth, Load(2.0), 1) == 10


# -- the laws ----------------------------------------------------------------------------------------

counts = st.integers(0, 2_000)


def _depth(ready: int, in_handlers: int, consumers: int, unconfirmed: int) -> Depth:
    return Depth(ready, in_handlers, consumers, unconfirmed, SILENT if unconfirmed else None)


depths = st.builds(
    _depth, counts, st.integers(0, 60), st.integers(0, 60), st.one_of(st.just(0), st.integers(1, 60))
)
unknowns = st.sampled_from(
    [OUTAGE, Unknown(Reason.DEPTH_IMPLAUSIBLE, "…"), Unknown(Reason.DEPTH_PENDING, "…")]
)
workloads = st.builds(
    WorkloadState,
    replicas=st.integers(0, 60),
    proven=st.booleans(),
    unsettled=st.one_of(st.none(), st.just(Unknown(Reason.ROLLOUT_UNDER_WAY, "…"))),
    concurrency=st.integers(1, 4),
    existing=st.one_of(st.none(), st.integers(0, 60)),
)
observations = st.builds(
    Observation, workload=workloads, depth=st.one_of(depths, unknowns), minimum=st.integers(0, 60)
)


def _window(age: float, samples: list[tuple[float, int]], trimmed_ago: float | None = None) -> ScaleInWindow:
    window = ScaleInWindow(NOW - age, trimmed_at=None if trimmed_ago is None else NOW - trimmed_ago)
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
        WorkloadState,
        replicas=st.integers(0, 6),
        proven=st.sampled_from([True, True, False]),
        unsettled=st.sampled_from([None, None, Unknown(Reason.PODS_SETTLING, "…")]),
        concurrency=st.integers(1, 2),
        existing=st.sampled_from([None, None, None, 0, 1, 2, 3]),
    ),
    depth=st.one_of(
        *[
            st.builds(
                _depth,
                st.integers(0, 6),
                st.integers(0, 5),
                st.integers(0, 5),
                st.one_of(st.just(0), st.integers(1, 5)),
            )
        ]
        * 5,
        st.just(OUTAGE),
    ),
    minimum=st.integers(0, 8),
)
close_windows = st.builds(
    lambda age, samples, trimmed: _window(age, [(float(ago), wanted) for ago, wanted in samples], trimmed),
    st.sampled_from([0.0, 9.0, 10.0, 30.0]),
    st.lists(st.tuples(st.sampled_from([1, 9, 10, 11]), st.integers(0, 6)), max_size=3),
    st.sampled_from([None, None, 9.0, 10.0]),
)


Step = tuple[type, int, Reason]


def lawful(a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow) -> Step:
    """The laws as a flat list: the first one that applies gives the result."""
    workload, depth = seen_.workload, seen_.depth
    assert isinstance(workload, WorkloadState)
    now = workload.replicas
    if a_spec.suspend:
        return Hold, now, Reason.SUSPENDED
    if a_spec.replicas is not None:
        return lawful_pin(a_spec.replicas, workload)
    if isinstance(depth, Unknown):
        return Hold, now, depth.reason
    return lawful_count(a_spec, seen_, workload, depth, window)


def lawful_count(
    a_spec: WorkQueueSpec, seen_: Observation, workload: WorkloadState, depth: Depth, window: ScaleInWindow
) -> Step:
    scaling, now = a_spec.scaling, workload.replicas
    per, most = scaling.messages_per_replica or 1, a_spec.most_replicas
    backlog = -(-(depth.ready + depth.in_handlers) // per)
    possible = -(-(depth.ready + depth.in_handlers + depth.unconfirmed) // per)
    fewest = min(most, max(scaling.min_replicas, seen_.minimum))
    _, known, _ = sorted([fewest, backlog, most])
    _, feared, _ = sorted([fewest, possible, most])
    lately = lawful_lately(a_spec, window, feared if feared < now else max(known, min(now, feared)))
    full = NOW - window.since >= scaling.scale_in_delay_seconds
    trimmed = window.trimmed_at is not None and NOW - window.trimmed_at < scaling.scale_in_delay_seconds
    needed = known if depth.ready == 0 and not trimmed else lately if full else now
    if (trim := lawful_trim(needed, workload)) is not None:
        return trim
    if known > now:
        return lawful_outward(known, workload, Reason.BELOW_MINIMUM if backlog < fewest else Reason.BACKLOG)
    if feared < now:
        return lawful_inward(a_spec, workload, depth, window, feared)
    idle = depth.ready == depth.in_handlers == depth.unconfirmed == 0
    reasons = [(backlog > most, Reason.AT_MAXIMUM), (known < now, SILENT.reason), (idle, Reason.IDLE)]
    return Hold, now, next((reason for holds, reason in reasons if holds), Reason.WITHIN_BOUNDS)


def lawful_trim(needed: int, workload: WorkloadState) -> Step | None:
    if workload.existing is None or max(needed, workload.existing) >= workload.replicas:
        return None
    return Trim, max(needed, workload.existing), Reason.POD_REFUSED


def lawful_lately(a_spec: WorkQueueSpec, window: ScaleInWindow, wanted: int) -> int:
    delay, most = a_spec.scaling.scale_in_delay_seconds, a_spec.most_replicas
    return max(wanted, *(min(count, most) for at, count in window.peaks if NOW - at < delay), 0)


def lawful_pin(pin: int, workload: WorkloadState) -> Step:
    if pin > workload.replicas:
        return lawful_outward(pin, workload, Reason.PINNED)
    if pin < workload.replicas and (trimmed := lawful_trim(pin, workload)) is not None:
        return trimmed
    if pin < workload.replicas and workload.unsettled is not None:
        return Hold, workload.replicas, workload.unsettled.reason
    return Hold if pin == workload.replicas else Retire, pin, Reason.PINNED


def lawful_outward(count: int, workload: WorkloadState, reason: Reason) -> Step:
    if workload.proven or count == 1:
        return ScaleOut, count, reason
    return ScaleOut if workload.replicas == 0 else Hold, max(workload.replicas, 1), Reason.CANARY


def lawful_inward(
    a_spec: WorkQueueSpec, workload: WorkloadState, depth: Depth, window: ScaleInWindow, wanted: int
) -> Step:
    now, delay = workload.replicas, a_spec.scaling.scale_in_delay_seconds
    lately = lawful_lately(a_spec, window, wanted)
    if lately >= now or NOW - window.since < delay:
        return Hold, now, Reason.SCALE_IN_DELAYED
    if workload.unsettled is not None:
        return Hold, now, workload.unsettled.reason
    stay = max(lately, -(-(depth.in_handlers + depth.unconfirmed) // workload.concurrency))
    if stay >= now:
        busy = max(lately, -(-depth.in_handlers // workload.concurrency))
        return Hold, now, Reason.WORKERS_BUSY if busy >= now else SILENT.reason
    return Retire, stay, Reason.SURPLUS if stay else Reason.IDLE


@settings(max_examples=1_500)
@given(close_specs, close_observations, close_windows)
def test_decision_matches_the_laws(a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow) -> None:
    decision, _ = decide(a_spec, seen_, window, NOW)
    assert isinstance(seen_.workload, WorkloadState)
    found = type(decision), target(decision, seen_.workload.replicas), decision.reason
    assert found == lawful(a_spec, seen_, window)
    if isinstance(decision, Retire):
        # A person's pin may leave messages without a worker; nothing else may.
        assert decision.only_when_empty is (a_spec.replicas is None)


@settings(max_examples=300)
@given(close_specs, close_observations, close_windows)
def test_scale_in_window_records_the_step(
    a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow
) -> None:
    decision, after = decide(a_spec, seen_, window, NOW)
    delay = a_spec.scaling.scale_in_delay_seconds
    if a_spec.suspend or a_spec.replicas is not None:
        # What was wanted before says nothing about the time after.
        assert after == ScaleInWindow(NOW)
    elif isinstance(seen_.depth, Unknown):
        assert isinstance(seen_.workload, WorkloadState)
        assert after == window.record(NOW, seen_.workload.replicas, delay)
    else:
        assert decision.wanted is not None
        recorded = window.record(NOW, decision.wanted, delay)
        assert after == (replace(recorded, trimmed_at=NOW) if isinstance(decision, Trim) else recorded)


@given(close_specs, close_observations, close_windows)
def test_missing_workload_holds_and_keeps_the_window(
    a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow
) -> None:
    missing = Unknown(Reason.WORKLOAD_NOT_FOUND, "…")
    decision, after = decide(a_spec, replace(seen_, workload=missing), window, NOW)
    if a_spec.suspend:
        assert decision.reason is Reason.SUSPENDED
    else:
        assert (decision, after) == (Hold(None, missing.reason, missing.message), window)


@given(specs, observations, windows)
def test_decide_is_deterministic(a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow) -> None:
    assert decide(a_spec, seen_, window, NOW) == decide(a_spec, seen_, window, NOW)


@given(specs, observations, windows)
def test_unknown_depth_never_changes_the_count(
    a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow
) -> None:
    blind = replace(seen_, depth=OUTAGE)
    decision, _ = decide(a_spec, blind, window, NOW)
    if a_spec.replicas is None:
        assert isinstance(decision, Hold)


@given(specs, observations, windows)
def test_suspended_workqueue_holds(a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow) -> None:
    decision, _ = decide(a_spec.model_copy(update={"suspend": True}), seen_, window, NOW)
    assert isinstance(decision, Hold)
    assert decision.reason is Reason.SUSPENDED


@given(specs, observations, windows)
def test_decision_stays_within_minimum_and_maximum(
    a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow
) -> None:
    decision, _ = decide(a_spec, seen_, window, NOW)
    if (
        isinstance(decision, (ScaleOut, Retire))
        and a_spec.replicas is None
        and decision.reason is not Reason.CANARY
    ):
        scaling = a_spec.scaling
        busy = seen_.depth.most_in_handlers if isinstance(seen_.depth, Depth) else 0
        # An inward step stops at the busy workers, which may be more than a maximum that was lowered.
        assert scaling.min_replicas <= decision.replicas <= max(scaling.max_replicas, busy)


@given(specs, observations, windows)
def test_scale_out_is_one_step(a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow) -> None:
    decision, _ = decide(a_spec, seen_, window, NOW)
    if isinstance(decision, ScaleOut):
        assert isinstance(seen_.workload, WorkloadState)
        assert decision.replicas == (decision.wanted if seen_.workload.proven else min(decision.wanted, 1))
        assert decision.replicas > seen_.workload.replicas


@given(specs, observations, windows)
def test_scale_in_keeps_busy_workers_and_recent_demand(
    a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow
) -> None:
    decision, after = decide(a_spec, seen_, window, NOW)
    if isinstance(decision, Retire) and a_spec.replicas is None:
        assert isinstance(seen_.depth, Depth)
        assert isinstance(seen_.workload, WorkloadState)
        assert decision.replicas >= math.ceil(seen_.depth.most_in_handlers / seen_.workload.concurrency)
        assert decision.replicas >= min(after.highest, a_spec.scaling.max_replicas)
        assert decision.replicas < seen_.workload.replicas
        assert seen_.workload.unsettled is None
        assert NOW - window.since >= a_spec.scaling.scale_in_delay_seconds


@given(specs, observations, windows)
def test_unreachable_worker_never_raises_the_count(
    a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow
) -> None:
    decision, _ = decide(a_spec, seen_, window, NOW)

    if isinstance(decision, ScaleOut) and isinstance(seen_.depth, Depth):
        certain = replace(seen_, depth=replace(seen_.depth, unconfirmed=0))
        known, _ = decide(a_spec, certain, window, NOW)
        assert isinstance(known, ScaleOut)
        assert (known.replicas, known.reason) == (decision.replicas, decision.reason)


@given(specs, observations, windows)
def test_trim_removes_no_pod(a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow) -> None:
    decision, _ = decide(a_spec, seen_, window, NOW)

    if isinstance(decision, Trim):
        assert isinstance(seen_.workload, WorkloadState)
        assert seen_.workload.existing is not None
        assert seen_.workload.existing <= decision.replicas < seen_.workload.replicas


def test_bursts_under_a_quota_trim_once_per_window() -> None:
    """A quota of 3 pods, and 8 messages every 4 s: the count changed 60 times in 120 s."""
    a_spec = spec(messagesPerReplica=1)
    window, counts_written = ScaleInWindow(NOW), [3]
    bursts = [Depth(8, 0, 3), Depth(5, 3, 3), Depth(2, 3, 3), Depth(0, 0, 3)]
    for second in range(120):
        replicas = counts_written[-1]
        refused = 3 if replicas > 3 else None
        observation = seen(replicas, bursts[second % 4], existing=refused, unsettled=SETTLING)
        decision, window = decide(a_spec, observation, window, NOW + second)
        if not isinstance(decision, Hold):
            counts_written.append(decision.replicas)
    assert counts_written == [3, 8, 3, 8, 3, 8]


@given(specs, observations, windows)
def test_pin_decides_the_count(a_spec: WorkQueueSpec, seen_: Observation, window: ScaleInWindow) -> None:
    if a_spec.replicas is None or a_spec.suspend:
        return
    decision, _ = decide(a_spec, seen_, window, NOW)
    assert decision.wanted == a_spec.replicas


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 30)), min_size=1, max_size=40))
def test_scale_in_window_keeps_its_highest_value(steps: list[tuple[int, int]]) -> None:
    window, now, history = ScaleInWindow(0.0), 0.0, []
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
    ("decision", "messages", "message"), STOPPING, ids=["one-message", "no-message", "pinned"]
)
def test_decision_mentions_messages_of_stopping_workers(
    decision: Decision, messages: int, message: str
) -> None:
    assert beside_stopping_workers(decision, messages) == replace(decision, message=message)
