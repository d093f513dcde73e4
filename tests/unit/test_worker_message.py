"""The message that a handler sees, its cancellation, and the headers of a copy."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue import Message
from workqueue.contract import headers
from workqueue.contract.errors import UndecodableError
from workqueue.contract.properties import Properties
from workqueue.message import Cancellation

TEXT = st.text(max_size=8)


async def test_waiting_in_a_loop_keeps_nothing() -> None:
    cancelled = Cancellation()

    for _ in range(3):
        assert not cancelled.wait(0.001)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(cancelled, 0.001)

    assert not cancelled._callbacks


OTHER_HEADERS = st.dictionaries(TEXT.filter(lambda name: not name.startswith("x-")), st.integers() | TEXT)


@given(
    OTHER_HEADERS,
    st.none() | st.integers(1, 10**9).map(str),
    st.none() | TEXT,
    st.lists(TEXT),
    st.none() | st.integers(0, 255),
)
def test_preserved_properties_are_restored(
    others: dict[str, object],
    expiration: str | None,
    user: str | None,
    copies: list[str],
    priority: int | None,
) -> None:
    original = Properties(expiration=expiration, user_id=user, priority=priority)
    with_copies = {**others, "CC": copies, "BCC": copies}
    properties, kept = headers.preserve(original, with_copies)
    assert (properties.expiration, properties.user_id, properties.priority) == (None, None, priority)
    assert not {"CC", "BCC"} & set(kept)
    again, kept_again = headers.preserve(properties, kept)
    assert (again, kept_again) == (properties, kept), "a second failure changes nothing more"
    marked = {**kept, headers.ATTEMPT: 2, headers.FAILURE_REASON: "Exception", headers.EXPIRES_AT: 5}
    assert headers.restore(properties, marked) == (original, with_copies)


def test_priority_of_a_delayed_message_becomes_a_property_with_its_first_copy() -> None:
    properties, kept = headers.preserve(Properties(), {headers.ORIGINAL_PRIORITY: 7})

    assert (properties.priority, kept) == (7, {})


@pytest.mark.parametrize("value", ["7", 256, -1, True, None, {}], ids=repr)
def test_priority_that_amqp_cannot_carry_is_not_restored(value: object) -> None:
    properties, kept = headers.restore(Properties(), {headers.ORIGINAL_PRIORITY: value})

    assert (properties.priority, kept) == (None, {})


@pytest.mark.parametrize(
    ("value", "redelivered", "expected"),
    [(None, True, 0), (3, True, 3), ("3", True, 0), (3, False, 0)],
    ids=["missing", "counted", "text", "written-by-the-publisher"],
)
def test_failed_deliveries_are_those_counted_by_rabbitmq(
    value: object, redelivered: bool, expected: int
) -> None:
    found = {} if value is None else {headers.DELIVERY_COUNT: value}

    assert headers.deliveries_failed(found, redelivered=redelivered) == expected


NOW = 1_000_000.0
EXPIRIES = {
    "no-ttl": (Properties(), {}, None),
    "no-timestamp": (Properties(expiration="2000"), {}, NOW + 2),
    "timestamp-of-the-publisher": (Properties(expiration="60000", timestamp=999_970), {}, 999_971.0 + 60),
    "timestamp-of-this-second": (Properties(expiration="60000", timestamp=1_000_000), {}, NOW + 60),
    "timestamp-in-the-future": (Properties(expiration="60000", timestamp=1_000_100), {}, NOW + 60),
    "timestamp-older-than-the-ttl": (Properties(expiration="60000", timestamp=900_000), {}, NOW + 60),
    "known-from-an-earlier-attempt": (
        Properties(timestamp=1),
        {headers.EXPIRES_AT: 1_000_005_500, headers.ORIGINAL_EXPIRATION: "9"},
        NOW + 5.5,
    ),
    "text-that-is-no-number": (Properties(expiration="soon"), {}, None),
    "header-that-is-no-number": (Properties(), {headers.EXPIRES_AT: "soon"}, None),
}


@pytest.mark.parametrize(("properties", "found", "expected"), EXPIRIES.values(), ids=EXPIRIES)
def test_expiry_is_known_from_header_timestamp_or_arrival(
    properties: Properties, found: dict[str, object], expected: float | None
) -> None:
    assert headers.expires_at(properties, found, NOW) == expected


def test_copy_has_none_of_the_brokers_own_headers() -> None:
    kept = headers.preserve(Properties(), {"x-death": [], "x-delivery-count": 3, "x-mine": 1})[1]
    assert kept == {"x-mine": 1}


@pytest.mark.parametrize(("value", "attempt"), [(None, 1), (1, 2), (4, 5), ("4", 1), (-1, 1)], ids=repr)
def test_attempt_comes_from_its_header(value: object, attempt: int) -> None:
    message = Message(b"", headers={} if value is None else {headers.ATTEMPT: value})
    assert message.attempt == attempt


def test_body_is_read_as_text_or_json() -> None:
    assert Message("grüße".encode()).text() == "grüße"
    assert Message(b'{"a": [1]}').json() == {"a": [1]}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["nothing", "half", "bytes", "deep"]
)
def test_body_that_is_not_json_raises(body: bytes) -> None:
    with pytest.raises(UndecodableError, match="The body is not JSON"):
        Message(body).json()


def test_body_that_is_not_text_raises() -> None:
    with pytest.raises(UndecodableError, match="not UTF-8 text"):
        Message(b"\xff").text()


def test_thread_waits_for_its_cancellation() -> None:
    cancelled = Cancellation()
    assert not cancelled.wait(0.001)
    threading.Timer(0.05, cancelled.set).start()
    assert cancelled.wait(5)
    assert cancelled.is_set()
    assert cancelled.wait(0)


async def test_task_waits_for_its_cancellation() -> None:
    cancelled = Cancellation()
    threading.Timer(0.05, cancelled.set).start()
    async with asyncio.timeout(5):
        await cancelled
        await cancelled


def test_callback_of_a_cancellation_runs_once_even_if_already_set() -> None:
    cancelled, seen = Cancellation(), []
    cancelled.on_set(lambda: seen.append(1))
    cancelled.set()
    cancelled.set()
    cancelled.on_set(lambda: seen.append(2))
    assert seen == [1, 2]


def test_raising_cancellation_callback_stops_neither_others_nor_caller() -> None:
    cancelled, seen = Cancellation(), []
    cancelled.on_set(sys.exit)
    cancelled.on_set(lambda: seen.append(1))

    cancelled.set()

    assert seen == [1]
