"""Host names that a DNS server does not resolve, beside names that it does."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from tests.support.wait import until
from workqueue.contract.binding import from_url
from workqueue_operator.broker import lookup
from workqueue_operator.broker.addresses import resolved
from workqueue_operator.broker.lookup import addresses_of

Found = list[tuple[Any, ...]]


class Names:
    """Resolves `known`; every name that begins with `slow` takes until `answer` is set."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: int, flags: int = 0, **_: Any) -> Found:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(-2, "it is a name")
        self.asked.append(host)
        if host.startswith("slow"):
            self.answer.wait(60)
        if host == "missing":
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.answer.set()


async def test_names_without_an_answer_delay_no_other_name(names: Names) -> None:
    slow = [asyncio.create_task(addresses_of(f"slow-{number}", 5672)) for number in range(100)]
    await until(lambda: len(names.asked) == 100)

    assert await addresses_of("known", 5672) == [(socket.AF_INET, "192.0.2.1")]
    assert await asyncio.to_thread(lambda: "asyncio's own threads are free")

    assert not any(task.done() for task in slow)
    names.answer.set()
    await asyncio.gather(*slow)


async def test_next_attempt_waits_for_the_same_lookup(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LOOKUP_SECONDS", 0.01)
    for _ in range(3):
        with pytest.raises(OSError, match=r"'slow' was not resolved within 0\.01 s"):
            await addresses_of("slow", 5672)
    assert names.asked == ["slow"]

    monkeypatch.setattr(lookup, "LOOKUP_SECONDS", 20.0)
    names.answer.set()

    assert await addresses_of("slow", 5672)


async def test_lookups_are_limited(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MOST_LOOKUPS", 1)
    slow = asyncio.create_task(addresses_of("slow", 5672))
    await until(lambda: names.asked)

    with pytest.raises(OSError, match="1 other names"):
        await addresses_of("known", 5672)

    names.answer.set()
    await slow


async def test_hosts_are_resolved_in_order_without_those_that_fail(names: Names) -> None:
    binding = from_url("amqp://missing:1,known:2/")
    assert await resolved(binding) == [("known", ("192.0.2.1", 2))]

    with pytest.raises(OSError, match="Name or service not known"):
        await resolved(from_url("amqp://missing/"))


async def test_ip_address_needs_no_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MOST_LOOKUPS", 0)

    assert await addresses_of("192.0.2.7", 5672) == [(socket.AF_INET, "192.0.2.7")]
    assert await addresses_of("2001:db8::7", 5672) == [(socket.AF_INET6, "2001:db8::7")]
