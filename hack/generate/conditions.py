"""The page docs/conditions.md: every reason, where it shows, what it means and what to do about it.

Place in the flow: `hack.generate` writes it. What to do comes from the operator itself (`reasons.ADVICE`); where
a reason shows and what it means stands here, and a reason that is missing here stops the generation.
"""

from __future__ import annotations

from typing import Final

from workqueue_operator.api.reasons import ADVICE, ConditionType, Reason

_CONDITIONS: Final = {
    ConditionType.READY: (
        "The summary: the queue exists, its depth is known, and nothing keeps the workers from running. When it is "
        "`False` it repeats the reason of the condition that is to blame. Workers that are starting do not make a "
        "WorkQueue unready, since that happens at each wake-up."
    ),
    ConditionType.QUEUE_DECLARED: "Whether the queue and its dead-letter queue exist as the WorkQueue asks.",
    ConditionType.DEPTH_KNOWN: (
        "Whether it is known how many messages wait and how many are in handlers. While it is not, replicas stay "
        "as they are."
    ),
    ConditionType.WORKLOAD_APPLIED: (
        "Whether the API server has taken the Deployment and the objects beside it as the WorkQueue asks. While it "
        "refuses a change, the Deployment that exists is scaled as before."
    ),
    ConditionType.WORKERS_AVAILABLE: "Whether the workers run, or could run when a message comes.",
    ConditionType.SCALING_ACTIVE: "Whether replicas follow the depth of the queue.",
}

_D, _K, _A, _W, _S, _R = (
    ConditionType.QUEUE_DECLARED.value,
    ConditionType.DEPTH_KNOWN.value,
    ConditionType.WORKLOAD_APPLIED.value,
    ConditionType.WORKERS_AVAILABLE.value,
    ConditionType.SCALING_ACTIVE.value,
    ConditionType.READY.value,
)
_ALL_OF_IT: Final = f"{_D}, {_K} and {_S} `False`"
_NO_ANSWER: Final = f"{_K} and {_S} `False`, {_D} too if the queue was never declared"
_EVENT: Final = "Event, `status.lastScaleReason`"
_DECISION: Final = f"{_S} `True`: the count stays"

_GROUPS: Final[tuple[tuple[str, dict[Reason, tuple[str, str]]], ...]] = (
    (
        "All is well",
        {
            Reason.AS_EXPECTED: (f"{_R} and {_S} `True`", "Everything is as the WorkQueue asks."),
            Reason.DECLARED: (f"{_D} `True`, Event", "The operator has declared the queues."),
            Reason.DECLARED_AGAIN: (
                f"{_D} `True`, Event",
                "A queue was missing and has been declared once more.",
            ),
            Reason.USED_AS_IT_IS: (
                f"{_D} `True`, Event",
                "Somebody else declares the queue, and it is there.",
            ),
            Reason.DEPTH_OBSERVED: (f"{_K} `True`", "RabbitMQ has answered lately."),
            Reason.SCALED_TO_ZERO: (
                f"{_W} `True`",
                "No worker is asked for. One that was told to stop may still finish what it has in hand.",
            ),
            Reason.WORKLOAD_APPLIED: (
                f"{_A} `True`",
                "The API server has taken the objects that run the workers.",
            ),
            Reason.WORKERS_READY: (f"{_W} `True`, Event", "At least one worker is Ready."),
        },
    ),
    (
        "Scaling",
        {
            Reason.BACKLOG: (_EVENT, "More messages wait or are in handlers than the workers should have."),
            Reason.BELOW_MINIMUM: (
                _EVENT,
                "Fewer replicas than `scaling.minReplicas` or a schedule asks for.",
            ),
            Reason.IDLE: (_EVENT, "Nothing waits and nothing is in a handler."),
            Reason.SURPLUS: (_EVENT, "More workers run than the messages need."),
            Reason.AT_MAXIMUM: (
                f"{_S} `True`, Event",
                "As many replicas as may be, and more would be wanted.",
            ),
            Reason.SINGLE_ACTIVE_CONSUMER: (
                f"{_S} `True`",
                "One worker runs, and the backlog would ask for more.",
            ),
            Reason.CANARY: (
                f"{_S} `True`, {_EVENT}",
                "A new or changed template: one pod has to become Ready before there are more.",
            ),
            Reason.PINNED: (
                f"{_S} `False`, {_EVENT}",
                "A person has fixed the count, for instance by `kubectl scale`.",
            ),
            Reason.SUSPENDED: (
                f"{_S} and {_R} `False`, Event",
                "A person has stopped scaling and declaring.",
            ),
            Reason.RETIRE_UNREACHABLE: (
                f"{_S} `False`, Event",
                (
                    "A Ready worker has not answered the operator for 30 seconds. It counts as idle for scale-out "
                    "and as busy for scale-in."
                ),
            ),
            Reason.DOORBELL_UNAVAILABLE: (
                f"{_K} `True`, Event",
                "The operator may not consume, so it looks at the idle queue twice a second.",
            ),
            Reason.WITHIN_BOUNDS: (
                "Decision only: `ScalingActive` says `AsExpected`",
                "The workers that run are the ones that are needed.",
            ),
            Reason.SCALE_IN_DELAYED: (_DECISION, "Fewer would do now, but more were wanted a moment ago."),
            Reason.WORKERS_BUSY: (
                _DECISION,
                "Fewer would do, but the others have a message in hand, or may have one.",
            ),
            Reason.MESSAGES_WAITING: (_DECISION, "The step to zero was called off by a message."),
            Reason.ROLLOUT_UNDER_WAY: (_DECISION, "Pods of two templates exist."),
            Reason.PODS_SETTLING: (
                _DECISION,
                "The pods are not yet as many as were asked for, or the Deployment has not counted every Ready one.",
            ),
            Reason.POD_NOT_READY: (
                _DECISION,
                "A pod that is not Ready stays, for instance since it starts.",
            ),
            Reason.RETIREMENT_TOO_SLOW: (
                _DECISION,
                "More than 18 s went by between asking workers to leave and lowering the count.",
            ),
            Reason.COUNT_REFUSED: (
                f"{_S} and {_R} `False`, Event",
                "The API server, a webhook or a policy does not admit the count that is wanted.",
            ),
            Reason.CONFLICTING_WRITE: (
                _DECISION,
                "The count was not what it had been when this was decided.",
            ),
            Reason.DELETING: (
                f"{_D} and {_R} `False`, Event",
                "Workers finish, then the queues are deleted.",
            ),
        },
    ),
    (
        "The connection",
        {
            Reason.SECRET_NOT_FOUND: (_ALL_OF_IT, "The Secret does not exist in the WorkQueue's namespace."),
            Reason.SECRET_FORBIDDEN: (
                _ALL_OF_IT,
                "The API server does not let the operator read the Secret.",
            ),
            Reason.SECRET_INVALID: (_ALL_OF_IT, "A key of the Secret is missing or cannot be read."),
            Reason.BROKER_UNREACHABLE: (_NO_ANSWER, "No connection to RabbitMQ can be made, or it was lost."),
            Reason.BROKER_TIMEOUT: (_NO_ANSWER, "RabbitMQ takes the connection but does not answer in time."),
            Reason.AUTHENTICATION_FAILED: (_NO_ANSWER, "RabbitMQ refuses the login."),
            Reason.VIRTUAL_HOST_NOT_FOUND: (_NO_ANSWER, "RabbitMQ has no virtual host of that name."),
            Reason.PERMISSION_DENIED: (
                _ALL_OF_IT,
                (
                    "The login is right, but the user may not do this. Minimal permissions: "
                    "[operations](operations.md#rabbitmq-permissions)."
                ),
            ),
        },
    ),
    (
        "The queue",
        {
            Reason.QUEUE_CONFLICT: (
                _ALL_OF_IT,
                (
                    "A queue, or an exchange, of that name exists with another argument, which the message names. "
                    "See [changing what RabbitMQ fixes](operations.md#change-what-rabbitmq-fixes)."
                ),
            ),
            Reason.QUEUE_NOT_FOUND: (_ALL_OF_IT, "The queue should be there and is not."),
            Reason.QUEUE_CLAIMED: (
                _ALL_OF_IT,
                "Two WorkQueues name one queue of one broker; this is the younger.",
            ),
            Reason.QUEUE_REFUSED: (_ALL_OF_IT, "RabbitMQ did not accept the declaration for another cause."),
            Reason.QUEUE_NOT_EMPTY: (
                f"{_D} and {_R} `False`, Event",
                "The WorkQueue was deleted, but its queues are still in use.",
            ),
            Reason.DEPTH_IMPLAUSIBLE: (
                f"{_K} and {_S} `False`",
                "Zero messages and zero consumers are not believed while a worker is known to consume.",
            ),
            Reason.DEPTH_PENDING: (
                f"{_K} `Unknown`",
                "The first answer is on its way, or scaling is suspended.",
            ),
            Reason.CONSUMER_TIMEOUT_TOO_SHORT: (
                f"{_D} `True`, Event",
                "RabbitMQ may take a message back from a handler that is still allowed to run.",
            ),
        },
    ),
    (
        "The workers",
        {
            Reason.WORKERS_STARTING: (f"{_W} `Unknown`", "Replicas are asked for, and no pod is Ready yet."),
            Reason.IMAGE_PULL_FAILED: (f"{_W} `False`, Event", "The kubelet does not get the image."),
            Reason.HANDLER_FAILED: (
                f"{_W} `False`, Event",
                "The worker ended with exit code 2 or 3: it is configured wrongly, or has no handler.",
            ),
            Reason.WORKER_CRASHING: (f"{_W} `False`, Event", "A container of the pod ends again and again."),
            Reason.POD_UNSCHEDULABLE: (f"{_W} `False`, Event", "The pod waits for a node."),
            Reason.POD_REFUSED: (
                f"{_W} `False`, Event, `status.lastScaleReason`",
                "The ReplicaSet may not create the pods.",
            ),
            Reason.NAME_CONFLICT: (
                f"{_W} `False`, Event",
                "An object that the operator would make exists already.",
            ),
            Reason.WORKLOAD_REFUSED: (
                f"{_A} and {_R} `False`, Event",
                "The API server, a quota, webhook or policy refuses the Deployment or an object beside it.",
            ),
            Reason.WORKLOAD_NOT_FOUND: (
                f"{_W} `False`, Event",
                "`spec.workloadRef` names nothing that exists.",
            ),
            Reason.WORKLOAD_CONTESTED: (
                f"{_W} `False`, Event",
                "An autoscaler or an older WorkQueue scales the Deployment. Nobody is fought: nothing is scaled.",
            ),
            Reason.UNACKNOWLEDGED_UNKNOWN: (
                f"{_S} `False`, Event",
                "Nobody says how many messages the workers of a `workloadRef` have in hand.",
            ),
        },
    ),
    (
        "The resource and the cluster",
        {
            Reason.AWAITING_OPERATOR: (
                f"{_R} `Unknown`, written by the API server itself",
                "The WorkQueue has been created, and that is all so far.",
            ),
            Reason.SERVED_ELSEWHERE: (
                "Event of the namespace, log line, metric `workqueue_namespaces_served_elsewhere`",
                "Another release of the operator serves the namespace; this one leaves its WorkQueues alone.",
            ),
            Reason.SPEC_INVALID: (
                f"{_R} `False`",
                "The resource has a field that the operator cannot read.",
            ),
            Reason.SCHEDULE_INVALID: (
                f"{_S} and {_R} `False`, Event",
                "A schedule has a cron expression or time zone that cannot be read, and is ignored.",
            ),
            Reason.API_FORBIDDEN: (
                f"{_A} or {_S}, and {_R} `False`, Event",
                "The API server does not let the operator write an object.",
            ),
            Reason.API_UNAVAILABLE: (
                "Log line, metric `workqueue_reconcile_errors_total`",
                "The API server failed.",
            ),
            Reason.INTERNAL_ERROR: (
                "Log line, metric `workqueue_reconcile_errors_total`",
                "Something happened that nobody thought of. Other WorkQueues are not affected.",
            ),
        },
    ),
)

_HEAD: Final = """\
<!-- Generated from operator/workqueue_operator/api/reasons.py by `python -m hack.generate`: do not edit. -->

# Conditions and reasons

A WorkQueue says how it is in six conditions. Each has a status, a reason in one word, and a message that says
what to do.

    kubectl get wq                                                   # READY, in one word
    kubectl get wq -o wide                                           # and the reason
    kubectl describe wq hello                                        # all conditions and the last Events
    kubectl wait --for=condition=Ready wq/hello --timeout=60s        # for scripts
"""


def page() -> str:
    """The whole page as Markdown.

    Raises:
        ValueError: a reason is not described here.
    """
    missing = set(Reason) - {reason for _, group in _GROUPS for reason in group}
    if missing:
        raise ValueError(f"hack/generate/conditions.py does not describe {', '.join(sorted(missing))}.")
    lines = [_HEAD, "| Condition | What it says |", "|---|---|"]
    lines += [f"| `{kind}` | {text} |" for kind, text in _CONDITIONS.items()]
    for title, group in _GROUPS:
        lines += ["", f"## {title}"]
        for reason, (shows, meaning) in group.items():
            lines += ["", f"### {reason}", "", f"*{shows}.* {meaning}", "", ADVICE[reason]]
    return "\n".join(lines) + "\n"
