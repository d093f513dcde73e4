"""The store: no ghosts, nothing newer overwritten, nobody woken in vain and nobody forgotten."""

from __future__ import annotations

import asyncio
import copy
import time
from typing import Any

import pytest

from workqueue_operator.kube.store import Key, Store, key_of
from workqueue_operator.kube.views import deployment_view
from workqueue_operator.names import ANNOTATION_DELETION_COST, ANNOTATION_TEMPLATE_HASH, LABEL_WORKQUEUE

JOBS: Key = ("team", "jobs")
OTHER: Key = ("team", "other")


@pytest.fixture
def woken() -> list[Key]:
    return []


@pytest.fixture
def store(woken: list[Key]) -> Store:
    return Store(woken.append)


def thing(
    name: str, version: int, uid: str = "u1", namespace: str = "team", **metadata: Any
) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **metadata,
        }
    }


def pod(name: str, version: int, uid: str = "p1", owner: str = "jobs", **metadata: Any) -> dict[str, Any]:
    return thing(name, version, uid, labels={LABEL_WORKQUEUE: owner}, **metadata)


def names(store: Store, key: Key = JOBS) -> list[str]:
    return [pod.name for pod in store.pods_of(key)]


def take_list(
    store: Store, kind: str, bodies: list[dict[str, Any]], taken_at: float, namespace: str | None = None
) -> None:
    """A whole LIST, as `resync` brings it."""
    for body in bodies:
        store.put(kind, body)
    store.correct(kind, {key_of(body) for body in bodies}, namespace, taken_at)


# -- order


def test_an_older_version_never_replaces_a_newer_one(store: Store, woken: list[Key]) -> None:
    store.put_workqueue(thing("jobs", 10, generation=2))
    woken.clear()
    store.put_workqueue(thing("jobs", 9, generation=1))
    assert store.workqueues[JOBS]["metadata"]["generation"] == 2
    assert woken == []


def test_an_older_list_does_not_undo_our_own_write(store: Store) -> None:
    taken_at = time.monotonic()
    store.put_deployment({**thing("jobs-worker", 12), "spec": {"replicas": 5}})
    take_list(store, "deployments", [{**thing("jobs-worker", 11), "spec": {"replicas": 0}}], taken_at)
    seen = store.deployment("team", "jobs-worker")
    assert seen is not None
    assert seen["spec"]["replicas"] == 5


def test_an_older_answer_to_our_own_write_does_not_undo_an_event(store: Store) -> None:
    store.put_pod(pod("a", 20, annotations={ANNOTATION_DELETION_COST: "-1"}))
    store.put_pod(pod("a", 19))
    assert store.pods["team", "a"].marked


def test_versions_are_compared_as_numbers(store: Store) -> None:
    store.put_workqueue(thing("jobs", 999, generation=1))
    store.put_workqueue(thing("jobs", 1000, generation=2))
    assert store.workqueues[JOBS]["metadata"]["generation"] == 2


# -- the same name again


def test_an_object_made_anew_in_the_same_second_is_kept(store: Store) -> None:
    store.put_workqueue(thing("jobs", 10, "old"))
    store.put_workqueue(thing("jobs", 20, "new"))
    store.put_workqueue(thing("jobs", 11, "old"))
    assert store.workqueues[JOBS]["metadata"]["uid"] == "new"


def test_the_late_deletion_of_the_old_object_does_not_take_the_new_one(store: Store) -> None:
    store.put_workqueue(thing("jobs", 10, "old"))
    store.put_workqueue(thing("jobs", 20, "new"))
    store.drop("workqueues", thing("jobs", 15, "old"))
    assert store.workqueues[JOBS]["metadata"]["uid"] == "new"


def test_a_deleted_object_does_not_come_back_by_a_list_that_is_older(store: Store, woken: list[Key]) -> None:
    store.put_workqueue(thing("jobs", 10))
    taken_at = time.monotonic()
    store.drop("workqueues", thing("jobs", 12))
    woken.clear()
    take_list(store, "workqueues", [thing("jobs", 10)], taken_at)
    assert store.workqueue(JOBS) is None
    assert woken == []


def test_a_deleted_pod_does_not_come_back_by_the_answer_to_our_own_write(store: Store) -> None:
    store.put_pod(pod("a", 10))
    store.drop("pods", pod("a", 12))
    store.put_pod(pod("a", 11))
    assert names(store) == []


def test_a_name_that_was_deleted_can_be_used_again(store: Store) -> None:
    store.put_workqueue(thing("jobs", 10))
    store.drop("workqueues", thing("jobs", 12))
    store.put_workqueue(thing("jobs", 13, "new"))
    assert store.workqueue(JOBS) is not None


# -- lists


def test_a_list_drops_ghosts_and_wakes_who_is_concerned(store: Store, woken: list[Key]) -> None:
    store.put_workqueue(thing("jobs", 1))
    store.put_workqueue(thing("other", 2))
    store.put_pod(pod("a", 3))
    store.put_deployment(thing("jobs-worker", 4, labels={LABEL_WORKQUEUE: "jobs"}))
    woken.clear()
    now = time.monotonic() + 1
    take_list(store, "workqueues", [thing("other", 2)], now)
    take_list(store, "pods", [], now)
    take_list(store, "deployments", [], now)
    assert (list(store.workqueues), names(store), store.deployments) == ([OTHER], [], {})
    assert woken == [JOBS, JOBS, JOBS]


def test_a_list_brings_what_the_watch_missed(store: Store, woken: list[Key]) -> None:
    take_list(store, "workqueues", [thing("jobs", 1)], time.monotonic())
    assert woken == [JOBS]


def test_a_list_that_brings_nothing_new_wakes_nobody(store: Store, woken: list[Key]) -> None:
    store.put_workqueue(thing("jobs", 1))
    woken.clear()
    take_list(store, "workqueues", [thing("jobs", 1)], time.monotonic())
    assert woken == []


@pytest.mark.parametrize(("kind", "body"), [("deployments", thing("jobs-worker", 5)), ("pods", pod("p", 5))])
def test_the_version_that_is_known_wakes_nobody_again(
    store: Store, woken: list[Key], kind: str, body: dict[str, Any]
) -> None:
    """After the answer to our own write the watch brings it, too; and a LIST brings everything."""
    store.put(kind, body)
    assert woken == [JOBS]
    store.put(kind, copy.deepcopy(body))
    assert woken == [JOBS]


def test_what_is_seen_again_during_a_list_is_not_dropped_by_it(store: Store) -> None:
    store.put_deployment(thing("jobs-worker", 5))
    taken_at = time.monotonic()
    store.put_deployment(thing("jobs-worker", 5))
    take_list(store, "deployments", [], taken_at)
    assert store.deployment("team", "jobs-worker") is not None


def test_a_list_does_not_drop_what_came_after_it_was_taken(store: Store) -> None:
    taken_at = time.monotonic() - 1
    store.put_workqueue(thing("jobs", 5))
    take_list(store, "workqueues", [], taken_at)
    assert store.workqueue(JOBS) is not None


def test_a_list_of_one_namespace_leaves_the_others_alone(store: Store) -> None:
    store.put_workqueue(thing("jobs", 5, namespace="elsewhere"))
    take_list(store, "workqueues", [], time.monotonic() + 1, "team")
    assert store.workqueue(("elsewhere", "jobs")) is not None


# -- who is woken


def test_our_own_status_wakes_nobody(store: Store, woken: list[Key]) -> None:
    store.put_workqueue({**thing("jobs", 1, generation=1), "status": {}})
    woken.clear()
    ours = {**thing("jobs", 2, generation=1), "status": {"messages": 3}}
    store.put_workqueue(ours, our_status=True)
    store.put_workqueue(ours)
    assert woken == []
    assert store.workqueues[JOBS]["status"] == {"messages": 3}


def test_a_status_that_somebody_else_changed_wakes(store: Store, woken: list[Key]) -> None:
    store.put_workqueue({**thing("jobs", 1, generation=1), "status": {"messages": 3}})
    woken.clear()
    store.put_workqueue(thing("jobs", 2, generation=1))
    assert woken == [JOBS]


def test_a_spec_that_changed_with_our_status_wakes(store: Store, woken: list[Key]) -> None:
    store.put_workqueue(thing("jobs", 1, generation=1))
    woken.clear()
    store.put_workqueue({**thing("jobs", 2, generation=2), "status": {"messages": 3}}, our_status=True)
    assert woken == [JOBS]


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 2},
        {"deletionTimestamp": "2026-01-02T00:00:00Z"},
        {"finalizers": ["x"]},
        {"annotations": {"workqueue.dev/abandon-queue": "true"}},
        {"uid": "u2"},
    ],
    ids=["the spec", "its deletion", "a finalizer", "an annotation", "another object of that name"],
)
def test_what_concerns_a_pass_wakes(store: Store, woken: list[Key], change: dict[str, Any]) -> None:
    store.put_workqueue(thing("jobs", 1, generation=1))
    woken.clear()
    store.put_workqueue(thing("jobs", 2, **{"generation": 1, **change}))
    assert woken == [JOBS]


def test_a_foreign_deployment_under_our_name_concerns_the_workqueue(store: Store, woken: list[Key]) -> None:
    store.put_deployment(thing("jobs-worker", 1))
    assert woken == [JOBS]


def test_other_peoples_deployments_and_pods_are_not_kept(store: Store, woken: list[Key]) -> None:
    store.put_deployment(thing("website", 1))
    store.put_pod(thing("website-1", 1))
    assert (store.deployments, store.pods, woken) == ({}, {}, [])


def test_a_pod_that_gets_another_label_moves(store: Store, woken: list[Key]) -> None:
    store.put_pod(pod("a", 1))
    woken.clear()
    store.put_pod(pod("a", 2, owner="other"))
    assert (names(store), names(store, OTHER)) == ([], ["a"])
    assert woken == [JOBS, OTHER]


def test_a_deployment_that_loses_our_label_is_let_go(store: Store) -> None:
    store.put_deployment(thing("workers", 1, labels={LABEL_WORKQUEUE: "jobs"}))
    store.put_deployment(thing("workers", 2))
    assert store.deployments == {}


# -- followers


def test_a_followed_deployment_wakes_its_followers(store: Store, woken: list[Key]) -> None:
    store.follow(JOBS, "team", "celery")
    store.follow(OTHER, "team", "celery")
    store.put_deployment(thing("celery", 1))
    assert sorted(woken) == [JOBS, OTHER]
    assert store.followers_of("team", "celery") == {JOBS, OTHER}


def test_who_follows_another_deployment_lets_go_of_the_first(store: Store) -> None:
    store.follow(JOBS, "team", "celery")
    store.put_deployment(thing("celery", 1))
    store.follow(JOBS, "team", "dramatiq")
    assert store.followers_of("team", "celery") == frozenset()
    assert store.deployment("team", "celery") is None


def test_a_deployment_that_nobody_follows_any_more_is_not_kept(store: Store) -> None:
    store.follow(JOBS, "team", "celery")
    store.put_deployment(thing("celery", 1))
    store.unfollow(JOBS)
    assert store.deployments == {}
    store.follow(JOBS, "team", "celery")
    store.put_deployment(thing("celery", 1))
    assert store.deployment("team", "celery") is not None


# -- memory


def test_nothing_is_left_of_what_has_gone(store: Store) -> None:
    for number in range(50):
        name = f"jobs-{number}"
        store.put_workqueue(thing(name, 1))
        store.follow(("team", name), "team", f"celery-{number}")
        store.put_deployment(thing(f"celery-{number}", 2))
        store.put_pod(pod(f"pod-{number}", 3, owner=name))
        store.drop("pods", pod(f"pod-{number}", 4, owner=name))
        store.drop("deployments", thing(f"celery-{number}", 5))
        store.drop("workqueues", thing(name, 6))
        store.unfollow(("team", name))
    later = time.monotonic() + 3600
    for kind in ("workqueues", "deployments", "pods"):
        take_list(store, kind, [], later)
    left = [store.workqueues, store.deployments, store.pods]
    assert not any([*left, store._seen, store._pods_of, store._followers, store._gone])


def test_of_metadata_what_others_keep_there_is_left_out(store: Store, woken: list[Key]) -> None:
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    store.put_workqueue(thing("jobs", 1, managedFields=[{}], annotations={**applied, "a": "b"}))
    assert "managedFields" not in store.workqueues[JOBS]["metadata"]
    assert store.workqueues[JOBS]["metadata"]["annotations"] == {"a": "b"}
    woken.clear()
    store.put_workqueue(thing("jobs", 2, annotations={**applied, "a": "b"}))
    assert woken == []


def test_of_a_deployment_only_what_a_pass_reads_is_kept(store: Store) -> None:
    body = thing("jobs-worker", 1, labels={LABEL_WORKQUEUE: "jobs"}, managedFields=[{}], generation=5)
    marked = {ANNOTATION_TEMPLATE_HASH: "abc"}
    body["spec"] = {
        "replicas": 3,
        "selector": {},
        "template": {
            "metadata": {"annotations": {**marked, "theirs": "x"}, "labels": {"a": "b"}},
            "spec": {"containers": []},
        },
    }
    condition = {"type": "ReplicaFailure", "status": "True", "message": "quota"}
    numbers = {"replicas": 3, "readyReplicas": 1, "updatedReplicas": 2, "observedGeneration": 4}
    body["status"] = {**numbers, "availableReplicas": 1, "conditions": [{**condition, "reason": "x"}]}
    store.put_deployment(body)
    kept = store.deployments["team", "jobs-worker"]
    assert kept["spec"] == {"replicas": 3, "template": {"metadata": {"annotations": marked}}}
    assert kept["status"] == {**numbers, "conditions": [condition]}
    assert kept["metadata"] == {
        name: part for name, part in body["metadata"].items() if name != "managedFields"
    }
    assert deployment_view(kept) == deployment_view(body)


def test_pods_come_by_name_and_not_when_they_have_ended(store: Store) -> None:
    """Evicted pods stay for hours, and a Deployment has replaced them long since."""
    store.put_pod(pod("b", 1))
    store.put_pod({**pod("c", 2), "status": {"phase": "Failed", "reason": "Evicted"}})
    store.put_pod(pod("a", 3))
    assert names(store) == ["a", "b"]
    store.put_pod({**pod("b", 4), "status": {"phase": "Succeeded"}})
    assert names(store) == ["a"]
    take_list(store, "pods", [], time.monotonic() + 1)
    assert (names(store), store.pods) == ([], {})


async def test_each_workqueue_comes_in_turn_and_others_have_theirs(store: Store) -> None:
    for number in range(120):
        store.put_workqueue(thing(f"jobs-{number}", 1))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    names = []
    async for body in store.each_workqueue():
        names.append(body["metadata"]["name"])
        if len(names) == 1:
            store.drop("workqueues", thing("jobs-119", 2))
    task.cancel()
    assert names == [f"jobs-{number}" for number in range(119)], "what goes meanwhile is left out"
    assert turns >= 3


async def test_each_workqueue_of_some_namespaces(store: Store) -> None:
    for namespace in ("team", "shop", "other"):
        store.put_workqueue(thing("jobs", 1, namespace=namespace))
    found = [body["metadata"]["namespace"] async for body in store.each_workqueue({"shop", "team", "none"})]
    assert sorted(found) == ["shop", "team"]
    assert [body async for body in store.each_workqueue(frozenset())] == []
