"""All names, labels, annotations and keys that the operator uses. Imports no other module of the operator."""

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
"""Characters of a WorkQueue's name: derived names must fit into label values of at most 63 characters."""

FIELD_MANAGER: Final = "workqueue-operator"
REPLICAS_FIELD_MANAGER: Final = "workqueue-operator-replicas"
"""Owns only the initial `replicas: 0`, so that a later apply of the other fields never resets the count."""

STATUS_FIELD_MANAGER: Final = "workqueue-operator-status"
RECURRING_FIELD_MANAGER: Final = "workqueue-operator-recurring"
EVENT_REPORTER: Final = "workqueue-operator"

LABEL_WORKQUEUE: Final = f"{GROUP}/workqueue"
"""On Deployments and pods: the name of their WorkQueue. Also the pod selector."""

LABEL_RETIRING: Final = f"{GROUP}/retiring"
"""On pods: "false" in the template, "true" on retired pods. A ReplicaSet counts the pods with all labels of its
template (status.fullyLabeledReplicas). That count shows which retired pods its controller has seen."""

LABEL_OPERATOR: Final = f"{GROUP}/operator"
"""On a namespace: the Helm release of the operator that serves it. As an annotation of the ClusterRole `CLAIM`: the
operator that watches the whole cluster, as NAMESPACE/RELEASE."""

CLAIM: Final = GROUP
"""Name of two objects of the chart. A Lease in a namespace: its holder is the operator that lists the namespace. A
ClusterRole without rules: its annotation names the operator that watches the whole cluster, and only an administrator
can write it. Nothing renews them. All releases use the same name, so that Helm refuses a second release for the same
namespace or cluster."""

ANNOTATION_TEMPLATE_HASH: Final = f"{GROUP}/template-hash"
"""On pods: the hash of their template. The canary of a new template uses it."""

ANNOTATION_BROKER: Final = f"{GROUP}/broker"
"""On pods: the broker and virtual host to which their worker connects, without credentials."""

ANNOTATION_ABANDON: Final = f"{GROUP}/abandon-queue"
ANNOTATION_BINDINGS: Final = f"{GROUP}/bindings"
"""The bindings that the operator has created, as JSON: exchange to routing keys."""

ANNOTATION_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
RETIRED_DELETION_COST: Final = "-1000"

ANNOTATION_PROTECTED: Final = f"{GROUP}/protected"
"""On pods: the operator has set `PROTECTION` beside it, because a handler runs for long."""

PROTECTION: Final = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Annotations with which the cluster autoscaler and Karpenter leave the node of a pod alone."""

ANNOTATION_EVICTABLE_VOLUMES: Final = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
"""On pods: their emptyDir volumes without lasting data. The cluster autoscaler removes no node that has a pod with
another one."""

FINALIZER: Final = f"{GROUP}/queue"
"""Only on WorkQueues whose deletion policy deletes the queues."""

WORKER_CONTAINER: Final = "worker"
HANDLER_CONTAINER: Final = "handler"
ENDPOINT_PORT_NAME: Final = "workqueue"
BINDING_ROOT: Final = "/bindings"
BINDING_NAME: Final = "rabbitmq"

RETIREMENT_SECRET_TYPE: Final = f"{GROUP}/retirement-key"
RETIREMENT_KEY: Final = "key"
"""Key in the Secret, and name of the mounted file in a pod."""

RETIREMENT_FOLDER: Final = f"/var/run/secrets/{GROUP}"


RELEASE_LABELS: Final = {"app.kubernetes.io/part-of": "workqueue-operator"}
"""Labels of the pods of operator and page, whatever the release is named."""


def workload_name(workqueue: str) -> str:
    """Return the name of the Deployment, PodDisruptionBudget and NetworkPolicy of a WorkQueue."""
    return f"{workqueue}-worker"


def retirement_secret_name(workqueue: str) -> str:
    """Return the name of the Secret with the retirement key of a WorkQueue."""
    return f"{workqueue}-retirement-key"


def pod_labels(workqueue: str) -> dict[str, str]:
    """Return the labels of all objects of a WorkQueue."""
    return {
        LABEL_WORKQUEUE: workqueue,
        "app.kubernetes.io/name": "workqueue-worker",
        "app.kubernetes.io/instance": workqueue,
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/managed-by": "workqueue-operator",
    }


def pod_selector(workqueue: str) -> dict[str, str]:
    """Return the label that selects the pods of a WorkQueue."""
    return {LABEL_WORKQUEUE: workqueue}
