"""Explain the replica count of a WorkQueue: why it is so, and what would change it. Pure.

The count is calculated as in the operator (`workqueue_operator.scaling.decide`), from the status of the WorkQueue and
of the workers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim

from workqueue_operator.api.reasons import ConditionType, Reason
from workqueue_operator.api.workqueue import ConditionStatus, Schedule, WorkQueue
from workqueue_operator.errors import ReconcileError
from workqueue_operator.scaling.decide import ESTIMATED_HANDLER_SECONDS, Depth, Load, wanted_replicas
from workqueue_operator.scaling.schedule import is_active, minimum_replicas
from workqueue_operator.scaling.wait import HandlerTimes, Waits

_MOST_MESSAGES: Final = 10_000_000
"""More messages are not looked for."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Data from the workers.

    Attributes:
        in_handlers: messages in handlers; None unless all workers have answered.
        in_stopping_workers: messages in handlers of stopping workers. Not part of `in_handlers`, because they need no
            new worker.
        handler_seconds: recent mean time per message; None before the first message.
        arrivals_per_second: recent deliveries to the workers.
        busy_seconds: for how long the handler of each busy slot has run.
        handler_times: the distribution of handler times; None before the first message.
    """

    in_handlers: int | None
    in_stopping_workers: int = 0
    handler_seconds: float | None = None
    arrivals_per_second: float = 0.0
    busy_seconds: Sequence[float] = ()
    handler_times: HandlerTimes | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """The begin or end of a schedule.

    Attributes:
        at: time in the time zone of the schedule.
    """

    at: datetime
    sentence: str


def why(workqueue: WorkQueue, seen: Seen, now: datetime) -> list[str]:
    """Return sentences that explain the current count.

    Args:
        now: the current time, with a time zone.
    """
    status, scaling = workqueue.status, workqueue.spec.scaling
    active = status.condition(ConditionType.SCALING_ACTIVE.value)
    sentences = []
    if active is not None:
        sentences.append(f"{active.reason}: {active.message}")
    if active is None or active.status is not ConditionStatus.TRUE:
        return sentences or ["The operator has not reconciled it yet."]
    if status.messages is None or seen.in_handlers is None:
        unknown = "waiting messages" if status.messages is None else "messages in handlers"
        return [*sentences, f"The number of {unknown} is currently unknown."]
    wanted = _wanted(workqueue, status.messages, seen)
    sentences.append(
        f"{status.messages} waiting and {seen.in_handlers} in handlers need {_replicas(wanted)}"
        f" ({_target(workqueue, seen)})."
    )
    if seen.in_stopping_workers:
        sentences.append(
            f"{_messages(seen.in_stopping_workers)} more in stopping workers, which need no new worker."
        )
    if status.retrying:
        sentences.append(f"{_messages(status.retrying)} in delay queues until the next attempt.")
    low, high = _bounds(workqueue, seen, now)
    if wanted > high:
        sentences.append(_limit(workqueue, high))
    elif wanted < low:
        cause = "scaling.minReplicas" if low == scaling.min_replicas else "The schedule's minimum"
        sentences.append(f"{cause} is {low}.")
    return sentences


def what_would_change_it(workqueue: WorkQueue, seen: Seen, now: datetime) -> list[str]:
    """Return sentences that explain what would raise or lower the count.

    Args:
        now: the current time, with a time zone.
    """
    name, spec, status = workqueue.metadata.name, workqueue.spec, workqueue.status
    if spec.suspend:
        return [f"To resume scaling: `kubectl workqueue resume {name}`."]
    if spec.replicas is not None:
        return [f"To resume scaling: `kubectl workqueue scale {name} --release`."]
    active = status.condition(ConditionType.SCALING_ACTIVE.value)
    if active is None or status.desired_replicas is None:
        return ["Nothing until the operator has reconciled it. See its conditions."]
    if active.status is not ConditionStatus.TRUE and active.reason != Reason.RETIRE_UNREACHABLE:
        return [f"Nothing until {active.reason} is resolved."]
    count, (low, high) = status.desired_replicas, _bounds(workqueue, seen, now)
    return [_upward(workqueue, seen, count, high), _downward(workqueue, seen, count, low)]


def next_change(workqueue: WorkQueue, now: datetime) -> Change | None:
    """Return the next begin or end of a schedule, if any. Ignores invalid schedules.

    Args:
        now: the current time, with a time zone.
    """
    return min(_changes(workqueue, now), key=lambda change: change.at, default=None)


def _changes(workqueue: WorkQueue, now: datetime) -> Iterator[Change]:
    for schedule in workqueue.spec.scaling.schedules:
        try:
            active = is_active(schedule, now)
        except ReconcileError:
            continue  # a condition of the WorkQueue reports it
        at = _next(schedule, schedule.end if active else schedule.start, now)
        if at is None:
            continue
        minimum = minimum_replicas(workqueue.spec, at).replicas
        name = f"The schedule {schedule.name!r}" if schedule.name else "A schedule"
        verb = "ends" if active else "begins"
        yield Change(
            at,
            f"{name} {verb} at {at:%a %d %b %H:%M} {schedule.time_zone}. The minimum is then {_replicas(minimum)}.",
        )


def _next(schedule: Schedule, expression: str, now: datetime) -> datetime | None:
    return next(CronSim(expression, now.astimezone(ZoneInfo(schedule.time_zone))), None)


def _bounds(workqueue: WorkQueue, seen: Seen, now: datetime) -> tuple[int, int]:
    low, high = minimum_replicas(workqueue.spec, now).replicas, workqueue.spec.most_replicas
    low, by_rate = min(low, high), workqueue.spec.most_by_rate(seen.handler_seconds)
    return low, high if by_rate is None else min(high, max(low, by_rate))


def _limit(workqueue: WorkQueue, high: int) -> str:
    if workqueue.spec.queue.single_active_consumer:
        return "queue.singleActiveConsumer allows one worker."
    limits = workqueue.spec.limits
    if limits is not None and high < workqueue.spec.most_replicas:
        return f"limits.ratePerSecond is {limits.rate_per_second:g}, which {_replicas(high)} can use up."
    if limits is not None and workqueue.spec.limit_is_maximum:
        return f"limits.concurrency is {limits.concurrency}, which {_replicas(high)} can use up."
    return f"scaling.maxReplicas is {high}."


def _wanted(workqueue: WorkQueue, ready: int, seen: Seen) -> int:
    depth = Depth(ready, seen.in_handlers or 0, 0)
    # The plugin does not know how long messages have waited.
    slots = (workqueue.status.desired_replicas or 0) * _concurrency(workqueue)
    waits = Waits(((0.0, ready),), seen.busy_seconds, slots, seen.handler_times)
    load = Load(seen.handler_seconds, seen.arrivals_per_second, waits)
    return wanted_replicas(workqueue.spec, depth, load, _concurrency(workqueue))


def _target(workqueue: WorkQueue, seen: Seen) -> str:
    scaling = workqueue.spec.scaling
    if scaling.messages_per_replica is not None:
        return f"{_messages(scaling.messages_per_replica)} per replica"
    if scaling.max_wait_seconds is not None:
        mean = seen.handler_times.mean() if seen.handler_times is not None else _seconds(seen)
        return (
            f"new ones to start within {scaling.max_wait_seconds} s, with {mean:.3g} s per message on average"
        )
    return (
        f"to finish in {scaling.target_drain_seconds} s, with {_seconds(seen):.3g} s per message and "
        f"{seen.arrivals_per_second:.3g} new messages per second"
    )


def _upward(workqueue: WorkQueue, seen: Seen, count: int, high: int) -> str:
    scaling = workqueue.spec.scaling
    if count >= high:
        return f"Up: not possible, {_limit(workqueue, high)}"
    if scaling.messages_per_replica is not None:
        least = count * scaling.messages_per_replica + 1
        return f"Up: immediately at {_messages(least)} or more, waiting and in handlers."
    least = _most_waiting(workqueue, seen, count) + 1
    return f"Up: immediately at {_messages(least)} or more waiting, at the same speed and rate."


def _downward(workqueue: WorkQueue, seen: Seen, count: int, low: int) -> str:
    scaling = workqueue.spec.scaling
    if count == 0:
        return "Down: not possible, the count is 0."
    if count <= low:
        return f"Down: not possible, the minimum is {low}."
    when = f"for {scaling.scale_in_delay_seconds} s. Idle workers stop first; busy workers finish their messages."
    if count == 1:
        return f"Down: after no message was waiting or in a handler {when}"
    if scaling.messages_per_replica is not None:
        return f"Down: at {_messages((count - 1) * scaling.messages_per_replica)} or fewer {when}"
    return f"Down: at {_messages(_most_waiting(workqueue, seen, count - 1))} or fewer waiting {when}"


def _most_waiting(workqueue: WorkQueue, seen: Seen, replicas: int) -> int:
    """Return the most waiting messages for which so many replicas are enough."""
    counts = range(_MOST_MESSAGES)
    return max(bisect_right(counts, replicas, key=lambda ready: _wanted(workqueue, ready, seen)) - 1, 0)


def _seconds(seen: Seen) -> float:
    return seen.handler_seconds or ESTIMATED_HANDLER_SECONDS


def _concurrency(workqueue: WorkQueue) -> int:
    return workqueue.spec.worker.concurrency if workqueue.spec.worker is not None else 1


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"
