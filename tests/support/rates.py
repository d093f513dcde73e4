"""Tokens of rate limits for tests, and how many handlers started at which rate."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tests.support.brokers import probe
from tests.support.rabbitmq import VirtualHost
from workqueue.contract.topology import RateLimit, rate_limit_queue_name
from workqueue_operator.broker.rates import RateFeeder

NAME = rate_limit_queue_name("jobs")
KEY = ("team", "jobs")


def add_tokens(vhost: VirtualHost, count: int, starts: int = 1, name: str = NAME) -> None:
    """Publish tokens as the operator does, and declare their queue."""
    queue = RateLimit(name, 1000 * starts, 1000 * starts).queue
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        for _ in range(count):
            channel.basic_publish("", queue.name, b"%d" % starts, mandatory=True)


@asynccontextmanager
async def leader(vhost: VirtualHost, limit: RateLimit) -> AsyncIterator[RateFeeder]:
    """An operator that publishes the tokens of a limit."""
    async with probe(vhost.url) as broker:
        await broker.ready()
        feeder = RateFeeder(lambda: True, lambda _: None)
        await feeder.ensure(KEY, limit, broker, is_wanted=True)
        try:
            yield feeder
        finally:
            await feeder.stop()


@contextmanager
def leader_in_a_thread(vhost: VirtualHost, limit: RateLimit) -> Iterator[None]:
    """Do the same for code that is not asynchronous."""
    loop, stop, begun = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def lead() -> None:
        async with leader(vhost, limit):
            begun.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(lead(),))
    thread.start()
    try:
        begun.wait(60)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def starts(events: Iterable[dict[str, Any]]) -> list[float]:
    """Return when handlers started, in order."""
    return sorted(float(event["at"]) for event in events if event["event"] == "start")


def burst_of(times: Iterable[float], per_second: float) -> float:
    """Return the least burst with which a rate allows these starts."""
    most, lowest = 0.0, math.inf
    for number, at in enumerate(times):
        above = number - per_second * at
        lowest = min(lowest, above)
        most = max(most, above + 1 - lowest)
    return most
