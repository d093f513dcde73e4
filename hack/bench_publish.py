"""How fast the publisher is: against a bare pika pipeline, and against one confirmation at a time.

    python -m hack.bench_publish [amqp://...]      without a URL it runs a RabbitMQ of its own

All contenders publish the same persistent, mandatory messages of 100 bytes with confirmations. They take
turns, so that a machine that is busy for a while is busy for all; medians are reported.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import pika

from tests.support.rabbitmq import DEFAULT, RELEASES, running
from workqueue_worker.binding import from_url
from workqueue_worker.broker.outgoing import Outgoing
from workqueue_worker.broker.publisher import DEFAULT_WINDOW, Publisher

BODY: Final = bytes(100)
ONE_BY_ONE_SHARE: Final = 20
"""One confirmation at a time is so slow that it gets a fraction of the messages."""


class BarePipeline:
    """The best that plain pika does: a SelectConnection that publishes in its callbacks, a full window."""

    def __init__(self, url: str, queue: str, total: int) -> None:
        self._queue = queue
        self._total = total
        self._sent = self._acked = 0
        self._channel: Any = None
        self._begun = self._ended = 0.0
        self._connection = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
        )

    def run(self) -> float:
        """Messages a second."""
        self._connection.ioloop.start()
        return self._total / (self._ended - self._begun)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._start())

    def _start(self) -> None:
        self._begun = time.perf_counter()
        self._fill()

    def _fill(self) -> None:
        while self._sent < self._total and self._sent - self._acked < DEFAULT_WINDOW:
            self._sent += 1
            properties = pika.BasicProperties(
                delivery_mode=2, message_id=f"id-{self._sent}", timestamp=int(time.time())
            )
            self._channel.basic_publish("", self._queue, BODY, properties, mandatory=True)

    def _on_confirm(self, frame: Any) -> None:
        self._acked = frame.method.delivery_tag if frame.method.multiple else self._acked + 1
        if self._acked < self._total:
            self._fill()
        elif not self._ended:
            self._ended = time.perf_counter()
            self._connection.close()
            self._connection.ioloop.stop()


def blocking_one_by_one(url: str, queue: str, total: int) -> float:
    """pika's BlockingConnection, which waits for each confirmation."""
    total //= ONE_BY_ONE_SHARE
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        begun = time.perf_counter()
        for _ in range(total):
            channel.basic_publish("", queue, BODY, pika.BasicProperties(delivery_mode=2), mandatory=True)
        return total / (time.perf_counter() - begun)


def our_threads(url: str, queue: str, total: int) -> float:
    """`publish` from one thread, as fast as the window allows."""
    with Publisher(lambda: from_url(url), "bench") as publisher:
        publisher.publish_and_wait(Outgoing(queue, BODY))
        begun = time.perf_counter()
        futures = [publisher.publish(Outgoing(queue, BODY)) for _ in range(total)]
        for future in futures:
            future.result()
        return total / (time.perf_counter() - begun)


def our_tasks(url: str, queue: str, total: int) -> float:
    """`await publish_async` in as many tasks as the window has places."""

    async def publish(publisher: Publisher) -> float:
        async def task() -> None:
            for _ in range(total // DEFAULT_WINDOW):
                await publisher.publish_async(Outgoing(queue, BODY))

        begun = time.perf_counter()
        await asyncio.gather(*(task() for _ in range(DEFAULT_WINDOW)))
        return total / (time.perf_counter() - begun)

    with Publisher(lambda: from_url(url), "bench") as publisher:
        publisher.publish_and_wait(Outgoing(queue, BODY))
        return asyncio.run(publish(publisher))


CONTENDERS: Final[dict[str, Callable[[str, str, int], float]]] = {
    "bare pika pipeline": lambda url, queue, total: BarePipeline(url, queue, total).run(),
    "publisher, threads": our_threads,
    "publisher, tasks": our_tasks,
    "bare pika, one by one": blocking_one_by_one,
}


def measure(url: str, kind: str, total: int, rounds: int) -> dict[str, float]:
    """The median of each contender, in messages a second."""
    queue = f"bench-{kind}"
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for _ in range(rounds):
            for name, contender in CONTENDERS.items():
                channel.queue_delete(queue)
                channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
                rates[name].append(contender(url, queue, total))
        channel.queue_delete(queue)
    return {name: statistics.median(found) for name, found in rates.items()}


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m hack.bench_publish", description=main.__doc__)
    parser.add_argument("url", nargs="?", help="a RabbitMQ that runs already")
    parser.add_argument("--series", choices=list(RELEASES), default=DEFAULT)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        url = arguments.url or stack.enter_context(running(arguments.series, management=False)).url
        for kind in ("quorum", "classic"):
            found = measure(url, kind, arguments.messages, arguments.rounds)
            best = found["bare pika pipeline"]
            for name, rate in found.items():
                print(f"{kind:8}{name:24}{rate:10,.0f}/s{rate / best:8.2f} x", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
