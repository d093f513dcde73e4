"""The operator's cache of WorkQueues, their Deployments and their pods.

`watch` updates it with events, and `resync` corrects it every few minutes. A pass reads the cluster's state only
here.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, MutableMapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from workqueue_operator.kube.json_map import JsonMap
from workqueue_operator.kube.views import PodView, deployment_view, existing, pod_view
from workqueue_operator.names import (
    ANNOTATION_BROKER,
    ANNOTATION_TEMPLATE_HASH,
    LABEL_WORKQUEUE,
    workload_name,
)

Object: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str]
"""(namespace, name) of a WorkQueue."""

_READ: Final[dict[str, dict[str, Any]]] = {
    "workqueues": {"apiVersion": ..., "kind": ..., "spec": ..., "status": ...},
    "deployments": {
        "spec": {
            "replicas": ...,
            "strategy": {"rollingUpdate": {"maxSurge": ...}},
            "template": {
                "metadata": {"annotations": {ANNOTATION_TEMPLATE_HASH: ..., ANNOTATION_BROKER: ...}}
            },
        },
        "status": {
            "observedGeneration": ...,
            "replicas": ...,
            "readyReplicas": ...,
            "updatedReplicas": ...,
            "conditions": {"type": ..., "status": ..., "message": ...},
        },
    },
}
"""The fields of each kind that a pass reads, besides metadata. Whole objects would take most of the memory."""

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"

_AT_ONCE: Final = 50
"""Number of objects parsed before the loop yields, which takes about 1 ms."""

_GONE_MATTERS: Final = 60.0
"""Seconds for which a deletion is remembered: an earlier LIST or the answer to a write may still show the object."""


@dataclass(slots=True)
class Freshness:
    """When the watch and the LIST of a kind last delivered, on the monotonic clock; None for never."""

    event: float | None = None
    listed: float | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """The last version of an object, and when it arrived.

    Attributes:
        is_partial: whether only a part of this version is known.
    """

    version: int
    at: float
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class _Gone:
    """The version of a deletion, and when it arrived."""

    version: int
    at: float


@dataclass(eq=False)
class Store:
    """Objects by (namespace, name).

    Args:
        wake: called with the key of a WorkQueue when one of its objects has changed.

    Attributes:
        watch_lists: set when the watch gets a response to a LIST.
    """

    wake: Callable[[Key], None]
    workqueues: JsonMap = field(default_factory=JsonMap)
    deployments: JsonMap = field(default_factory=JsonMap)
    pods: dict[Key, PodView] = field(default_factory=dict)
    freshness: dict[str, Freshness] = field(default_factory=lambda: defaultdict(Freshness))
    watch_lists: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: dict[tuple[str, Key], _Seen] = field(default_factory=dict)
    _gone: dict[tuple[str, Key], _Gone] = field(default_factory=dict)
    _pods_of: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))
    _followers: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))
    _group_of: dict[Key, str] = field(default_factory=dict)
    _groups: dict[tuple[str, str], set[Key]] = field(default_factory=lambda: defaultdict(set))
    _queue_of: dict[Key, str] = field(default_factory=dict)

    # -- read by passes ------------------------------------------------------------------------------

    def workqueue(self, key: Key) -> Object | None:
        """Return a WorkQueue, or None if it does not exist."""
        return self.workqueues.get(key)

    def version(self, key: Key) -> int | None:
        """Return the version of a WorkQueue, or None if it does not exist."""
        seen = self._seen.get(("workqueues", key))
        return None if seen is None else seen.version

    async def each_workqueue(self) -> AsyncIterator[Object]:
        """Iterate over all WorkQueues. Yields to other tasks in between."""
        for number, key in enumerate(list(self.workqueues)):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            if (body := self.workqueues.get(key)) is not None:
                yield body

    def workqueues_of(self, queue: str) -> list[Key]:
        """Return the WorkQueues whose queue has this name, on any broker."""
        return [key for key in self.workqueues if self._queue_of.get(key, key[1]) == queue]

    def deployment(self, namespace: str, name: str) -> Object | None:
        """Return a Deployment, or None."""
        return self.deployments.get((namespace, name))

    def pods_of(self, key: Key) -> list[PodView]:
        """Return the existing pods with the label of a WorkQueue, by name."""
        return existing(self.pods[pod] for pod in self._pods_of.get(key, ()))

    def group(self, namespace: str, name: str) -> frozenset[Key]:
        """Return the WorkQueues of a group of limits."""
        return frozenset(self._groups.get((namespace, name), ()))

    def follow(self, key: Key, namespace: str, deployment: str) -> None:
        """Wake a WorkQueue when that Deployment (of a workloadRef) changes. Replaces an earlier `follow`."""
        if key not in self._followers.get((namespace, deployment), ()):
            self.unfollow(key)
            self._followers[namespace, deployment].add(key)

    def unfollow(self, key: Key) -> None:
        """Undo `follow`."""
        for target in [target for target, keys in self._followers.items() if key in keys]:
            self._followers[target].discard(key)
            if not self._followers[target]:
                del self._followers[target]
                body = self.deployments.get(target)
                if body is not None and not self._owners(body):
                    self._remove("deployments", target)

    def followers_of(self, namespace: str, deployment: str) -> frozenset[Key]:
        """Return the WorkQueues that follow that Deployment."""
        return frozenset(self._followers.get((namespace, deployment), ()))

    def age(self, key: Key) -> tuple[str, str]:
        """Return the sort key for the age of a WorkQueue. In a conflict, the lower one wins."""
        metadata = self.workqueues[key]["metadata"]
        return metadata["creationTimestamp"], metadata["uid"]

    def is_older(self, one: Key, other: Key) -> bool:
        """Return whether `one` exists, is not being deleted, and is older than `other`."""
        body = self.workqueues.get(one)
        if body is None or other not in self.workqueues or body["metadata"].get("deletionTimestamp"):
            return False
        return self.age(one) < self.age(other)

    # -- written by events, LISTs and answers to writes ----------------------------------------------

    def put_workqueue(self, body: Object, *, our_status: bool = False) -> bool:
        """Store a WorkQueue. This method and `put_*` below ignore versions older than the stored one.

        Args:
            our_status: whether this is the answer to the operator's own write of the status, which needs no pass.

        Returns:
            Whether this version is new. Also for `put_*` below.
        """
        key = key_of(body)
        if not self._is_news("workqueues", key, body):
            return False
        known = self.workqueues.get(key)
        now = self.workqueues[key] = _lean("workqueues", body)
        group = part_of(now, "spec", "limits", "group")
        self._note_group(key, group if isinstance(group, str) else None)
        self._note_queue(key, part_of(now, "spec", "queue", "name"))
        changed = known is None or _asks_for(now) != _asks_for(known)
        if changed or (not our_status and now.get("status") != (known or {}).get("status")):
            self.wake(key)
        return True

    def put_deployment(self, body: Object) -> bool:
        """Store a Deployment from an event, a LIST or the answer to a write."""
        key = key_of(body)
        owners = self._owners(body)
        if not owners:
            if key in self.deployments:
                self._remove("deployments", key)
            return False
        if not self._is_news("deployments", key, body):
            return False
        known = self.deployments.get(key)
        now = self.deployments[key] = _lean("deployments", body)
        if known is None or _read_of(now) != _read_of(known):
            for owner in owners:
                self.wake(owner)
        return True

    def put_count(self, scale: Object) -> None:
        """Store the answer to the operator's own write of a count, which needs no pass.

        The write's event has the same version. It shows whether anything else has changed.
        """
        key = key_of(scale)
        known = self.deployments.get(key)
        if known is not None and self._is_news("deployments", key, scale):
            self._seen["deployments", key] = replace(self._seen["deployments", key], is_partial=True)
            self.deployments[key] = _with_count_of(scale, known)

    def put_pod(self, body: Object, *, our_mark: bool = False) -> bool:
        """Store a pod.

        Args:
            our_mark: whether this is the answer to the operator's own write of marks, which needs no pass.
        """
        key, owner = key_of(body), _owner(body)
        if owner is None or not self._is_news("pods", key, body):
            return False
        known = self.pods.get(key)
        if known is not None and known.workqueue != owner[1]:
            self._disown(key, known)
        pod = self.pods[key] = pod_view(body)
        self._pods_of[owner].add(key)
        if known is not None and our_mark:
            known = replace(known, marked=pod.marked, relabelled=pod.relabelled, protection=pod.protection)
        if pod != known:
            self.wake(owner)
        return True

    def drop(self, kind: str, body: Object) -> None:
        """Drop a deleted object. A newer object with the same name stays."""
        key, version = key_of(body), _version(body)
        self._gone[kind, key] = _Gone(version, time.monotonic())
        seen = self._seen.get((kind, key))
        if seen is not None and (seen.version <= version or self._uid(kind, key) == body["metadata"]["uid"]):
            self._remove(kind, key)
        elif seen is None and kind == "deployments":
            # kopf delivers the last of several events. A pass may have found in its way what the store never had.
            self._wake_owners(body)

    def put(self, kind: str, body: Object) -> bool:
        """Store an object of a kind (`workqueues`, `deployments` or `pods`)."""
        puts: dict[str, Callable[[Object], bool]] = {
            "workqueues": self.put_workqueue,
            "deployments": self.put_deployment,
            "pods": self.put_pod,
        }
        return puts[kind](body)

    def correct(self, kind: str, listed: AbstractSet[Key], namespace: str | None, taken_at: float) -> None:
        """Drop objects that a complete LIST does not contain, except objects that arrived after `taken_at`.

        Args:
            kind: `workqueues`, `deployments` or `pods`.
            namespace: the scope of the LIST; None for the whole cluster.
            taken_at: the monotonic time before the request of the LIST.
        """
        objects = self._objects(kind)
        for key in [key for key in objects if key not in listed and namespace in {None, key[0]}]:
            if self._seen[kind, key].at < taken_at:
                self._remove(kind, key)
        for gone in [gone for gone in self._gone if gone[0] == kind]:
            if self._gone[gone].at < taken_at - _GONE_MATTERS:
                del self._gone[gone]
        self.freshness[kind].listed = time.monotonic()

    def saw_event(self, kind: str) -> None:
        """Note that the watch of a kind has delivered an event, or an object that it has listed."""
        self.freshness[kind].event = time.monotonic()

    def _is_news(self, kind: str, key: Key, body: Object) -> bool:
        """Return whether this version is newer than the stored version and than a deletion.

        The same version again (from a LIST, or as the event of our own write) only shows that the object exists.
        """
        seen, gone = self._seen.get((kind, key)), self._gone.get((kind, key))
        version, newest = _version(body), -1 if seen is None else seen.version
        if version < newest or (gone is not None and version <= gone.version):
            return False
        self._seen[kind, key] = _Seen(version, time.monotonic())
        return version > newest or (seen is not None and seen.is_partial)

    def _objects(self, kind: str) -> MutableMapping[Key, Any]:
        objects: MutableMapping[Key, Any] = getattr(self, kind)
        return objects

    def _uid(self, kind: str, key: Key) -> str:
        uid: str = self.pods[key].uid if kind == "pods" else self._objects(kind)[key]["metadata"]["uid"]
        return uid

    def _remove(self, kind: str, key: Key) -> None:
        body = self._objects(kind).pop(key)
        del self._seen[kind, key]
        if kind == "workqueues":
            self._note_group(key, None)
            self._note_queue(key, None)
            self.wake(key)
        elif kind == "deployments":
            self._wake_owners(body)
        else:
            self._disown(key, body)

    def _note_group(self, key: Key, name: str | None) -> None:
        before = self._group_of.pop(key, None)
        if before is not None:
            members = self._groups[key[0], before]
            members.discard(key)
            if not members:
                del self._groups[key[0], before]
        if name is not None:
            self._group_of[key] = name
            self._groups[key[0], name].add(key)

    def _note_queue(self, key: Key, name: Any) -> None:
        """Note the name of a queue, if it is not that of its WorkQueue."""
        if isinstance(name, str) and name:
            self._queue_of[key] = name
        else:
            self._queue_of.pop(key, None)

    def _disown(self, key: Key, pod: PodView) -> None:
        owner = (key[0], pod.workqueue)
        self._pods_of[owner].discard(key)
        if not self._pods_of[owner]:
            del self._pods_of[owner]
        self.wake(owner)

    def _wake_owners(self, deployment: Object) -> None:
        for owner in self._owners(deployment):
            self.wake(owner)

    def _owners(self, deployment: Object) -> set[Key]:
        """Return the WorkQueues of a Deployment: by label, by name, or by workloadRef."""
        namespace, name = key_of(deployment)
        owners = set(self._followers.get((namespace, name), ()))
        if (owner := _owner(deployment)) is not None:
            owners.add(owner)
        elif name.endswith(workload_name("")):
            # A foreign Deployment with the name that the operator would use: the pass reports NameConflict.
            owners.add((namespace, name.removesuffix(workload_name(""))))
        return owners


def key_of(body: Object) -> Key:
    """Return the (namespace, name) of any object."""
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _owner(body: Object) -> Key | None:
    name = body["metadata"].get("labels", {}).get(LABEL_WORKQUEUE)
    return (body["metadata"]["namespace"], name) if name else None


def _asks_for(workqueue: Object) -> object:
    """Return the parts of a WorkQueue whose change needs a pass, besides its status."""
    metadata = workqueue["metadata"]
    return [
        metadata.get(name) for name in ("uid", "generation", "deletionTimestamp", "finalizers", "annotations")
    ]


def _read_of(deployment: Object) -> object:
    """Return the parts of a Deployment whose change needs a pass."""
    metadata = deployment["metadata"]
    rest = [metadata.get(name) for name in ("labels", "annotations", "ownerReferences", "deletionTimestamp")]
    return deployment_view(deployment), rest


def _with_count_of(scale: Object, known: Object) -> Object:
    """Return a known Deployment as it is after a write of the count and of nothing else."""
    metadata = {
        **known["metadata"],
        "generation": known["metadata"]["generation"] + 1,
        "resourceVersion": scale["metadata"]["resourceVersion"],
    }
    spec = {**known["spec"], "replicas": scale["spec"].get("replicas", 0)}
    return {**known, "metadata": metadata, "spec": spec}


def _version(body: Object) -> int:
    """Return the resourceVersion. It increases within a kind (guaranteed since Kubernetes 1.35, true before)."""
    return int(body["metadata"]["resourceVersion"])


def _lean(kind: str, body: Object) -> Object:
    """Return the object without the fields that no pass reads, to save memory."""
    metadata = {name: part for name, part in body["metadata"].items() if name != "managedFields"}
    if _LAST_APPLIED in metadata.get("annotations", {}):
        others = {name: text for name, text in metadata["annotations"].items() if name != _LAST_APPLIED}
        metadata["annotations"] = others
    kept: Object = {**_part(body, _READ[kind]), "metadata": metadata}
    return kept


def part_of(body: Any, *path: str) -> Any:
    """Return a part of an object; None without it, also if something on the path is no object.

    A WorkQueue may be older than its CRD, so that the API server has not validated it.
    """
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body


def _part(value: Any, wanted: Any) -> Any:
    """Return the wanted fields of a value, or of each item of a list."""
    if isinstance(value, list):
        return [_part(item, wanted) for item in value]
    if wanted is ... or not isinstance(value, dict):
        return value
    return {name: _part(value[name], wanted[name]) for name in wanted.keys() & value.keys()}
