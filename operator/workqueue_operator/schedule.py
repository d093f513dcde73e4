"""Scheduled minimums: which of them apply at a moment. PURE: the clock is an argument.

Place in the flow: `reconcile` asks before it decides. Cron expressions and daylight saving time are the
business of cronsim, which follows Debian's cron.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from .errors import Trouble
from .model import Schedule, WorkQueueSpec
from .reasons import Reason


def minimum_replicas(spec: WorkQueueSpec, now: datetime) -> int:
    """The fewest replicas at `now` (aware): scaling.minReplicas, or the highest schedule that applies.

    Raises:
        Trouble: a cron expression or time zone cannot be read.
    """
    active = [schedule.min_replicas for schedule in spec.scaling.schedules if is_active(schedule, now)]
    return max([spec.scaling.min_replicas, *active])


def is_active(schedule: Schedule, now: datetime) -> bool:
    """Whether the schedule's last start is later than its last end."""
    try:
        local = now.astimezone(ZoneInfo(schedule.time_zone))
        start = _last(schedule.start, local)
        end = _last(schedule.end, local)
    except (CronSimError, ZoneInfoNotFoundError, ValueError, OSError) as error:
        # OSError: "Europe" is a folder of the zone database.
        name = f" {schedule.name!r}" if schedule.name else ""
        raise Trouble(
            Reason.SPEC_INVALID,
            f"The schedule{name} cannot be read ({error}). Correct start {schedule.start!r}, end "
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
