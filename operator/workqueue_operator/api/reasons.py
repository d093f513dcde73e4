"""Every reason that a condition, an Event or a log line of the operator can carry, and what to do about it.

Place in the flow: the one vocabulary of `decide`, `act`, `status` and the metrics; docs/conditions.md is
generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal


class ConditionType(StrEnum):
    """The conditions of a WorkQueue, in the order in which they depend on each other."""

    QUEUE_DECLARED = "QueueDeclared"
    DEPTH_KNOWN = "DepthKnown"
    WORKLOAD_APPLIED = "WorkloadApplied"
    WORKERS_AVAILABLE = "WorkersAvailable"
    SCALING_ACTIVE = "ScalingActive"
    READY = "Ready"


class Reason(StrEnum):
    """Why something is as it is. The comment of each is its entry in docs/conditions.md."""

    # all is well
    AS_EXPECTED = "AsExpected"
    DECLARED = "Declared"
    DECLARED_AGAIN = "DeclaredAgain"
    USED_AS_IT_IS = "UsedAsItIs"
    DEPTH_OBSERVED = "DepthObserved"
    SCALED_TO_ZERO = "ScaledToZero"
    WORKERS_READY = "WorkersReady"
    # scaling
    BACKLOG = "Backlog"
    WITHIN_BOUNDS = "WithinBounds"
    AT_MAXIMUM = "AtMaximum"
    SINGLE_ACTIVE_CONSUMER = "SingleActiveConsumer"
    BELOW_MINIMUM = "BelowMinimum"
    IDLE = "Idle"
    SURPLUS = "Surplus"
    SCALE_IN_DELAYED = "ScaleInDelayed"
    WORKERS_BUSY = "WorkersBusy"
    MESSAGES_WAITING = "MessagesWaiting"
    PINNED = "Pinned"
    SUSPENDED = "Suspended"
    CANARY = "Canary"
    ROLLOUT_UNDER_WAY = "RolloutUnderWay"
    PODS_SETTLING = "PodsSettling"
    POD_NOT_READY = "PodNotReady"
    RETIRE_UNREACHABLE = "RetireUnreachable"
    RETIREMENT_TOO_SLOW = "RetirementTooSlow"
    CONFLICTING_WRITE = "ConflictingWrite"
    COUNT_REFUSED = "CountRefused"
    DOORBELL_UNAVAILABLE = "DoorbellUnavailable"
    DELETING = "Deleting"
    # the connection
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    SECRET_FORBIDDEN = "SecretForbidden"  # noqa: S105 - a reason
    SECRET_INVALID = "SecretInvalid"  # noqa: S105 - a reason
    BROKER_UNREACHABLE = "BrokerUnreachable"
    BROKER_TIMEOUT = "BrokerTimeout"
    AUTHENTICATION_FAILED = "AuthenticationFailed"
    VIRTUAL_HOST_NOT_FOUND = "VirtualHostNotFound"
    PERMISSION_DENIED = "PermissionDenied"
    # the queue
    QUEUE_CONFLICT = "QueueConflict"
    QUEUE_NOT_FOUND = "QueueNotFound"
    QUEUE_CLAIMED = "QueueClaimed"
    QUEUE_REFUSED = "QueueRefused"
    QUEUE_NOT_EMPTY = "QueueNotEmpty"
    DEPTH_IMPLAUSIBLE = "DepthImplausible"
    DEPTH_PENDING = "DepthPending"
    CONSUMER_TIMEOUT_TOO_SHORT = "ConsumerTimeoutTooShort"
    # the workers
    NAME_CONFLICT = "NameConflict"
    WORKERS_STARTING = "WorkersStarting"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    HANDLER_FAILED = "HandlerFailed"
    WORKER_CRASHING = "WorkerCrashing"
    POD_UNSCHEDULABLE = "PodUnschedulable"
    POD_REFUSED = "PodRefused"
    WORKLOAD_APPLIED = "WorkloadApplied"
    WORKLOAD_REFUSED = "WorkloadRefused"
    WORKLOAD_NOT_FOUND = "WorkloadNotFound"
    WORKLOAD_CONTESTED = "WorkloadContested"
    UNACKNOWLEDGED_UNKNOWN = "UnacknowledgedUnknown"
    # the resource and the cluster
    AWAITING_OPERATOR = "AwaitingOperator"
    SERVED_ELSEWHERE = "ServedElsewhere"
    SPEC_INVALID = "SpecInvalid"
    SCHEDULE_INVALID = "ScheduleInvalid"
    API_FORBIDDEN = "APIForbidden"
    API_UNAVAILABLE = "APIUnavailable"
    INTERNAL_ERROR = "InternalError"


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition's worth of truth: what holds, why, and the sentence for a person."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that could not be found out. Never read as zero, never as false."""

    reason: Reason
    message: str


ADVICE: Final[dict[Reason, str]] = {
    Reason.AS_EXPECTED: "Nothing to do.",
    Reason.DECLARED: "Nothing to do: the queue and its dead-letter queue exist as the WorkQueue asks.",
    Reason.DECLARED_AGAIN: (
        "The queue had been deleted by somebody and was declared again. Its messages are gone with the old "
        "queue; find out who deletes it."
    ),
    Reason.USED_AS_IT_IS: "Nothing to do: `queue.declare` is false and the queue exists.",
    Reason.DEPTH_OBSERVED: "Nothing to do.",
    Reason.SCALED_TO_ZERO: "Nothing to do: the queue is empty and a message will start a worker.",
    Reason.WORKERS_READY: "Nothing to do.",
    Reason.BACKLOG: "Nothing to do: replicas follow the backlog.",
    Reason.WITHIN_BOUNDS: "Nothing to do.",
    Reason.AT_MAXIMUM: "The backlog asks for more replicas than `scaling.maxReplicas`. Raise it, or wait.",
    Reason.SINGLE_ACTIVE_CONSUMER: (
        "Nothing to do: with `queue.singleActiveConsumer` RabbitMQ hands messages to one worker at a time, so a "
        "second one would stay idle. For more at the same time use a queue without it."
    ),
    Reason.BELOW_MINIMUM: "Nothing to do: replicas are brought up to the minimum.",
    Reason.IDLE: "Nothing to do: no message is waiting, and no worker that is to stay has one.",
    Reason.SURPLUS: "Nothing to do: idle workers are being asked to leave.",
    Reason.SCALE_IN_DELAYED: "Nothing to do: replicas shrink after `scaling.scaleInDelaySeconds`.",
    Reason.WORKERS_BUSY: (
        "Nothing to do: surplus workers are in a handler, or have not answered yet, and stay until they say that "
        "they are idle."
    ),
    Reason.MESSAGES_WAITING: "Nothing to do: a message came while the last worker was leaving; it stays.",
    Reason.PINNED: "`spec.replicas` fixes the count. Release it with a merge patch that sets it to null.",
    Reason.SUSPENDED: "`spec.suspend` is true: set it to false to go on.",
    Reason.CANARY: (
        "The pod template has never had a Ready pod, so one pod goes first. If it does not become Ready, see "
        "WorkersAvailable."
    ),
    Reason.ROLLOUT_UNDER_WAY: "Nothing to do: replicas do not shrink while the Deployment rolls out.",
    Reason.PODS_SETTLING: (
        "Nothing to do: replicas do not shrink while pods come or go, or before Kubernetes has counted those that "
        "agreed to leave. If it stays, the message says where to look."
    ),
    Reason.POD_NOT_READY: (
        "A pod that stays is not Ready, and Kubernetes would remove it before idle ones: replicas do not shrink "
        "until it is Ready. If it does not become Ready, see WorkersAvailable."
    ),
    Reason.RETIRE_UNREACHABLE: (
        "A worker does not answer the operator on its port, so it cannot be asked whether it is busy and "
        "stays. Replicas still grow. Look for a NetworkPolicy between the operator and the worker, and at the pod's "
        "log."
    ),
    Reason.RETIREMENT_TOO_SLOW: (
        "The API server took so long that workers that agreed to leave may take messages again; they stay, and are "
        "asked again. If it stays, look at the API server's latency."
    ),
    Reason.CONFLICTING_WRITE: "Nothing to do: somebody else changed the count meanwhile; it is decided anew.",
    Reason.COUNT_REFUSED: (
        "The API server, or an admission policy in it, refuses the replica count; the message has its words. The "
        "operator keeps the nearest count that is admitted, and tries again, with pauses of up to 75 s. Change the "
        "policy, or set `scaling.maxReplicas` to what it admits."
    ),
    Reason.DOORBELL_UNAVAILABLE: (
        "The operator cannot consume from the queue, so it polls the idle queue. If RabbitMQ refused, give its "
        "user read permission on the queue, or set `scaling.wake: Poll` to say that polling is meant. If RabbitMQ "
        "gives no answer, look at the members of the quorum queue (`rabbitmq-queues quorum_status`)."
    ),
    Reason.DELETING: "Nothing to do: the WorkQueue is being deleted.",
    Reason.SECRET_NOT_FOUND: "Create the Secret that `spec.connectionSecretRef` names, in the same namespace.",
    Reason.SECRET_FORBIDDEN: "Let the operator's service account get that Secret (see the chart's RBAC).",
    Reason.SECRET_INVALID: "Correct the keys of the Secret as the message says.",
    Reason.BROKER_UNREACHABLE: (
        "Replicas stay as they are. Check host and port in the Secret, DNS, NetworkPolicies and the broker."
    ),
    Reason.BROKER_TIMEOUT: "Replicas stay as they are. The broker is connected but does not answer; look at it.",
    Reason.AUTHENTICATION_FAILED: "Correct username and password in the Secret; it is read again by itself.",
    Reason.VIRTUAL_HOST_NOT_FOUND: "Create the virtual host, or correct it in the Secret.",
    Reason.PERMISSION_DENIED: "Give the user the permission that the message names (`rabbitmqctl set_permissions`).",
    Reason.QUEUE_CONFLICT: (
        "The queue exists with other arguments and was not touched. If a publisher declares it without arguments, "
        "set `queue.type: Classic` without limits and TTL, or let the publisher not declare it (or declare it "
        "passively). Otherwise change the WorkQueue to match, set `queue.declare: false`, or delete the queue when "
        "it is empty."
    ),
    Reason.QUEUE_NOT_FOUND: "`queue.declare` is false and the queue does not exist: create it, or let us declare it.",
    Reason.QUEUE_CLAIMED: "Another, older WorkQueue has this queue. Delete one of the two or rename the queue.",
    Reason.QUEUE_REFUSED: "RabbitMQ refused the declaration; the message has its words.",
    Reason.QUEUE_NOT_EMPTY: (
        "The deletion waits: another program consumes from the queue, or messages are left and the policy is "
        "`DeleteIfEmpty`. Stop the consumer, drain the queue, or release the WorkQueue with the annotation "
        "workqueue.dev/abandon-queue=true."
    ),
    Reason.DEPTH_IMPLAUSIBLE: (
        "RabbitMQ answers zero although workers are connected, as it does for a quorum queue without a "
        "leader. Replicas stay as they are; look at the cluster's majority."
    ),
    Reason.DEPTH_PENDING: "Nothing to do: the queue is about to be asked.",
    Reason.CONSUMER_TIMEOUT_TOO_SHORT: (
        "A handler may run longer than the broker lets a consumer hold a message. Set "
        "`queue.consumerTimeoutSeconds` on a new queue, or a policy with consumer-timeout."
    ),
    Reason.NAME_CONFLICT: "An object of that name belongs to somebody else and is not touched: rename one of them.",
    Reason.WORKERS_STARTING: "Nothing to do: the first pod is starting.",
    Reason.IMAGE_PULL_FAILED: "Correct `worker.image` or `worker.imagePullSecrets`.",
    Reason.HANDLER_FAILED: "The handler cannot be loaded or reached; the message has the worker's own words.",
    Reason.WORKER_CRASHING: "Look at the log of the pod that the message names.",
    Reason.POD_UNSCHEDULABLE: "No node takes the pod; the message has the scheduler's words.",
    Reason.POD_REFUSED: (
        "The API server refuses the pods (quota, Pod Security, missing ServiceAccount ...). The operator lowers the "
        "count to the pods that exist when the others are no longer needed."
    ),
    Reason.WORKLOAD_APPLIED: "Nothing to do: the Deployment and the objects beside it are as the WorkQueue asks.",
    Reason.WORKLOAD_REFUSED: (
        "The API server, or an admission policy in it, refuses the Deployment or an object beside it; the message "
        "has its words. The Deployment that exists is still scaled. Correct the WorkQueue or the policy; the "
        "operator tries again, with pauses of up to 75 s."
    ),
    Reason.WORKLOAD_NOT_FOUND: "Create the Deployment that `spec.workloadRef` names, or correct the name.",
    Reason.WORKLOAD_CONTESTED: "Something else scales the same Deployment: remove one of the two.",
    Reason.UNACKNOWLEDGED_UNKNOWN: (
        "Put the key `management-uri` into the connection Secret: with `workloadRef` the workers cannot be asked "
        "what they have in hand. Without it, replicas grow with the messages that wait, and do not shrink."
    ),
    Reason.AWAITING_OPERATOR: (
        "No operator has looked at the WorkQueue yet. If that lasts for more than some seconds, see whether one runs "
        "and watches this namespace (the chart's `watchNamespaces`)."
    ),
    Reason.SERVED_ELSEWHERE: (
        "Nothing to do if that is meant. The label `workqueue.dev/operator` of the namespace names the release that "
        "serves it. Without the label the release that lists the namespace goes before one that watches everything."
    ),
    Reason.SPEC_INVALID: "The resource does not fit the schema: apply the current CRD and correct the resource.",
    Reason.SCHEDULE_INVALID: (
        "Correct the cron expression or the time zone that the message names. Until then that schedule has no "
        "effect; everything else goes on."
    ),
    Reason.API_FORBIDDEN: "The operator may not do this: compare its roles with those of the chart.",
    Reason.API_UNAVAILABLE: "Nothing to do: the API server did not answer; it is tried again.",
    Reason.INTERNAL_ERROR: "A mistake of the operator: please report it with the log line of the same reason.",
}
"""What a person does about each reason; the text of docs/conditions.md."""
