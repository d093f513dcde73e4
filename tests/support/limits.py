"""Tokens of limits for tests, and how many handlers ran at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pika

from tests.support.rabbitmq import VirtualHost
from workqueue.contract.topology import Limit, limit_queue_name

NAME = limit_queue_name("jobs")


def make_tokens(vhost: VirtualHost, concurrency: int, name: str = NAME) -> None:
    """Make the queue of a limit with all its tokens, as the operator does."""
    queue = Limit(name, concurrency).queue
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        for _ in range(concurrency):
            channel.basic_publish("", queue.name, b"", pika.BasicProperties(delivery_mode=2), mandatory=True)


def most_at_once(events: Iterable[dict[str, Any]], killed: Iterable[int] = ()) -> int:
    """Return the highest number of handlers that ran at the same time.

    Args:
        events: of tests/support/jobs.py.
        killed: process ids whose handlers without an end do not count.
    """
    running: set[tuple[Any, int]] = set()
    lost = set(killed)
    most = 0
    for event in sorted(events, key=lambda event: float(event["at"])):
        handler = (event["id"], event["pid"])
        if event["event"] != "start":
            running.discard(handler)
        elif event["pid"] not in lost:
            running.add(handler)
        most = max(most, len(running))
    return most
