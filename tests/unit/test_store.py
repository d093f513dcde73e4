"""The store: no ghosts, no newer object overwritten, and exactly the affected WorkQueues enqueued."""

from __future__ import annotations

import asyncio
import copy
import time
from dataclasses import astuple
from typing import Any

import pytest

from tests.support.fakecluster import scale_of
from workqueue_operator.kube.store import Key, Store, key_of
from workqueue_operator.kube.views import deployment_view
from workqueue_operator.names import (
    ANNOTATION_BROKER,
    ANNOTATION_DELETION_COST,
    ANNOTATION_TEMPLATE_HASH,
    LABEL_WORKQUEUE,
)

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
    """A whole LIST, as `resync` delivers it."""
    for body in bodies:
        store.put(kind, body)
    store.correct(kind, {key_of(body) for body in bodies}, namespace, taken_at)


# -- order


def test_older_version_never_replaces_newer_one(store: Store, woken: list[Key]) -> None:
    store.put_workqueue(thing("jobs", 10, generation=2))
    woken.clear()
    store.put_workqueue(thing("jobs", 9, generation=1))
    assert store.workqueues[JOBS]["metadata"]["generation"] == 2
    assert woken == []


def test_older_list_does_not_undo_own_write(store: Store) -> None:
    taken_at = time.monotonic()
    store.put_deployment({**thing("jobs-worker", 12), "spec": {"replicas": 5}})
    take_list(store, "deployments", [{**thing("jobs-worker", 11), "spec": {"replicas": 0}}], taken_at)
    seen = store.deployment("team", "jobs-worker")
    assert seen is not None
    assert seen["spec"]["replicas"] == 5


def test_older_write_response_does_not_undo_an_event(store: Store) -> None:
    store.put_pod(pod("a", 20, annotations={ANNOTATION_DELETION_COST: "-1"}))
    store.put_pod(pod("a", 19))
    assert store.pods["team", "a"].marked


def test_resource_versions_are_compared_as_numbers(store: Store) -> None:
    store.put_workqueue(thing("jobs", 999, generation=1))
    store.put_workqueue(thing("jobs", 1000, generation=2))
    assert store.workqueues[JOBS]["metadata"]["generation"] == 2


# -- the same name again


def test_object_recreated_within_the_same_second_is_kept(store: Store) -> None:
    store.put_workqueue(thing("jobs", 10, "old"))
    store.put_workqueue(thing("jobs", 20, "new"))
    store.put_workqueue(thing("jobs", 11, "old"))
    assert store.workqueues[JOBS]["metadata"]["uid"] == "new"


def test_late_deletion_of_old_object_keeps_new_one(store: Store) -> None:
    store.put_workqueue(thing("jobs", 10, "old"))
    store.put_workqueue(thing("jobs", 20, "new"))
    store.drop("workqueues", thing("jobs", 15, "old"))
    assert store.workqueues[JOBS]["metadata"]["uid"] == "new"


def test_older_list_does_not_restore_deleted_object(store: Store, woken: list[Key]) -> None:
    store.put_workqueue(thing("jobs", 10))
    taken_at = time.monotonic()
    store.drop("workqueues", thing("jobs", 12))
    woken.clear()
    take_list(store, "workqueues", [thing("jobs", 10)], taken_at)
    assert store.workqueue(JOBS) is None
    assert woken == []


def test_write_response_does_not_restore_deleted_pod(store: Store) -> None:
    store.put_pod(pod("a", 10))
    store.drop("pods", pod("a", 12))
    store.put_pod(pod("a", 11))
    assert names(store) == []


def test_deletion_of_an_unknown_deployment_enqueues_its_workqueue(store: Store, woken: list[Key]) -> None:
    """A pass that found the Deployment of an earlier WorkQueue in its way waits for its deletion."""
    store.put_workqueue(thing("jobs", 10))
    woken.clear()

    store.drop("deployments", thing("jobs-worker", 12, labels={LABEL_WORKQUEUE: "jobs"}))

    assert woken == [JOBS]


def test_name_of_deleted_object_can_be_reused(store: Store) -> None:
    store.put_workqueue(thing("jobs", 10))
    store.drop("workqueues", thing("jobs", 12))
    store.put_workqueue(thing("jobs", 13, "new"))
    assert store.workqueue(JOBS) is not None


# -- lists


def test_list_drops_ghosts_and_enqueues_affected_workqueues(store: Store, woken: list[Key]) -> None:
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


def test_list_adds_objects_the_watch_missed(store: Store, woken: list[Key]) -> None:
    take_list(store, "workqueues", [thing("jobs", 1)], time.monotonic())
    assert woken == [JOBS]


def test_unchanged_list_enqueues_nothing(store: Store, woken: list[Key]) -> None:
    store.put_workqueue(thing("jobs", 1))
    woken.clear()
    take_list(store, "workqueues", [thing("jobs", 1)], time.monotonic())
    assert woken == []


@pytest.mark.parametrize(("kind", "body"), [("deployments", thing("jobs-worker", 5)), ("pods", pod("p", 5))])
def test_known_version_enqueues_nothing(
    store: Store, woken: list[Key], kind: str, body: dict[str, Any]
) -> None:
    """After the response to our own write, the watch and each LIST deliver the same version."""
    store.put(kind, body)
    assert woken == [JOBS]
    store.put(kind, copy.deepcopy(body))
    assert woken == [JOBS]


def test_object_seen_during_a_list_is_not_dropped_by_it(store: Store) -> None:
    store.put_deployment(thing("jobs-worker", 5))
    taken_at = time.monotonic()
    store.put_deployment(thing("jobs-worker", 5))
    take_list(store, "deployments", [], taken_at)
    assert store.deployment("team", "jobs-worker") is not None


def test_list_does_not_drop_newer_object(store: Store) -> None:
    taken_at = time.monotonic() - 1
    store.put_workqueue(thing("jobs", 5))
    take_list(store, "workqueues", [], taken_at)
    assert store.workqueue(JOBS) is not None


def test_list_of_one_namespace_keeps_other_namespaces(store: Store) -> None:
    store.put_workqueue(thing("jobs", 5, namespace="elsewhere"))
    take_list(store, "workqueues", [], time.monotonic() + 1, "team")
    assert store.workqueue(("elsewhere", "jobs")) is not None


# -- which WorkQueues are enqueued


def test_own_status_write_enqueues_nothing(store: Store, woken: list[Key]) -> None:
    store.put_workqueue({**thing("jobs", 1, generation=1), "status": {}})
    woken.clear()
    ours = {**thing("jobs", 2, generation=1), "status": {"messages": 3}}
    store.put_workqueue(ours, our_status=True)
    store.put_workqueue(ours)
    assert woken == []
    assert store.workqueues[JOBS]["status"] == {"messages": 3}


def test_foreign_status_change_enqueues_the_workqueue(store: Store, woken: list[Key]) -> None:
    store.put_workqueue({**thing("jobs", 1, generation=1), "status": {"messages": 3}})
    woken.clear()
    store.put_workqueue(thing("jobs", 2, generation=1))
    assert woken == [JOBS]


def test_spec_change_along_with_own_status_enqueues_the_workqueue(store: Store, woken: list[Key]) -> None:
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
def test_relevant_change_enqueues_the_workqueue(
    store: Store, woken: list[Key], change: dict[str, Any]
) -> None:
    store.put_workqueue(thing("jobs", 1, generation=1))
    woken.clear()
    store.put_workqueue(thing("jobs", 2, **{"generation": 1, **change}))
    assert woken == [JOBS]


def deployment(version: int, replicas: int = 0, generation: int = 1, **status: int) -> dict[str, Any]:
    about = thing("jobs-worker", version, generation=generation, labels={LABEL_WORKQUEUE: "jobs"})
    return {**about, "spec": {"replicas": replicas, "template": {}}, "status": status}


def test_own_count_write_and_its_event_enqueue_nothing(store: Store, woken: list[Key]) -> None:
    store.put_deployment(deployment(1, observedGeneration=1))
    woken.clear()
    ours = deployment(2, replicas=3, generation=2, observedGeneration=1)
    store.put_count(scale_of(ours))
    assert store.deployments["team", "jobs-worker"]["spec"]["replicas"] == 3
    store.put_deployment(ours)
    assert woken == []
    assert store.deployments["team", "jobs-worker"]["spec"]["replicas"] == 3


def test_count_of_zero_is_stored(store: Store) -> None:
    store.put_deployment(deployment(1, replicas=3))
    store.put_count(scale_of(deployment(2, replicas=0)))
    assert store.deployments["team", "jobs-worker"]["spec"]["replicas"] == 0


def test_answer_to_a_count_write_does_not_replace_a_newer_event(store: Store, woken: list[Key]) -> None:
    store.put_deployment(deployment(1))
    store.put_deployment(deployment(3, replicas=7, generation=3))
    woken.clear()
    store.put_count(scale_of(deployment(2, replicas=3, generation=2)))
    assert store.deployments["team", "jobs-worker"]["spec"]["replicas"] == 7
    assert woken == []


def test_foreign_change_along_with_own_count_enqueues_the_workqueue(store: Store, woken: list[Key]) -> None:
    store.put_deployment(deployment(1))
    woken.clear()
    both = deployment(3, replicas=3, generation=3)
    store.put_count(scale_of(both))
    store.put_deployment(deployment(2, generation=2))
    assert woken == [], "the event of the other change is older than the answer"
    store.put_deployment(both)
    assert woken == [JOBS]
    assert store.deployments["team", "jobs-worker"]["metadata"]["generation"] == 3


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"unavailableReplicas": 1}, []),
        ({"replicas": 1}, [JOBS]),
        ({"readyReplicas": 1}, [JOBS]),
        ({"observedGeneration": 1}, [JOBS]),
    ],
    ids=["unavailable replicas", "replicas", "Ready replicas", "generation"],
)
def test_deployment_status_enqueues_only_when_a_pass_reads_it(
    store: Store, woken: list[Key], status: dict[str, int], expected: list[Key]
) -> None:
    store.put_deployment(deployment(1))
    woken.clear()
    store.put_deployment(deployment(2, **status))
    assert woken == expected


def test_pod_event_without_news_enqueues_nothing(store: Store, woken: list[Key]) -> None:
    store.put_pod(pod("a", 1))
    woken.clear()
    store.put_pod({**pod("a", 2), "status": {"conditions": [{"type": "PodReadyToStart", "status": "True"}]}})
    assert woken == []
    store.put_pod({**pod("a", 3), "status": {"podIP": "10.0.0.1"}})
    assert woken == [JOBS]


def test_own_mark_enqueues_nothing(store: Store, woken: list[Key]) -> None:
    store.put_pod(pod("a", 1))
    woken.clear()
    store.put_pod(pod("a", 2, annotations={ANNOTATION_DELETION_COST: "-1"}), our_mark=True)
    assert (woken, store.pods["team", "a"].marked) == ([], True)
    going = pod("a", 3, annotations={}, deletionTimestamp="2026-01-02T00:00:00Z")
    store.put_pod(going, our_mark=True)
    assert woken == [JOBS], "it is terminating, too"


def test_foreign_deployment_of_same_name_enqueues_the_workqueue(store: Store, woken: list[Key]) -> None:
    store.put_deployment(thing("jobs-worker", 1))
    assert woken == [JOBS]


def test_foreign_deployments_and_pods_are_not_kept(store: Store, woken: list[Key]) -> None:
    store.put_deployment(thing("website", 1))
    store.put_pod(thing("website-1", 1))
    assert (store.deployments, store.pods, woken) == ({}, {}, [])


def test_relabelled_pod_moves_to_its_new_workqueue(store: Store, woken: list[Key]) -> None:
    store.put_pod(pod("a", 1))
    woken.clear()
    store.put_pod(pod("a", 2, owner="other"))
    assert (names(store), names(store, OTHER)) == ([], ["a"])
    assert woken == [JOBS, OTHER]


def test_deployment_without_label_is_dropped(store: Store) -> None:
    store.put_deployment(thing("workers", 1, labels={LABEL_WORKQUEUE: "jobs"}))
    store.put_deployment(thing("workers", 2))
    assert store.deployments == {}


# -- followers


def test_followed_deployment_enqueues_its_followers(store: Store, woken: list[Key]) -> None:
    store.follow(JOBS, "team", "celery")
    store.follow(OTHER, "team", "celery")
    store.put_deployment(thing("celery", 1))
    assert sorted(woken) == [JOBS, OTHER]
    assert store.followers_of("team", "celery") == {JOBS, OTHER}


def test_following_another_deployment_drops_the_first(store: Store) -> None:
    store.follow(JOBS, "team", "celery")
    store.put_deployment(thing("celery", 1))
    store.follow(JOBS, "team", "dramatiq")
    assert store.followers_of("team", "celery") == frozenset()
    assert store.deployment("team", "celery") is None


def test_unfollowed_deployment_is_dropped(store: Store) -> None:
    store.follow(JOBS, "team", "celery")
    store.put_deployment(thing("celery", 1))
    store.unfollow(JOBS)
    assert store.deployments == {}
    store.follow(JOBS, "team", "celery")
    store.put_deployment(thing("celery", 1))
    assert store.deployment("team", "celery") is not None


# -- memory


def test_deleted_objects_leave_nothing_in_the_store(store: Store) -> None:
    for number in range(50):
        name = f"jobs-{number}"
        spec = {"limits": {"group": f"group-{number}"}, "queue": {"name": f"queue-{number}"}}
        store.put_workqueue({**thing(name, 1), "spec": spec})
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
    assert not any([store._groups, store._group_of, store._queue_of])


def test_workqueue_leaves_the_group_that_its_spec_no_longer_names(store: Store) -> None:
    def member(version: int, group: str | None) -> dict[str, Any]:
        return {**thing("jobs", version), "spec": {"limits": {"group": group} if group else None}}

    store.put_workqueue(member(1, "one"))
    assert store.group("team", "one") == {JOBS}
    assert not store.group("mail", "one")

    store.put_workqueue(member(2, "other"))
    assert (store.group("team", "one"), store.group("team", "other")) == (frozenset(), {JOBS})

    store.put_workqueue(member(3, None))
    assert not store.group("team", "other")


def test_workqueues_are_found_by_the_name_of_their_queue(store: Store) -> None:
    def named(name: str, version: int, queue: object, namespace: str = "team") -> dict[str, Any]:
        return {**thing(name, version, namespace=namespace), "spec": {"queue": queue}}

    store.put_workqueue(named("jobs", 1, None))
    store.put_workqueue(named("jobs", 1, {}, namespace="mail"))
    store.put_workqueue(named("other", 1, {"name": "jobs"}))
    store.put_workqueue(named("another", 1, {"name": 7}))
    assert store.workqueues_of("jobs") == [JOBS, ("mail", "jobs"), OTHER]
    assert not store.workqueues_of("other")

    store.put_workqueue(named("other", 2, {"name": ""}))
    store.drop("workqueues", thing("jobs", 3))
    assert store.workqueues_of("jobs") == [("mail", "jobs")]
    assert store.workqueues_of("other") == [OTHER]


def test_foreign_metadata_is_not_kept(store: Store, woken: list[Key]) -> None:
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    store.put_workqueue(thing("jobs", 1, managedFields=[{}], annotations={**applied, "a": "b"}))
    assert "managedFields" not in store.workqueues[JOBS]["metadata"]
    assert store.workqueues[JOBS]["metadata"]["annotations"] == {"a": "b"}
    woken.clear()
    store.put_workqueue(thing("jobs", 2, annotations={**applied, "a": "b"}))
    assert woken == []


def test_only_deployment_fields_a_pass_reads_are_kept(store: Store) -> None:
    body = thing("jobs-worker", 1, labels={LABEL_WORKQUEUE: "jobs"}, managedFields=[{}], generation=5)
    marked = {ANNOTATION_TEMPLATE_HASH: "abc", ANNOTATION_BROKER: "amqp://rabbitmq:5672/"}
    body["spec"] = {
        "replicas": 3,
        "selector": {},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        "template": {
            "metadata": {"annotations": {**marked, "theirs": "x"}, "labels": {"a": "b"}},
            "spec": {"containers": []},
        },
    }
    condition = {"type": "ReplicaFailure", "status": "True", "message": "quota"}
    numbers = {"replicas": 3, "readyReplicas": 1, "updatedReplicas": 3, "observedGeneration": 5}
    body["status"] = {**numbers, "availableReplicas": 1, "conditions": [{**condition, "reason": "x"}]}
    store.put_deployment(body)
    kept = store.deployments["team", "jobs-worker"]
    assert kept["spec"] == {
        "replicas": 3,
        "strategy": {"rollingUpdate": {"maxSurge": "25%"}},
        "template": {"metadata": {"annotations": marked}},
    }
    assert kept["status"] == {**numbers, "conditions": [condition]}
    assert kept["metadata"] == {
        name: part for name, part in body["metadata"].items() if name != "managedFields"
    }
    view = deployment_view(body)
    assert all(astuple(view)), "a field without a value would be equal without being kept"
    assert deployment_view(kept) == view


def test_pods_are_sorted_by_name_without_ended_ones(store: Store) -> None:
    """Evicted pods stay for hours after the Deployment has replaced them."""
    store.put_pod(pod("b", 1))
    store.put_pod({**pod("c", 2), "status": {"phase": "Failed", "reason": "Evicted"}})
    store.put_pod(pod("a", 3))
    assert names(store) == ["a", "b"]
    store.put_pod({**pod("b", 4), "status": {"phase": "Succeeded"}})
    assert names(store) == ["a"]
    take_list(store, "pods", [], time.monotonic() + 1)
    assert (names(store), store.pods) == ([], {})


async def test_workqueue_iteration_yields_to_other_tasks(store: Store) -> None:
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


@pytest.mark.parametrize(
    "spec", ["text", ["list"], None, {"limits": "text"}, {"limits": {"group": ["list"]}}]
)
def test_workqueue_that_nothing_has_validated_is_stored(store: Store, woken: list[Key], spec: object) -> None:
    assert store.put_workqueue({**thing("jobs", 10), "spec": spec})

    assert woken == [JOBS]
    assert store.group("team", "list") == frozenset()
