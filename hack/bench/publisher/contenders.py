"""The contenders: functions from (URL, queue, number of messages) to messages per second."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import pika

from hack.bench import environment
from hack.cluster.checkout import CHECKOUT
from hack.cluster.commands import run
from workqueue import AsyncPublisher, Publisher
from workqueue.amqp.publish_pipeline import DEFAULT_WINDOW

BODY: Final = bytes(100)
THREADS_AT_ONCE: Final = 100
ONE_BY_ONE_SHARE: Final = 20
"""The share of the messages for contenders that wait for each confirmation, because they are slow."""

Contender: TypeAlias = Callable[[str, str, int], float]


class BarePipeline:
    """The fastest plain pika: a SelectConnection that publishes in its callbacks.

    Args:
        window: how many messages may be unconfirmed.
    """

    def __init__(self, url: str, queue: str, total: int, window: int) -> None:
        self._window = window
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
        """Return the messages per second."""
        self._connection.ioloop.start()
        return self._total / (self._ended - self._begun)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._start())

    def _start(self) -> None:
        self._begun = time.perf_counter()
        self._fill()

    def _fill(self) -> None:
        while self._sent < self._total and self._sent - self._acked < self._window:
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
    """Publish with pika's BlockingConnection, which waits for each confirmation."""
    total //= ONE_BY_ONE_SHARE
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        begun = time.perf_counter()
        for _ in range(total):
            channel.basic_publish("", queue, BODY, pika.BasicProperties(delivery_mode=2), mandatory=True)
        return total / (time.perf_counter() - begun)


def ours_one_by_one(url: str, queue: str, total: int) -> float:
    """Publish with `Publisher.publish` in a loop."""
    total //= ONE_BY_ONE_SHARE
    with _publisher(url, queue) as publisher:
        begun = time.perf_counter()
        for _ in range(total):
            publisher.publish(BODY, queue=queue)
        return total / (time.perf_counter() - begun)


def ours_threads(url: str, queue: str, total: int) -> float:
    """Publish with `Publisher.publish` in many threads, each of which waits for each confirmation."""
    with _publisher(url, queue) as publisher, ThreadPoolExecutor(THREADS_AT_ONCE) as threads:

        def publish(_: int) -> None:
            for _ in range(total // THREADS_AT_ONCE):
                publisher.publish(BODY, queue=queue)

        begun = time.perf_counter()
        list(threads.map(publish, range(THREADS_AT_ONCE)))
        return total / (time.perf_counter() - begun)


def ours_many(url: str, queue: str, total: int) -> float:
    """Publish with `Publisher.publish_many` in one thread."""
    with _publisher(url, queue) as publisher:
        begun = time.perf_counter()
        publisher.publish_many(itertools.repeat(BODY, total), queue=queue)
        return total / (time.perf_counter() - begun)


def ours_tasks(url: str, queue: str, total: int) -> float:
    """Publish with `AsyncPublisher.publish`, in as many tasks as the window has places."""

    async def publish(publisher: AsyncPublisher) -> None:
        async def task() -> None:
            for _ in range(total // DEFAULT_WINDOW):
                await publisher.publish(BODY, queue=queue)

        await asyncio.gather(*(task() for _ in range(DEFAULT_WINDOW)))

    return asyncio.run(_rate_async(url, queue, total, publish))


def ours_many_async(url: str, queue: str, total: int) -> float:
    """Publish with `AsyncPublisher.publish_many`."""

    async def publish(publisher: AsyncPublisher) -> None:
        await publisher.publish_many(itertools.repeat(BODY, total), queue=queue)

    return asyncio.run(_rate_async(url, queue, total, publish))


@contextmanager
def _publisher(url: str, queue: str) -> Iterator[Publisher]:
    """A publisher that is connected."""
    with Publisher(url, name="bench") as publisher:
        publisher.publish(BODY, queue=queue)
        yield publisher


async def _rate_async(
    url: str, queue: str, total: int, publish: Callable[[AsyncPublisher], Awaitable[None]]
) -> float:
    async with AsyncPublisher(url, name="bench") as publisher:
        await publisher.publish(BODY, queue=queue)
        begun = time.perf_counter()
        await publish(publisher)
        return total / (time.perf_counter() - begun)


def aio_pika_tasks(url: str, queue: str, total: int) -> float:
    """Publish with aio-pika, in as many tasks as the window of this project's publisher has places."""
    return _aio_pika(url, queue, total, DEFAULT_WINDOW)


def aio_pika_one_by_one(url: str, queue: str, total: int) -> float:
    """Publish with aio-pika and await each confirmation."""
    return _aio_pika(url, queue, total // ONE_BY_ONE_SHARE, 1)


def _aio_pika(url: str, queue: str, total: int, tasks: int) -> float:
    module = "hack.bench.publisher.aio_pika_tasks"
    asked = (url, queue, str(total), str(tasks), str(len(BODY)))
    output = run(
        [environment.python(), "-m", module, *asked],
        doing="Publishing with aio-pika",
        environment={"PYTHONPATH": str(CHECKOUT), "PATH": os.environ["PATH"]},
        timeout=120,
    )
    return float(json.loads(output)["rate"])


BASELINE: Final = "pika SelectConnection, pipelined"
BASELINE_OF_THREADS: Final = f"{BASELINE}, {THREADS_AT_ONCE} unconfirmed"
"""Each thread waits for its confirmation, so that many messages are unconfirmed at most."""
ONE_BY_ONE: Final = "pika BlockingConnection, one by one"
THREADS: Final = "Publisher, 100 threads"
MANY: Final = "Publisher, publish_many"
TASKS: Final = "AsyncPublisher, 1,000 tasks"
MANY_ASYNC: Final = "AsyncPublisher, publish_many"
OURS_ONE_BY_ONE: Final = "Publisher, one by one"
OURS: Final = (THREADS, MANY, TASKS, MANY_ASYNC, OURS_ONE_BY_ONE)

CONTENDERS: Final[dict[str, Contender]] = {
    BASELINE: lambda url, queue, total: BarePipeline(url, queue, total, DEFAULT_WINDOW).run(),
    BASELINE_OF_THREADS: lambda url, queue, total: BarePipeline(url, queue, total, THREADS_AT_ONCE).run(),
    THREADS: ours_threads,
    MANY: ours_many,
    TASKS: ours_tasks,
    MANY_ASYNC: ours_many_async,
    "aio-pika, tasks, pipelined": aio_pika_tasks,
    ONE_BY_ONE: blocking_one_by_one,
    OURS_ONE_BY_ONE: ours_one_by_one,
    "aio-pika, one by one": aio_pika_one_by_one,
}
