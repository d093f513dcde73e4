"""What the cluster shows: WorkQueues, their Deployments and their pods, as the watch and the LISTs told.

Place in the flow: `handlers` feed it with events, `relist` corrects it every few minutes (kopf lists again
after a gap in its watch but never says what was deleted in the gap); a pass reads it and nothing else.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ..names import LABEL_WORKQUEUE, workload_name

Object: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str]
"""(namespace, name) of a WorkQueue."""

_UNREAD: Final = ("managedFields",)


@dataclass(slots=True)
class Freshness:
    """When the watch and the LIST of one kind last brought something, on the monotonic clock; None: never."""

    event: float | None = None
    listed: float | None = None


@dataclass(eq=False)
class Store:
    """Objects by (namespace, name).

    Args:
        wake: called with the key of a WorkQueue about which something changed.
    """

    wake: Callable[[Key], None]
    workqueues: dict[Key, Object] = field(default_factory=dict)
    deployments: dict[Key, Object] = field(default_factory=dict)
    pods: dict[Key, Object] = field(default_factory=dict)
    freshness: dict[str, Freshness] = field(default_factory=lambda: defaultdict(Freshness))
    _touched: dict[tuple[str, Key], float] = field(default_factory=dict)
    _pods_of: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))
    _followers: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))

    # -- what a pass reads ---------------------------------------------------------------------------

    def workqueue(self, key: Key) -> Object | None:
        """The WorkQueue, or None when it is not there (any more)."""
        return self.workqueues.get(key)

    def deployment(self, namespace: str, name: str) -> Object | None:
        """A Deployment, or None."""
        return self.deployments.get((namespace, name))

    def pods_of(self, key: Key) -> Iterator[Object]:
        """All pods with the label of this WorkQueue, whatever their phase."""
        return (self.pods[pod] for pod in self._pods_of.get(key, ()) if pod in self.pods)

    def follow(self, key: Key, namespace: str, deployment: str) -> None:
        """Wake `key` when that Deployment changes, although it does not carry our label."""
        self._followers[namespace, deployment].add(key)

    def unfollow(self, key: Key) -> None:
        """Undo every `follow` of this WorkQueue."""
        for target in [target for target, keys in self._followers.items() if key in keys]:
            self._followers[target].discard(key)
            if not self._followers[target]:
                del self._followers[target]

    def followers_of(self, namespace: str, deployment: str) -> frozenset[Key]:
        """The WorkQueues that follow that Deployment."""
        return frozenset(self._followers.get((namespace, deployment), ()))

    def age(self, key: Key) -> tuple[str, str]:
        """What orders WorkQueues by age: of two that want the same thing, the lower has it."""
        metadata = self.workqueues[key]["metadata"]
        return metadata["creationTimestamp"], metadata["uid"]

    def is_older(self, one: Key, other: Key) -> bool:
        """Whether `one` is there, is not being deleted, and is older than `other`."""
        body = self.workqueues.get(one)
        if body is None or other not in self.workqueues or body["metadata"].get("deletionTimestamp"):
            return False
        return self.age(one) < self.age(other)

    # -- what the events and the LISTs write ---------------------------------------------------------

    def put_workqueue(self, body: Object) -> None:
        """A WorkQueue as it is now; an older version than the known one is ignored."""
        key = _key(body)
        known = self.workqueues.get(key)
        if known is None or not _is_older(body, known):
            self.workqueues[key] = _lean(body)
            self._touch("workqueues", key)
            if known is None or _asks_for(body) != _asks_for(known):
                self.wake(key)

    def put_deployment(self, body: Object) -> None:
        """A Deployment as it is now, from an event, a LIST or the answer to our own write."""
        key = _key(body)
        known = self.deployments.get(key)
        owners = self._owners(body)
        if not owners:
            self.deployments.pop(key, None)
            return
        if known is None or not _is_older(body, known):
            self.deployments[key] = body
            self._touch("deployments", key)
            for owner in owners:
                self.wake(owner)

    def put_pod(self, body: Object) -> None:
        """A pod as it is now."""
        owner = _owner(body)
        key = _key(body)
        if owner is None:
            return
        known = self.pods.get(key)
        if known is None or not _is_older(body, known):
            self.pods[key] = _lean(body)
            self._touch("pods", key)
            self._pods_of[owner].add(key)
            self.wake(owner)

    def drop(self, kind: str, body: Object) -> None:
        """Something was deleted; an object of the same name that came since stays."""
        objects = self._objects(kind)
        key = _key(body)
        known = objects.get(key)
        if known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]:
            self._remove(kind, key)

    def correct(self, kind: str, listed: Iterable[Object], namespace: str | None, taken_at: float) -> None:
        """Take a whole LIST as the truth, but for what became known after `taken_at`.

        Args:
            kind: `workqueues`, `deployments` or `pods`.
            namespace: the LIST's scope, None for all.
            taken_at: the monotonic time before the LIST was asked for.
        """
        put = {"workqueues": self.put_workqueue, "deployments": self.put_deployment, "pods": self.put_pod}[
            kind
        ]
        seen = set()
        for body in listed:
            seen.add(_key(body))
            put(body)
        objects = self._objects(kind)
        for key in [key for key in objects if key not in seen and namespace in {None, key[0]}]:
            if self._touched.get((kind, key), 0.0) < taken_at:
                self._remove(kind, key)
        self.freshness[kind].listed = time.monotonic()

    def saw_event(self, kind: str) -> None:
        """Note that the watch of this kind is alive."""
        self.freshness[kind].event = time.monotonic()

    def _touch(self, kind: str, key: Key) -> None:
        self._touched[kind, key] = time.monotonic()

    def _objects(self, kind: str) -> dict[Key, Object]:
        objects: dict[Key, Object] = getattr(self, kind)
        return objects

    def _remove(self, kind: str, key: Key) -> None:
        body = self._objects(kind).pop(key)
        self._touched.pop((kind, key), None)
        if kind == "workqueues":
            self.wake(key)
        elif kind == "deployments":
            for owner in self._owners(body):
                self.wake(owner)
        elif (pods_owner := _owner(body)) is not None:
            self._pods_of[pods_owner].discard(key)
            if not self._pods_of[pods_owner]:
                del self._pods_of[pods_owner]
            self.wake(pods_owner)

    def _owners(self, deployment: Object) -> set[Key]:
        """The WorkQueues that a Deployment concerns: by our label, by our name for it, by a workloadRef."""
        namespace, name = _key(deployment)
        owners = set(self._followers.get((namespace, name), ()))
        if (owner := _owner(deployment)) is not None:
            owners.add(owner)
        elif name.endswith(workload_name("")):
            # Somebody else's Deployment under the name that we would use: a NameConflict to report.
            owners.add((namespace, name.removesuffix(workload_name(""))))
        return owners


def _key(body: Object) -> Key:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _owner(body: Object) -> Key | None:
    name = body["metadata"].get("labels", {}).get(LABEL_WORKQUEUE)
    return (body["metadata"]["namespace"], name) if name else None


def _asks_for(workqueue: Object) -> object:
    """What of a WorkQueue concerns a pass: not the status, which we write ourselves."""
    metadata = workqueue["metadata"]
    return [
        metadata.get(name) for name in ("uid", "generation", "deletionTimestamp", "finalizers", "annotations")
    ]


def _is_older(body: Object, known: Object) -> bool:
    """Whether `body` is a version of the known object that came before it.

    Resource versions of one kind can be compared as numbers (promised since Kubernetes 1.35, true before).
    """
    new, old = body["metadata"], known["metadata"]
    if new["uid"] != old["uid"]:
        return bool(new["creationTimestamp"] < old["creationTimestamp"])
    try:
        return int(new["resourceVersion"]) < int(old["resourceVersion"])
    except ValueError:
        return False


def _lean(body: Object) -> Object:
    """The object without what a pass never reads; 1,000 WorkQueues are held at once."""
    metadata = {name: value for name, value in body["metadata"].items() if name not in _UNREAD}
    return {**body, "metadata": metadata}
