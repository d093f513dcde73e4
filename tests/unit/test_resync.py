"""The LISTs that correct the store, and the detection of a blind watch."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.wait import until
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube import resync as module
from workqueue_operator.kube.resync import Resync
from workqueue_operator.kube.store import Store
from workqueue_operator.names import LABEL_WORKQUEUE


def thing(name: str, version: int) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": name, "uid": name, "resourceVersion": str(version)},
    }


def listed(*items: dict[str, Any], further: str = "") -> dict[str, Any]:
    return {"metadata": {"continue": further}, "items": list(items)}


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    for kind in ("workqueues", "deployments", "pods"):
        made.answer("GET", f"/{kind}", listed())
    return made


@pytest.fixture
def store() -> Store:
    return Store(lambda _: None)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of both modules; set its only element."""
    clock = [1000.0]
    monkeypatch.setattr("workqueue_operator.kube.resync.time.monotonic", lambda: clock[0])
    return clock


async def test_resync_lists_all_kinds_page_by_page(cluster: FakeCluster, store: Store) -> None:
    def pages(request: Request) -> dict[str, Any]:
        return (
            listed(thing("two", 2))
            if request.query.get("continue")
            else listed(thing("one", 1), further="next")
        )

    cluster.answer("GET", "/workqueues", pages)
    await Resync(cluster, store, (), 300).once()
    assert sorted(name for _, name in store.workqueues) == ["one", "two"]
    assert cluster.paths("GET") == [
        "/apis/workqueue.dev/v1alpha1/workqueues",
        "/apis/workqueue.dev/v1alpha1/workqueues",
        "/apis/apps/v1/deployments",
        "/api/v1/pods",
    ]
    assert cluster.asked[-1].query["labelSelector"] == LABEL_WORKQUEUE


async def test_resync_lists_namespaces_one_by_one(cluster: FakeCluster, store: Store) -> None:
    await Resync(cluster, store, ("one", "two"), 300).once()
    assert [path for path in cluster.paths("GET") if path.endswith("pods")] == [
        "/api/v1/namespaces/one/pods",
        "/api/v1/namespaces/two/pods",
    ]


async def test_partially_failed_list_drops_no_object_of_that_kind(cluster: FakeCluster, store: Store) -> None:
    def half(request: Request) -> object:
        if request.query.get("continue"):
            return ClusterError(410, "the continue token is too old")
        return listed(thing("one", 1), further="next")

    store.put_workqueue(thing("two", 1))
    cluster.answer("GET", "/workqueues", half)
    with pytest.raises(ClusterError):
        await Resync(cluster, store, (), 300).once()
    assert ("team", "two") in store.workqueues


async def test_deletion_before_a_list_of_the_watch_is_found_after_it(
    cluster: FakeCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch begins with a LIST without the object, and lists again after a gap."""
    monkeypatch.setattr(module, "AFTER_WATCH_LISTS", 0.01)
    resync = Resync(cluster, store, (), 300)
    cluster.answer("GET", "/workqueues", listed(thing("one", 1), thing("two", 2)))
    await resync.first()
    cluster.answer("GET", "/workqueues", listed(thing("one", 1)))
    running = asyncio.create_task(resync.run())
    for gone in ("two", "one"):
        store.watch_lists.set()
        await until(lambda gone=gone: ("team", gone) not in store.workqueues)
        cluster.answer("GET", "/workqueues", listed())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_list_waits_for_the_end_of_a_long_list_of_the_watch(
    cluster: FakeCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AFTER_WATCH_LISTS", 1.0)
    running = asyncio.create_task(Resync(cluster, store, (), 300).run())
    for _ in range(20):
        store.watch_lists.set()
        await asyncio.sleep(0.02)
    assert not cluster.asked

    await until(lambda: len(cluster.asked) == len(module.PATHS))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_watch_that_lists_without_end_does_not_stop_the_resync(
    cluster: FakeCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "watch_lists", Mock(is_set=lambda: True, wait=AsyncMock()))
    monkeypatch.setattr(module, "AFTER_WATCH_LISTS", 0.001)
    running = asyncio.create_task(Resync(cluster, store, (), 0.05).run())

    await until(lambda: len(cluster.asked) >= len(module.PATHS))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_failed_resync_is_repeated_long_before_the_next_round(
    cluster: FakeCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was deleted in a gap of the watch must not stay for minutes because the API server was busy."""
    monkeypatch.setattr(module, "AGAIN", (0.001, 0.001))
    monkeypatch.setattr(module, "AFTER_WATCH_LISTS", 0.001)
    resync = Resync(cluster, store, (), 3600)
    cluster.answer("GET", "/workqueues", ClusterError(0, "no answer"))
    store.watch_lists.set()
    running = asyncio.create_task(resync.run())
    await until(lambda: len(cluster.asked) > 2)
    cluster.answer("GET", "/workqueues", {"nobody": "thought of this"})
    seen = len(cluster.asked)
    await until(lambda: len(cluster.asked) > seen + 2)
    cluster.answer("GET", "/workqueues", listed(thing("one", 1)))
    await until(lambda: store.workqueues)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- blind


async def test_first_list_after_start_is_no_sign_of_blind_watch(
    cluster: FakeCluster, store: Store, now: list[float]
) -> None:
    resync = Resync(cluster, store, (), 300)
    cluster.answer("GET", "/workqueues", listed(thing("one", 1)))
    await resync.once()
    store.freshness["workqueues"].event = now[0] + 1
    for later in (1, module.BLIND_AFTER + 1, 299):
        now[0] = 1000.0 + later
        assert not resync.blind


async def test_late_watch_event_is_no_sign_of_blind_watch(
    cluster: FakeCluster, store: Store, now: list[float]
) -> None:
    resync = Resync(cluster, store, (), 300)
    store.freshness["workqueues"].event = now[0]
    now[0] += 1000
    cluster.answer("GET", "/workqueues", listed(thing("one", 2)))
    await resync.once()
    store.freshness["pods"].event = now[0] + 0.1
    now[0] += module.BLIND_AFTER + 1
    assert not resync.blind


async def test_watch_without_events_while_lists_change_is_blind(
    cluster: FakeCluster, store: Store, now: list[float]
) -> None:
    resync = Resync(cluster, store, (), 300)
    store.freshness["workqueues"].event = now[0]
    now[0] += 301
    cluster.answer("GET", "/workqueues", listed(thing("one", 2)))
    await resync.once()
    assert not resync.blind
    now[0] += module.BLIND_AFTER + 1
    assert resync.blind
    store.freshness["workqueues"].event = now[0]
    assert not resync.blind


async def test_watch_of_quiet_cluster_is_not_blind(
    cluster: FakeCluster, store: Store, now: list[float]
) -> None:
    resync = Resync(cluster, store, (), 300)
    cluster.answer("GET", "/workqueues", listed(thing("one", 1)))
    store.put_workqueue(thing("one", 1))
    for _ in range(10):
        now[0] += 300
        await resync.once()
        assert not resync.blind


async def test_unreachable_api_server_is_no_sign_of_blind_watch(
    cluster: FakeCluster, store: Store, now: list[float]
) -> None:
    resync = Resync(cluster, store, (), 300)
    cluster.answer("GET", "/workqueues", ClusterError(0, "no answer"))
    for _ in range(10):
        now[0] += 300
        with pytest.raises(ClusterError):
            await resync.once()
        assert not resync.blind


@pytest.mark.parametrize(
    "refusal", [ClusterError(429, "too many requests", retry_after=0.01), ClusterError(0, "no answer")]
)
async def test_first_list_is_retried_until_the_api_server_answers(
    refusal: ClusterError, cluster: FakeCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_AGAIN", 0.01)
    answers: list[Any] = [refusal, refusal]
    cluster.answer("GET", "/workqueues", lambda _: answers.pop() if answers else listed(thing("one", 1)))

    await Resync(cluster, store, (), 300).first()

    assert list(store.workqueues) == [("team", "one")]
    assert answers == []
