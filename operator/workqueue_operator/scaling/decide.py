"""Decide how many replicas should run. PURE: no I/O, and the clock is an argument.

The result is a Hold, ScaleOut, Retire or Trim, with the reason and the message for the condition, the Event and the
log line.

Property tests hold these laws:

- An unknown depth holds the count. A suspended WorkQueue holds it too, and a pinned one goes to its pin.
- Scale-out is one step, by the lower bound of the depth.
- Scale-in goes to the highest count that was wanted in the window, by the upper bound of the depth, and never
  below the workers that may be busy.
- The count stays between minimum and maximum.
- The same input gives the same output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueueSpec
from workqueue_operator.scaling import wait

ESTIMATED_HANDLER_SECONDS: Final = 1.0
"""The assumed mean handler time, in seconds, until the workers have measured one."""

CANARY_REPLICAS: Final = 1

_ABOUT_THE_BACKLOG: Final = frozenset(
    {
        Reason.AT_CONCURRENCY_LIMIT,
        Reason.AT_MAXIMUM,
        Reason.AT_RATE_LIMIT,
        Reason.BACKLOG,
        Reason.BELOW_MINIMUM,
        Reason.IDLE,
        Reason.SCALE_IN_DELAYED,
        Reason.SURPLUS,
        Reason.WAIT_NOT_MET,
        Reason.WITHIN_BOUNDS,
        Reason.WORKERS_BUSY,
    }
)


@dataclass(frozen=True, slots=True)
class Depth:
    """At least `ready + in_handlers` messages, at most `unconfirmed` more.

    Attributes:
        ready: messages that wait.
        in_handlers: messages that are known to be in a handler.
        consumers: consumers without the doorbell.
        unconfirmed: further messages that may be in a handler: the slots of workers that did not answer.
        doubt: why the depth is not exact; None while every worker answers.
        stale: why the counts may be those of before, so that they remove no worker; None if they are not.
    """

    ready: int
    in_handlers: int
    consumers: int
    unconfirmed: int = 0
    doubt: Unknown | None = None
    stale: Unknown | None = None

    @property
    def most_in_handlers(self) -> int:
        """The most messages that can be in handlers."""
        return self.in_handlers + self.unconfirmed

    def __str__(self) -> str:
        span = f"{self.in_handlers} to {self.most_in_handlers}" if self.unconfirmed else f"{self.in_handlers}"
        return f"{self.ready} waiting and {span} in handlers"


@dataclass(frozen=True, slots=True)
class Load:
    """What the workers measured recently.

    Attributes:
        handler_seconds: mean seconds per message; None before the first measurement.
        arrivals_per_second: messages per second that arrived at the queue.
        waits: what `maxWaitSeconds` needs beside that; None with another target.
        last_handler_seconds: the last known `handler_seconds`, also of workers that have ended.
    """

    handler_seconds: float | None = None
    arrivals_per_second: float = 0.0
    waits: wait.Waits | None = None
    last_handler_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WorkloadState:
    """What a decision depends on in the Deployment.

    Attributes:
        replicas: spec.replicas.
        proven: whether a pod of the current template has ever been Ready.
        unsettled: why the count must not shrink now, or None.
        concurrency: messages that one pod handles at a time.
        existing: how many pods exist while the API server refuses further pods; None while it refuses none.
    """

    replicas: int
    proven: bool = True
    unsettled: Unknown | None = None
    concurrency: int = 1
    existing: int | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a decision depends on.

    Attributes:
        minimum: the fewest replicas at this time (scaling.minReplicas, or a schedule's).
    """

    workload: WorkloadState | Unknown
    depth: Depth | Unknown
    minimum: int = 0
    load: Load = Load()


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the count. `wanted` is the count that the backlog asks for; None when unknown."""

    wanted: int | None
    reason: Reason
    message: str

    @classmethod
    def because(cls, wanted: int | None, why: Unknown) -> Hold:
        """Return a Hold with this reason and message."""
        return cls(wanted, why.reason, why.message)


@dataclass(frozen=True, slots=True)
class ScaleOut:
    """Raise the count to `replicas` in one write."""

    replicas: int
    wanted: int
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Ask idle workers to leave until `replicas` are left.

    Attributes:
        only_when_empty: go to zero only while the queue is empty. A pin to zero does not require that.
    """

    replicas: int
    wanted: int
    only_when_empty: bool
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Trim:
    """Lower the count to `replicas` without asking a worker: no pods exist beyond it."""

    replicas: int
    wanted: int
    reason: Reason
    message: str


Decision: TypeAlias = Hold | ScaleOut | Retire | Trim


@dataclass(frozen=True, slots=True)
class ScaleInWindow:
    """The counts that recent passes wanted, as far as they can still matter.

    Attributes:
        since: when the window began, in seconds on a monotonic clock.
        peaks: (time, wanted), newest last. Each is higher than all later ones.
        trimmed_at: the time of the last Trim; None before the first.
    """

    since: float
    peaks: tuple[tuple[float, int], ...] = ()
    trimmed_at: float | None = None

    def record(self, now: float, wanted: int, seconds: float) -> ScaleInWindow:
        """Return the window with `wanted` at `now`, without entries older than `seconds`."""
        kept = tuple((at, count) for at, count in self.peaks if count > wanted and now - at < seconds)
        return ScaleInWindow(self.since, (*kept, (now, wanted)), self.trimmed_at)

    def is_full(self, now: float, seconds: float) -> bool:
        """Whether the window covers this many seconds."""
        return now - self.since >= seconds

    def has_trim(self, now: float, seconds: float) -> bool:
        """Whether the last Trim is younger than this many seconds."""
        return self.trimmed_at is not None and now - self.trimmed_at < seconds

    def next_end(self, seconds: float) -> float:
        """Return when the highest count leaves the window, or when the window is full if that is later."""
        return max(self.since, self.peaks[0][0] if self.peaks else self.since) + seconds

    @property
    def highest(self) -> int:
        """The highest count in it."""
        return self.peaks[0][1] if self.peaks else 0


def wanted_replicas(spec: WorkQueueSpec, depth: Depth, load: Load, concurrency: int) -> int:
    """Return the count that the backlog asks for, before minimum and maximum.

    With `messagesPerReplica` m: ceil((ready + in handlers) / m). With `targetDrainSeconds` T, handler seconds s and
    arrivals r: ceil((ready * s / T + r * s) / concurrency). The second term is Little's law: enough workers to keep
    up, so that a steady load does not make the count oscillate. With `maxWaitSeconds`: see `wait.needed_slots`.

    Unconfirmed messages count as busy slots. Their workers did not say what they received, so with
    `targetDrainSeconds` and `maxWaitSeconds` they are added to the slots.
    """
    scaling = spec.scaling
    if scaling.messages_per_replica is not None:
        messages = depth.ready + depth.most_in_handlers
        return math.ceil(messages / scaling.messages_per_replica)
    seconds = load.handler_seconds if load.handler_seconds is not None else ESTIMATED_HANDLER_SECONDS
    if scaling.max_wait_seconds is not None:
        waits = load.waits or wait.Waits(((0.0, depth.ready),))
        slots = wait.needed_slots(waits, seconds, load.arrivals_per_second, scaling.max_wait_seconds)
    else:
        drain = scaling.target_drain_seconds or 1
        slots = depth.ready * seconds / drain + load.arrivals_per_second * seconds
    some = 1 if depth.ready or depth.in_handlers or depth.unconfirmed else 0
    return max(math.ceil((slots + depth.unconfirmed) / concurrency), some)


def decide(
    spec: WorkQueueSpec, seen: Observation, window: ScaleInWindow, now: float
) -> tuple[Decision, ScaleInWindow]:
    """Decide one step.

    Args:
        now: seconds on the clock of `window`.

    Returns:
        The decision, and the window to pass in next time.
    """
    if spec.suspend:
        return Hold(
            None, Reason.SUSPENDED, "spec.suspend is true: scaling and declaring are stopped."
        ), ScaleInWindow(now)
    if isinstance(seen.workload, Unknown):
        return Hold.because(None, seen.workload), window
    if spec.replicas is not None:
        return _pinned(spec.replicas, seen.workload), ScaleInWindow(now)
    if isinstance(seen.depth, Unknown):
        # A time without knowledge must not make the count shrink afterwards.
        unknown = window.record(now, seen.workload.replicas, spec.scaling.scale_in_delay_seconds)
        return Hold.because(None, seen.depth), unknown
    bounds = _bounds(spec, seen.workload, seen.depth, seen)
    delay = spec.scaling.scale_in_delay_seconds
    window = window.record(now, bounds.wanted, delay)
    highest = _highest(spec, seen.workload, window, now)
    # With no message waiting, only handled messages count, but once per window: under a quota, bursts would
    # otherwise raise and lower the count in turn.
    at_once = seen.depth.ready == 0 and not window.has_trim(now, delay)
    trim = None
    if seen.depth.stale is None:
        trim = _trim(bounds.least if at_once else highest, bounds.wanted, seen.workload)
    if trim is not None:
        return trim, replace(window, trimmed_at=now)
    return _step(_Case(spec, seen.workload, seen.depth, bounds, highest)), window


def _highest(spec: WorkQueueSpec, workload: WorkloadState, window: ScaleInWindow, now: float) -> int:
    """The highest count wanted in the window. Until the window is full, at least the present count."""
    highest = min(window.highest, spec.most_replicas)
    full = window.is_full(now, spec.scaling.scale_in_delay_seconds)
    return highest if full else max(highest, workload.replicas)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What the depth asks for.

    Attributes:
        backlog: the fewest replicas that the backlog asks for.
        need: as many of them as limits.ratePerSecond has starts for, before minimum and maximum.
        minimum: the fewest replicas that are allowed.
        maximum: the most replicas that are allowed.
        least: `need` between minimum and maximum.
        wanted: the count nearest to the present one that the depth allows.
    """

    backlog: int
    need: int
    minimum: int
    maximum: int
    least: int
    wanted: int


@dataclass(frozen=True, slots=True)
class _Case:
    """A WorkQueue without a pin whose depth is known.

    Attributes:
        highest: the highest count that was wanted in the scale-in window.
    """

    spec: WorkQueueSpec
    workload: WorkloadState
    depth: Depth
    bounds: _Bounds
    highest: int


def _bounds(spec: WorkQueueSpec, workload: WorkloadState, depth: Depth, seen: Observation) -> _Bounds:
    maximum = spec.most_replicas
    minimum = min(max(spec.scaling.min_replicas, seen.minimum), maximum)

    def within(count: int) -> int:
        return min(max(count, minimum), maximum)

    # Scale-out follows the lower bound of the depth, scale-in the upper bound.
    most = backlog = wanted_replicas(spec, depth, seen.load, workload.concurrency)
    if depth.unconfirmed:
        confirmed = replace(depth, unconfirmed=0)
        backlog = wanted_replicas(spec, confirmed, seen.load, workload.concurrency)
    # Not a maximum, at which the count shrinks at once: handler times vary.
    by_rate = spec.most_by_rate(seen.load.last_handler_seconds)
    need = backlog if by_rate is None else min(backlog, by_rate)
    most = most if by_rate is None else min(most, by_rate)
    wanted = min(max(workload.replicas, within(need)), within(most))
    return _Bounds(backlog, need, minimum, maximum, within(need), wanted)


def _pinned(pin: int, workload: WorkloadState) -> Decision:
    message = f"spec.replicas pins the count to {pin}; a merge patch that sets it to null releases it."
    if pin > workload.replicas:
        return _outward(pin, workload, Reason.PINNED, message)
    if pin < workload.replicas:
        if (trim := _trim(pin, pin, workload)) is not None:
            return trim
        if workload.unsettled is not None:
            return Hold.because(pin, workload.unsettled)
        return Retire(pin, pin, only_when_empty=False, reason=Reason.PINNED, message=message)
    return Hold(pin, Reason.PINNED, message)


def _step(case: _Case) -> Decision:
    spec, workload, depth, bounds = case.spec, case.workload, case.depth, case.bounds
    wanted = bounds.wanted
    if wanted > workload.replicas:
        reason = Reason.BELOW_MINIMUM if bounds.need < bounds.minimum else Reason.BACKLOG
        return _outward(wanted, workload, reason, f"{depth} ask for {_replicas(wanted)}.")
    if wanted < workload.replicas:
        return _inward(case) if depth.stale is None else Hold.because(wanted, depth.stale)
    if bounds.backlog > max(min(bounds.need, bounds.maximum), workload.replicas):
        return _at_most(spec, bounds, f"{depth} ask for {_replicas(bounds.backlog)}")
    if bounds.least < workload.replicas and depth.doubt is not None:
        return Hold.because(wanted, depth.doubt)
    if depth.ready == depth.most_in_handlers == 0:
        return Hold(wanted, Reason.IDLE, f"Nothing is waiting or in a handler: {_replicas(wanted)}.")
    return Hold(wanted, Reason.WITHIN_BOUNDS, f"{depth} ask for {_replicas(wanted)}.")


def _at_most(spec: WorkQueueSpec, bounds: _Bounds, backlog: str) -> Hold:
    """Hold a lower count than the backlog asks for."""
    wanted = bounds.wanted
    if spec.limits is not None and bounds.need <= bounds.maximum:
        message = (
            f"{backlog}, but limits.ratePerSecond is {spec.limits.rate_per_second:g}, which {_replicas(bounds.need)} "
            "can use up."
        )
        return Hold(wanted, Reason.AT_RATE_LIMIT, message)
    if spec.queue.single_active_consumer:
        message = f"{backlog}, but queue.singleActiveConsumer lets one worker at a time take messages."
        return Hold(wanted, Reason.SINGLE_ACTIVE_CONSUMER, message)
    if spec.limits is not None and spec.limit_is_maximum:
        message = (
            f"{backlog}, but limits.concurrency is {spec.limits.concurrency}, which "
            f"{_replicas(spec.most_replicas)} can use up."
        )
        return Hold(wanted, Reason.AT_CONCURRENCY_LIMIT, message)
    if spec.scaling.max_wait_seconds is not None:
        message = (
            f"{backlog} to start within {spec.scaling.max_wait_seconds} s, but scaling.maxReplicas is "
            f"{spec.most_replicas}."
        )
        return Hold(wanted, Reason.WAIT_NOT_MET, message)
    return Hold(wanted, Reason.AT_MAXIMUM, f"{backlog}, but scaling.maxReplicas is {spec.most_replicas}.")


def _trim(needed: int, wanted: int, workload: WorkloadState) -> Trim | None:
    if workload.existing is None or max(needed, workload.existing) >= workload.replicas:
        return None
    target = max(needed, workload.existing)
    return Trim(
        target,
        wanted,
        Reason.POD_REFUSED,
        f"The API server refuses pods beyond the {workload.existing} that exist, and {_replicas(target)} are enough "
        "now; no pod is removed.",
    )


def _outward(wanted: int, workload: WorkloadState, reason: Reason, message: str) -> Decision:
    if workload.proven or wanted <= CANARY_REPLICAS:
        return ScaleOut(wanted, wanted, reason, message)
    waiting = (
        f"{_replicas(wanted)} are wanted, but no pod of this template has been Ready yet: one goes first."
    )
    if workload.replicas >= CANARY_REPLICAS:
        return Hold(wanted, Reason.CANARY, waiting)
    return ScaleOut(CANARY_REPLICAS, wanted, Reason.CANARY, waiting)


def _inward(case: _Case) -> Decision:
    workload, depth, wanted, highest = case.workload, case.depth, case.bounds.wanted, case.highest
    delay = case.spec.scaling.scale_in_delay_seconds
    if highest >= workload.replicas:
        return Hold(
            wanted,
            Reason.SCALE_IN_DELAYED,
            f"{depth} ask for {_replicas(wanted)}; more were wanted in the last {delay} s.",
        )
    if workload.unsettled is not None:
        return Hold.because(wanted, workload.unsettled)
    target = max(highest, math.ceil(depth.most_in_handlers / workload.concurrency))
    if target >= workload.replicas:
        busy = math.ceil(depth.in_handlers / workload.concurrency)
        if depth.doubt is not None and max(highest, busy) < workload.replicas:
            return Hold.because(wanted, depth.doubt)
        return Hold(
            wanted, Reason.WORKERS_BUSY, f"{_replicas(wanted)} are wanted, but {busy} are in a handler."
        )
    if target == 0:
        reason, message = Reason.IDLE, "Nothing waits or is in a handler."
        if delay:
            message = f"Nothing has waited or been in a handler for {delay} s."
    else:
        reason = Reason.SURPLUS
        message = f"{depth}; no more than {_replicas(target)} wanted in the last {delay} s."
    return Retire(target, wanted, only_when_empty=True, reason=reason, message=message)


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def beside_stopping_workers(decision: Decision, messages: int) -> Decision:
    """Add to the message how many messages terminating workers handle.

    The depth does not include them, so "nothing is in a handler" alone would be wrong.
    """
    if not messages or decision.reason not in _ABOUT_THE_BACKLOG:
        return decision
    counted = "1 message" if messages == 1 else f"{messages} messages"
    message = (
        f"{decision.message.removesuffix('.')}, not counting {counted} in workers that are shutting down."
    )
    return replace(decision, message=message)
