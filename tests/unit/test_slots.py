"""The slots of recurring messages: when one is due, through changes of the clock, failovers and long pauses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import Recurring, RecurringStatus
from workqueue_operator.errors import ReconcileError
from workqueue_operator.scaling.slots import (
    LATE,
    Note,
    Publish,
    Wait,
    action,
    last_slot,
    next_slot,
    published,
    schedule_text,
)

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
BERLIN = "Europe/Berlin"


def entry(**fields: Any) -> Recurring:
    return Recurring.model_validate({"name": "report", "everySeconds": 600} | fields)


def hourly(**fields: Any) -> Recurring:
    return Recurring.model_validate({"name": "report", "cron": "0 * * * *"} | fields)


def seen(of: Recurring, slot: datetime, **fields: Any) -> RecurringStatus:
    return RecurringStatus(name=of.name, schedule=schedule_text(of), slot=slot, **fields)


CLOCKS = {
    "time in the missing hour, moved to its end": ("30 2 * * *", BERLIN, "2026-03-28 12:00", "03-29 01:00"),
    "day after the missing hour": ("30 2 * * *", BERLIN, "2026-03-29 01:00", "03-30 00:30"),
    "time that exists twice, the first": ("30 2 * * *", BERLIN, "2026-10-24 12:00", "10-25 00:30"),
    "time that exists twice, not again": ("30 2 * * *", BERLIN, "2026-10-25 00:30", "10-26 01:30"),
    "every hour, in the doubled hour": ("30 * * * *", BERLIN, "2026-10-25 00:30", "10-25 01:30"),
    "every half hour, through the missing hour": ("*/30 * * * *", BERLIN, "2026-03-29 00:30", "03-29 01:00"),
    "missing midnight": ("0 0 * * *", "Africa/Cairo", "2026-04-23 12:00", "04-23 22:00"),
    "missing half hour": ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00", "10-03 15:30"),
    "leap day": ("0 0 29 2 *", "Etc/UTC", "2027-01-01 00:00", "02-29 00:00"),
    "month without a 31st": ("0 12 31 * *", "Etc/UTC", "2026-01-31 12:00", "03-31 12:00"),
    "first workday after the change": ("0 9 * * 1-5", "America/New_York", "2026-03-06 20:00", "03-09 13:00"),
    "leap second": ("0 0 1 1 *", "Etc/UTC", "2016-12-31 23:59", "01-01 00:00"),
}


@pytest.mark.parametrize(("cron", "zone", "after", "expected"), CLOCKS.values(), ids=CLOCKS)
def test_next_slot_through_changes_of_the_clock(cron: str, zone: str, after: str, expected: str) -> None:
    moment = datetime.fromisoformat(after).replace(tzinfo=UTC)

    found = next_slot(hourly(cron=cron, timeZone=zone), moment)

    assert found is not None
    assert f"{found:%m-%d %H:%M}" == expected


@given(st.integers(1, 30 * 86_400), st.integers(0, 4 * 10**9))
def test_slots_of_a_period_follow_each_other(seconds: int, since_1970: int) -> None:
    moment, every = datetime.fromtimestamp(since_1970, UTC), entry(everySeconds=seconds)

    last, following = last_slot(every, moment), next_slot(every, moment)

    assert last is not None
    assert following is not None
    assert last <= moment < following
    assert following - last == timedelta(seconds=seconds)


def test_entry_begins_with_the_next_slot() -> None:
    found = action(hourly(), None, NOON + timedelta(minutes=5))

    assert isinstance(found, Note)
    assert found.missed is None
    assert action(hourly(), found.progress, NOON + timedelta(minutes=5)) == Wait(NOON + timedelta(hours=1))


def test_changed_schedule_misses_no_earlier_slot() -> None:
    before = seen(hourly(), NOON - timedelta(days=7), published=NOON)

    found = action(hourly(cron="*/5 * * * *", missed="One"), before, NOON)

    assert isinstance(found, Note)
    assert (found.progress.slot, found.progress.published, found.missed) == (NOON, NOON, None)


def test_suspended_entry_leaves_out_the_slot_in_doubt() -> None:
    found = action(hourly(suspend=True), seen(hourly(), NOON - LATE, publishing=NOON), NOON)

    assert isinstance(found, Note)
    assert found.missed == (NOON, NOON)
    assert found.progress.publishing is None
    assert action(hourly(suspend=True), found.progress, NOON + timedelta(hours=9)) == Wait(None)


def test_suspended_entry_waits_and_misses_nothing() -> None:
    suspended = hourly(suspend=True)
    found = action(suspended, seen(hourly(), NOON), NOON + timedelta(hours=5))
    assert isinstance(found, Note)
    assert action(suspended, found.progress, NOON + timedelta(hours=9)) == Wait(None)

    resumed = action(hourly(), found.progress, NOON + timedelta(hours=9))

    assert isinstance(resumed, Note)
    assert resumed.missed is None


@pytest.mark.parametrize("missed", ["Skip", "One"])
@pytest.mark.parametrize("late", [timedelta(0), LATE], ids=["in-time", "late-by-a-failover"])
def test_due_slot_is_published(missed: str, late: timedelta) -> None:
    assert action(hourly(missed=missed), seen(hourly(), NOON - timedelta(hours=1)), NOON + late) == Publish(
        NOON
    )


def test_each_slot_within_a_failover_is_published() -> None:
    each_second, progress = entry(everySeconds=1), seen(entry(everySeconds=1), NOON)
    found = []
    while isinstance(due := action(each_second, progress, NOON + timedelta(seconds=7)), Publish):
        found.append(due.slot)
        progress = published(progress, due.slot)

    assert found == [NOON + timedelta(seconds=number) for number in range(1, 8)]


def test_skipped_slots_are_named() -> None:
    now = NOON + timedelta(hours=3, minutes=30)

    found = action(hourly(), seen(hourly(), NOON), now)

    assert isinstance(found, Note)
    assert found.missed == (NOON + timedelta(hours=1), NOON + timedelta(hours=3))
    assert action(hourly(), found.progress, now) == Wait(NOON + timedelta(hours=4))


def test_one_message_stands_for_all_missed_slots() -> None:
    one, now = hourly(missed="One"), NOON + timedelta(hours=3, minutes=30)

    found = action(one, seen(one, NOON), now)

    last = NOON + timedelta(hours=3)
    assert found == Publish(last, missed=(NOON + timedelta(hours=1), last))
    assert action(one, published(seen(one, NOON), last), now) == Wait(NOON + timedelta(hours=4))


def test_slot_that_was_being_published_is_uncertain() -> None:
    taken_over = seen(hourly(), NOON - timedelta(hours=1), publishing=NOON)

    assert action(hourly(), taken_over, NOON + timedelta(minutes=20)) == Publish(NOON, uncertain=True)


@pytest.mark.parametrize(
    "wrong",
    [{"cron": "0 0 30 2 *"}, {"timeZone": "Europe"}, {"timeZone": "Europe/Berlinn"}],
    ids=["30 February", "folder of zones", "unknown zone"],
)
def test_unreadable_schedule_is_named(wrong: dict[str, str]) -> None:
    bad = hourly(**wrong)

    with pytest.raises(ReconcileError, match="'report' cannot be read") as caught:
        action(bad, seen(bad, NOON), NOON)

    assert caught.value.reason is Reason.RECURRING_INVALID


@given(
    st.sampled_from(["30 2 * * *", "*/7 * * * *", "0 */5 * * *", "15 2,3 * * 0"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"]),
    st.integers(0, 274),
    st.lists(st.integers(1, 200_000), min_size=1, max_size=20),
    st.sampled_from(["Skip", "One"]),
)
def test_progress_never_goes_back(cron: str, zone: str, day: int, pauses: list[int], missed: str) -> None:
    """No slot is published twice, whatever the pauses between two looks."""
    of = hourly(cron=cron, timeZone=zone, missed=missed)
    now = NOON + timedelta(days=day)
    progress = seen(of, now)
    slots: list[datetime] = []
    for pause in pauses:
        now += timedelta(seconds=pause)
        while not isinstance(found := action(of, progress, now), Wait):
            before = progress.slot
            if isinstance(found, Publish):
                slots.append(found.slot)
                progress = published(progress, found.slot)
            else:
                progress = found.progress
            assert before < progress.slot <= now
    assert slots == sorted(set(slots))
