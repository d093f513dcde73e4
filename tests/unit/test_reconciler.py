"""When passes begin; what they do is shown by tests/operator and tests/e2e."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_store import thing
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.reconcile.reconciler import Dependencies, Reconciler


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
