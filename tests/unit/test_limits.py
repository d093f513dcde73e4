"""Which limit applies to a WorkQueue, and what the counts of its queue say about tokens."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from tests.simulation.loop import SimulatedLoop
from tests.support.workqueue import workqueue
from workqueue.contract.topology import BrokerVersion, Limit
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.connection import Broker, QueueCounts, QueueMissingError
from workqueue_operator.broker.limits import FILL_SECONDS, Limits, has_enough
from workqueue_operator.kube.store import Store
from workqueue_operator.reconcile.limits import agreed


def member(name: str, created: int, concurrency: int = 5, **metadata: Any) -> WorkQueue:
    return workqueue(
        name=name,
        metadata={
            "name": name,
            "uid": name,
            "resourceVersion": "1",
            "creationTimestamp": f"2026-01-01T00:00:0{created}Z",
            **metadata,
        },
        limits={"concurrency": concurrency, "group": "shared"},
    )


def store_of(*workqueues: WorkQueue) -> Store:
    store = Store(lambda _: None)
    for body in workqueues:
        store.put_workqueue(body.model_dump(mode="json", by_alias=True, exclude_none=True))
    return store


def applies_beside(one: WorkQueue, *others: WorkQueue) -> tuple[int, bool]:
    """The concurrency that applies to a WorkQueue, and whether it is not its own."""
    found = agreed(one, store_of(one, *others))
    assert found is not None
    assert found.limit.name == "limit.team.shared.handlers"
    return found.limit.concurrency, found.conflict is not None


def test_limit_has_a_queue_of_its_own_without_a_group() -> None:
    one = workqueue(limits={"concurrency": 5})

    assert one.limit == Limit("jobs.limit.handlers", 5)
    assert agreed(one, Store(lambda _: None)) == (one.limit, None)
    assert agreed(workqueue(), Store(lambda _: None)) is None


def test_oldest_workqueue_of_a_group_decides() -> None:
    young = member("young", 2)

    assert applies_beside(young, member("old", 1)) == (5, False)
    assert applies_beside(young, member("old", 1, concurrency=7)) == (7, True)
    assert applies_beside(young, member("younger", 3, concurrency=7)) == (5, False)


def test_other_namespaces_and_deleted_workqueues_are_no_members() -> None:
    young = member("young", 2)

    assert applies_beside(young, member("old", 1, concurrency=7, namespace="mail")) == (5, False)
    leaving = {"deletionTimestamp": "2026-01-02T00:00:00Z"}
    assert applies_beside(young, member("old", 1, concurrency=7, **leaving)) == (5, False)


def test_member_that_cannot_be_read_stops_no_other() -> None:
    young, middle, old = member("young", 3), member("middle", 2, concurrency=7), member("old", 1)
    store = store_of(young, middle)
    body = old.model_dump(mode="json", by_alias=True, exclude_none=True)
    body["spec"]["limits"]["concurrency"] = "many"
    store.put_workqueue(body)

    found = agreed(young, store)

    assert found is not None
    assert found.limit.concurrency == 7
    assert agreed(middle, store) == (middle.limit, None)


@pytest.mark.parametrize(
    ("ready", "consumers", "enough"),
    [(5, 0, True), (0, 5, True), (2, 3, True), (0, 20, True), (4, 0, False), (0, 4, False), (6, 0, False)],
    ids=["idle", "reached", "partly used", "waited for", "one gone", "one gone in use", "one too many"],
)
def test_counts_show_missing_tokens(ready: int, consumers: int, enough: bool) -> None:
    assert has_enough(Limit("limit", 5), QueueCounts(ready, consumers, at=0.0)) is enough


@pytest.mark.parametrize(
    ("concurrency", "slots", "most"), [(5, 1, 5), (5, 2, 3), (4, 8, 1), (20, 1, 10)], ids=str
)
def test_replicas_that_could_get_no_token_are_too_many(concurrency: int, slots: int, most: int) -> None:
    spec = workqueue(limits={"concurrency": concurrency}, worker={"concurrency": slots}).spec

    assert spec.most_replicas == most


def test_limit_is_a_positive_number() -> None:
    with pytest.raises(ValidationError, match="concurrency"):
        workqueue(limits={"concurrency": 0})


class Tokens:
    """A broker that has the tokens of every limit, as soon as it answers."""

    def __init__(self, display: str, *, answers: bool = True) -> None:
        self.binding = SimpleNamespace(display=display)
        self.version = BrokerVersion(4, 0)
        self.asked = 0
        self.answers = asyncio.Event()
        if answers:
            self.answers.set()

    async def declare_exchange(self, *_: Any, **__: Any) -> None:
        self.asked += 1
        await self.answers.wait()

    async def counts_if_there(self, _: str) -> QueueCounts:
        return QueueCounts(5, 0, at=0.0)

    async def declare_queue(self, _: Any) -> QueueCounts:
        return QueueCounts(5, 0, at=0.0)


async def test_silent_broker_delays_no_limit_of_the_same_name_elsewhere() -> None:
    limits, limit = Limits(), Limit("jobs.limit.handlers", 5)
    silent, healthy = Tokens("amqp://silent/", answers=False), Tokens("amqp://healthy/")
    waiting = [asyncio.create_task(limits.ensure(limit, cast(Broker, silent))) for _ in range(2)]
    await asyncio.sleep(0)

    async with asyncio.timeout(60):
        await limits.ensure(limit, cast(Broker, healthy))

    assert silent.asked == 1, "on one broker they are made once"
    silent.answers.set()
    await asyncio.gather(*waiting)
    waiting.clear()
    assert len(limits._locks) == 0


class Alarm(Tokens):
    """A broker without tokens that takes none, as during a memory alarm."""

    async def declare_exchange(self, *_: Any, passive: bool = False) -> None:
        if passive:
            raise QueueMissingError("the seal")

    async def delete_exchange(self, _: str) -> None:
        pass

    async def delete_queue(self, _: str) -> None:
        pass

    async def publish(self, _: object) -> None:
        await asyncio.Event().wait()


def test_no_member_of_a_group_waits_for_all_others_during_a_memory_alarm() -> None:
    """A pass that takes more than five minutes counts as stuck, and does not scale until then."""
    limits, limit, broker = Limits(), Limit("limit.team.shared.handlers", 5), Alarm("amqp://rabbit/")
    loop = SimulatedLoop()

    async def members() -> tuple[list[Any], float]:
        begun = loop.time()
        made = (limits.ensure(limit, cast(Broker, broker)) for _ in range(40))
        said = await asyncio.gather(*made, return_exceptions=True)
        return said, loop.time() - begun

    asyncio.set_event_loop(loop)
    said, seconds = loop.run_until_complete(members())
    loop.close()

    assert {getattr(one, "reason", one) for one in said} == {Reason.BROKER_TIMEOUT}
    assert seconds <= 2 * FILL_SECONDS
