"""Small views of pods and Deployments with the fields that the operator uses. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any, Final

from workqueue.contract.worker_api import ExitCode
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.names import (
    ANNOTATION_BROKER,
    ANNOTATION_DELETION_COST,
    ANNOTATION_PROTECTED,
    ANNOTATION_TEMPLATE_HASH,
    HANDLER_CONTAINER,
    LABEL_RETIRING,
    LABEL_WORKQUEUE,
    PROTECTION,
    WORKER_CONTAINER,
)

_PULL_ERRORS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
_CONFIG_ERRORS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_BACK_OFF: Final = re.compile(r"back-off (?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)? restarting ")
"""The kubelet's words while it waits before it starts a container again, with a duration as Go prints it."""

PROVEN_SURGE: Final = "25%"
"""How many pods a rollout starts beside the old ones, once a pod of the template has been Ready. Before that, 1."""

_OWN: Final = {WORKER_CONTAINER: 0, HANDLER_CONTAINER: 1}


class Protection(Enum):
    """Who has set the annotations with which autoscalers leave the node of a pod alone."""

    NONE = "none"
    OPERATOR = "operator"
    OTHERS = "others"
    """The user, in the pod template or on the pod. The operator then changes none of them."""


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod.

    Attributes:
        running: whether the worker container runs, so that it may hold a message.
        marked: whether it has a deletion cost.
        relabelled: whether its ReplicaSet counts it as marked: the label of marks differs from the template's.
        failure: why it is not Ready, if the user can fix it.
        created: creation time in Unix seconds.
        scheduled: whether it has a node, so that its worker may start at any time.
        started: whether its phase is Running: the kubelet has started a container.
        ended: whether its phase is final (evicted or completed). It then counts as deleted.
        workqueue: the WorkQueue that its label names.
        replicaset: the name of its ReplicaSet.
        broker: the broker to which its worker connects; empty when the template does not name one.
        node: the name of its node; empty before it has one.
        restarts_at: when the kubelet starts its worker again, in Unix seconds, if the worker has ended; 0 while the
            kubelet does not say. It starts a crashed worker some time before it reports it as running.
        start_seconds: from its creation until it became Ready, to the second; None while it is not.
    """

    name: str
    uid: str
    ip: str
    ready: bool
    running: bool
    terminating: bool
    template_hash: str
    marked: bool
    failure: Unknown | None
    created: float = 0.0
    scheduled: bool = True
    started: bool = True
    ended: bool = False
    workqueue: str = ""
    replicaset: str = ""
    broker: str = ""
    node: str = ""
    protection: Protection = Protection.NONE
    relabelled: bool = False
    restarts_at: float | None = None
    start_seconds: float | None = None

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """The sort key by which Kubernetes removes pods, lowest first. Deletion costs decide within a rank.

        Source: ActivePodsWithRanks.Less in the ReplicaSet controller of Kubernetes 1.35.
        """
        return (self.scheduled, self.started, self.ready)


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """The Deployment.

    Attributes:
        replicas: spec.replicas.
        current: status.replicas, the pods that the controller has created.
        rolled_out: whether the controller has seen the last spec, and all pods have the current template.
        refusal: why the API server refuses to create its pods, if it does.
        broker: the broker to which its workers connect; empty when the template does not name one.
        proven_hash: the hash of its template, if a pod of that template has been Ready. The operator then lets a
            rollout replace more than one pod at a time; that is where this is kept.
    """

    name: str
    uid: str
    generation: int
    replicas: int
    current: int
    ready: int
    rolled_out: bool
    template_hash: str
    refusal: Unknown | None
    broker: str = ""
    proven_hash: str | None = None


def pod_view(body: Mapping[str, Any]) -> PodView:
    """Return the view of a pod."""
    metadata, status = body["metadata"], body.get("status") or {}
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    worker = _container(status.get("containerStatuses"), WORKER_CONTAINER)
    created = datetime.fromisoformat(metadata["creationTimestamp"]).timestamp()
    node = (body.get("spec") or {}).get("nodeName", "")
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        ip=status.get("podIP", ""),
        ready=conditions.get("Ready", {}).get("status") == "True",
        running="running" in (worker.get("state") or {}),
        terminating=bool(metadata.get("deletionTimestamp")),
        template_hash=annotations.get(ANNOTATION_TEMPLATE_HASH, ""),
        marked=ANNOTATION_DELETION_COST in annotations,
        failure=_failure(metadata["name"], status, conditions),
        created=created,
        scheduled=bool(node),
        started=status.get("phase") == "Running",
        ended=status.get("phase") in {"Succeeded", "Failed"},
        workqueue=labels.get(LABEL_WORKQUEUE, ""),
        replicaset=next(
            (o["name"] for o in metadata.get("ownerReferences") or () if o.get("controller")), ""
        ),
        broker=annotations.get(ANNOTATION_BROKER, ""),
        node=node,
        protection=_protection(annotations),
        relabelled=labels.get(LABEL_RETIRING, "false") != "false",
        restarts_at=_restarts_at(worker),
        start_seconds=_start_seconds(created, conditions.get("Ready", {})),
    )


def _start_seconds(created: float, ready: Mapping[str, Any]) -> float | None:
    since = ready.get("lastTransitionTime")
    if ready.get("status") != "True" or not since:
        return None
    return max(datetime.fromisoformat(since).timestamp() - created, 0.0)


def _restarts_at(worker: Mapping[str, Any]) -> float | None:
    state = worker.get("state") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or (worker.get("lastState") or {}).get("terminated")
    # Without its image or its configuration, the kubelet starts nothing.
    if "running" in state or not ended or waiting.get("reason") in _PULL_ERRORS | _CONFIG_ERRORS:
        return None
    back_off = _BACK_OFF.match(waiting.get("message") or "")
    if back_off is None or not ended.get("finishedAt"):
        return 0.0
    hours, minutes, seconds = (float(number or 0) for number in back_off.groups())
    return datetime.fromisoformat(ended["finishedAt"]).timestamp() + 3600 * hours + 60 * minutes + seconds


def _protection(annotations: Mapping[str, str]) -> Protection:
    if ANNOTATION_PROTECTED in annotations:
        return Protection.OPERATOR
    return Protection.OTHERS if PROTECTION.keys() & annotations.keys() else Protection.NONE


def existing(pods: Iterable[PodView]) -> list[PodView]:
    """Return the pods that have not ended, by name."""
    return sorted((pod for pod in pods if not pod.ended), key=lambda pod: pod.name)


def deployment_view(body: Mapping[str, Any]) -> DeploymentView:
    """Return the view of a Deployment."""
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    replicas = spec.get("replicas", 1)
    template = (spec["template"].get("metadata") or {}).get("annotations") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    failure = conditions.get("ReplicaFailure", {})
    current = status.get("replicas", 0)
    surge = ((spec.get("strategy") or {}).get("rollingUpdate") or {}).get("maxSurge")
    template_hash = template.get(ANNOTATION_TEMPLATE_HASH, "")
    return DeploymentView(
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        replicas=replicas,
        current=current,
        ready=status.get("readyReplicas", 0),
        rolled_out=is_observed(body) and status.get("updatedReplicas", 0) == current,
        template_hash=template_hash,
        refusal=Unknown(Reason.POD_REFUSED, f"The API server refuses the pods: {failure.get('message', '')}")
        if failure.get("status") == "True"
        else None,
        broker=template.get(ANNOTATION_BROKER, ""),
        proven_hash=template_hash if surge == PROVEN_SURGE else None,
    )


def is_observed(body: Mapping[str, Any]) -> bool:
    """Whether its controller has carried out the present spec of a Deployment or a ReplicaSet."""
    observed: int = (body.get("status") or {}).get("observedGeneration", 0)
    return bool(observed >= body["metadata"]["generation"])


def scaled(deployment: DeploymentView, replicas: int) -> DeploymentView:
    """Return the view of a Deployment after a write of its count."""
    return replace(deployment, generation=deployment.generation + 1, replicas=replicas, rolled_out=False)


def unsettled(deployment: DeploymentView, pods: Sequence[PodView]) -> Unknown | None:
    """Return why the operator must not scale in now, or None.

    With two ReplicaSets, the deletion costs do not decide which pods are removed. While pods start or stop, the
    counts do not match.
    """
    alive = [pod for pod in pods if not pod.terminating]
    if _rolls_out(deployment, alive):
        return Unknown(
            Reason.ROLLOUT_UNDER_WAY, "The Deployment is rolling out a new template. It scales in afterwards."
        )
    if deployment.current != deployment.replicas or len(alive) != deployment.replicas:
        return Unknown(
            Reason.PODS_SETTLING,
            f"{len(alive)} of {deployment.replicas} pods exist. The Deployment scales in after the numbers match.",
        )
    return None


def leaving(deployment: DeploymentView, pods: Iterable[PodView]) -> list[PodView]:
    """Return the marked pods of which Kubernetes must still remove some.

    While no pod is surplus, the marks are left over from a scale-in that was called off, and these workers consume.
    During a rollout Kubernetes removes all pods of the earlier template, marked or not.
    """
    current = [pod for pod in pods if not pod.terminating and pod.template_hash == deployment.template_hash]
    return [pod for pod in current if pod.marked] if len(current) > deployment.replicas else []


def existing_of_refused(deployment: DeploymentView, pods: Sequence[PodView]) -> int | None:
    """Return how many pods exist while the API server refuses more; None if it refuses none.

    None during a rollout: with two ReplicaSets, a lower count may remove pods of either one.
    """
    alive = [pod for pod in pods if not pod.terminating]
    if deployment.refusal is None or _rolls_out(deployment, alive):
        return None
    return max(len(alive), deployment.current)


def _rolls_out(deployment: DeploymentView, alive: Sequence[PodView]) -> bool:
    return not deployment.rolled_out or any(pod.template_hash != deployment.template_hash for pod in alive)


def _container(statuses: Iterable[Mapping[str, Any]] | None, name: str) -> Mapping[str, Any]:
    return next((status for status in statuses or () if status["name"] == name), {})


def _failure(
    pod: str, status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]
) -> Unknown | None:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return Unknown(Reason.POD_UNSCHEDULABLE, f"No node fits pod {pod}: {scheduled.get('message', '')}")
    containers = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    # A failed sidecar of the user also prevents Ready. The operator's containers are reported first.
    for container in sorted(containers, key=lambda one: _OWN.get(one["name"], len(_OWN))):
        if (failure := _container_failure(pod, container)) is not None:
            return failure
    return None


def _container_failure(pod: str, container: Mapping[str, Any]) -> Unknown | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    if waiting.get("reason") in _PULL_ERRORS:
        return Unknown(
            Reason.IMAGE_PULL_FAILED,
            f"Pod {pod} cannot pull the image {container.get('image')!r}: "
            f"{waiting.get('message') or waiting['reason']}",
        )
    if waiting.get("reason") in _CONFIG_ERRORS:
        return Unknown(
            Reason.WORKER_CRASHING,
            f"Container {container['name']} of pod {pod} cannot be created: "
            f"{waiting.get('message') or waiting['reason']}",
        )
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if not ended or container.get("ready") or ended.get("exitCode") == 0:
        return None
    said = (ended.get("message") or "").strip()
    if container["name"] == WORKER_CONTAINER and ended.get("exitCode") in {
        ExitCode.CONFIGURATION,
        ExitCode.HANDLER,
    }:
        return Unknown(Reason.HANDLER_FAILED, f"Pod {pod}: {said or 'the worker cannot load the handler'}")
    return Unknown(
        Reason.WORKER_CRASHING,
        f"Container {container['name']} of pod {pod} stopped with exit code {ended.get('exitCode')} "
        f"({ended.get('reason', 'Error')}){': ' + said if said else ''}. See: kubectl logs {pod} --previous",
    )
