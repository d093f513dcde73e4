"""Scheduled minimums: zones, daylight saving, the minutes at the edges."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import example, given
from hypothesis import strategies as st

from workqueue_operator.api import workqueue
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import Schedule, WorkQueueSpec
from workqueue_operator.scaling.schedule import Minimum, is_active, minimum_replicas

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def schedule(
    start: str, end: str, zone: str = "Etc/UTC", replicas: int = 3, name: str | None = None
) -> Schedule:
    return Schedule(name=name, start=start, end=end, time_zone=zone, min_replicas=replicas)


def at(text: str, zone: str = "UTC", fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


OFFICE = ("0 8 * * 1-5", "0 18 * * 1-5")
NIGHT = ("0 22 * * *", "0 6 * * *")


@pytest.mark.parametrize(
    ("span", "zone", "moment", "expected"),
    [
        (OFFICE, "Etc/UTC", at("2026-03-04T07:59:59"), False),
        (OFFICE, "Etc/UTC", at("2026-03-04T08:00:00"), True),
        (OFFICE, "Etc/UTC", at("2026-03-04T08:00:30"), True),
        (OFFICE, "Etc/UTC", at("2026-03-04T17:59:59.999"), True),
        (OFFICE, "Etc/UTC", at("2026-03-04T18:00:00"), False),
        (OFFICE, "Etc/UTC", at("2026-03-07T12:00:00"), False),
        (OFFICE, BERLIN, at("2026-01-05T07:00:00"), True),
        (OFFICE, BERLIN, at("2026-07-06T06:00:00"), True),
        (OFFICE, BERLIN, at("2026-07-06T05:59:00"), False),
        (OFFICE, NEW_YORK, at("2026-01-05T13:00:00"), True),
        (OFFICE, NEW_YORK, at("2026-01-05T12:59:00"), False),
        (NIGHT, "Etc/UTC", at("2026-03-04T23:59:59"), True),
        (NIGHT, "Etc/UTC", at("2026-03-05T00:00:00"), True),
        (NIGHT, "Etc/UTC", at("2026-03-05T05:59:00"), True),
        (NIGHT, "Etc/UTC", at("2026-03-05T06:00:00"), False),
        (NIGHT, "Etc/UTC", at("2026-03-05T21:59:00"), False),
        (("0 0 1 12 *", "0 0 1 1 *"), "Etc/UTC", at("2026-12-24T12:00:00"), True),
        (("0 0 1 12 *", "0 0 1 1 *"), "Etc/UTC", at("2026-11-30T23:59:00"), False),
        (("0 0 29 2 *", "0 0 1 3 *"), "Etc/UTC", at("2026-06-01T00:00:00"), False),
        (("0 0 29 2 *", "0 0 1 3 *"), "Etc/UTC", at("2028-02-29T12:00:00"), True),
        (("*/5 * * * *", "*/5 * * * *"), "Etc/UTC", at("2026-03-04T08:01:00"), False),
    ],
    ids=[
        "the second before the start",
        "the start",
        "within its first minute",
        "the last moment",
        "the end",
        "the weekend",
        "Berlin in winter",
        "Berlin in summer",
        "Berlin in summer, too early",
        "New York in winter",
        "New York in winter, too early",
        "before midnight",
        "at midnight",
        "in the morning",
        "when the night is over",
        "before the night",
        "a month in the year",
        "before that month",
        "a leap day, long past",
        "a leap day",
        "start and end in the same minute",
    ],
)
def test_schedule_applies_within_its_window(
    span: tuple[str, str], zone: str, moment: datetime, expected: bool
) -> None:
    assert is_active(schedule(*span, zone), moment) is expected


@pytest.mark.parametrize(
    ("zone", "day"),
    [(BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), (NEW_YORK, "2026-03-08"), (NEW_YORK, "2026-11-01")],
    ids=["Berlin springs forward", "Berlin falls back", "New York springs forward", "New York falls back"],
)
def test_office_hours_follow_a_clock_change(zone: str, day: str) -> None:
    """By the clock on the wall, whatever the offset is."""
    every_day = schedule("0 8 * * *", "0 18 * * *", zone)
    for wall, expected in (("07:59", False), ("08:00", True), ("17:59", True), ("18:00", False)):
        assert is_active(every_day, at(f"{day}T{wall}", zone)) is expected
        assert is_active(every_day, at(f"{day}T{wall}", zone).astimezone(UTC)) is expected


@pytest.mark.parametrize(
    ("zone", "start", "hours"),
    [
        (BERLIN, "2026-03-28T22:00", 7),
        (BERLIN, "2026-10-24T22:00", 9),
        (NEW_YORK, "2026-03-07T22:00", 7),
        (NEW_YORK, "2026-10-31T22:00", 9),
    ],
    ids=[
        "Berlin, an hour is missing",
        "Berlin, an hour comes twice",
        "New York, an hour is missing",
        "New York, an hour comes twice",
    ],
)
def test_night_with_clock_change_is_one_window(zone: str, start: str, hours: int) -> None:
    """Active from 22:00 to 06:00 without a gap, for as long as the night really lasts."""
    night = schedule(*NIGHT, zone)
    begin = at(start, zone).astimezone(UTC)
    active = [is_active(night, begin + timedelta(minutes=minute)) for minute in range(-1, hours * 60 + 1)]
    assert active == [False, *[True] * (hours * 60), False]


@pytest.mark.parametrize(
    ("zone", "before"),
    [(BERLIN, "2026-03-29T00:59"), (NEW_YORK, "2026-03-08T06:59")],
    ids=["Berlin", "New York"],
)
def test_schedule_starting_in_missing_hour_still_starts(zone: str, before: str) -> None:
    """02:30 does not exist on that day."""
    early = schedule("30 2 * * *", "0 5 * * *", zone)
    moment = at(before)
    assert not is_active(early, moment)
    assert is_active(early, moment + timedelta(minutes=32))


def test_wall_clock_decides_in_repeated_hour() -> None:
    early = schedule("30 2 * * *", "45 2 * * *", BERLIN)
    midnight = at("2026-10-25T00:00", BERLIN).astimezone(UTC)
    active = [
        f"{moment.astimezone(ZoneInfo(BERLIN)):%H:%M}"
        for moment in (midnight + timedelta(minutes=minute) for minute in range(6 * 60))
        if is_active(early, moment)
    ]
    assert active == 2 * [f"02:{minute}" for minute in range(30, 45)]


# -- the minimum


def spec(*schedules: Schedule, minimum: int = 1) -> WorkQueueSpec:
    return WorkQueueSpec.model_validate(
        {
            "connectionSecretRef": {"name": "rabbitmq"},
            "worker": {"image": "i", "handler": {"python": "m:f"}},
            "scaling": {"minReplicas": minimum, "schedules": [one.to_wire() for one in schedules]},
        }
    )


NOON = at("2026-03-04T12:00:00")
ALWAYS = ("0 0 * * *", "59 23 * * *")


@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        ([], 1),
        ([schedule(*NIGHT, replicas=9)], 1),
        ([schedule(*ALWAYS, replicas=5)], 5),
        ([schedule(*ALWAYS, replicas=0)], 1),
        ([schedule(*ALWAYS, replicas=5), schedule(*OFFICE, replicas=7), schedule(*NIGHT, replicas=9)], 7),
    ],
    ids=[
        "none",
        "one that does not apply",
        "one that applies",
        "never below minReplicas",
        "the highest applies",
    ],
)
def test_highest_active_schedule_sets_the_minimum(schedules: list[Schedule], expected: int) -> None:
    assert minimum_replicas(spec(*schedules), NOON) == Minimum(expected)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (schedule("0 25 * * *", "0 18 * * *", name="office"), ["'office'", "'0 25 * * *'"]),
        (schedule("0 8 * * *", "0 18 * * 9"), ["'0 18 * * 9'"]),
        (schedule("0 8 * * *", "0 18 * * *", "Europe/Atlantis"), ["'Europe/Atlantis'"]),
        (schedule("0 8 * * *", "0 18 * * *", "../../etc/passwd"), ["timeZone"]),
        (schedule("0 8 * * *", "0 18 * * *", "Europe"), ["'Europe'"]),
    ],
    ids=["an hour that is none", "a weekday that is none", "a zone that is none", "a path", "half a zone"],
)
def test_unreadable_schedule_is_named_and_alone_ignored(broken: Schedule, words: list[str]) -> None:
    found = minimum_replicas(spec(broken, schedule(*ALWAYS, replicas=5)), NOON)

    assert found.replicas == 5
    assert found.ignored is not None
    assert found.ignored.reason is Reason.SCHEDULE_INVALID
    for word in words:
        assert word in found.ignored.message


def test_every_unreadable_schedule_is_named() -> None:
    broken = [schedule(*OFFICE, zone, name=zone) for zone in ("Mars/Olympus", "Europe/Berlinn")]

    found = minimum_replicas(spec(*broken), NOON)

    assert found.replicas == 1
    assert found.ignored is not None
    assert "'Mars/Olympus'" in found.ignored.message
    assert "'Europe/Berlinn'" in found.ignored.message


FIELDS = [
    ["0", "59", "*/5", "5-10", "1,2", "00", "60", "-1", "*/0", "a", "1-"],
    ["0", "23", "1-5/2", "24", "25", "07"],
    ["*", "1", "31", "L", "LW", "0", "32", "lw"],
    ["*", "12", "JAN", "feb-APR", "13", "JANUARY"],
    ["*", "7", "mon", "FRI#5", "5L", "SUN-TUE", "8", "MOON", "1#6", "#1"],
]


@given(st.tuples(*map(st.sampled_from, FIELDS)))
@example(("0", "8", "*", "*", "1-5"))
def test_admission_accepts_only_readable_schedules(fields: tuple[str, ...]) -> None:
    expression = " ".join(fields)
    try:
        CronSim(expression, NOON)
    except CronSimError:
        readable = False
    else:
        readable = True

    assert bool(re.fullmatch(workqueue._CRON, expression)) is readable
