"""One scenario for the controllers of Kubernetes: steps that a real cluster and the models both carry out.

After each step both are left alone until nothing changes. Then their states are compared, without names and times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from tests.simulation.apiserver import ApiServer, Object
from tests.simulation.controllers import DeploymentController, Kubelets, ReplicaSetController, is_ready
from tests.simulation.world import World
from workqueue_operator.names import ANNOTATION_DELETION_COST, LABEL_RETIRING, RETIRED_DELETION_COST

NAME: Final = "steps"
QUOTA: Final = "few-pods"
REST_SECONDS: Final = 30.0
"""Virtual seconds for which a model is left alone."""

STATUS: Final = ("replicas", "fullyLabeledReplicas", "readyReplicas")

MARKED: Final[Object] = {
    "metadata": {
        "annotations": {ANNOTATION_DELETION_COST: RETIRED_DELETION_COST},
        "labels": {LABEL_RETIRING: "true"},
    }
}


class Site(Protocol):
    """A cluster with one Deployment, or the models of one."""

    def scale(self, replicas: int) -> None:
        """Set the count."""

    def mark(self, numbers: Sequence[int]) -> None:
        """Mark pods as the operator does, by their number in the order of creation."""

    def delete_pod(self, number: int) -> None:
        """Delete a pod."""

    def change_template(self, value: str) -> None:
        """Give new pods another annotation."""

    def limit_pods(self, most: int | None) -> None:
        """Set a quota, or remove it."""

    def objects(self, plural: str) -> list[Object]:
        """Return the ReplicaSets or pods of the Deployment, and the Deployment itself."""


STEPS: Final[Mapping[str, Callable[[Site], None]]] = {
    "scale out": lambda site: site.scale(5),
    "mark two pods": lambda site: site.mark([1, 3]),
    "scale in to the others": lambda site: site.scale(3),
    "lose a pod": lambda site: site.delete_pod(0),
    "roll out": lambda site: site.change_template("second"),
    "scale out beyond a quota": lambda site: (site.limit_pods(4), site.scale(6))[0],
    "scale in under the quota": lambda site: site.scale(2),
    "scale to zero": lambda site: site.scale(0),
}


def deployment() -> Object:
    """The Deployment. Its pods do nothing."""
    labels = {"app": NAME, LABEL_RETIRING: "false"}
    container = {
        "name": "worker",
        "image": "workqueue-operator:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import time; time.sleep(1_000_000)"],
        "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {"labels": labels, "annotations": {"generation": "first"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            },
        },
    }


def state(site: Site) -> dict[str, Any]:
    """What both must agree on. Pods are only counted, since the order of their creation is chance."""
    (one,) = site.objects("deployments")
    sets = sorted(site.objects("replicasets"), key=lambda found: found["metadata"]["creationTimestamp"])
    pods = [pod for pod in site.objects("pods") if not pod["metadata"].get("deletionTimestamp")]
    return {
        "the controllers have seen the last change": _observed(one) and all(map(_observed, sets)),
        "count": one["spec"]["replicas"],
        "status": {
            name: one["status"].get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")
        },
        "replicasets": [
            {
                "count": found["spec"]["replicas"],
                **{name: found["status"].get(name, 0) for name in STATUS},
                "refused": _is_refused(found),
            }
            for found in sets
        ],
        "Deployment says that pods are refused": _is_refused(one),
        "pods": len(pods),
        "Ready": sum(map(is_ready, pods)),
        "marked": sum(pod["metadata"]["labels"].get(LABEL_RETIRING) == "true" for pod in pods),
    }


def _observed(found: Object) -> bool:
    return bool(found["status"].get("observedGeneration", 0) >= found["metadata"]["generation"])


def _is_refused(found: Object) -> bool:
    conditions = found["status"].get("conditions", ())
    return any(one["type"] == "ReplicaFailure" and one["status"] == "True" for one in conditions)


# -- the models ----------------------------------------------------------------------------------------


class _Process:
    """A container that does nothing."""

    ready = True

    def __init__(self, world: World, on_end: Callable[[Any, int], None]) -> None:
        self._world = world
        self._on_end = on_end

    def terminate(self) -> None:
        self._world.later(0.1, self._on_end, self, 0)

    kill = terminate


class ModelSite:
    """The models of the controllers and of the kubelets."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.server = ApiServer(world)
        self._controllers = (
            DeploymentController(world, self.server),
            ReplicaSetController(world, self.server, lambda _set, _pod: None),
        )
        Kubelets(world, self.server, 2, lambda _pod, _ip, on_end: _Process(world, on_end))
        body = deployment()
        self.server.put("user", ("deployments", "ns", NAME), {**body, "status": {}})

    def rest(self) -> None:
        """Let time pass."""
        self._world.loop.run_until_complete(asyncio.sleep(REST_SECONDS))

    def scale(self, replicas: int) -> None:
        self._change(lambda spec: {**spec, "replicas": replicas})

    def mark(self, numbers: Sequence[int]) -> None:
        pods = [key for key, _ in self.server.of("pods")]
        for number in numbers:
            body = self.server.objects[pods[number]]
            metadata = {**body["metadata"]}
            for field, values in MARKED["metadata"].items():
                metadata[field] = {**metadata[field], **values}
            self.server.put("operator", pods[number], {**body, "metadata": metadata})

    def delete_pod(self, number: int) -> None:
        self.server.delete("user", self.server.of("pods")[number][0])

    def change_template(self, value: str) -> None:
        def change(spec: Object) -> Object:
            metadata = {**spec["template"]["metadata"], "annotations": {"generation": value}}
            return {**spec, "template": {**spec["template"], "metadata": metadata}}

        self._change(change)

    def limit_pods(self, most: int | None) -> None:
        def denies(plural: str, before: Object | None, _after: Object) -> str | None:
            is_new = plural == "pods" and before is None
            return (
                "exceeded quota"
                if most is not None and is_new and len(self.server.of("pods")) >= most
                else None
            )

        self.server.weather.denies[QUOTA] = denies

    def objects(self, plural: str) -> list[Object]:
        return [body for _, body in self.server.of(plural)]

    def _change(self, change: Callable[[Object], Object]) -> None:
        self.server.change(
            "user", ("deployments", "ns", NAME), lambda body: {**body, "spec": change(body["spec"])}
        )
