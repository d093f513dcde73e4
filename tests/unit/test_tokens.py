"""The tokens of a limit after their connection or queue was lost, on a channel that does what the test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pika.exceptions
import pytest

from workqueue.worker import tokens
from workqueue.worker.slot import Delivery
from workqueue.worker.tokens import RECLAIM_SECONDS, Tokens

MISSING = pika.exceptions.ChannelClosedByBroker(404, "NOT_FOUND - no queue")


class FakeLease:
    held = True


class FakeChannel:
    """Counts the consumers, and finds the queue when the test says so."""

    def __init__(self) -> None:
        self.is_open = True
        self.consumers: list[Callable[..., None]] = []
        self.find: Callable[[object], None] | None = None
        self.fall: Callable[..., None] = lambda *_: None

    def add_on_close_callback(self, callback: Callable[..., None]) -> None:
        self.fall = callback

    def add_on_cancel_callback(self, callback: Callable[..., None]) -> None:
        pass

    def basic_qos(self, **_: Any) -> None:
        pass

    def basic_consume(self, _queue: str, on_message_callback: Callable[..., None]) -> str:
        self.consumers.append(on_message_callback)
        return f"consumer-{len(self.consumers)}"

    def queue_declare(self, _queue: str, *, passive: bool, callback: Callable[[object], None]) -> None:
        assert passive
        self.find = callback


class FakeConnection:
    """Opens channels, and runs what is due."""

    generation = 1
    is_open = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.channels: list[FakeChannel] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        monkeypatch.setattr(tokens.time, "monotonic", lambda: self.now)

    def channel(self, on_open: Callable[[Any], None]) -> Any:
        made = FakeChannel()
        self.channels.append(made)
        self._later.append((self.now, lambda: on_open(made)))
        return made

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self._later.append((self.now + seconds, function))

    def pass_time(self, seconds: float = 0.0) -> None:
        self.now += seconds
        while due := [one for one in self._later if one[0] <= self.now]:
            for one in due:
                self._later.remove(one)
                one[1]()


class Site:
    """The tokens of a worker that is connected."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connection = FakeConnection(monkeypatch)
        self.tokens = Tokens("jobs.limit.handlers", self.connection)
        self.tokens.attach()
        self.connection.pass_time()

    @property
    def channel(self) -> FakeChannel:
        return self.connection.channels[-1]

    def delivery(self) -> Delivery:
        made = Delivery(cast("Any", None), cast("Any", FakeLease()), None, None, b"")
        made.returned = True  # it has no handler yet
        return made

    def run_handler(self) -> Delivery:
        """Let a handler run with a token."""
        running = self.delivery()
        assert not self.tokens.take(running)
        self.give()
        running.returned = False
        return running

    def give(self) -> None:
        """RabbitMQ delivers a token to the newest consumer."""
        method = type("Method", (), {"delivery_tag": 1})
        self.channel.consumers[-1](self.channel, method, None, b"")

    def find(self) -> None:
        """RabbitMQ has the queue."""
        assert self.channel.find is not None
        self.channel.find(None)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_pause_begins_when_the_queue_is_found_after_an_outage(site: Site) -> None:
    site.tokens.detach()
    site.connection.pass_time(10 * RECLAIM_SECONDS)
    site.tokens.attach()
    site.connection.pass_time()

    assert not site.tokens.take(site.delivery())
    assert site.channel.consumers == []
    site.find()
    site.connection.pass_time(RECLAIM_SECONDS - 1)
    assert site.channel.consumers == []

    site.connection.pass_time(1)
    assert len(site.channel.consumers) == 1


def test_handler_that_lost_its_token_asks_when_the_queue_is_found(site: Site) -> None:
    site.run_handler()
    site.tokens.detach()
    site.connection.pass_time(10 * RECLAIM_SECONDS)
    site.tokens.attach()
    site.connection.pass_time()

    site.find()

    assert len(site.channel.consumers) == 1
    assert site.tokens.lost == 1


def test_queue_that_was_deleted_pauses_a_worker_that_had_its_tokens(site: Site) -> None:
    site.run_handler()
    site.channel.fall(site.channel, MISSING)
    site.connection.pass_time(RECLAIM_SECONDS)

    assert len(site.connection.channels) == 2
    site.find()
    assert not site.tokens.take(site.delivery())
    assert len(site.channel.consumers) == 1, "for the handler that runs"


def test_queue_that_never_existed_pauses_nothing(site: Site) -> None:
    assert not site.tokens.take(site.delivery())
    site.channel.fall(site.channel, MISSING)

    site.connection.pass_time(RECLAIM_SECONDS)

    assert len(site.channel.consumers) == 1
