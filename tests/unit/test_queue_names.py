"""The names that follow from the longest name of a work queue fit into AMQP's 255 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.workqueue import workqueue
from tests.unit.test_broker_identity import OneOfTwo
from workqueue.contract.topology import LONGEST_QUEUE_NAME_BYTES, cancels_name
from workqueue.worker.cancels import Cancels
from workqueue_operator.broker import declare
from workqueue_operator.broker.connection import QueueMissingError

LONGEST = "q" * LONGEST_QUEUE_NAME_BYTES
SHORT_STRING_BYTES = 255


class FakeChannel:
    """Notes the queue that is declared."""

    declared = ""

    def queue_declare(self, queue: str, **_: Any) -> None:
        self.declared = queue

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


class FakeConnection:
    generation = 1
    is_open = True

    def __init__(self) -> None:
        self.made: list[tuple[FakeChannel, Callable[[Any], None]]] = []

    def channel(self, on_open: Callable[[Any], None]) -> Any:
        self.made.append((FakeChannel(), on_open))
        return self.made[-1][0]

    def call_later(self, _seconds: float, _function: Callable[[], None]) -> None: ...


class Told(OneOfTwo):
    """Notes which queue the other connection was asked for."""

    asked = ""

    async def counts(self, queue: str, **_: Any) -> Any:
        self.asked = queue
        raise QueueMissingError(queue)


def fits(name: str) -> bool:
    return len(LONGEST) < len(name) <= SHORT_STRING_BYTES


def test_queues_that_the_operator_knows() -> None:
    limited = workqueue(queue={"name": LONGEST}, limits={"concurrency": 1, "ratePerSecond": 1})
    assert limited.limit is not None
    assert limited.rate_limit is not None

    names = {*declare.names(limited), limited.limit.name, limited.rate_limit.name, cancels_name(LONGEST)}

    assert all(map(fits, names - {LONGEST}))


def test_queue_on_which_a_worker_hears_cancels() -> None:
    connection = FakeConnection()
    Cancels(LONGEST, connection).attach(lambda: None)

    for channel, on_open in connection.made:
        on_open(channel)

    [declared] = [channel.declared for channel, _ in connection.made if channel.declared]
    assert fits(declared)


async def test_queue_by_which_two_connections_are_compared() -> None:
    other = Told("b")

    await OneOfTwo("a").is_same_as(other, LONGEST)

    assert fits(other.asked)
