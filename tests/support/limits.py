"""Tokens of limits for tests, and how many handlers ran at the same time."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import pika

from tests.support.rabbitmq import VirtualHost
from tests.support.worker import Worker
from workqueue.contract.topology import BrokerVersion, Limit, limit_queue_name

NAME = limit_queue_name("jobs")
NONE_KILLED: Final[Mapping[int, float]] = MappingProxyType({})
_LASTING: Final = frozenset({"sleep", "ignore", "linger"})


def make_tokens(vhost: VirtualHost, concurrency: int, name: str = NAME) -> None:
    """Make the queue of a limit with all its tokens, as the operator does."""
    queue = Limit(name, concurrency).queue(BrokerVersion.parse(vhost.broker.series))
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        for _ in range(concurrency):
            channel.basic_publish("", queue.name, b"", pika.BasicProperties(delivery_mode=2), mandatory=True)


def most_at_once(events: Iterable[dict[str, Any]], killed: Mapping[int, float] = NONE_KILLED) -> int:
    """Return the highest number of handlers that ran at the same time.

    Args:
        events: of tests/support/jobs.py.
        killed: when processes were killed, by their ids. Their handlers ran until then.
    """
    return max((running for _, running in _running(events, killed)), default=0)


def seconds_above(
    limit: int, events: Iterable[dict[str, Any]], killed: Mapping[int, float] = NONE_KILLED
) -> float:
    """Return for how long more handlers ran than the limit allows."""
    changes = _running(events, killed)
    return sum(
        until - since for (since, running), (until, _) in itertools.pairwise(changes) if running > limit
    )


def tokens_lost(worker: Worker) -> int:
    """Return how many handlers have lost their token while they ran."""
    metrics: str = worker.request("/metrics")[1]
    [line] = [line for line in metrics.splitlines() if line.startswith("workqueue_worker_tokens_lost_total{")]
    return int(float(line.rsplit(" ", 1)[1]))


def _running(events: Iterable[dict[str, Any]], killed: Mapping[int, float]) -> list[tuple[float, int]]:
    """Return how many handlers ran from each moment on."""
    started: defaultdict[tuple[Any, int, int], deque[tuple[float, str]]] = defaultdict(deque)
    changes: list[tuple[float, int]] = []
    for event in sorted(events, key=lambda event: float(event["at"])):
        handler, at = (event["id"], event["attempt"], event["pid"]), float(event["at"])
        if event["event"] == "start":
            started[handler].append((at, event["do"]))
        elif started[handler]:
            changes += [(started[handler].popleft()[0], 1), (at, -1)]
    for (*_, process), unended in started.items():
        for at, do in unended:
            if do in _LASTING:  # others have raised at once
                changes += [(at, 1), (max(at, killed.get(process, math.inf)), -1)]
    running = itertools.accumulate(change for _, change in sorted(changes))
    return [(at, count) for (at, _), count in zip(sorted(changes), running, strict=True)]
