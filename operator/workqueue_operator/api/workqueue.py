"""The immutable model of a WorkQueue. The CRD and the reference page are generated from it. Pure.

The model ignores unknown fields, so that an operator works with a newer CRD; the API server refuses them. The API
server also enforces the CEL rules. The model checks only what the code relies on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator
from pydantic.alias_generators import to_camel

from workqueue.contract import topology
from workqueue.contract.topology import ExchangeType, Jitter, QueueType
from workqueue.contract.worker_api import (
    DEFAULT_STARTUP_TIMEOUT_SECONDS,
    LONGEST_STARTUP_TIMEOUT_SECONDS,
    Isolation,
)
from workqueue_operator.api import pod_template
from workqueue_operator.api.cel import IMMUTABLE_ADVICE, INT_OR_STRING, JsonSchema, rule, rules, unchanged
from workqueue_operator.names import GROUP, MAX_NAME_LENGTH

DEFAULT_MESSAGES_PER_REPLICA: Final = 10
MAX_REPLICAS: Final = 1000

MOST_RETRY_DELAYS: Final = 64
"""Delay queues that are polled for one WorkQueue. At most 40 are in use; queues of an earlier release may remain."""

_EMPTY: Final[JsonSchema] = {"default": {}}
"""The API server fills in an omitted object, so that its defaults are visible."""

_COUNT_OR_PERCENTAGE: Final[JsonSchema] = {
    **INT_OR_STRING,
    "minimum": 1,
    "pattern": "^(100|[1-9][0-9]?)%$",
    "default": 1,
}

MOST_TOKENS: Final = 1000
"""Handlers that one limit may allow. Each is a message that the operator publishes."""

MOST_STARTS_PER_SECOND: Final = 10_000
"""Starts of handlers that one limit may allow per second."""

RATE_HEADROOM: Final = 1.2
"""How many slots a limit per second gets, relative to those that use it up at the mean handler time: handler times
vary, and a slot waits a moment for its next message."""

MOST_RECURRING: Final = 100
"""Entries of spec.recurring in one WorkQueue."""

_DAY: Final = 86_400
_WEEK: Final = 604_800
_DNS_NAME: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_ZONE: Final = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$"


def _cron_field(value: str, *others: str) -> str:
    """Return a pattern for one field: a list of values, ranges and steps, as cronsim parses them."""
    one = "|".join([rf"(\*|{value}(-{value})?)(/0*[1-9][0-9]*)?", *others])
    return f"({one})(,({one}))*"


_MONTH: Final = "(1[0-2]|0?[1-9]|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)"
_WEEKDAY: Final = "(0?[0-7]|SUN|MON|TUE|WED|THU|FRI|SAT)"
_CRON: Final = "(?i)^{}$".format(
    " +".join(
        (
            _cron_field("([0-5]?[0-9])"),
            _cron_field("(2[0-3]|[01]?[0-9])"),
            _cron_field("(3[01]|[12][0-9]|0?[1-9])", "LW?"),
            _cron_field(_MONTH),
            _cron_field(_WEEKDAY, f"{_WEEKDAY}#0?[1-5]", "0?[0-7]L"),
        )
    )
)
"""The operator reports what the pattern cannot find, such as 30 February, in a condition."""

ObjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        json_schema_extra=rules(
            rule(
                f"self.matches(r'{_DNS_NAME}')",
                "must be the name of a Kubernetes object: lower case letters, digits, '-' and '.'",
            )
        ),
    ),
]
Image = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        json_schema_extra=rules(rule(r"!self.matches(r'\s')", "must be an image reference without spaces")),
    ),
]
RoutingKey = Annotated[str, Field(max_length=255)]
Count = Annotated[int, Field(ge=0)]


def _spelled(name: str) -> str:
    return to_camel(name).replace("Ttl", "TTL")


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=_spelled,
        populate_by_name=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the object in the form of the API server, without fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class DeletionPolicy(StrEnum):
    """What happens to the queues when the WorkQueue is deleted."""

    RETAIN = "Retain"
    DELETE_IF_EMPTY = "DeleteIfEmpty"
    DELETE = "Delete"


class Wake(StrEnum):
    """How the operator learns of a message on an idle queue."""

    PUSH = "Push"
    POLL = "Poll"


class ImagePullPolicy(StrEnum):
    """When the kubelet pulls an image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


FITS_ERROR_TEXT: Final = rule(
    "bytes(self).size() <= 30 || self.matches('^[ -~]*$')",
    "must not be longer than 30 bytes if it contains non-ASCII characters: RabbitMQ closes the connection when such "
    "a name makes an error message too long",
)
"""RabbitMQ 4.0 and 4.3 close the connection (541) when a non-ASCII error text exceeds 255 bytes. The text contains
the queue name up to three times, and all WorkQueues of a broker share the connection."""


class SecretRef(_Model):
    """A Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""


class Exchange(_Model):
    """A durable exchange. The operator declares it and binds the queue to it."""

    name: str = Field(
        min_length=1,
        max_length=255,
        json_schema_extra=rules(
            rule(
                "!self.startsWith('amq.')",
                "names that begin with amq. are reserved by RabbitMQ: choose another name",
            ),
            FITS_ERROR_TEXT,
        ),
    )
    """Name of the exchange in RabbitMQ."""

    type: ExchangeType = ExchangeType.DIRECT
    """Direct, Topic, Fanout or Headers. Cannot be changed for an existing exchange."""

    routing_keys: tuple[RoutingKey, ...] = Field(
        default=(), max_length=50, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """Routing keys of the bindings. Defaults to the name of the queue. A Headers exchange has none: see
    queue.bindings."""

    @property
    def settings(self) -> topology.Exchange:
        """The exchange in the form that `topology` takes."""
        return topology.Exchange(self.name, self.type, self.routing_keys)


class QueueBinding(_Model):
    """A binding of the queue to an exchange that exists, such as amq.topic or one of another team."""

    exchange: str = Field(min_length=1, max_length=255, json_schema_extra=rules(FITS_ERROR_TEXT))
    """Name of the exchange. The operator declares only queue.exchange."""

    routing_key: str = Field(default="", max_length=255)
    """Routing key. May contain * and # for a Topic exchange."""

    arguments: Annotated[
        dict[str, int | str],
        WithJsonSchema(
            {
                "type": "object",
                "maxProperties": 20,
                "additionalProperties": INT_OR_STRING,
            }
        ),
    ] = Field(default_factory=dict)
    """Headers that a message must have, for a Headers exchange. The argument x-match decides whether all (default) or
    any of them."""

    def settings(self, queue: str) -> topology.QueueBinding:
        """The binding in the form that `topology` takes."""
        return topology.QueueBinding(
            self.exchange, queue, self.routing_key, tuple(sorted(self.arguments.items()))
        )


_ARGUMENTS: Final = (
    "maxLength",
    "maxLengthBytes",
    "messageTTLSeconds",
    "deliveryLimit",
    "singleActiveConsumer",
    "consumerTimeoutSeconds",
)


class Queue(_Model):
    """The queue in RabbitMQ."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                unchanged("name"),
                "queue.name cannot be changed: keep the old name, or create another WorkQueue",
                "name",
            ),
            rule(
                unchanged("type"),
                f"queue.type cannot be changed, {IMMUTABLE_ADVICE}",
                "type",
            ),
            *(
                rule(
                    f"!self.declare || !oldSelf.declare || ({unchanged(argument)})",
                    f"queue.{argument} cannot be changed, {IMMUTABLE_ADVICE}",
                    argument,
                )
                for argument in ("deadLetterQueue", *_ARGUMENTS)
            ),
            rule(
                "!has(self.exchange) || !has(oldSelf.exchange) || self.exchange.name != oldSelf.exchange.name"
                " || self.exchange.type == oldSelf.exchange.type",
                "queue.exchange.type cannot be changed, because RabbitMQ fixes it when the exchange is declared: "
                "keep the old type, or use another exchange name",
                "exchange",
            ),
            rule(
                "self.type != 'Classic' || !has(self.deliveryLimit)",
                "a Classic queue has no delivery limit: remove queue.deliveryLimit, or set queue.type to Quorum",
                "deliveryLimit",
            ),
            *(
                rule(
                    f"self.declare || !has(self.{argument})",
                    f"queue.declare is false, so the operator does not configure the queue: remove queue.{argument}",
                    argument,
                )
                for argument in ("exchange", "bindings", *_ARGUMENTS)
            ),
            rule(
                "!has(self.exchange) || self.exchange.type != 'Headers' || (!has(self.exchange.routingKeys)"
                " && has(self.bindings) && self.bindings.exists(one, one.exchange == self.exchange.name))",
                "a Headers exchange routes by headers: remove queue.exchange.routingKeys, and add a binding with "
                "arguments to queue.bindings",
                "exchange",
            ),
            rule(
                "self.declare || self.deletionPolicy == 'Retain'",
                "queue.declare is false, so the operator does not delete the queue: set queue.deletionPolicy "
                "to Retain",
                "deletionPolicy",
            ),
        )
    )

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=topology.LONGEST_QUEUE_NAME_BYTES,
        json_schema_extra=rules(
            rule(
                "!self.startsWith('amq.')",
                "names that begin with amq. are reserved by RabbitMQ: choose another name",
            ),
            rule(
                f"bytes(self).size() <= {topology.LONGEST_QUEUE_NAME_BYTES}",
                f"must not be longer than {topology.LONGEST_QUEUE_NAME_BYTES} bytes",
            ),
            FITS_ERROR_TEXT,
        ),
    )
    """Name of the queue in RabbitMQ. Defaults to the name of the WorkQueue. Cannot be changed."""

    type: QueueType = QueueType.QUORUM
    """Quorum (replicated, the default) or Classic. A Classic queue without limits and TTL is declared without
    arguments, so that publishers that declare the queue themselves keep working. Cannot be changed."""

    declare: bool = True
    """Whether the operator declares the queue. When false, the queue must exist, and the operator does not change
    it."""

    exchange: Exchange | None = None
    """An exchange that the operator declares and binds the queue to."""

    bindings: tuple[QueueBinding, ...] = Field(
        default=(), max_length=50, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """More bindings of the queue. The operator removes those that it created and that are no longer listed."""

    dead_letter_queue: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        json_schema_extra=rules(FITS_ERROR_TEXT),
    )
    """A queue that exists and takes the dead letters, instead of NAME.dead. The operator neither declares nor deletes
    it. Several WorkQueues may share it; each then counts all of its messages. Cannot be changed."""

    max_length: int | None = Field(default=None, ge=1)
    """Maximum number of waiting messages. RabbitMQ refuses further messages. Cannot be changed."""

    max_length_bytes: int | None = Field(default=None, ge=1)
    """Maximum size of the waiting messages in bytes. RabbitMQ refuses further messages. Cannot be changed."""

    message_ttl_seconds: int | None = Field(default=None, ge=1, le=4_294_967)
    """Seconds that a message may wait before it moves to the dead-letter queue. Cannot be changed."""

    delivery_limit: int | None = Field(default=None, ge=1, le=1000)
    """How many times RabbitMQ redelivers a message whose worker died, before the message moves to the dead-letter
    queue. Defaults to 10. A limit of 1 allows two attempts. Quorum queues only. Cannot be changed."""

    single_active_consumer: bool | None = None
    """Whether only one worker at a time takes messages, in order. Replicas are then 0 or 1. Cannot be changed."""

    consumer_timeout_seconds: int | None = Field(default=None, ge=60, le=_WEEK)
    """Seconds that a worker may hold a message before RabbitMQ requeues it. Derived from worker.timeoutSeconds by
    default. Cannot be changed."""

    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    """What happens to the queues when this WorkQueue is deleted. Retain keeps them. DeleteIfEmpty deletes them when
    they hold no messages. Delete deletes them with their messages. The policy includes delay queues; delay queues
    of an earlier retry.delaysSeconds are found only if the connection Secret has the key management-uri."""


class Backoff(_Model):
    """Delays that grow with each attempt."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.initialSeconds <= self.maxSeconds",
                "retry.backoff.initialSeconds is above retry.backoff.maxSeconds: lower initialSeconds or raise "
                "maxSeconds",
                "initialSeconds",
            )
        )
    )

    initial_seconds: int = Field(default=1, ge=1, le=topology.LONGEST_DELAY_SECONDS)
    """Seconds before the second attempt."""

    factor: int = Field(default=2, ge=topology.FACTORS.start, le=topology.FACTORS.stop - 1)
    """By what each delay is longer than the one before. A whole number."""

    max_seconds: int = Field(default=3600, ge=1, le=topology.LONGEST_DELAY_SECONDS)
    """The longest delay in seconds. It repeats."""

    jitter: Jitter = Jitter.NONE
    """None: each retry has the delay of its attempt. Full: at random one of the delays up to that, so that messages
    that failed together do not return together."""

    @property
    def settings(self) -> topology.RetryBackoff:
        """The backoff in the form that `topology` takes."""
        return topology.RetryBackoff(self.initial_seconds, self.factor, self.max_seconds, self.jitter)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.initial_seconds > self.max_seconds:
            raise ValueError(f"initialSeconds {self.initial_seconds} is above maxSeconds {self.max_seconds}")
        return self


class Retry(_Model):
    """What happens to a message after its handler failed."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.delaysSeconds) && has(self.backoff))",
                "give either retry.delaysSeconds or retry.backoff, not both: set the other one to null",
            )
        )
    )

    max_attempts: int = Field(default=5, ge=1, le=100)
    """Number of attempts before a message moves to the dead-letter queue. 1 means no retry."""

    delays_seconds: tuple[Annotated[int, Field(ge=1, le=topology.LONGEST_DELAY_SECONDS)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=20,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    """Seconds before the second attempt, the third, and so on. The last delay repeats. Defaults to 1, 10, 60 if
    backoff is not set."""

    backoff: Backoff | None = None
    """Instead of delaysSeconds: delays that grow with each attempt."""

    max_age_seconds: int = Field(default=topology.DEFAULT_MAX_AGE_SECONDS, ge=1, le=30 * _DAY)
    """Seconds after the first attempt in which a message may be retried without counting the attempt, as
    Retry(counts=False) and the HTTP statuses 429 and 503 with Retry-After ask for. An older message moves to the
    dead-letter queue."""

    @property
    def delays(self) -> tuple[int, ...]:
        """The delays before the second attempt, the third, and so on, in seconds. The last one repeats."""
        if self.backoff is not None:
            return self.backoff.settings.delays_seconds
        return self.delays_seconds or topology.DEFAULT_RETRY_DELAYS

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if self.delays_seconds is not None and self.backoff is not None:
            raise ValueError("give either delaysSeconds or backoff, not both")
        return self


class ExecHandler(_Model):
    """A command that runs for each message. It gets the body on stdin and the headers in the environment."""

    command: tuple[Annotated[str, Field(max_length=4096)], ...] = Field(
        min_length=1, max_length=100, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """The program and its arguments, without a shell. Exit code 0 is success, 65 rejects the message, and any other
    code retries it."""


class HttpHandler(_Model):
    """A container next to the worker that gets each message as an HTTP POST. The status code is the outcome."""

    image: Image
    """Image of the container that serves the requests."""

    port: int = Field(default=8080, ge=1, le=65535)
    """Port that it listens on."""

    path: str = Field(
        default="/",
        max_length=1024,
        json_schema_extra=rules(rule("self.startsWith('/')", "must begin with '/', for example /jobs")),
    )
    """Path of the requests."""

    command: pod_template.Words = ()
    """Command of the container, one word per entry. Defaults to that of the image."""

    args: pod_template.Words = ()
    """Arguments of the command. Defaults to those of the image."""


class Handler(_Model):
    """How messages are handled: exactly one of python, exec and http."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.python), has(self.exec), has(self.http)].exists_one(given, given)",
                "give exactly one of worker.handler.python, worker.handler.exec and worker.handler.http",
            )
        )
    )

    python: str | None = Field(
        default=None,
        max_length=500,
        json_schema_extra=rules(
            rule(
                r"self.matches(r'^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$')",
                "must be MODULE:FUNCTION, for example thumbs:resize",
            )
        ),
    )
    """A Python function as MODULE:FUNCTION, sync or async. It is called with the message. Returning is success."""

    exec: ExecHandler | None = None
    """A command that runs for each message."""

    http: HttpHandler | None = None
    """A container that gets each message by HTTP."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(given is not None for given in (self.python, self.exec, self.http)) != 1:
            raise ValueError("give exactly one of python, exec and http")
        return self


class PodSecurity(StrEnum):
    """Who decides the user and group of the pods."""

    RESTRICTED = "Restricted"
    PLATFORM = "Platform"


class Disruption(_Model):
    """The PodDisruptionBudget of the workers."""

    max_unavailable: Annotated[int | str, WithJsonSchema(_COUNT_OR_PERCENTAGE)] = 1
    """How many workers a node drain may stop at the same time, as a count or a percentage. A worker finishes its
    messages first. 100% never holds a drain up."""


class Recycle(_Model):
    """When a handler's process is replaced, between two messages. The next process loads the handler before."""

    max_messages: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Number of messages after which a process is replaced. Not limited by default."""

    max_memory: str | None = Field(
        default=None,
        max_length=20,
        json_schema_extra=rules(
            rule(
                "self.matches(r'^[1-9][0-9]*(Ki|Mi|Gi)?$')",
                "must be a number of bytes, with Ki, Mi or Gi for a unit, for example 500Mi",
            )
        ),
    )
    """Resident memory from which a process is replaced, such as 500Mi. It is read about once a second, after a
    message. Not limited by default."""


class Worker(_Model):
    """The workers that the operator runs in a Deployment."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.image) || has(self.handler.http)",
                "worker.image is missing: set it to the image that contains the worker and the handler",
            ),
            rule(
                "!has(self.workerResources) || has(self.handler.http)",
                "worker.workerResources is for an http handler: use worker.resources",
                "workerResources",
            ),
            rule(
                "!has(self.isolation) || self.isolation != 'Process' || has(self.handler.python)",
                "only a Python handler can be isolated, since exec and http handlers have processes of their own: "
                "remove worker.isolation",
            ),
            rule(
                "!has(self.recycle) || self.isolation == 'Process'",
                "only the processes of a Python handler can be recycled: set worker.isolation to Process",
            ),
        )
    )

    image: Image | None = None
    """Image that contains the worker and the handler. Optional with an http handler: the default is the operator's
    image."""

    handler: Handler
    """How messages are handled."""

    concurrency: int = Field(default=1, ge=1, le=1000)
    """Number of messages that one pod handles at the same time."""

    timeout_seconds: int = Field(default=300, ge=1, le=_DAY)
    """Seconds that a handler may take for one message. A stopped pod has this time to finish."""

    isolation: Isolation = Isolation.THREAD
    """Where a Python handler runs. Thread: in the worker's process. Process: in processes of its own, so that a
    handler that crashes, hangs or uses up its memory costs only its own message."""

    startup_timeout_seconds: int = Field(
        default=DEFAULT_STARTUP_TIMEOUT_SECONDS, ge=1, le=LONGEST_STARTUP_TIMEOUT_SECONDS
    )
    """Seconds that loading the handler may take: the import of a Python handler, or until an http handler listens.
    The pod is alive and not ready in this time."""

    recycle: Recycle | None = None
    """When a handler's process is replaced. For isolation Process."""

    env: pod_template.EnvVars = ()
    """Environment variables of the container that runs the handler."""

    env_from: pod_template.EnvFrom = ()
    """ConfigMaps and Secrets whose keys become environment variables of that container."""

    resources: pod_template.Resources | None = None
    """Compute resources of the container that runs the handler."""

    volumes: pod_template.Volumes = ()
    """Volumes of the pod. hostPath is not allowed."""

    volume_mounts: pod_template.VolumeMounts = ()
    """Volume mounts of the container that runs the handler."""

    containers: pod_template.Sidecars = ()
    """Additional containers of the pod."""

    service_account_name: ObjectName | None = None
    """ServiceAccount of the pod. Defaults to the namespace's default ServiceAccount."""

    image_pull_secrets: pod_template.PullSecrets = ()
    """Secrets with registry credentials, in the same namespace."""

    image_pull_policy: ImagePullPolicy | None = None
    """Always, IfNotPresent or Never. Kubernetes chooses by default."""

    node_selector: pod_template.NodeSelector = Field(default_factory=dict)
    """Labels that a node must have."""

    tolerations: pod_template.Tolerations = ()
    """Taints that the pod tolerates."""

    affinity: pod_template.Affinity | None = None
    """Scheduling preferences of the pod."""

    topology_spread_constraints: pod_template.SpreadConstraints = ()
    """How the pods are spread over the cluster."""

    priority_class_name: ObjectName | None = None
    """PriorityClass of the pod."""

    pod_labels: pod_template.Labels = Field(default_factory=dict)
    """Additional labels of the pod."""

    pod_annotations: pod_template.Annotations = Field(default_factory=dict)
    """Additional annotations of the pod."""

    security_context: pod_template.SecurityContext | None = None
    """Security settings of the container that runs the handler. They override the operator's restricted defaults.
    privileged is not allowed."""

    pod_security_context: pod_template.PodSecurityContext | None = None
    """Security settings of the pod. They override the operator's restricted defaults."""

    pod_security: PodSecurity = PodSecurity.RESTRICTED
    """Restricted sets the user and group of the pod. Platform leaves both to the platform, as OpenShift requires."""

    worker_resources: pod_template.Resources | None = None
    """Compute resources of the worker's container next to an http handler. Defaults to requests of 20m and 64Mi, and
    limits of 1 and 512Mi."""

    disruption: Disruption = Field(default_factory=Disruption, json_schema_extra=_EMPTY)
    """What a node drain may do."""

    template: pod_template.Template | None = None
    """Everything else of the pods, as in a Deployment. The operator merges it into its own as kubectl patch does:
    objects by fields; containers, volumes, variables and mounts by their keys. Other lists are replaced."""


class WorkloadRef(_Model):
    """A Deployment in the same namespace. The operator changes only its replica count."""

    api_version: str = Field(default="apps/v1", json_schema_extra={"enum": ["apps/v1"]})
    """apps/v1."""

    kind: str = Field(default="Deployment", json_schema_extra={"enum": ["Deployment"]})
    """Deployment."""

    name: ObjectName
    """Name of the Deployment."""


_Cron = Annotated[
    str,
    Field(
        max_length=100,
        json_schema_extra=rules(
            rule(
                f"self.matches(r'{_CRON}')",
                "must be a cron expression of five fields (minute, hour, day, month, weekday), "
                "for example 0 8 * * 1-5",
            )
        ),
    ),
]


_TimeZone = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        json_schema_extra=rules(
            rule(
                # The rule fails for an unknown zone. The API server has all zones, for the timeZone of CronJobs.
                f"self.matches(r'{_ZONE}') && self != 'Local'"
                " && timestamp('2000-01-01T00:00:00Z').getHours(self) >= 0",
                "must be a time zone of the IANA database, for example Europe/Berlin",
            )
        ),
    ),
]


class Schedule(_Model):
    """A recurring time span with a higher minimum of replicas."""

    name: str | None = Field(default=None, max_length=63)
    """Name of the schedule. Conditions show it."""

    start: _Cron
    """When the span begins, as a cron expression of five fields, for example `0 8 * * 1-5`."""

    end: _Cron
    """When the span ends, as a cron expression of five fields, for example `0 18 * * 1-5`."""

    time_zone: _TimeZone = "Etc/UTC"
    """Time zone of start and end, by its name in the IANA database, for example Europe/Berlin."""

    min_replicas: int = Field(ge=0, le=MAX_REPLICAS)
    """Minimum of replicas during the span."""


_TARGETS: Final = ("messages_per_replica", "target_drain_seconds", "max_wait_seconds")
_TARGET_KEYS: Final = (*_TARGETS, *map(to_camel, _TARGETS))


class Scaling(_Model):
    """How the operator scales the replicas."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.minReplicas <= self.maxReplicas",
                "scaling.minReplicas is above scaling.maxReplicas: lower minReplicas or raise maxReplicas",
                "minReplicas",
            ),
            rule(
                "[has(self.messagesPerReplica), has(self.targetDrainSeconds), has(self.maxWaitSeconds)]"
                ".filter(given, given).size() <= 1",
                "give only one of scaling.messagesPerReplica, scaling.targetDrainSeconds and scaling.maxWaitSeconds",
            ),
            rule(
                "!has(self.schedules) || self.schedules.all(span, span.minReplicas <= self.maxReplicas)",
                "a schedule's minReplicas is above scaling.maxReplicas: lower minReplicas or raise maxReplicas",
                "schedules",
            ),
        )
    )

    min_replicas: int = Field(default=0, ge=0, le=MAX_REPLICAS)
    """Minimum of replicas. With 0, no worker runs while the queue is empty."""

    max_replicas: int = Field(default=10, ge=1, le=MAX_REPLICAS)
    """Maximum of replicas."""

    messages_per_replica: int | None = Field(default=None, ge=1, le=1_000_000)
    """Target number of messages per replica, waiting and in handlers. Defaults to 10 if neither
    targetDrainSeconds nor maxWaitSeconds is set."""

    target_drain_seconds: int | None = Field(default=None, ge=1, le=_DAY)
    """Instead of messagesPerReplica: the seconds in which the replicas should handle the backlog. The operator uses
    the measured handler time."""

    max_wait_seconds: int | None = Field(default=None, ge=1, le=_DAY)
    """Instead of messagesPerReplica: the seconds within which messages should start. The operator uses the measured
    arrivals and the distribution of the handler times."""

    scale_in_delay_seconds: int = Field(default=60, ge=0, le=_DAY)
    """The operator scales in to the highest count that it calculated in the last so many seconds."""

    wake: Wake | None = None
    """How the operator learns of a message on an idle queue. Push: RabbitMQ delivers the message to the operator,
    which requeues it. Poll: the operator polls the queue twice per second. Defaults to Push for worker and Poll
    for workloadRef."""

    schedules: tuple[Schedule, ...] = Field(
        default=(), max_length=20, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Higher minimums at certain times. If several are active, the highest applies."""

    @model_validator(mode="before")
    @classmethod
    def _default_target(cls, given: Any) -> Any:
        """Set the default here: a default in the schema would be set together with another target."""
        if isinstance(given, Mapping) and all(given.get(key) is None for key in _TARGET_KEYS):
            return {**given, "messagesPerReplica": DEFAULT_MESSAGES_PER_REPLICA}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"minReplicas {self.min_replicas} is above maxReplicas {self.max_replicas}")
        targets = (self.messages_per_replica, self.target_drain_seconds, self.max_wait_seconds)
        if sum(target is not None for target in targets) > 1:
            raise ValueError("give only one of messagesPerReplica, targetDrainSeconds and maxWaitSeconds")
        return self


class MissedSlots(StrEnum):
    """What happens to slots of a recurring message that nobody has published in time."""

    SKIP = "Skip"
    ONE = "One"


class ConfigMapKey(_Model):
    """A key of a ConfigMap in the same namespace."""

    name: ObjectName
    """Name of the ConfigMap."""

    key: str = Field(min_length=1, max_length=253)
    """The key."""


class BodyFrom(_Model):
    """Where the body of a recurring message is."""

    config_map_key_ref: ConfigMapKey
    """A key of a ConfigMap. The operator reads it for each message."""


class Recurring(_Model):
    """A message that the operator publishes again and again."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.cron) != has(self.everySeconds)", "give exactly one of cron and everySeconds"),
            rule("!(has(self.body) && has(self.bodyFrom))", "give either body or bodyFrom, not both"),
        )
    )

    name: str = Field(min_length=1, max_length=63, json_schema_extra={"pattern": _LABEL})
    """Name of the entry. It is a part of the message ids."""

    cron: _Cron | None = None
    """When a message is due, as a cron expression of five fields, for example `0 8 * * 1-5`."""

    every_seconds: int | None = Field(default=None, ge=1, le=30 * _DAY)
    """Instead of cron: a message is due each time so many seconds have passed, counted from 1970-01-01 in UTC."""

    time_zone: _TimeZone = "Etc/UTC"
    """Time zone of cron, by its name in the IANA database, for example Europe/Berlin."""

    body: str | None = Field(default=None, max_length=65_536)
    """Body of the message, as text. Empty if neither body nor bodyFrom is set."""

    body_from: BodyFrom | None = None
    """Instead of body: where the body is."""

    content_type: str | None = Field(default=None, max_length=255)
    """Content type of the body, for example application/json."""

    headers: Annotated[
        dict[str, str],
        WithJsonSchema(
            {
                "type": "object",
                "maxProperties": 20,
                "additionalProperties": {"type": "string", "maxLength": 1024},
            }
        ),
    ] = Field(default_factory=dict)
    """Headers of the message."""

    suspend: bool = False
    """When true, nothing is published. Slots of this time are not missed."""

    missed: MissedSlots = MissedSlots.SKIP
    """What happens to slots that were not published for more than a minute, such as while RabbitMQ was unreachable.
    Skip: they are left out. One: one message is published for all of them."""


class Limits(_Model):
    """Limits on all workers of the WorkQueue together."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.concurrency) || has(self.ratePerSecond)",
                "give limits.concurrency, limits.ratePerSecond, or both",
            ),
            rule(
                "!has(self.burst) || has(self.ratePerSecond)",
                "limits.burst belongs to limits.ratePerSecond: set it, or remove limits.burst",
                "burst",
            ),
            rule(
                "!has(self.burst) || !has(self.ratePerSecond) || double(self.burst) * 100.0 >= self.ratePerSecond",
                "limits.burst must be at least a hundredth of limits.ratePerSecond: raise it, or remove it",
                "burst",
            ),
        )
    )

    concurrency: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """How many handlers may run at the same time, in all workers together. A handler whose worker has lost its
    connection to RabbitMQ may run beside them until it has been cancelled."""

    rate_per_second: float | None = Field(default=None, ge=0.01, le=MOST_STARTS_PER_SECOND)
    """How many handlers may start per second on average, in all workers together. Each attempt counts. It may be less
    than 1: with 0.1, a handler starts every 10 seconds."""

    burst: int | None = Field(default=None, ge=1, le=MOST_STARTS_PER_SECOND)
    """How many handlers may start at the same time after a pause. Defaults to the starts of 0.2 seconds, and is at
    least 1."""

    group: str | None = Field(default=None, max_length=63, json_schema_extra={"pattern": _LABEL})
    """Name of a group of WorkQueues in the same namespace and virtual host that share the limits. All of them give
    the same numbers; otherwise those of the oldest WorkQueue count."""

    @property
    def most_at_once(self) -> int:
        """The burst, or its default."""
        return self.burst or max(math.ceil((self.rate_per_second or 0.0) / 5), 1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.concurrency is None and self.rate_per_second is None:
            raise ValueError("give concurrency, ratePerSecond, or both")
        if self.burst is not None and self.rate_per_second is None:
            raise ValueError("burst belongs to ratePerSecond")
        if self.burst is not None and self.burst * 100 < (self.rate_per_second or 0.0):
            raise ValueError("burst must be at least a hundredth of ratePerSecond")
        return self


_SHARED: Final = "!has(self.queue.singleActiveConsumer) || !self.queue.singleActiveConsumer"
"""The CEL expression that several workers may take messages at the same time."""


class WorkQueueSpec(_Model):
    """The desired state."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.worker) != has(self.workloadRef)",
                "give exactly one of spec.worker (the operator runs the workers) and spec.workloadRef (the operator "
                "scales your Deployment)",
            ),
            rule(
                "!has(self.workloadRef) || !has(self.scaling.targetDrainSeconds)",
                "scaling.targetDrainSeconds needs the handler time, which only the operator's workers measure: use "
                "scaling.messagesPerReplica with workloadRef",
            ),
            rule(
                "!has(self.workloadRef) || !has(self.scaling.maxWaitSeconds)",
                "scaling.maxWaitSeconds needs the handler times, which only the operator's workers measure: use "
                "scaling.messagesPerReplica with workloadRef",
            ),
            rule(
                f"{_SHARED} || !has(self.worker) || self.worker.concurrency == 1",
                "with queue.singleActiveConsumer one slot takes messages and the others stay idle: set "
                "worker.concurrency to 1",
                "worker",
            ),
            rule(
                f"{_SHARED} || (self.scaling.minReplicas <= 1 && (!has(self.scaling.schedules)"
                " || self.scaling.schedules.all(span, span.minReplicas <= 1)))",
                "with queue.singleActiveConsumer one worker takes messages and the others stay idle: set "
                "scaling.minReplicas, and minReplicas of each schedule, to 0 or 1",
                "scaling",
            ),
            rule(
                "!has(self.limits) || has(self.worker)",
                "only the operator's workers keep to spec.limits: remove spec.limits, or use spec.worker",
                "limits",
            ),
        )
    )

    connection_secret_ref: SecretRef
    """The Secret with the connection data of RabbitMQ, in the same namespace. Its keys follow the Service Binding
    specification: uri, or host, port, username, password and virtual-host. Optional keys: ca.crt, tls.crt, tls.key
    and management-uri."""

    suspend: bool = False
    """When true, the operator stops scaling and declaring. Everything else stays unchanged."""

    replicas: int | None = Field(default=None, ge=0, le=MAX_REPLICAS)
    """Pins the replica count until this field is removed. kubectl scale sets it. Normally not set."""

    queue: Queue = Field(default_factory=Queue, json_schema_extra=_EMPTY)
    """The queue in RabbitMQ."""

    retry: Retry = Field(default_factory=Retry, json_schema_extra=_EMPTY)
    """What happens to a message after its handler failed."""

    worker: Worker | None = None
    """The workers that the operator runs. Set exactly one of worker and workloadRef."""

    workload_ref: WorkloadRef | None = None
    """Your own Deployment, which the operator scales. Set exactly one of worker and workloadRef."""

    scaling: Scaling = Field(default_factory=Scaling, json_schema_extra=_EMPTY)
    """How the operator scales the replicas."""

    recurring: tuple[Recurring, ...] = Field(
        default=(),
        max_length=MOST_RECURRING,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Messages that the operator publishes to the queue at certain times."""

    limits: Limits | None = None
    """Limits on all workers together."""

    @property
    def most_replicas(self) -> int:
        """The maximum of replicas that can handle messages: 1 with a single active consumer."""
        most = 1 if self.queue.single_active_consumer else self.scaling.max_replicas
        return most if self.most_by_limit is None else min(most, self.most_by_limit)

    @property
    def most_by_limit(self) -> int | None:
        """How many replicas can have all tokens of limits.concurrency; None without this limit."""
        if self.limits is None or self.limits.concurrency is None or self.worker is None:
            return None
        return math.ceil(self.limits.concurrency / self.worker.concurrency)

    def most_by_rate(self, handler_seconds: float | None) -> int | None:
        """Return how many replicas can use up limits.ratePerSecond; None without this limit.

        Args:
            handler_seconds: the mean time of a handler. Without it, nothing can be said.
        """
        if self.limits is None or self.limits.rate_per_second is None or self.worker is None:
            return None
        if handler_seconds is None:
            return None
        slots = self.limits.rate_per_second * handler_seconds * RATE_HEADROOM
        return max(math.ceil(slots / self.worker.concurrency), 1)

    @property
    def limit_is_maximum(self) -> bool:
        """Whether the maximum of replicas follows from limits.concurrency."""
        return self.most_by_limit == self.most_replicas < self.scaling.max_replicas

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.worker is None) == (self.workload_ref is None):
            raise ValueError("give exactly one of worker and workloadRef")
        return self


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


NEVER: Final = datetime.fromtimestamp(0, UTC)
"""The transition time of a condition that no one has looked at yet."""

_QUALIFIED: Final = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
)
_CAMEL_CASE: Final = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
"""The patterns of metav1.Condition. Only the API server checks them: conditions of others must not fail a pass."""


class Condition(_Model):
    """One aspect of the WorkQueue's state, as metav1.Condition."""

    type: str = Field(min_length=1, max_length=316, json_schema_extra={"pattern": _QUALIFIED})
    """Which aspect, such as Ready."""

    status: ConditionStatus
    """True, False or Unknown."""

    reason: str = Field(min_length=1, max_length=1024, json_schema_extra={"pattern": _CAMEL_CASE})
    """The reason in one CamelCase word."""

    message: str = Field(max_length=32768)
    """The reason in a sentence that says what to do."""

    last_transition_time: datetime = NEVER
    """When the status last changed. 1970-01-01T00:00:00Z before the operator has looked at the WorkQueue."""

    observed_generation: Count | None = None
    """The generation of the WorkQueue that the condition describes."""


class RecurringStatus(_Model):
    """The progress of one entry of spec.recurring."""

    name: str
    """Name of the entry."""

    schedule: str = Field(max_length=200)
    """The schedule that the slot belongs to."""

    slot: datetime
    """The last slot that was published or left out. At first the time when the operator saw the entry."""

    publishing: datetime | None = None
    """The slot whose message is being published. If the operator ends now, it may or may not have been published."""

    published: datetime | None = None
    """The last slot whose message RabbitMQ has confirmed."""


class WorkQueueStatus(_Model):
    """The observed state. An unknown count is absent, because unknown is not zero."""

    observed_generation: Count | None = None
    """The generation of the WorkQueue that the operator reconciled last."""

    queue_name: str | None = None
    """Name of the queue in RabbitMQ."""

    replicas: Count | None = None
    """Existing pods."""

    ready_replicas: Count | None = None
    """Pods that are Ready."""

    busy_replicas: Count | None = None
    """Pods with a message in the handler."""

    desired_replicas: Count | None = None
    """Replica count that the operator set."""

    selector: str | None = None
    """Label selector of the pods, for the scale subresource."""

    messages: Count | None = None
    """Messages waiting in the queue."""

    dead_letters: Count | None = None
    """Messages in the dead-letter queue."""

    retrying: Count | None = None
    """Messages waiting in delay queues for their next attempt. Absent for a workloadRef."""

    retry_delays_seconds: tuple[Count, ...] | None = Field(
        default=None, max_length=MOST_RETRY_DELAYS, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Delays whose queues exist. Only earlier releases declared a queue for each delay."""

    delay_queues: tuple[str, ...] | None = Field(
        default=None, max_length=MOST_RETRY_DELAYS, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Delay queues that exist, without those of earlier releases. A worker declares a queue before the first message
    for it."""

    recurring: tuple[RecurringStatus, ...] | None = Field(
        default=None,
        max_length=MOST_RECURRING,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Progress of the entries of spec.recurring."""

    consumers: Count | None = None
    """Consumers of the queue, without the operator's doorbell."""

    last_scale_time: datetime | None = None
    """When the operator last changed the replica count."""

    last_scale_reason: str | None = None
    """Why the operator last changed the replica count."""

    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """One condition for each aspect: Ready, QueueDeclared, DepthKnown, WorkloadApplied, WorkersAvailable,
    ScalingActive."""

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of this type, if it exists."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class Metadata(_Model):
    """The part of the object's metadata that the operator uses."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: tuple[str, ...] = ()
    annotations: dict[str, str] = Field(default_factory=dict)

    @field_validator("annotations", mode="before")
    @classmethod
    def _own_only(cls, given: Any) -> Any:
        """Drop other annotations: they can be large (kubectl stores the whole object in one)."""
        if isinstance(given, Mapping):
            return {key: value for key, value in given.items() if str(key).startswith(f"{GROUP}/")}
        return given or {}


class WorkQueue(_Model):
    """A durable RabbitMQ queue and the workers that handle its messages, scaled with its depth."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
                f"the name of a WorkQueue has at most {MAX_NAME_LENGTH} characters, because label values "
                "are derived from it: choose a shorter name",
            ),
            rule(
                "!has(self.spec.queue.deadLetterQueue) || self.spec.queue.deadLetterQueue != "
                "(has(self.spec.queue.name) ? self.spec.queue.name : self.metadata.name)",
                "queue.deadLetterQueue is the queue itself: name another queue",
            ),
        )
    )

    metadata: Metadata
    spec: WorkQueueSpec
    """The desired state."""

    status: WorkQueueStatus = Field(default_factory=WorkQueueStatus)
    """The observed state."""

    @field_validator("status", mode="before")
    @classmethod
    def _no_status_yet(cls, given: Any) -> Any:
        return given or {}

    @property
    def key(self) -> tuple[str, str]:
        """The (namespace, name) of the WorkQueue."""
        return self.metadata.namespace, self.metadata.name

    @property
    def queue_name(self) -> str:
        """The queue's name in RabbitMQ."""
        return self.spec.queue.name or self.metadata.name

    @property
    def delay_queues_seen(self) -> frozenset[str]:
        """The delay queues in the status."""
        plain = self.status.retry_delays_seconds or ()
        names = {topology.earlier_delay_queue_name(self.queue_name, seconds) for seconds in plain}
        listed = self.status.delay_queues or ()
        return frozenset(
            names.union(name for name in listed if topology.is_delay_queue(name, self.queue_name))
        )

    @property
    def queue_settings(self) -> topology.QueueSettings:
        """The queue in the form that `topology` takes."""
        queue, exchange = self.spec.queue, self.spec.queue.exchange
        return topology.QueueSettings(
            name=self.queue_name,
            type=queue.type,
            exchange=None if exchange is None else exchange.settings,
            bindings=tuple(binding.settings(self.queue_name) for binding in queue.bindings),
            max_length=queue.max_length,
            max_length_bytes=queue.max_length_bytes,
            message_ttl_seconds=queue.message_ttl_seconds,
            delivery_limit=queue.delivery_limit,
            single_active_consumer=bool(queue.single_active_consumer),
            consumer_timeout_seconds=queue.consumer_timeout_seconds,
            dead_letter_queue=queue.dead_letter_queue,
        )

    @property
    def dead_letter_queue_name(self) -> str:
        """The name of the dead-letter queue in RabbitMQ."""
        return self.spec.queue.dead_letter_queue or topology.dead_letter_queue_name(self.queue_name)

    @property
    def limit(self) -> topology.Limit | None:
        """The limit on handlers that run in all workers together, as this WorkQueue asks for it."""
        limits = self.spec.limits
        if limits is None or limits.concurrency is None or self.spec.worker is None:
            return None
        if limits.group is None:
            name = topology.limit_queue_name(self.queue_name)
        else:
            name = topology.group_limit_queue_name(self.metadata.namespace, limits.group)
        return topology.Limit(name, limits.concurrency)

    @property
    def rate_limit(self) -> topology.RateLimit | None:
        """The limit on handlers that start in all workers together, as this WorkQueue asks for it."""
        limits = self.spec.limits
        if limits is None or limits.rate_per_second is None or self.spec.worker is None:
            return None
        if limits.group is None:
            name = topology.rate_limit_queue_name(self.queue_name)
        else:
            name = topology.group_rate_limit_queue_name(self.metadata.namespace, limits.group)
        return topology.RateLimit(name, limits.rate_per_second, limits.most_at_once)

    @property
    def wake(self) -> Wake:
        """How the operator learns of a message on the idle queue."""
        return self.spec.scaling.wake or (Wake.PUSH if self.spec.worker else Wake.POLL)

    @property
    def deleting(self) -> bool:
        """Whether the WorkQueue is being deleted."""
        return self.metadata.deletion_timestamp is not None


def timestamp(at: datetime) -> str:
    """Return a UTC time in the format of the API server: RFC 3339, to the second."""
    return f"{at.replace(tzinfo=None).isoformat(timespec='seconds')}Z"  # a third of the time of strftime
