"""Ctrl-C during `workqueue dead`: no message is in two queues, and the command says how far it came."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from itertools import count

import pytest

from tests.support.commands import started
from tests.support.rabbitmq import VirtualHost
from tests.support.tcpproxy import tcp_proxy
from tests.support.wait import eventually
from workqueue.amqp import dead_letter_queue
from workqueue.amqp.dead_letter_queue import DeadLetterQueue, Replay, purge
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.amqp.session import Session
from workqueue.cli import output
from workqueue.contract import topology
from workqueue.contract.binding import Binding, from_url
from workqueue.contract.dead_letters import Filter
from workqueue.contract.topology import QueueSettings

LETTERS = 10_000


@pytest.fixture
def filled(vhost: VirtualHost) -> VirtualHost:
    with PublishPipeline(lambda: from_url(vhost.url), "test") as publisher:
        publisher.declare_plan(topology.plan(QueueSettings("jobs"))).result()
        letters = [Outgoing("jobs.dead", b"x", message_id=f"m{number}") for number in range(LETTERS)]
        for future in [publisher.publish(one) for one in letters]:
            future.result()
    return vhost


def are_split(vhost: VirtualHost, moved: int) -> None:
    """Wait until so many messages are in the work queue, and the others are dead letters."""
    eventually(lambda: vhost.depth("jobs.dead").unacknowledged == 0)
    eventually(lambda: vhost.depth("jobs.dead").ready == LETTERS - moved)
    assert vhost.depth("jobs").ready == moved


def test_interrupted_command_reports_what_it_has_moved(filled: VirtualHost) -> None:
    words = ("dead", "replay", "--queue", "jobs")
    with (
        filled.connect() as connection,
        tcp_proxy(filled.broker.port) as network,
        # All messages together pass in many pieces, so that the first one comes long before the last.
        network.slow(0.05),
        started(
            words,
            filled.url.replace(f":{filled.broker.port}/", f":{network.port}/"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as command,
    ):
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        next(channel.consume("jobs", inactivity_timeout=60))
        command.send_signal(signal.SIGINT)
        said, warned = command.communicate()

    assert command.returncode == 130
    assert warned == b"Interrupted. The other messages are still in the dead-letter queue.\n"
    moved = int(said.split()[0])
    assert said == f"{output.count(moved, 'message')} replayed to jobs.\n".encode()
    are_split(filled, moved)


def interrupt_at(number: int) -> Callable[[int], None]:
    """What a command calls after each message. The user presses Ctrl-C at this one."""
    taken = count(1)

    def update(_: int) -> None:
        if next(taken) == number:
            raise KeyboardInterrupt

    return update


def test_messages_in_flight_are_settled(filled: VirtualHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter_queue, "_INTERRUPTED_SECONDS", 120.0)

    def source() -> Binding:
        return from_url(filled.url)

    replay = Replay(DeadLetterQueue("jobs"), source, Filter())
    with Session(source, "test") as session:
        replay.run(session, LETTERS, interrupt_at(LETTERS // 3))

    assert (replay.is_interrupted, replay.moved, replay.errors) == (True, LETTERS // 3, [])
    are_split(filled, LETTERS // 3)


def test_interrupted_purge_says_how_many_it_has_dropped(filled: VirtualHost) -> None:
    with Session(lambda: from_url(filled.url), "test") as session:
        purged = purge(session, DeadLetterQueue("jobs"), Filter(), LETTERS, interrupt_at(100))

    assert purged == (100, True)
    eventually(lambda: filled.depth("jobs.dead").ready == LETTERS - 100)
