"""Every reason of a condition, an Event or a log line: where it shows, what it means and what to do about it.

The operator, the web page and docs/conditions.md (`hack.generate`) use these texts. A new reason needs a member of
`Reason` and an entry in `EXPLANATIONS`.
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
    """The reason of a condition, an Event or a log line."""

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
    WAIT_NOT_MET = "WaitNotMet"
    AT_CONCURRENCY_LIMIT = "AtConcurrencyLimit"
    AT_RATE_LIMIT = "AtRateLimit"
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
    DEAD_LETTER_QUEUE_NOT_FOUND = "DeadLetterQueueNotFound"
    EXCHANGE_NOT_FOUND = "ExchangeNotFound"
    QUEUE_CLAIMED = "QueueClaimed"
    QUEUE_REFUSED = "QueueRefused"
    QUEUE_NOT_EMPTY = "QueueNotEmpty"
    DEPTH_IMPLAUSIBLE = "DepthImplausible"
    DEPTH_PENDING = "DepthPending"
    CONSUMER_TIMEOUT_TOO_SHORT = "ConsumerTimeoutTooShort"
    LIMIT_CONFLICT = "LimitConflict"
    LIMIT_UNAVAILABLE = "LimitUnavailable"
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
    RECURRING_INVALID = "RecurringInvalid"
    RECURRING_MISSED = "RecurringMissed"
    RECURRING_UNCERTAIN = "RecurringUncertain"
    RECURRING_FAILED = "RecurringFailed"
    API_FORBIDDEN = "APIForbidden"
    API_UNAVAILABLE = "APIUnavailable"
    INTERNAL_ERROR = "InternalError"


UNANSWERED: Final = frozenset({Reason.BROKER_UNREACHABLE, Reason.BROKER_TIMEOUT})
"""RabbitMQ has said nothing, and may answer a moment later."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The status, reason and message of one condition."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that could not be determined. It is never read as zero or false."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The texts about one reason.

    Attributes:
        shown: where the reason shows, in Markdown.
        meaning: what it means, in Markdown.
        advice: what the user does about it. Also part of conditions and of the web page.
    """

    shown: str
    meaning: str
    advice: str


CONDITION_MEANINGS: Final[dict[ConditionType, str]] = {
    ConditionType.READY: (
        "The summary: the queue exists, its depth is known, and nothing prevents the workers from running. When it "
        "is `False`, it repeats the reason of the condition that failed. A WorkQueue stays Ready while its workers "
        "start, because they start at each wake."
    ),
    ConditionType.QUEUE_DECLARED: "Whether the queue and its dead-letter queue exist as the WorkQueue specifies.",
    ConditionType.DEPTH_KNOWN: (
        "Whether the operator knows how many messages are waiting and how many are in handlers. Otherwise it leaves "
        "the replicas unchanged."
    ),
    ConditionType.WORKLOAD_APPLIED: (
        "Whether the API server has accepted the Deployment and its related objects. If it refuses a change, the "
        "operator continues to scale the existing Deployment."
    ),
    ConditionType.WORKERS_AVAILABLE: "Whether the workers run, or can run when a message arrives.",
    ConditionType.SCALING_ACTIVE: "Whether the operator scales the replicas with the depth of the queue.",
}

_D, _K, _A, _W, _S, _R = (
    ConditionType.QUEUE_DECLARED.value,
    ConditionType.DEPTH_KNOWN.value,
    ConditionType.WORKLOAD_APPLIED.value,
    ConditionType.WORKERS_AVAILABLE.value,
    ConditionType.SCALING_ACTIVE.value,
    ConditionType.READY.value,
)
_QUEUE_FAILED: Final = f"{_D}, {_K} and {_S} `False`"
_NO_ANSWER: Final = f"{_K} and {_S} `False`; also {_D} if the queue was never declared"
_EVENT: Final = "Event, `status.lastScaleReason`"
_UNCHANGED: Final = f"{_S} `True`, replicas unchanged"

EXPLANATIONS: Final[dict[str, dict[Reason, Explanation]]] = {
    "Normal operation": {
        Reason.AS_EXPECTED: Explanation(
            f"{_R} and {_S} `True`", "Everything is as the WorkQueue specifies.", "Nothing to do."
        ),
        Reason.DECLARED: Explanation(
            f"{_D} `True`, Event",
            "The operator has declared the queues.",
            "Nothing to do: the queue and its dead-letter queue exist as the WorkQueue specifies.",
        ),
        Reason.DECLARED_AGAIN: Explanation(
            f"{_D} `True`, Event",
            "A queue was missing. The operator has declared it again.",
            "Another program or a user deleted the queue together with its messages, and the operator declared it "
            "again. Find out who deletes it.",
        ),
        Reason.USED_AS_IT_IS: Explanation(
            f"{_D} `True`, Event",
            "The queue exists, and the operator does not declare it.",
            "Nothing to do: `queue.declare` is false and the queue exists.",
        ),
        Reason.DEPTH_OBSERVED: Explanation(
            f"{_K} `True`", "RabbitMQ has answered recently.", "Nothing to do."
        ),
        Reason.SCALED_TO_ZERO: Explanation(
            f"{_W} `True`",
            "The desired count is 0. A stopping worker may still finish its messages.",
            "Nothing to do: the queue is empty and the next message starts a worker.",
        ),
        Reason.WORKLOAD_APPLIED: Explanation(
            f"{_A} `True`",
            "The API server has accepted the objects that run the workers.",
            "Nothing to do: the Deployment and its related objects are as the WorkQueue specifies.",
        ),
        Reason.WORKERS_READY: Explanation(
            f"{_W} `True`, Event", "At least one worker is Ready.", "Nothing to do."
        ),
    },
    "Scaling": {
        Reason.BACKLOG: Explanation(
            _EVENT,
            "The depth of the queue needs more workers.",
            "Nothing to do: the operator adds replicas for the backlog.",
        ),
        Reason.BELOW_MINIMUM: Explanation(
            _EVENT,
            "There were fewer replicas than `scaling.minReplicas` or a schedule requires.",
            "Nothing to do: the operator raises the replicas to the minimum.",
        ),
        Reason.IDLE: Explanation(
            _EVENT,
            "No message is waiting, and none is in a handler.",
            "Nothing to do: no message is waiting, and the workers that were removed were idle.",
        ),
        Reason.SURPLUS: Explanation(
            _EVENT,
            "There are more workers than the messages need.",
            "Nothing to do: the operator retires idle workers.",
        ),
        Reason.AT_MAXIMUM: Explanation(
            f"{_S} `True`, Event",
            "The replicas are at `scaling.maxReplicas`; the backlog asks for more.",
            "The backlog asks for more replicas than `scaling.maxReplicas`. Raise it, or wait.",
        ),
        Reason.WAIT_NOT_MET: Explanation(
            f"{_S} `True`, Event",
            "The replicas are at `scaling.maxReplicas`, and some of the waiting messages will probably wait for "
            "longer than `scaling.maxWaitSeconds`.",
            "With `scaling.maxReplicas` workers, some messages will wait for longer than `scaling.maxWaitSeconds`. "
            "Raise one of the two, or make the handlers faster.",
        ),
        Reason.AT_CONCURRENCY_LIMIT: Explanation(
            f"{_S} `True`",
            "The replicas can run as many handlers as `limits.concurrency` allows; the backlog asks for more.",
            "Nothing to do: more replicas would only wait for each other. To handle more messages at the same time, "
            "raise `limits.concurrency`.",
        ),
        Reason.AT_RATE_LIMIT: Explanation(
            f"{_S} `True`",
            "The replicas can start as many handlers as `limits.ratePerSecond` allows, at their mean handler time. "
            "The backlog asks for more.",
            "Nothing to do: more replicas would only wait for each other. To handle more messages per second, raise "
            "`limits.ratePerSecond`.",
        ),
        Reason.SINGLE_ACTIVE_CONSUMER: Explanation(
            f"{_S} `True`",
            "One worker runs; the backlog would need more.",
            "Nothing to do: with `queue.singleActiveConsumer`, RabbitMQ delivers to one worker at a time, and a "
            "second worker would stay idle. To run more workers, use a queue without it.",
        ),
        Reason.CANARY: Explanation(
            f"{_S} `True`, {_EVENT}",
            "The pod template is new or has changed. One pod must become Ready before the operator adds more.",
            "No pod of this template has been Ready yet, so the operator starts one pod first. If it does not become "
            "Ready, see WorkersAvailable.",
        ),
        Reason.PINNED: Explanation(
            f"{_S} `False`, {_EVENT}",
            "A user has fixed the count, for example with `kubectl scale`.",
            "`spec.replicas` fixes the count. To release it, set it to null with a merge patch.",
        ),
        Reason.SUSPENDED: Explanation(
            f"{_S} and {_R} `False`, Event",
            "A user has suspended scaling and declarations.",
            "`spec.suspend` is true. Set it to false to continue.",
        ),
        Reason.RETIRE_UNREACHABLE: Explanation(
            f"{_S} `False`, Event",
            "A Ready worker has not answered the operator for 30 seconds. It counts as idle for scale-out and as "
            "busy for scale-in.",
            "A worker does not answer on its port. The operator cannot tell whether it is busy and keeps it; "
            "scale-out continues. Check the NetworkPolicies between operator and worker, and the log of the pod.",
        ),
        Reason.DOORBELL_UNAVAILABLE: Explanation(
            f"{_K} `True`, Event",
            "The operator cannot consume from the idle queue, so it polls the queue twice per second.",
            "The operator cannot consume from the queue, so it polls the idle queue. If RabbitMQ refused, give its "
            "user read permission on the queue, or set `scaling.wake: Poll` to poll on purpose. If RabbitMQ does not "
            "answer, check the members of the quorum queue (`rabbitmq-queues quorum_status`) and RabbitMQ's "
            "`channel_max`.",
        ),
        Reason.WITHIN_BOUNDS: Explanation(
            "Decision only: `ScalingActive` has the reason `AsExpected`",
            "The current workers are the ones that the queue needs.",
            "Nothing to do.",
        ),
        Reason.SCALE_IN_DELAYED: Explanation(
            _UNCHANGED,
            "Fewer workers are enough now, but more were needed within the scale-in delay.",
            "Nothing to do: the operator scales in after `scaling.scaleInDelaySeconds`.",
        ),
        Reason.WORKERS_BUSY: Explanation(
            _UNCHANGED,
            "Fewer workers are enough, but each surplus worker has a message or may have one.",
            "Nothing to do: the surplus workers are busy or have not answered yet. The operator keeps each one until "
            "it reports that it is idle.",
        ),
        Reason.MESSAGES_WAITING: Explanation(
            _UNCHANGED,
            "A message arrived during the step to zero, which was cancelled.",
            "Nothing to do: a message arrived while the last worker was retiring, so the worker stays.",
        ),
        Reason.ROLLOUT_UNDER_WAY: Explanation(
            _UNCHANGED,
            "Pods of two templates exist.",
            "Nothing to do: the operator does not scale in during a rollout of the Deployment.",
        ),
        Reason.PODS_SETTLING: Explanation(
            _UNCHANGED,
            "The number of pods differs from the replica count, or the Deployment's status does not count every "
            "Ready pod yet.",
            "Nothing to do: the operator does not scale in while pods start or stop, or before the ReplicaSet "
            "controller has seen the retired pods. If this lasts, the message says where to look.",
        ),
        Reason.POD_NOT_READY: Explanation(
            _UNCHANGED,
            "A pod that must stay is not Ready, for example because it is starting.",
            "A pod that must stay is not Ready, and Kubernetes would remove it before the idle pods. The operator "
            "scales in after it is Ready. If it does not become Ready, see WorkersAvailable.",
        ),
        Reason.RETIREMENT_TOO_SLOW: Explanation(
            _UNCHANGED,
            "More than 18 s passed between the retirement of the workers and the write of the count.",
            "The API server was so slow that retired workers may consume again. The operator keeps them and asks "
            "them again. If this lasts, check the latency of the API server.",
        ),
        Reason.COUNT_REFUSED: Explanation(
            f"{_S} and {_R} `False`, Event",
            "The API server, an admission webhook or a policy refuses the desired count.",
            "The API server, or an admission policy, refuses the replica count; the message quotes it. The operator "
            "keeps the nearest admitted count and retries at intervals of up to 75 s. Change the policy, or set "
            "`scaling.maxReplicas` to an admitted count.",
        ),
        Reason.CONFLICTING_WRITE: Explanation(
            _UNCHANGED,
            "The count changed after the operator decided.",
            "Nothing to do: a concurrent write changed the count. The operator decides again.",
        ),
        Reason.DELETING: Explanation(
            f"{_D} and {_R} `False`, Event",
            "The workers finish their messages, then the operator deletes the queues.",
            "Nothing to do: the WorkQueue is being deleted.",
        ),
    },
    "The connection": {
        Reason.SECRET_NOT_FOUND: Explanation(
            _QUEUE_FAILED,
            "The Secret does not exist in the WorkQueue's namespace.",
            "Create the Secret that `spec.connectionSecretRef` names, in the same namespace.",
        ),
        Reason.SECRET_FORBIDDEN: Explanation(
            _QUEUE_FAILED,
            "The operator has no permission to read the Secret.",
            "Allow the operator's ServiceAccount to get that Secret (see the chart's RBAC rules).",
        ),
        Reason.SECRET_INVALID: Explanation(
            _QUEUE_FAILED,
            "A key of the Secret is missing or invalid.",
            "Correct the keys of the Secret as the message says.",
        ),
        Reason.BROKER_UNREACHABLE: Explanation(
            _NO_ANSWER,
            "The operator cannot connect to RabbitMQ, or the connection was lost.",
            "Replicas stay unchanged. Check host and port in the Secret, DNS, NetworkPolicies and RabbitMQ.",
        ),
        Reason.BROKER_TIMEOUT: Explanation(
            _NO_ANSWER,
            "RabbitMQ accepts the connection but does not answer in time, or it answers no worker that asks for "
            "messages.",
            "No worker is removed. If RabbitMQ still answers the operator, replicas grow with its counts. Check its "
            "state.",
        ),
        Reason.AUTHENTICATION_FAILED: Explanation(
            _NO_ANSWER,
            "RabbitMQ refuses the login.",
            "Correct username and password in the Secret. The operator reads it again automatically.",
        ),
        Reason.VIRTUAL_HOST_NOT_FOUND: Explanation(
            _NO_ANSWER,
            "RabbitMQ has no virtual host with that name.",
            "Create the virtual host, or correct it in the Secret.",
        ),
        Reason.PERMISSION_DENIED: Explanation(
            _QUEUE_FAILED,
            "The login is correct, but the user has no permission for this operation. Minimal permissions: "
            "[operations](operations.md#rabbitmq-permissions).",
            "Give the user the permission that the message names (`rabbitmqctl set_permissions`).",
        ),
    },
    "The queue": {
        Reason.QUEUE_CONFLICT: Explanation(
            _QUEUE_FAILED,
            "A queue or an exchange with that name exists with a different argument, which the message names. See "
            "[changing what RabbitMQ fixes](operations.md#change-what-rabbitmq-fixes).",
            "The queue exists with other arguments; the operator did not change it. If a publisher declares it "
            "without arguments, set `queue.type: Classic` without limits and TTL, or stop declaring it in the "
            "publisher (or declare it passively). Otherwise change the WorkQueue to match, set "
            "`queue.declare: false`, or delete the queue when it is empty.",
        ),
        Reason.QUEUE_NOT_FOUND: Explanation(
            _QUEUE_FAILED,
            "The queue does not exist, and the operator must not declare it.",
            "`queue.declare` is false and the queue does not exist. Create it, or set `queue.declare: true`.",
        ),
        Reason.DEAD_LETTER_QUEUE_NOT_FOUND: Explanation(
            _QUEUE_FAILED,
            "The queue that `queue.deadLetterQueue` names does not exist.",
            "Create it. The operator does not declare a dead-letter queue that you name. Until it exists, the "
            "number of workers does not change, and workers keep the messages that they give up unacknowledged.",
        ),
        Reason.EXCHANGE_NOT_FOUND: Explanation(
            f"{_D} and {_R} `False`",
            "`queue.bindings` names an exchange that does not exist.",
            "Create the exchange, or correct its name in `queue.bindings`. The queue and its other bindings work. "
            "The operator tries again every 15 s.",
        ),
        Reason.QUEUE_CLAIMED: Explanation(
            _QUEUE_FAILED,
            "Two WorkQueues name the same queue of the same broker, and this one is younger. Its workers finish "
            "their messages and stop.",
            "An older WorkQueue uses this queue. Delete one of the two, or choose another queue name.",
        ),
        Reason.QUEUE_REFUSED: Explanation(
            _QUEUE_FAILED,
            "RabbitMQ refused the declaration for another reason.",
            "RabbitMQ refused the declaration; the message quotes it.",
        ),
        Reason.QUEUE_NOT_EMPTY: Explanation(
            f"{_D} and {_R} `False`, Event",
            "The WorkQueue is being deleted, but its queues are still in use.",
            "The deletion waits: another program consumes from the queue, or it still holds messages and the policy "
            "is `DeleteIfEmpty`. Stop the consumer, empty the queue, or release the WorkQueue with the annotation "
            "workqueue.dev/abandon-queue=true.",
        ),
        Reason.DEPTH_IMPLAUSIBLE: Explanation(
            f"{_K} and {_S} `False`",
            "RabbitMQ reports zero messages and zero consumers, but a worker is known to consume.",
            "RabbitMQ reports zero although workers are connected. A quorum queue without a leader does this. "
            "Replicas stay unchanged; check whether the RabbitMQ cluster has a majority.",
        ),
        Reason.DEPTH_PENDING: Explanation(
            f"{_K} `Unknown`",
            "The first answer has not arrived yet, or scaling is suspended.",
            "Nothing to do: the operator is about to ask RabbitMQ.",
        ),
        Reason.CONSUMER_TIMEOUT_TOO_SHORT: Explanation(
            f"{_D} `True`, Event",
            "RabbitMQ may requeue a message while its handler is still within its timeout.",
            "RabbitMQ's consumer timeout is shorter than `worker.timeoutSeconds` allows a handler to run. Set "
            "`queue.consumerTimeoutSeconds` on a new queue, or a policy with consumer-timeout.",
        ),
        Reason.LIMIT_CONFLICT: Explanation(
            f"{_D} `True`",
            "Another WorkQueue of the same `limits.group` gives other numbers. Those of the oldest WorkQueue count.",
            "Give the same `limits.concurrency`, `limits.ratePerSecond` and `limits.burst` in all WorkQueues of the "
            "group.",
        ),
        Reason.LIMIT_UNAVAILABLE: Explanation(
            f"{_D} and {_R} `False`",
            "The operator could not make the tokens of `spec.limits`, such as without permission for their queue, or "
            "while its node is down. Handlers without a token do not start.",
            "See the message. The user of RabbitMQ needs the permissions configure, write and read for "
            "`<queue>.limit.handlers` and `<queue>.limit.starts`, or `limit.<namespace>.<group>.handlers` and "
            "`limit.<namespace>.<group>.starts` for a group.",
        ),
    },
    "The workers": {
        Reason.WORKERS_STARTING: Explanation(
            f"{_W} `Unknown`",
            "The desired count is above 0, and no pod is Ready yet.",
            "Nothing to do: the first pod is starting.",
        ),
        Reason.IMAGE_PULL_FAILED: Explanation(
            f"{_W} `False`, Event",
            "The kubelet cannot pull the image.",
            "Correct `worker.image` or `worker.imagePullSecrets`.",
        ),
        Reason.HANDLER_FAILED: Explanation(
            f"{_W} `False`, Event",
            "The worker exited with code 2 (wrong configuration) or 3 (no handler).",
            "The worker cannot load or reach the handler; the message quotes the worker.",
        ),
        Reason.WORKER_CRASHING: Explanation(
            f"{_W} `False`, Event",
            "A container of the pod crashes repeatedly.",
            "Read the log of the pod that the message names.",
        ),
        Reason.POD_UNSCHEDULABLE: Explanation(
            f"{_W} `False`, Event",
            "The pod is waiting for a node.",
            "No node fits the pod; the message quotes the scheduler.",
        ),
        Reason.POD_REFUSED: Explanation(
            f"{_W} `False`, Event, `status.lastScaleReason`",
            "The API server does not let the ReplicaSet create the pods.",
            "The API server refuses the pods (quota, Pod Security, missing ServiceAccount or similar). When the "
            "queue no longer needs the missing pods, the operator lowers the count to the pods that exist.",
        ),
        Reason.NAME_CONFLICT: Explanation(
            f"{_W} `False`, Event",
            "An object with a name that the operator needs exists already.",
            "An object with that name exists and does not belong to this WorkQueue; the operator did not change it. "
            "Rename one of them.",
        ),
        Reason.WORKLOAD_REFUSED: Explanation(
            f"{_A} and {_R} `False`, Event; also {_QUEUE_FAILED} if the annotation is refused",
            "The API server, a quota, an admission webhook or a policy refuses the Deployment or a related object.",
            "The API server, or an admission policy, refuses the Deployment or a related object; the message quotes "
            "it. The operator continues to scale the existing Deployment. Correct the WorkQueue or the policy; the "
            "operator retries at intervals of up to 75 s. While the annotation `workqueue.dev/bindings` of the "
            "WorkQueue is refused, the operator neither declares the queue nor changes the count.",
        ),
        Reason.WORKLOAD_NOT_FOUND: Explanation(
            f"{_W} `False`, Event",
            "`spec.workloadRef` names a Deployment that does not exist.",
            "Create the Deployment that `spec.workloadRef` names, or correct the name.",
        ),
        Reason.WORKLOAD_CONTESTED: Explanation(
            f"{_W} `False`, Event",
            "An autoscaler or an older WorkQueue scales the same Deployment. The operator scales nothing.",
            "An autoscaler or another WorkQueue scales the same Deployment. Remove one of the two.",
        ),
        Reason.UNACKNOWLEDGED_UNKNOWN: Explanation(
            f"{_S} `False`, Event",
            "The operator does not know how many messages the workers of a `workloadRef` hold.",
            "Add the key `management-uri` to the connection Secret: the operator cannot ask the workers of a "
            "`workloadRef` how many messages they hold. Without it, the operator scales out but never scales in.",
        ),
    },
    "The resource and the cluster": {
        Reason.AWAITING_OPERATOR: Explanation(
            f"{_R} `Unknown`, written by the API server",
            "The WorkQueue was created; no operator has reconciled it yet.",
            "No operator has reconciled this WorkQueue yet. If this lasts more than a few seconds, check that an "
            "operator runs and watches this namespace (the chart's `watchNamespaces`).",
        ),
        Reason.SERVED_ELSEWHERE: Explanation(
            "Event of the namespace, log line, metric `workqueue_namespaces_served_elsewhere`",
            "Another release of the operator serves the namespace; this release ignores its WorkQueues.",
            "Nothing to do if this is intended. The label `workqueue.dev/operator` of the namespace names the "
            "release that serves it. Without the label, a release that lists the namespace takes precedence over a "
            "release that watches all namespaces.",
        ),
        Reason.SPEC_INVALID: Explanation(
            f"{_R} `False`",
            "The operator cannot read a field of the resource.",
            "The resource does not match the schema. Apply the current CRD and correct the resource.",
        ),
        Reason.SCHEDULE_INVALID: Explanation(
            f"{_S} and {_R} `False`, Event",
            "A schedule has an invalid cron expression or time zone. The operator ignores that schedule.",
            "Correct the cron expression or the time zone that the message names. Until then the operator ignores "
            "that schedule; everything else works.",
        ),
        Reason.RECURRING_INVALID: Explanation(
            "Event",
            "A recurring message has an invalid cron expression or time zone. It is not published.",
            "Correct the cron expression or the time zone that the Event names.",
        ),
        Reason.RECURRING_MISSED: Explanation(
            "Event",
            "Slots of a recurring message are more than a minute old and were not published: the operator did not "
            "run, or RabbitMQ was unreachable.",
            "`missed` of the entry decides what happens: Skip leaves them out, One publishes one message. "
            "`kubectl workqueue recurring NAME --trigger ENTRY` publishes a message now.",
        ),
        Reason.RECURRING_UNCERTAIN: Explanation(
            "Event",
            "The operator, or its connection to RabbitMQ, ended while it published the message of a slot. The "
            "message is published again with the same id, so it may exist twice.",
            "Nothing to do if the handler is idempotent. The Event names the message id.",
        ),
        Reason.RECURRING_FAILED: Explanation(
            "Event",
            "The message of a slot could not be published: RabbitMQ refused it, such as for a full queue, or its "
            "ConfigMap is missing. The operator tries again.",
            "See the message of the Event.",
        ),
        Reason.API_FORBIDDEN: Explanation(
            f"{_A} or {_S}, and {_R} `False`, Event",
            "The operator has no permission to write an object.",
            "The operator lacks a permission. Compare its roles with those of the chart.",
        ),
        Reason.API_UNAVAILABLE: Explanation(
            "Log line, metric `workqueue_reconcile_errors_total`",
            "A request to the API server failed.",
            "Nothing to do: the API server did not answer. The operator retries.",
        ),
        Reason.INTERNAL_ERROR: Explanation(
            "Log line, metric `workqueue_reconcile_errors_total`",
            "An unexpected error in the operator. Other WorkQueues are not affected.",
            "This is a bug in the operator. Report it with the log line of the same reason.",
        ),
    },
}
"""By section of docs/conditions.md."""

ADVICE: Final[dict[Reason, str]] = {
    reason: explanation.advice for section in EXPLANATIONS.values() for reason, explanation in section.items()
}
"""What the user does about each reason."""
