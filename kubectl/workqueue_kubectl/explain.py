"""Why a WorkQueue is at its count, what would change it, and what is next. PURE: the clock is an argument.

Place in the flow: `status` shows these sentences. The count is worked out as the operator does it
(`workqueue_operator.scaling.decide`), from what the WorkQueue's status and the workers say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim

from workqueue_operator.api.reasons import ConditionType, Reason
from workqueue_operator.api.workqueue import ConditionStatus, Schedule, WorkQueue
from workqueue_operator.errors import ReconcileError
from workqueue_operator.scaling.decide import ESTIMATED_HANDLER_SECONDS, Depth, Load, wanted_replicas
from workqueue_operator.scaling.schedule import is_active, minimum_replicas


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known beside the WorkQueue itself.

    Attributes:
        in_handlers: messages that workers have in hand; None when not all of them could be asked.
        in_stopping_workers: messages in hand of workers that were told to stop; they are no part of `in_handlers`,
            since they need no new worker.
        handler_seconds: mean time of one message lately; None before the first.
        arrivals_per_second: messages that the workers took lately.
    """

    in_handlers: int | None
    in_stopping_workers: int = 0
    handler_seconds: float | None = None
    arrivals_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A schedule begins or ends.

    Attributes:
        at: in the schedule's own time zone.
    """

    at: datetime
    sentence: str


def why(workqueue: WorkQueue, seen: Seen, now: datetime) -> list[str]:
    """Sentences that say why the count is what it is.

    Args:
        now: aware.
    """
    status, scaling = workqueue.status, workqueue.spec.scaling
    active = status.condition(ConditionType.SCALING_ACTIVE.value)
    sentences = []
    if active is not None:
        sentences.append(f"{active.reason}: {active.message}")
    if active is None or active.status is not ConditionStatus.TRUE:
        return sentences or ["The operator has not looked at it yet."]
    if status.messages is None or seen.in_handlers is None:
        unknown = "how many messages wait" if status.messages is None else "how many are in handlers"
        return [*sentences, f"Just now it is not known {unknown}."]
    wanted = _wanted(workqueue, status.messages, seen)
    sentences.append(
        f"{status.messages} waiting and {seen.in_handlers} in handlers ask for {_replicas(wanted)}"
        f" ({_target(workqueue, seen)})."
    )
    if seen.in_stopping_workers:
        sentences.append(
            f"{_messages(seen.in_stopping_workers)} more in workers that are shutting down: no new worker is needed."
        )
    if status.retrying:
        sentences.append(
            f"{_messages(status.retrying)} wait for a retry and come back to the queue when their delay is over."
        )
    low, high = _bounds(workqueue, now)
    if wanted > high:
        sentences.append(_limit(workqueue, high))
    elif wanted < low:
        cause = "scaling.minReplicas" if low == scaling.min_replicas else "The schedule's minimum"
        sentences.append(f"{cause} is {low}.")
    return sentences


def what_would_change_it(workqueue: WorkQueue, seen: Seen, now: datetime) -> list[str]:
    """Sentences that say what makes the count go up and what makes it go down.

    Args:
        now: aware.
    """
    name, spec, status = workqueue.metadata.name, workqueue.spec, workqueue.status
    if spec.suspend:
        return [f"`kubectl workqueue resume {name}` lets it follow the queue again."]
    if spec.replicas is not None:
        return [f"`kubectl workqueue scale {name} --release` lets it follow the queue again."]
    active = status.condition(ConditionType.SCALING_ACTIVE.value)
    if active is None or status.desired_replicas is None:
        return ["Nothing, until the operator has looked at it: see its conditions."]
    if active.status is not ConditionStatus.TRUE and active.reason != Reason.RETIRE_UNREACHABLE:
        return [f"Nothing, until {active.reason} is over."]
    count, (low, high) = status.desired_replicas, _bounds(workqueue, now)
    return [_upward(workqueue, seen, count, high), _downward(workqueue, seen, count, low)]


def next_change(workqueue: WorkQueue, now: datetime) -> Change | None:
    """The next start or end of a schedule; None when there is none. One that cannot be read is ignored.

    Args:
        now: aware.
    """
    return min(_changes(workqueue, now), key=lambda change: change.at, default=None)


def _changes(workqueue: WorkQueue, now: datetime) -> Iterator[Change]:
    for schedule in workqueue.spec.scaling.schedules:
        try:
            active = is_active(schedule, now)
        except ReconcileError:
            continue  # the condition of the WorkQueue names it
        at = _next(schedule, schedule.end if active else schedule.start, now)
        if at is None:
            continue
        minimum = minimum_replicas(workqueue.spec, at).replicas
        name = f"The schedule {schedule.name!r}" if schedule.name else "A schedule"
        turn = "ends" if active else "begins"
        yield Change(
            at,
            f"{name} {turn} at {at:%a %d %b %H:%M} {schedule.time_zone}: then at least {_replicas(minimum)}.",
        )


def _next(schedule: Schedule, expression: str, now: datetime) -> datetime | None:
    return next(CronSim(expression, now.astimezone(ZoneInfo(schedule.time_zone))), None)


def _bounds(workqueue: WorkQueue, now: datetime) -> tuple[int, int]:
    low, high = minimum_replicas(workqueue.spec, now).replicas, workqueue.spec.most_replicas
    return min(low, high), high


def _limit(workqueue: WorkQueue, high: int) -> str:
    if workqueue.spec.queue.single_active_consumer:
        return "queue.singleActiveConsumer lets one worker at a time take messages."
    return f"scaling.maxReplicas is {high}."


def _wanted(workqueue: WorkQueue, ready: int, seen: Seen) -> int:
    depth = Depth(ready, seen.in_handlers or 0, 0)
    load = Load(seen.handler_seconds, seen.arrivals_per_second)
    return wanted_replicas(workqueue.spec, depth, load, _concurrency(workqueue))


def _target(workqueue: WorkQueue, seen: Seen) -> str:
    scaling = workqueue.spec.scaling
    if scaling.target_drain_seconds is None:
        return f"{_messages(scaling.messages_per_replica or 1)} each"
    return (
        f"to be done within {scaling.target_drain_seconds} s, at {_seconds(seen):.3g} s a message and "
        f"{seen.arrivals_per_second:.3g} messages a second that arrive"
    )


def _upward(workqueue: WorkQueue, seen: Seen, count: int, high: int) -> str:
    scaling = workqueue.spec.scaling
    if count >= high:
        return f"Up: not any more, {_limit(workqueue, high)}"
    if scaling.target_drain_seconds is None:
        least = count * (scaling.messages_per_replica or 1) + 1
        return f"Up: from {_messages(least)} on, waiting and in handlers together; at once."
    slots = count * _concurrency(workqueue) - seen.arrivals_per_second * _seconds(seen)
    least = math.floor(max(slots, 0.0) * scaling.target_drain_seconds / _seconds(seen)) + 1
    return f"Up: from {_messages(least)} on that wait, at the same speed and rate; at once."


def _downward(workqueue: WorkQueue, seen: Seen, count: int, low: int) -> str:
    scaling = workqueue.spec.scaling
    if count == 0:
        return "Down: it is at none."
    if count <= low:
        return f"Down: not any more, the minimum is {low}."
    when = f"for {scaling.scale_in_delay_seconds} s; idle workers first, busy ones stay until they are done."
    if count == 1:
        return f"Down: when nothing waits and nothing is in a handler, {when}"
    if scaling.target_drain_seconds is None:
        return f"Down: at {_messages((count - 1) * (scaling.messages_per_replica or 1))} or fewer, {when}"
    slots = (count - 1) * _concurrency(workqueue) - seen.arrivals_per_second * _seconds(seen)
    most = math.floor(max(slots, 0.0) * scaling.target_drain_seconds / _seconds(seen))
    return f"Down: at {_messages(most)} or fewer that wait, {when}"


def _seconds(seen: Seen) -> float:
    return seen.handler_seconds or ESTIMATED_HANDLER_SECONDS


def _concurrency(workqueue: WorkQueue) -> int:
    return workqueue.spec.worker.concurrency if workqueue.spec.worker is not None else 1


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"
