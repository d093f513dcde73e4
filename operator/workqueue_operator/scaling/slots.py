"""The slots of a recurring message, and what to do at a moment. PURE: the clock is an argument.

A slot is the time for which one message is due. cronsim handles cron expressions and daylight saving time; it follows
Debian's cron: a time that does not exist is moved to after the gap, a time that exists twice counts once, and an
expression with `*` in minute or hour runs in real time. Slots of `everySeconds` are multiples since 1970 in UTC, so
that every leader finds the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import MissedSlots, Recurring, RecurringStatus
from workqueue_operator.errors import ReconcileError

LATE: Final = timedelta(seconds=60)
"""A slot of up to this age is published, whatever `missed` says: a failover takes seconds. An older one is missed."""

_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due.

    Attributes:
        until: the next slot; None if there is none.
    """

    until: datetime | None


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish the message of a slot.

    Attributes:
        slot: its time, in UTC.
        uncertain: whether another process may have published it.
        missed: the first and the last slot that is left out; None if none is.
    """

    slot: datetime
    uncertain: bool = False
    missed: tuple[datetime, datetime] | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Only record progress: of an entry that is new or was changed, or whose slots were missed.

    Attributes:
        missed: the first and the last slot that is left out; None if none is.
    """

    progress: RecurringStatus
    missed: tuple[datetime, datetime] | None = None


Action: TypeAlias = Wait | Publish | Note


def action(entry: Recurring, progress: RecurringStatus | None, now: datetime) -> Action:
    """Return what to do for an entry.

    Args:
        progress: what the status says about it; None before the first look.
        now: aware.

    Raises:
        ReconcileError: the cron expression or the time zone cannot be read.
    """
    now = now.astimezone(UTC)
    schedule = schedule_text(entry)
    if progress is not None and progress.publishing is not None:
        slot = progress.publishing
        if not entry.suspend:
            return Publish(slot, uncertain=True)
        left_out = RecurringStatus(
            name=entry.name, schedule=schedule, slot=max(now, slot), published=progress.published
        )
        return Note(left_out, missed=(slot, slot))
    if progress is None or progress.schedule != schedule:
        # Slots before this moment belong to no schedule, or to another one.
        published = None if progress is None else progress.published
        return Note(RecurringStatus(name=entry.name, schedule=schedule, slot=now, published=published))
    if entry.suspend:
        return Wait(None)
    first = next_slot(entry, progress.slot)
    if first is None or first > now:
        return Wait(first)
    return _due(entry, progress, first, now)


def _due(entry: Recurring, progress: RecurringStatus, first: datetime, now: datetime) -> Publish | Note:
    """Return what to do for an entry whose slot `first` is due."""
    limit = now - LATE
    if first >= limit:
        return Publish(first)
    # Going back, cronsim finds no slot in the hour that does not exist.
    last = max(first, last_slot(entry, limit) or first)
    if entry.missed is MissedSlots.SKIP:
        return Note(progress.model_copy(update={"slot": last}), missed=(first, last))
    return Publish(last, missed=(first, last) if first < last else None)


def published(progress: RecurringStatus, slot: datetime) -> RecurringStatus:
    """Return the progress after the message of a slot was confirmed."""
    return progress.model_copy(update={"slot": slot, "publishing": None, "published": slot})


def schedule_text(entry: Recurring) -> str:
    """Return what decides about the slots of an entry. After a change of it, slots of before are not missed."""
    if entry.suspend:
        return "suspended"
    return f"every {entry.every_seconds} s" if entry.cron is None else f"{entry.cron} {entry.time_zone}"


def message_id(workqueue: str, entry: str, slot: datetime) -> str:
    """Return the id of the message of a slot. It is the same whoever publishes it, and however often."""
    return f"{workqueue}/{entry}/{slot:%Y-%m-%dT%H:%M:%SZ}"


def next_slot(entry: Recurring, after: datetime) -> datetime | None:
    """Return the first slot after a moment, in UTC.

    Raises:
        ReconcileError: the cron expression or the time zone cannot be read.
    """
    if entry.every_seconds is not None:
        return _multiple(entry.every_seconds, after) + timedelta(seconds=entry.every_seconds)
    return _slot(entry, after, reverse=False)


def last_slot(entry: Recurring, at: datetime) -> datetime | None:
    """Return the last slot at or before a moment, in UTC.

    Raises:
        ReconcileError: the cron expression or the time zone cannot be read.
    """
    if entry.every_seconds is not None:
        return _multiple(entry.every_seconds, at)
    # cronsim leaves out the moment from which it starts.
    return _slot(entry, at.replace(second=0, microsecond=0) + _MINUTE, reverse=True)


def _multiple(seconds: int, at: datetime) -> datetime:
    return datetime.fromtimestamp(int(at.timestamp()) // seconds * seconds, UTC)


def _slot(entry: Recurring, start: datetime, *, reverse: bool) -> datetime | None:
    try:
        local = start.astimezone(ZoneInfo(entry.time_zone))
        found = next(CronSim(entry.cron or "", local, reverse=reverse), None)
    except (CronSimError, ZoneInfoNotFoundError, ValueError, OSError) as error:
        # OSError: "Europe" is a folder of the zone database.
        raise ReconcileError(
            Reason.RECURRING_INVALID,
            f"The recurring message {entry.name!r} cannot be read ({error}) and is not published. Correct cron "
            f"{entry.cron!r} or timeZone {entry.time_zone!r}.",
        ) from error
    return None if found is None else found.astimezone(UTC)
