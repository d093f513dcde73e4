"""The contenders: functions from (URL, queue, number of messages) to messages per second."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import pika

from hack.bench import environment
from hack.cluster.checkout import CHECKOUT
from hack.cluster.commands import run
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import DEFAULT_WINDOW, PublishPipeline
from workqueue.contract.binding import from_url

BODY: Final = bytes(100)
ONE_BY_ONE_SHARE: Final = 20
"""The share of the messages for contenders that wait for each confirmation, because they are slow."""

Contender: TypeAlias = Callable[[str, str, int], float]


class BarePipeline:
    """The fastest plain pika: a SelectConnection that publishes in its callbacks, up to a full window."""

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
    """Publish with `publish_and_wait` in a loop."""
    total //= ONE_BY_ONE_SHARE
    with PublishPipeline(lambda: from_url(url), "bench") as publisher:
        publisher.publish_and_wait(Outgoing(queue, BODY))
        begun = time.perf_counter()
        for _ in range(total):
            publisher.publish_and_wait(Outgoing(queue, BODY))
        return total / (time.perf_counter() - begun)


def ours_threads(url: str, queue: str, total: int) -> float:
    """Publish with `publish` from one thread, as fast as the window allows."""
    with PublishPipeline(lambda: from_url(url), "bench") as publisher:
        publisher.publish_and_wait(Outgoing(queue, BODY))
        begun = time.perf_counter()
        futures = [publisher.publish(Outgoing(queue, BODY)) for _ in range(total)]
        for future in futures:
            future.result()
        return total / (time.perf_counter() - begun)


def ours_tasks(url: str, queue: str, total: int) -> float:
    """Publish with `await publish_async`, in as many tasks as the window has places."""

    async def publish(publisher: PublishPipeline) -> float:
        async def task() -> None:
            for _ in range(total // DEFAULT_WINDOW):
                await publisher.publish_async(Outgoing(queue, BODY))

        begun = time.perf_counter()
        await asyncio.gather(*(task() for _ in range(DEFAULT_WINDOW)))
        return total / (time.perf_counter() - begun)

    with PublishPipeline(lambda: from_url(url), "bench") as publisher:
        publisher.publish_and_wait(Outgoing(queue, BODY))
        return asyncio.run(publish(publisher))


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
ONE_BY_ONE: Final = "pika BlockingConnection, one by one"
THREADS: Final = "ours, threads, pipelined"
TASKS: Final = "ours, tasks, pipelined"

CONTENDERS: Final[dict[str, Contender]] = {
    BASELINE: lambda url, queue, total: BarePipeline(url, queue, total).run(),
    THREADS: ours_threads,
    TASKS: ours_tasks,
    "aio-pika, tasks, pipelined": aio_pika_tasks,
    ONE_BY_ONE: blocking_one_by_one,
    "ours, one by one": ours_one_by_one,
    "aio-pika, one by one": aio_pika_one_by_one,
}
