"""Models of what turns a Deployment into running pods: its controller, ReplicaSets, scheduler, kubelets, nodes.

Each controller sees the objects through watches of its own. Nothing orders two watches, as in a real cluster.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.simulation.apiserver import ApiServer, Key, Object, labelled
from tests.simulation.world import World
from workqueue_operator.names import ANNOTATION_DELETION_COST, WORKER_CONTAINER

REPLICASETS: Final = "replicaset-controller"
READY_PROBE: Final = 1.0
RESTART_SECONDS: Final = 0.5
BACK_OFF: Final = (10.0, 40.0)
"""The first and the longest pause, in seconds, before a container that has crashed again is started; in Kubernetes
10 and 300 s, shortened to fit into a run. It is started immediately after its first crash."""

NODE_GRACE: Final = 20.0
"""Seconds until a node that does not answer loses its pods; in Kubernetes 340 s, shortened to fit into a run."""


class _Cache:
    """A controller's copy of some kinds, each kept by a watch of its own."""

    def __init__(
        self, server: ApiServer, plurals: tuple[str, ...], changed: Callable[[str, Object], None]
    ) -> None:
        self.objects: dict[str, dict[Key, Object]] = {plural: {} for plural in plurals}
        self._changed = changed
        self.watches = {
            plural: server.watch(plural, lambda kind, body, plural=plural: self._feed(plural, kind, body))  # type: ignore[misc]
            for plural in plurals
        }

    def _feed(self, plural: str, kind: str, body: Object) -> None:
        key = (plural, body["metadata"]["namespace"], body["metadata"]["name"])
        if kind == "DELETED":
            self.objects[plural].pop(key, None)
        else:
            self.objects[plural][key] = body
        self._changed(plural, body)


def _owner(body: Object, kind: str) -> str | None:
    return next(
        (one["name"] for one in body["metadata"].get("ownerReferences") or () if one["kind"] == kind), None
    )


def _reference(kind: str, owner: Object) -> list[Object]:
    metadata = owner["metadata"]
    return [{"kind": kind, "name": metadata["name"], "uid": metadata["uid"], "controller": True}]


class _Controller(ABC):
    """Syncs keys that have changed, soon, unless it is stopped."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.stopped = False
        self._due: dict[Key, None] = {}
        self._timer = False

    def enqueue(self, key: Key) -> None:
        """Sync an object soon."""
        self._due[key] = None
        if not self._timer and not self.stopped:
            self._timer = True
            self.world.later(0.002 + 0.01 * self.world.random.random(), self._work)

    def stop(self) -> None:
        """Do nothing until `go`."""
        self.stopped = True

    def go(self) -> None:
        """Go on."""
        self.stopped = False
        for key in list(self._due):
            self.enqueue(key)

    def _work(self) -> None:
        self._timer = False
        if self.stopped:
            return
        due, self._due = self._due, {}
        for key in due:
            self.sync(key)

    @abstractmethod
    def sync(self, key: Key) -> None:
        """Bring one object to what its spec asks."""


class _ConflictError(Exception):
    """A controller's copy of an object is old."""


class DeploymentController(_Controller):
    """Makes ReplicaSets, and moves the replicas from the old ones to the new one."""

    def __init__(self, world: World, server: ApiServer) -> None:
        super().__init__(world, "deployment-controller")
        self._hashes: dict[int, tuple[Object, str]] = {}
        self._server = server
        self.cache = _Cache(server, ("deployments", "replicasets"), self._changed)

    def _changed(self, plural: str, body: Object) -> None:
        metadata = body["metadata"]
        name = metadata["name"] if plural == "deployments" else _owner(body, "Deployment")
        if name is not None:
            self.enqueue(("deployments", metadata["namespace"], name))

    def sync(self, key: Key) -> None:
        """Bring one Deployment to what its spec asks."""
        deployment = self.cache.objects["deployments"].get(key)
        if deployment is None:
            for other, body in self.cache.objects["replicasets"].items():
                if other[1] == key[1] and _owner(body, "Deployment") == key[2]:
                    self._server.delete(self.name, other)
            return
        sets = [
            body
            for other, body in self.cache.objects["replicasets"].items()
            if other[1] == key[1]
            and body["metadata"]["ownerReferences"][0]["uid"] == deployment["metadata"]["uid"]
        ]
        template = deployment["spec"]["template"]
        name = f"{key[2]}-{self._hash(template)}"
        newest = next((one for one in sets if one["metadata"]["name"] == name), None)
        if newest is None:
            first = 0 if sets else deployment["spec"].get("replicas", 1)
            made = {
                "metadata": {
                    "ownerReferences": _reference("Deployment", deployment),
                    "labels": dict(template["metadata"]["labels"]),
                },
                "spec": {"replicas": first, "template": template},
                "status": {"replicas": 0},
            }
            if self._server.get("replicasets", key[1], name) is None:
                self._server.put(self.name, ("replicasets", key[1], name), made)
            return
        old = [one for one in sets if one is not newest]
        try:
            self._roll(deployment, newest, old)
        except _ConflictError:
            # The event that is on its way starts another sync. The status stays as it is.
            return
        self._report(key, deployment, newest, sets)

    def _hash(self, template: Object) -> str:
        known = self._hashes.get(id(template))
        if known is None or known[0] is not template:
            text = json.dumps(template, sort_keys=True).encode()
            known = self._hashes[id(template)] = template, hashlib.sha256(text).hexdigest()[:8]
        return known[1]

    def _roll(self, deployment: Object, newest: Object, old: list[Object]) -> None:
        wanted = deployment["spec"].get("replicas", 1)
        alive = [one for one in old if one["spec"]["replicas"] or one["status"].get("replicas")]
        if not alive:
            self._scale(newest, wanted)
            return
        total = sum(one["spec"]["replicas"] for one in (newest, *alive))
        surge = deployment["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 1)
        surge = math.ceil(wanted * int(surge[:-1]) / 100) if isinstance(surge, str) else surge
        room = wanted + max(surge, 1) - total
        if newest["spec"]["replicas"] > wanted:
            self._scale(newest, wanted)
        elif room > 0 and newest["spec"]["replicas"] < wanted:
            self._scale(newest, min(wanted, newest["spec"]["replicas"] + room))
        available = sum(one["status"].get("readyReplicas", 0) for one in (newest, *alive))
        surplus = max(available - wanted, 0)
        for one in alive:
            ready = one["status"].get("readyReplicas", 0)
            replicas = one["spec"]["replicas"]
            drop = min(replicas, max(replicas - ready, 0) + min(surplus, ready)) if wanted else replicas
            surplus -= min(surplus, ready)
            if drop:
                self._scale(one, replicas - drop)

    def _scale(self, replicaset: Object, replicas: int) -> None:
        if replicaset["spec"]["replicas"] == replicas:
            return
        metadata = replicaset["metadata"]
        key = ("replicasets", metadata["namespace"], metadata["name"])
        live = self._server.objects.get(key)
        if live is None or live["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise _ConflictError
        self._server.put(self.name, key, {**live, "spec": {**live["spec"], "replicas": replicas}})

    def _report(self, key: Key, deployment: Object, newest: Object, sets: list[Object]) -> None:
        failure = next(
            (c for one in sets for c in one["status"].get("conditions", ()) if c["type"] == "ReplicaFailure"),
            None,
        )
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": sum(one["status"].get("replicas", 0) for one in sets),
            "updatedReplicas": newest["status"].get("replicas", 0),
            "readyReplicas": sum(one["status"].get("readyReplicas", 0) for one in sets),
            "conditions": [failure] if failure else [],
        }
        self._server.change(self.name, key, lambda body: {**body, "status": status}, status=True)


@dataclass
class _Expected:
    """Pods that a ReplicaSet controller has created or deleted, and does not see yet.

    Attributes:
        uid: the ReplicaSet's.
    """

    uid: str
    created: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


class ReplicaSetController(_Controller):
    """Makes and removes pods.

    Args:
        on_scale_in: called with each pod that it removes because there are too many.
    """

    def __init__(
        self, world: World, server: ApiServer, on_scale_in: Callable[[Object, Object], None]
    ) -> None:
        super().__init__(world, REPLICASETS)
        self._server = server
        self._on_scale_in = on_scale_in
        self._expected: dict[Key, _Expected] = {}
        self._names = 0
        self.cache = _Cache(server, ("replicasets", "pods"), self._changed)

    def _changed(self, plural: str, body: Object) -> None:
        metadata = body["metadata"]
        name = metadata["name"] if plural == "replicasets" else _owner(body, "ReplicaSet")
        if name is not None:
            self.enqueue(("replicasets", metadata["namespace"], name))

    def sync(self, key: Key) -> None:
        """Bring one ReplicaSet to what its spec asks."""
        replicaset = self.cache.objects["replicasets"].get(key)
        pods = [
            (other, body)
            for other, body in self.cache.objects["pods"].items()
            if other[1] == key[1] and _owner(body, "ReplicaSet") == key[2]
        ]
        if replicaset is None:
            self._expected.pop(key, None)
            for other, _ in pods:
                self._server.delete("garbage-collector", other)
            return
        active = [
            (other, body)
            for other, body in pods
            if not body["metadata"].get("deletionTimestamp")
            and body["status"]["phase"] not in {"Failed", "Succeeded"}
        ]
        expected = self._expected.get(key)
        if expected is None or expected.uid != replicaset["metadata"]["uid"]:
            # Of a ReplicaSet of the same name that was deleted, nothing is expected any longer.
            expected = self._expected[key] = _Expected(replicaset["metadata"]["uid"])
        seen, alive = {other[2] for other, _ in pods}, {other[2] for other, _ in active}
        expected.created -= seen
        expected.deleted &= alive
        failure = None
        if (
            not expected.created
            and not expected.deleted
            and not replicaset["metadata"].get("deletionTimestamp")
        ):
            failure = self._manage(key, replicaset, active, expected)
        else:
            failure = next(iter(replicaset["status"].get("conditions", ())), None)
        self._report(key, replicaset, [body for _, body in active], failure)

    def _manage(
        self, key: Key, replicaset: Object, active: list[tuple[Key, Object]], expected: _Expected
    ) -> Object | None:
        surplus = len(active) - replicaset["spec"]["replicas"]
        if surplus > 0:
            chosen = sorted(active, key=lambda entry: _removal_rank(entry[1]))[:surplus]
            for other, _ in chosen:
                expected.deleted.add(other[2])
                live = self._server.objects.get(other)
                if live is not None and not live["metadata"].get("deletionTimestamp"):
                    self._on_scale_in(replicaset, live)
                    self._server.delete(self.name, other)
            return None
        for _ in range(-surplus):
            self._names += 1
            name = f"{key[2]}-{self._names:04x}"
            template = replicaset["spec"]["template"]
            pod = {
                "metadata": {
                    "ownerReferences": _reference("ReplicaSet", replicaset),
                    "labels": dict(template["metadata"]["labels"]),
                    "annotations": dict(template["metadata"].get("annotations") or {}),
                },
                "spec": {**template["spec"]},
                "status": {"phase": "Pending"},
            }
            words = next(
                (
                    said
                    for denies in self._server.weather.denies.values()
                    if (
                        said := denies(
                            "pods", None, {**pod, "metadata": {**pod["metadata"], "namespace": key[1]}}
                        )
                    )
                ),
                None,
            )
            if words is not None:
                self.world.later(5.0 + 5.0 * self.world.random.random(), self.enqueue, key)
                return {"type": "ReplicaFailure", "status": "True", "message": words}
            expected.created.add(name)
            self._server.put(self.name, ("pods", key[1], name), pod)
        return None

    def _report(self, key: Key, replicaset: Object, active: list[Object], failure: Object | None) -> None:
        wanted = replicaset["spec"]["template"]["metadata"]["labels"].items()
        status = {
            "observedGeneration": replicaset["metadata"]["generation"],
            "replicas": len(active),
            "fullyLabeledReplicas": sum(wanted <= body["metadata"]["labels"].items() for body in active),
            "readyReplicas": sum(is_ready(body) for body in active),
            "conditions": [failure] if failure else [],
        }
        if status != replicaset["status"]:
            self._server.change(self.name, key, lambda body: {**body, "status": status}, status=True)


def is_ready(pod: Object) -> bool:
    """Whether its condition Ready is True."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def _removal_rank(pod: Object) -> tuple[Any, ...]:
    """The order of ActivePodsWithRanks in the ReplicaSet controller of Kubernetes."""
    status, annotations = pod["status"], pod["metadata"].get("annotations") or {}
    return (
        bool(pod["spec"].get("nodeName")),
        {"Pending": 0, "Unknown": 1, "Running": 2}.get(status["phase"], 2),
        is_ready(pod),
        int(annotations.get(ANNOTATION_DELETION_COST, "0")),
        -status.get("readyAt", 0.0),
        -status.get("restarts", 0),
        -int(pod["metadata"]["uid"].partition("-")[2]),
    )


@dataclass
class _Pod:
    """What the kubelet knows of a pod.

    Attributes:
        worker: its worker's process, while that runs.
    """

    key: Key
    uid: str
    node: str
    ip: str
    worker: Any = None
    restarts: int = 0
    stopping: bool = False


class Kubelets:
    """The scheduler, the kubelets of all nodes, and the controller of nodes.

    Args:
        start_worker: starts a worker's process; gets the pod, and functions to call when it ends.
    """

    def __init__(
        self,
        world: World,
        server: ApiServer,
        nodes: int,
        start_worker: Callable[[Object, str, Callable[[Any, int], None]], Any],
    ) -> None:
        self._world = world
        self._server = server
        self._start_worker = start_worker
        self.nodes = {f"node-{number}": True for number in range(nodes)}
        self.start_seconds = 1.0
        self.bad_images: set[str] = set()
        self.pods: dict[str, _Pod] = {}
        """By uid."""
        self._ips = 0
        server.watch("pods", self._on_pod)

    def worker(self, pod: str) -> Any:
        """Return the worker of a pod by name, or None."""
        return next((one.worker for one in self.pods.values() if one.key[2] == pod), None)

    # -- events --------------------------------------------------------------------------------------

    def _on_pod(self, kind: str, body: Object) -> None:
        uid = body["metadata"]["uid"]
        known = self.pods.get(uid)
        if kind == "DELETED":
            if known is not None:
                self._kill(known)
                del self.pods[uid]
        elif body["metadata"].get("deletionTimestamp"):
            self._stop(body, known)
        elif known is None and body["status"]["phase"] == "Pending":
            self._schedule(body)

    def _schedule(self, body: Object) -> None:
        metadata = body["metadata"]
        key, uid = ("pods", metadata["namespace"], metadata["name"]), metadata["uid"]
        if (live := self._server.objects.get(key)) is None or live["metadata"]["uid"] != uid:
            return
        ready = [node for node, alive in self.nodes.items() if alive]
        if not ready:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0 nodes are available",
            }
            self._status(key, uid, conditions=[condition])
            self._world.later(5.0, self._schedule, body)
            return
        node = self._world.random.choice(ready)
        self._ips += 1
        pod = self.pods[uid] = _Pod(key, uid, node, f"10.0.{self._ips // 250}.{self._ips % 250 + 1}")
        self._server.change(
            "scheduler", key, lambda found: {**found, "spec": {**found["spec"], "nodeName": node}}
        )
        self._world.later(self._start_after(), self._start, pod)

    def _start_after(self) -> float:
        return self.start_seconds * (0.5 + self._world.random.random())

    def _start(self, pod: _Pod) -> None:
        live = self._live(pod)
        if live is None or pod.stopping or not self.nodes[pod.node] or pod.worker is not None:
            return
        image = live["spec"]["containers"][0]["image"]
        if image in self.bad_images:
            waiting = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
            self._status(pod.key, pod.uid, containerStatuses=[self._container(pod, waiting, image)])
            self._world.later(5.0, self._start, pod)
            return
        pod.worker = self._start_worker(live, pod.ip, lambda worker, code: self._ended(pod, worker, code))
        # The process runs before the kubelet reports it.
        self._world.later(0.05 + 0.5 * self._world.random.random(), self._report_running, pod, pod.worker)

    def _container(self, pod: _Pod, state: Object, image: str = "", *, ready: bool = False) -> Object:
        return {
            "name": WORKER_CONTAINER,
            "image": image,
            "state": state,
            "ready": ready,
            "restartCount": pod.restarts,
        }

    def _report_running(self, pod: _Pod, worker: Any) -> None:
        if pod.worker is not worker or not self.nodes[pod.node]:
            return
        self._status(
            pod.key,
            pod.uid,
            phase="Running",
            podIP=pod.ip,
            containerStatuses=[self._container(pod, {"running": {}})],
        )
        self._world.later(READY_PROBE * self._world.random.random(), self._probe, pod, worker)

    def _probe(self, pod: _Pod, worker: Any) -> None:
        if pod.worker is not worker or not self.nodes[pod.node]:
            return
        if not worker.ready:
            self._world.later(READY_PROBE, self._probe, pod, worker)
            return
        self._status(
            pod.key,
            pod.uid,
            conditions=[{"type": "Ready", "status": "True"}],
            readyAt=self._world.now,
            containerStatuses=[self._container(pod, {"running": {}}, ready=True)],
        )

    def _ended(self, pod: _Pod, worker: Any, code: int) -> None:
        if pod.worker is not worker:
            return
        pod.worker = None
        live = self._live(pod)
        if live is not None and live["status"]["phase"] == "Failed":
            return
        if pod.stopping:
            self._world.later(0.05 + 0.3 * self._world.random.random(), self._finish, pod)
            return
        pod.restarts += 1
        ended = {
            "terminated": {"exitCode": code, "reason": "Error", "finishedAt": self._world.timestamp()},
        }
        if pod.restarts == 1:
            pause, container = RESTART_SECONDS * self._world.random.random(), self._container(pod, ended)
        else:
            pause = min(BACK_OFF[0] * 2 ** (pod.restarts - 2), BACK_OFF[1])
            words = f"back-off {pause:.0f}s restarting failed container={WORKER_CONTAINER}"
            waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": words}}
            container = {**self._container(pod, waiting), "lastState": ended}
        self._status(
            pod.key,
            pod.uid,
            conditions=[{"type": "Ready", "status": "False"}],
            restarts=pod.restarts,
            containerStatuses=[container],
        )
        self._world.later(pause, self._start, pod)

    def _stop(self, body: Object, pod: _Pod | None) -> None:
        metadata = body["metadata"]
        if pod is None:
            self._server.remove("kubelet", ("pods", metadata["namespace"], metadata["name"]))
            return
        if pod.stopping or not self.nodes[pod.node]:
            return
        pod.stopping = True
        if pod.worker is None:
            self._finish(pod)
        else:
            pod.worker.terminate()
            grace = body["spec"].get("terminationGracePeriodSeconds", 30)
            self._world.later(grace, self._kill, pod)

    def _kill(self, pod: _Pod) -> None:
        if pod.worker is not None:
            pod.worker.kill()

    def _finish(self, pod: _Pod) -> None:
        if self._live(pod) is not None and self.nodes[pod.node]:
            self._server.remove("kubelet", pod.key)

    # -- what may happen -----------------------------------------------------------------------------

    def evict(self, pod: _Pod) -> None:
        """The node has too little memory: the pod ends, and its object stays."""
        if self._live(pod) is None or pod.stopping:
            return
        pod.stopping = True
        self._status(pod.key, pod.uid, phase="Failed", conditions=[], containerStatuses=[])
        self._kill(pod)

    def lose(self, node: str) -> None:
        """A node loses its power. Later its pods are deleted."""
        self.nodes[node] = False
        lost = [pod for pod in self.pods.values() if pod.node == node]
        for pod in lost:
            if pod.worker is not None:
                worker, pod.worker = pod.worker, None
                worker.kill()
        self._world.later(NODE_GRACE / 2, self._not_ready, node, lost)

    def _not_ready(self, node: str, lost: list[_Pod]) -> None:
        if self.nodes[node]:
            return
        for pod in lost:
            self._status(pod.key, pod.uid, conditions=[{"type": "Ready", "status": "False"}])
        self._world.later(NODE_GRACE / 2, self._forget, lost)

    def _forget(self, lost: list[_Pod]) -> None:
        for pod in lost:
            if not self.nodes[pod.node] and self._live(pod) is not None:
                self._server.delete("node-controller", pod.key)
                self._world.later(1.0, self._server.remove, "node-controller", pod.key)

    def restore(self, node: str) -> None:
        """The node is back. What it ran is started again, or removed if it was deleted."""
        self.nodes[node] = True
        for pod in [pod for pod in self.pods.values() if pod.node == node]:
            live = self._live(pod)
            if live is not None and live["metadata"].get("deletionTimestamp"):
                self._server.remove("kubelet", pod.key)
            elif live is not None and live["status"]["phase"] not in {"Failed", "Succeeded"}:
                self._start(pod)

    # -- status --------------------------------------------------------------------------------------

    def _live(self, pod: _Pod) -> Object | None:
        live = self._server.objects.get(pod.key)
        return live if live is not None and live["metadata"]["uid"] == pod.uid else None

    def _status(self, key: Key, uid: str, **fields: Any) -> None:
        live = self._server.objects.get(key)
        if live is not None and live["metadata"]["uid"] == uid:
            self._server.put("kubelet", key, {**live, "status": {**live["status"], **fields}}, status=True)


class GarbageCollector:
    """Deletes what a deleted owner leaves behind, and what is made for an owner that no longer exists."""

    def __init__(self, world: World, server: ApiServer) -> None:
        self._server = server
        self._world = world
        server.on_write.append(self._on_write)

    def _on_write(
        self, _writer: str, kind: str, _key: Key, before: Object | None, after: Object | None
    ) -> None:
        gone = []
        if kind == "DELETED" and before is not None:
            gone = [before["metadata"]["uid"]]
        elif before is None and after is not None:
            owners = {owner["uid"] for owner in after["metadata"].get("ownerReferences") or ()}
            gone = [uid for uid in owners if not self._exists(uid)]
        for uid in gone:
            self._world.later(0.1 + self._world.random.random(), self._collect, uid)

    def _exists(self, uid: str) -> bool:
        return any(body["metadata"].get("uid") == uid for body in self._server.objects.values())

    def _collect(self, uid: str) -> None:
        for key, body in list(self._server.objects.items()):
            if any(owner["uid"] == uid for owner in body["metadata"].get("ownerReferences") or ()):
                self._server.delete("garbage-collector", key)


__all__ = [
    "DeploymentController",
    "GarbageCollector",
    "Kubelets",
    "ReplicaSetController",
    "is_ready",
    "labelled",
]
