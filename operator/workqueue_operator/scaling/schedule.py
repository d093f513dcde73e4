"""Scheduled minimums: which of them apply at a moment. PURE: the clock is an argument.

cronsim handles cron expressions and daylight saving time; it follows Debian's cron. A schedule that cannot be read is
ignored and named; the others still apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import Schedule, WorkQueueSpec
from workqueue_operator.errors import ReconcileError


@dataclass(frozen=True, slots=True)
class Minimum:
    """The fewest replicas at a moment.

    Attributes:
        ignored: which schedules cannot be read, and why; None while all can.
    """

    replicas: int
    ignored: Unknown | None = None


def minimum_replicas(spec: WorkQueueSpec, now: datetime) -> Minimum:
    """Return scaling.minReplicas, or the highest minimum of the schedules that apply at `now` (aware)."""
    counts, mistakes = [spec.scaling.min_replicas], []
    for schedule in spec.scaling.schedules:
        try:
            if is_active(schedule, now):
                counts.append(schedule.min_replicas)
        except ReconcileError as problem:
            mistakes.append(problem.message)
    return Minimum(max(counts), Unknown(Reason.SCHEDULE_INVALID, " ".join(mistakes)) if mistakes else None)


def is_active(schedule: Schedule, now: datetime) -> bool:
    """Whether the schedule's last start is later than its last end.

    Raises:
        ReconcileError: a cron expression or the time zone cannot be read.
    """
    try:
        local = now.astimezone(ZoneInfo(schedule.time_zone))
        start = _last(schedule.start, local)
        end = _last(schedule.end, local)
    except (CronSimError, ZoneInfoNotFoundError, ValueError, OSError) as error:
        # OSError: "Europe" is a folder of the zone database.
        name = f" {schedule.name!r}" if schedule.name else ""
        raise ReconcileError(
            Reason.SCHEDULE_INVALID,
            f"The schedule{name} cannot be read ({error}) and is ignored. Correct start {schedule.start!r}, end "
            f"{schedule.end!r} or timeZone {schedule.time_zone!r}.",
        ) from error
    return start is not None and (end is None or start > end)


def _last(expression: str, local: datetime) -> datetime | None:
    """The last time at or before `local`, in UTC."""
    # One minute ahead, so that the minute that has just begun counts; cronsim leaves out its own start.
    moment = next(CronSim(expression, _minute_after(local), reverse=True), None)
    return moment.astimezone(UTC) if moment is not None else None


def _minute_after(local: datetime) -> datetime:
    zone = local.tzinfo
    return datetime.fromtimestamp((local.timestamp() // 60 + 1) * 60, tz=zone)
