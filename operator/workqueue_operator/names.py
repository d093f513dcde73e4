"""Every derived name, label, annotation and key of the operator, in one place.

Place in the flow: used by all other modules, imports none of them.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "workqueue.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "WorkQueue"
PLURAL: Final = "workqueues"
SINGULAR: Final = "workqueue"
SHORT_NAME: Final = "wq"

MAX_NAME_LENGTH: Final = 52
"""Of a WorkQueue: what we derive from it must fit into label values, which end at 63 characters."""

PAGE_AUDIENCE: Final = "workqueue-page"
"""Of tokens for the web page, unless the operator's configuration names another."""

FIELD_MANAGER: Final = "workqueue-operator"
REPLICAS_FIELD_MANAGER: Final = "workqueue-operator-replicas"
"""Holds only the initial `replicas: 0`, so that applying the rest again never resets the count."""

STATUS_FIELD_MANAGER: Final = "workqueue-operator-status"
EVENT_REPORTER: Final = "workqueue-operator"

LABEL_WORKQUEUE: Final = f"{GROUP}/workqueue"
"""On Deployments and pods: the name of the WorkQueue they belong to; the pods' selector."""

LABEL_RETIRING: Final = f"{GROUP}/retiring"
"""On pods: "false" by the template, "true" on those that agreed to leave. A ReplicaSet counts the pods that have all
labels of its template, so that this count tells whom its controller knows to be leaving."""

LABEL_OPERATOR: Final = f"{GROUP}/operator"
"""On a namespace: the helm release of the operator that serves it. As an annotation of the ClusterRole `CLAIM`: the
operator that watches the whole cluster, as NAMESPACE/RELEASE."""

CLAIM: Final = GROUP
"""Name of a Lease in a namespace, whose holder is the operator that lists this namespace, and of a ClusterRole
without rules for the one that watches everything; only an administrator can write that. The chart makes both and
nobody renews them. All releases use this name, so that helm refuses a second one for a namespace or the cluster."""

ANNOTATION_TEMPLATE_HASH: Final = f"{GROUP}/template-hash"
"""On pods: which template made them (the canary of a new template goes by it)."""

ANNOTATION_ABANDON: Final = f"{GROUP}/abandon-queue"
ANNOTATION_BINDINGS: Final = f"{GROUP}/bindings"
"""The bindings that the operator has made, as JSON: exchange to routing keys."""

ANNOTATION_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
RETIRED_DELETION_COST: Final = "-1000"

FINALIZER: Final = f"{GROUP}/queue"
"""Only on WorkQueues whose queue is to be deleted with them."""

WORKER_CONTAINER: Final = "worker"
HANDLER_CONTAINER: Final = "handler"
ENDPOINT_PORT_NAME: Final = "workqueue"
BINDING_ROOT: Final = "/bindings"
BINDING_NAME: Final = "rabbitmq"

RETIREMENT_SECRET_TYPE: Final = f"{GROUP}/retirement-key"
RETIREMENT_KEY: Final = "key"
"""In the Secret, and the name of its file in a pod."""

RETIREMENT_FOLDER: Final = f"/var/run/secrets/{GROUP}"


def workload_name(workqueue: str) -> str:
    """The Deployment, PodDisruptionBudget and NetworkPolicy of a WorkQueue."""
    return f"{workqueue}-worker"


def retirement_secret_name(workqueue: str) -> str:
    """The Secret with a WorkQueue's retirement key."""
    return f"{workqueue}-retirement-key"


def pod_labels(workqueue: str) -> dict[str, str]:
    """The labels of everything that belongs to a WorkQueue."""
    return {
        LABEL_WORKQUEUE: workqueue,
        "app.kubernetes.io/name": "workqueue-worker",
        "app.kubernetes.io/instance": workqueue,
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/managed-by": "workqueue-operator",
    }


def pod_selector(workqueue: str) -> dict[str, str]:
    """The one label that selects a WorkQueue's pods."""
    return {LABEL_WORKQUEUE: workqueue}
