"""Measure how exactly delayed messages arrive, on each RabbitMQ.

A publisher schedules messages with delays spread evenly over a period, in random order. A consumer reads them as they
arrive and compares the time with the header that says when they are due. Both run on the broker's machine, so that
they share a clock.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from pathlib import Path
from typing import Final

import pika

from hack.bench import report
from hack.bench.report import Report, Row
from hack.cluster.console import step
from tests.support.rabbitmq import DEFAULT, RELEASES, Broker, running
from workqueue import Publisher
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract import headers, topology
from workqueue.contract.binding import from_url

QUEUE: Final = "bench-delays"
MESSAGES: Final = 100_000
PERIOD_SECONDS: Final = 3600.0
SHORT: Final = 6
"""Other versions than the default are measured for a shorter period, with as many messages per second."""

QUICK: Final = 5_000, 120.0
"""Messages and seconds of a quick run, on each version."""

PRIORITIES: Final = 0, 9
"""Of the messages in turn: RabbitMQ 4.0 keeps them apart in a queue."""

THREADS: Final = 16
"""Threads that publish, so that many messages share one write to RabbitMQ's log."""

GOAL_SECONDS: Final = 1.0
MOST_QUEUES: Final = 40
LATEST_SECONDS: Final = 60.0
"""After the last message is due, the consumer waits for this time for missing messages."""


def measure(*, quick: bool, folder: Path) -> Report:  # noqa: ARG001 - as the other families
    """Measure the lateness on each RabbitMQ."""
    rows: list[Row] = []
    versions: dict[str, str] = {}
    for series in RELEASES:
        part = 1 if series == DEFAULT else SHORT
        count, period = QUICK if quick else (MESSAGES // part, PERIOD_SECONDS / part)
        with running(series, management=False) as broker:
            versions[f"RabbitMQ {series}"] = broker.version
            with step(f"Measuring delays: RabbitMQ {series}, {period:.0f} s"):
                rows.append(_row(broker, count, period))
    name = "delays-quick" if quick else "delays"
    return Report(name, "Delays, measured", report.surroundings(versions), rows, "others")


class _Consumer:
    """Takes the messages in a thread, and notes how late each one is, in seconds."""

    def __init__(self, broker: Broker, count: int) -> None:
        self.late: dict[str, float] = {}
        self._count = count
        self._connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="consumer")
        self._thread.start()

    def _run(self) -> None:
        channel = self._connection.channel()
        channel.basic_qos(prefetch_count=500)
        for method, properties, _ in channel.consume(QUEUE, inactivity_timeout=1.0):
            if method is not None:
                due = properties.headers[headers.DUE_AT] / 1000
                self.late.setdefault(properties.message_id, time.time() - due)
                channel.basic_ack(method.delivery_tag)
            if self._ended or len(self.late) >= self._count:
                break
        self._connection.close()

    def wait(self, seconds: float) -> None:
        """Wait until all messages have arrived, at most `seconds`."""
        self._thread.join(seconds)
        self._ended = True
        self._thread.join()


def _row(broker: Broker, count: int, period: float) -> Row:
    with PublishPipeline(lambda: from_url(broker.url), "bench") as pipeline:
        pipeline.declare_plan(topology.plan(topology.QueueSettings(QUEUE))).result()
    chance = random.Random(1)
    delays = [1.0 + (period - 1.0) * number / count for number in range(count)]
    chance.shuffle(delays)
    consumer = _Consumer(broker, count + len(PRIORITIES))
    begun = time.monotonic()
    with Publisher(broker.url) as publisher:
        for priority in PRIORITIES:  # they declare the delay queues, and arrive last
            publisher.publish(b"", queue=QUEUE, delay=period, priority=priority)
        threads = [
            threading.Thread(target=_publish, args=(publisher, delays[start::THREADS]))
            for start in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    published = time.monotonic() - begun
    consumer.wait(period + LATEST_SECONDS)
    queues = broker.ctl("list_queues", "name", "--silent").split()
    steps = sum(topology.is_delay_queue(name, QUEUE) for name in queues)
    late = sorted(consumer.late.values())
    early, missing = sum(seconds < 0 for seconds in late), count + len(PRIORITIES) - len(late)
    p99 = statistics.quantiles(late, n=100)[98]
    return Row(
        f"{count:,} messages, due within {period:,.0f} s, RabbitMQ {broker.version}",
        f"late by {statistics.median(late):.2f} s (median), {p99:.2f} s (p99), {late[-1]:.2f} s (most); {early} "
        f"early, {missing} missing; {steps} delay queues; published in {published:.0f} s",
        f"p99 <= {GOAL_SECONDS:g} s, none early, none missing, at most {MOST_QUEUES} delay queues",
        p99 <= GOAL_SECONDS and not early and not missing and steps <= MOST_QUEUES,
        raw={"late_seconds": [round(seconds, 3) for seconds in late[:: max(1, len(late) // 10_000)]]},
    )


def _publish(publisher: Publisher, delays: list[float]) -> None:
    for number, delay in enumerate(delays):
        publisher.publish(b"x" * 100, queue=QUEUE, delay=delay, priority=PRIORITIES[number % len(PRIORITIES)])
