"""When passes begin; what they do is shown by tests/operator and tests/e2e."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_store import thing
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.reconcile.reconciler import Dependencies, Reconciler
from workqueue_operator.reconcile.state import PassState
from workqueue_operator.scaling.decide import ScaleInWindow


@pytest.fixture
def reconciler(monkeypatch: pytest.MonkeyPatch, woken: list[Key]) -> Reconciler:
    made = Reconciler(lambda _: None)
    monkeypatch.setattr(made.keys, "wake", woken.append)
    return made


@pytest.fixture
def woken() -> list[Key]:
    return []


def parts(store: Store) -> Dependencies:
    nobody: Any = None
    others = {name: nobody for name in Dependencies.__annotations__ if name != "store"}
    return Dependencies(store=store, **others)


def test_no_pass_begins_before_everything_is_listed(reconciler: Reconciler, woken: list[Key]) -> None:
    """One that did not know the Deployment yet would make it again."""
    store = Store(reconciler.wake)
    store.put_workqueue(thing("jobs", 1))
    store.put_workqueue(thing("mail", 2))
    assert woken == []
    reconciler.start(parts(store))
    assert woken == [("team", "jobs"), ("team", "mail")]


def test_afterwards_each_change_begins_one(reconciler: Reconciler, woken: list[Key]) -> None:
    store = Store(reconciler.wake)
    reconciler.start(parts(store))
    store.put_workqueue(thing("jobs", 1))
    assert woken == [("team", "jobs")]


def test_passes_without_a_broker_are_no_failures_at_the_api_server(reconciler: Reconciler) -> None:
    """Else the first 429 after an outage of the broker would keep its WorkQueue waiting for a minute, bell or not."""
    pass_state = reconciler._pass_states["team", "jobs"] = PassState("uid-1", ScaleInWindow(0.0))
    pass_state.problems = 20
    due = reconciler._failed(("team", "jobs"))
    assert not due.firm
    assert due.after is not None
    assert due.after < 1


def test_first_pass_that_fails_is_repeated_soon(reconciler: Reconciler) -> None:
    after = reconciler._failed(("team", "new")).after
    assert after is not None
    assert after <= 5
