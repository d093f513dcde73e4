"""Which messages a cancel concerns, how many a worker remembers, and when it reads them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from workqueue.contract import headers, topology
from workqueue.contract.cancels import Cancel, KnownCancels
from workqueue.worker.cancels import Cancels

NOW = 1_800_000_000
"""Unix seconds."""
AT = NOW * 1000 + 700
"""When the message was cancelled."""

MESSAGES: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "published-before": (NOW - 60, {}, True),
    "published-in-the-same-second": (NOW, {}, True),
    "published-a-second-later": (NOW + 1, {}, False),
    "without-timestamp": (None, {}, True),
    "with-a-timestamp-in-milliseconds": (NOW * 1000, {}, True),
    "replayed-before": (NOW - 60, {headers.CANCELS_UNTIL: AT - 1}, True),
    "replayed-since": (NOW - 60, {headers.CANCELS_UNTIL: AT + 1}, False),
    "cancelled-by-the-same-cancel": (NOW - 60, {headers.CANCELS_UNTIL: AT}, False),
    "with-a-header-that-is-no-time": (NOW - 60, {headers.CANCELS_UNTIL: "later"}, True),
}


@pytest.mark.parametrize("title", MESSAGES)
def test_cancel_concerns_what_was_there_before(title: str) -> None:
    timestamp, found, concerns = MESSAGES[title]

    assert Cancel("one", AT).concerns(timestamp, found, NOW + 2) is concerns


def test_record_is_read_as_it_was_written() -> None:
    cancel = Cancel("ключ", AT, discard=True)

    assert Cancel.decode(cancel.encode()) == cancel


FOREIGN = {
    "empty": b"",
    "no-text": b"\xff",
    "list": b"[]",
    "object-without-fields": b"{}",
    "number-as-id": b'{"id": 1, "at": 1}',
    "json-that-is-too-deep": b"[" * 100_000,
    "time-that-no-header-can-hold": b'{"id": "x", "at": %d}' % 2**64,
    "negative-time": b'{"id": "x", "at": -1}',
    "text-as-time": b'{"id": "x", "at": "now"}',
    "id-too-long-for-a-message": b'{"id": "%s", "at": 1}' % (b"x" * 256),
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_foreign_record_is_no_cancel(body: bytes) -> None:
    assert Cancel.decode(body) is None


def properties(message_id: str) -> pika.BasicProperties:
    return pika.BasicProperties(message_id=message_id)


def test_oldest_cancel_is_forgotten_beyond_the_bound() -> None:
    known = KnownCancels(most=2, keep_seconds=60)

    for name in ("first", "second", "first", "third"):
        known.add(Cancel(name, AT + len(known)))

    assert known.find(properties("second"), NOW) is None
    assert known.find(properties("first"), NOW) is not None
    assert known.find(properties("third"), NOW) is not None


def test_new_cancel_stays_known_while_earlier_ones_are_read() -> None:
    known = KnownCancels(most=3, keep_seconds=60)
    known.add(Cancel("new", AT + 100))

    for number in range(10):
        known.add(Cancel(str(number), AT + number))

    found = [name for name in ("new", *map(str, range(10))) if known.find(properties(name), NOW)]
    assert found == ["new", "8", "9"]


def test_cancel_is_forgotten_after_its_time() -> None:
    known = KnownCancels(most=2, keep_seconds=60)
    known.add(Cancel("one", AT))

    assert known.find(properties("one"), NOW + 60) == Cancel("one", AT)
    assert known.find(properties("one"), NOW + 61) is None
    assert len(known) == 0


def test_newest_cancel_of_an_id_counts() -> None:
    known = KnownCancels(most=2, keep_seconds=60)
    newer = Cancel("one", AT + 1, discard=True)

    assert [known.add(newer), known.add(Cancel("one", AT)), known.add(newer)] == [True, False, False]
    assert known.find(properties("one"), NOW) == newer


class FakeChannel:
    """A channel that answers when the test says so."""

    connection = SimpleNamespace(is_closing=False)

    def __init__(self, on_open: Callable[[Any], None]) -> None:
        self._on_open = on_open
        self._on_close: Callable[[Any, Exception], None] = lambda _channel, _error: None
        self.consumed: list[str] = []
        self.answer: Callable[[Any], None] = lambda _frame: None

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def add_on_close_callback(self, on_close: Callable[[Any, Exception], None]) -> None:
        self._on_close = on_close

    def open(self) -> None:
        self._on_open(self)

    def lose(self) -> None:
        self._on_close(self, ChannelClosedByBroker(541, "INTERNAL_ERROR"))

    def basic_consume(self, queue: str, *_: Any, callback: Any = None, **__: Any) -> None:
        self.consumed.append(queue)
        self.answer = callback or self.answer


class FakeConnection:
    """A connection that remembers its channels."""

    generation = 1
    is_open = True

    def __init__(self) -> None:
        self.channels: list[FakeChannel] = []
        self.later: list[Callable[[], None]] = []

    def channel(self, on_open: Callable[[Any], None]) -> FakeChannel:
        self.channels.append(FakeChannel(on_open))
        return self.channels[-1]

    def call_later(self, _seconds: float, function: Callable[[], None]) -> None:
        self.later.append(function)


@pytest.mark.parametrize("live_first", [True, False], ids=["live-opens-first", "history-opens-first"])
def test_earlier_cancels_are_read_after_new_ones_are_heard(live_first: bool) -> None:
    connection = FakeConnection()
    Cancels("jobs", connection).attach(lambda: None)
    live, history = connection.channels

    for channel in (live, history) if live_first else (history, live):
        channel.open()
    assert not history.consumed

    live.answer(None)
    assert history.consumed == [topology.cancels_name("jobs")] * 2


def test_history_that_opens_late_is_read() -> None:
    connection = FakeConnection()
    Cancels("jobs", connection).attach(lambda: None)
    live, history = connection.channels
    live.open()
    live.answer(None)

    history.open()

    assert history.consumed == [topology.cancels_name("jobs")] * 2


def test_earlier_cancels_are_read_again_after_the_worker_heard_nothing_for_a_while() -> None:
    """A cancel of that time may come after the end of the stream that was known before."""
    connection = FakeConnection()
    Cancels("jobs", connection).attach(lambda: None)
    live, history = connection.channels
    live.open()
    history.open()
    live.answer(None)

    live.lose()
    connection.later[-1]()
    connection.channels[-1].open()
    connection.channels[-1].answer(None)
    connection.channels[-1].open()

    assert len(connection.channels) == 4
    assert connection.channels[-1].consumed == [topology.cancels_name("jobs")] * 2
