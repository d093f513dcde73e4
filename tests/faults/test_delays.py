"""Delayed messages, while RabbitMQ restarts: none is lost, and none arrives early.

tests/faults/test_hidden_messages.py has those whose work queue is missing or full when their delay ends.
"""

from __future__ import annotations

import random
import time

import pytest

from tests.faults.work import QUEUE, Work
from tests.support.wait import eventually
from workqueue import Publisher
from workqueue.contract import headers

COUNT = 150
DELAYS = (1.0, 15.0)
"""Seconds: between two and all of the steps of 0.5 to 8 seconds."""

RESTARTS = [
    pytest.param("broker restarted", False, marks=pytest.mark.nightly),
    pytest.param("broker killed (-9) and started", True, marks=pytest.mark.slow),
]


def lateness(work: Work) -> list[float]:
    """How many seconds after its time each delayed message has reached a handler. Copies count."""
    return [
        event["at"] - int(event["headers"][headers.DUE_AT]) / 1000
        for event in work.workers[0].events
        if event["event"] == "start" and headers.DUE_AT in event["headers"]
    ]


@pytest.mark.parametrize(("fault", "kill"), RESTARTS)
def test_delayed_messages_survive_broker_restart(work: Work, fault: str, kill: bool) -> None:
    """They are on every step at that moment, and between two."""
    work.declare()
    work.measures = {"messages early": lambda: sum(late < 0 for late in lateness(work))}
    work.start(2)
    chance = random.Random(3)
    with Publisher(work.vhost.url) as publisher:
        for number in range(COUNT):
            job = {"id": f"delayed {number}"}
            publisher.publish(job, queue=QUEUE, delay=chance.uniform(*DELAYS))
            work.ledger.sent(job["id"])
    eventually(lambda: len(lateness(work)) > 10)

    work.broker.restart(kill=kill)

    work.balance(f"delayed messages: {fault}", time.monotonic(), within=60)
    assert len(lateness(work)) >= COUNT
    assert min(lateness(work)) >= 0
