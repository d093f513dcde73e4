"""A WorkQueue's pods and Deployment as far as the operator cares. Pure: from API objects to small views.

Place in the flow: the store makes and keeps those of the pods; `reconcile`, `act` and `status` use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from workqueue.contract.worker_api import ExitCode
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.names import (
    ANNOTATION_DELETION_COST,
    ANNOTATION_TEMPLATE_HASH,
    HANDLER_CONTAINER,
    LABEL_WORKQUEUE,
    WORKER_CONTAINER,
)

_PULL_ERRORS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
_CONFIG_ERRORS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})

_OWN: Final = {WORKER_CONTAINER: 0, HANDLER_CONTAINER: 1}


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod.

    Attributes:
        running: whether the worker's container runs, so that it may have a message.
        created: when the pod was made, in Unix seconds.
        scheduled: whether a node has it, so that its worker may start at any moment.
        started: whether its phase is Running: the kubelet has started a container of it.
        failure: what keeps it from becoming Ready, as far as a person can do something about it.
        ended: it will not run again (evicted, out of memory for good, completed), and counts as gone.
        workqueue: the name of the WorkQueue in the same namespace that its label says it belongs to.
        replicaset: the name of the ReplicaSet that made it.
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

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """The lower, the sooner Kubernetes removes the pod; marks decide among pods of one rank only.

        Source: ActivePodsWithRanks.Less in the ReplicaSet controller of Kubernetes 1.35.
        """
        return (self.scheduled, self.started, self.ready)


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """The Deployment.

    Attributes:
        replicas: spec.replicas.
        current: replicas that the controller has made, status.replicas.
        rolled_out: the controller has seen the last spec and all its pods are of the current template.
        refusal: why its pods cannot be created, when the API server refuses them.
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


def pod_view(body: Mapping[str, Any]) -> PodView:
    """The view of a pod."""
    metadata, status = body["metadata"], body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    worker = _container(status.get("containerStatuses"), WORKER_CONTAINER)
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
        created=datetime.fromisoformat(metadata["creationTimestamp"]).timestamp(),
        scheduled=bool((body.get("spec") or {}).get("nodeName")),
        started=status.get("phase") == "Running",
        ended=status.get("phase") in {"Succeeded", "Failed"},
        workqueue=(metadata.get("labels") or {}).get(LABEL_WORKQUEUE, ""),
        replicaset=next(
            (o["name"] for o in metadata.get("ownerReferences") or () if o.get("controller")), ""
        ),
    )


def existing(pods: Iterable[PodView]) -> list[PodView]:
    """Those that have not ended, by name."""
    return sorted((pod for pod in pods if not pod.ended), key=lambda pod: pod.name)


def deployment_view(body: Mapping[str, Any]) -> DeploymentView:
    """The view of a Deployment."""
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    replicas = spec.get("replicas", 1)
    template = (spec["template"].get("metadata") or {}).get("annotations") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    failure = conditions.get("ReplicaFailure", {})
    current = status.get("replicas", 0)
    return DeploymentView(
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        replicas=replicas,
        current=current,
        ready=status.get("readyReplicas", 0),
        rolled_out=status.get("observedGeneration", 0) >= metadata["generation"]
        and status.get("updatedReplicas", 0) == current,
        template_hash=template.get(ANNOTATION_TEMPLATE_HASH, ""),
        refusal=Unknown(Reason.POD_REFUSED, f"The pods cannot be created: {failure.get('message', '')}")
        if failure.get("status") == "True"
        else None,
    )


def unsettled(deployment: DeploymentView, pods: Sequence[PodView]) -> Unknown | None:
    """Why the count must not shrink just now, or None.

    With two ReplicaSets the marks do not decide who goes, and while pods come or go they would be counted against
    the wrong number.
    """
    alive = [pod for pod in pods if not pod.terminating]
    if _rolls_out(deployment, alive):
        return Unknown(
            Reason.ROLLOUT_UNDER_WAY, "The Deployment rolls out a new template; it shrinks afterwards."
        )
    if deployment.current != deployment.replicas or len(alive) != deployment.replicas:
        return Unknown(
            Reason.PODS_SETTLING,
            f"{len(alive)} of {deployment.replicas} pods exist; the count shrinks when they agree.",
        )
    return None


def existing_of_refused(deployment: DeploymentView, pods: Sequence[PodView]) -> int | None:
    """How many pods exist while the API server refuses the others; None while it refuses none.

    None during a rollout, too: with two ReplicaSets a lower count may remove pods of either.
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
        return Unknown(Reason.POD_UNSCHEDULABLE, f"No node takes pod {pod}: {scheduled.get('message', '')}")
    containers = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    # A person's sidecar that fails keeps the pod from being Ready as well; ours are told first.
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
            f"Pod {pod} cannot get the image {container.get('image')!r}: "
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
        return Unknown(Reason.HANDLER_FAILED, f"Pod {pod}: {said or 'the handler cannot be loaded'}")
    return Unknown(
        Reason.WORKER_CRASHING,
        f"Container {container['name']} of pod {pod} ended with exit code {ended.get('exitCode')} "
        f"({ended.get('reason', 'Error')}){': ' + said if said else ''}. See: kubectl logs {pod} --previous",
    )
