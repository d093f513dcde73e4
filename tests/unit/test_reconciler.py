"""When passes begin; what they do is shown by tests/operator and tests/e2e."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.passes import KEY, api, operator, reports, workqueue
from tests.unit.test_store import thing
from workqueue_operator.clock import SystemClock
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.reconcile.queue import NextPass, ReconcileQueue
from workqueue_operator.reconcile.reconciler import CONNECTING_AGAIN, Dependencies, Reconciler
from workqueue_operator.reconcile.recurring import RecurringRunner
from workqueue_operator.reconcile.reporter import Reporter
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.scaling.decide import ScaleInWindow


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """The keys of the passes that have begun."""
    begun: list[Key] = []

    async def reconcile(_: Reconciler, key: Key) -> NextPass:
        begun.append(key)
        return NextPass()

    monkeypatch.setattr(Reconciler, "reconcile", reconcile)
    return begun


def reconciler_of(queue: ReconcileQueue, store: Store) -> Reconciler:
    nobody: Any = None
    others = {name: nobody for name in Dependencies.__annotations__ if name not in {"queue", "store"}}
    return Reconciler(Dependencies(queue=queue, store=store, **others))


async def test_no_pass_starts_before_the_first_lists(passes: list[Key]) -> None:
    """A pass that did not know the Deployment yet would create it again."""
    queue = ReconcileQueue(SystemClock())
    store = Store(queue.add)
    reconciler = reconciler_of(queue, store)
    store.put_workqueue(thing("jobs", 1))
    store.put_workqueue(thing("mail", 2))
    await queue_turn()
    assert passes == []

    reconciler.start()
    await queue_turn()

    assert passes == [("team", "jobs"), ("team", "mail")]
    await queue.stop(5)


async def test_each_change_begins_a_pass_after_the_start(passes: list[Key]) -> None:
    queue = ReconcileQueue(SystemClock())
    store = Store(queue.add)
    reconciler_of(queue, store).start()

    store.put_workqueue(thing("jobs", 1))
    await queue_turn()

    assert passes == [("team", "jobs")]
    await queue.stop(5)


def test_pass_without_a_broker_does_not_count_as_a_failure_at_the_api_server() -> None:
    """Otherwise the first 429 after a broker outage would make the WorkQueue wait for a minute, doorbell or not."""
    queue = ReconcileQueue(SystemClock())
    reconciler = reconciler_of(queue, Store(queue.add))
    state = reconciler._pass_states["team", "jobs"] = PassState("uid-1", ScaleInWindow(0.0))
    state.problems = 20

    due = reconciler._failed(("team", "jobs"))

    assert due.holds is None
    assert due.after is not None
    assert due.after < 1


def test_first_pass_that_fails_is_repeated_soon() -> None:
    queue = ReconcileQueue(SystemClock())

    after = reconciler_of(queue, Store(queue.add))._failed(("team", "new")).after

    assert after is not None
    assert after <= 5


async def queue_turn() -> None:
    """Let the passes begin that have just been added."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_event_while_the_first_connection_is_opened_does_not_wait() -> None:
    """A WorkQueue that is deleted or suspended meanwhile would wait for ten seconds."""
    async with operator(api("amqp://user:secret@127.0.0.1:1/"), "team") as made:
        due = await made.reconciler.reconcile(KEY)

    assert due == NextPass(CONNECTING_AGAIN)


STOPS: dict[str, dict[str, Any]] = {
    "suspended": {"spec": {"suspend": True}},
    "deleted": {"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}},
}


@pytest.mark.parametrize("change", STOPS.values(), ids=STOPS)
async def test_workqueue_that_stops_publishes_no_recurring_message(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """One that waits for the end of a memory alarm would be published then."""
    forgotten: list[str] = []
    monkeypatch.setattr(RecurringRunner, "forget", lambda _, uid: forgotten.append(uid))
    body = workqueue()
    body["metadata"]["resourceVersion"] = "2"
    for part, fields in change.items():
        body[part] |= fields
    async with operator(api("amqp://user:secret@127.0.0.1:1/"), "team") as made:
        made.parts.store.put_workqueue(body)

        await made.reconciler.reconcile(KEY)

    assert forgotten == ["uid-1"]


async def test_workqueue_that_can_be_read_again_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer added a condition that the operator cannot read, and removed it."""
    reported = reports(monkeypatch)
    monkeypatch.setattr(Reporter, "shows", lambda *_: True)
    theirs = {
        "type": "Theirs",
        "status": "True",
        "reason": "R",
        "message": "m",
        "lastTransitionTime": "never",
    }
    async with operator(api("amqp://nobody@127.0.0.1:1/"), "team") as made:
        for version, conditions in enumerate(([], [theirs], []), 2):
            body = workqueue()
            body["spec"]["suspend"] = True
            body["metadata"]["resourceVersion"] = str(version)
            body["status"] = {"conditions": conditions}
            made.parts.store.put_workqueue(body)
            await made.reconciler.reconcile(KEY)

    ready = [
        next(one for one in status["conditions"] if one["type"] == "Ready")["reason"] for status in reported
    ]
    assert ready == ["Suspended", "SpecInvalid", "Suspended"]
