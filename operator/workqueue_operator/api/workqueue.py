"""The WorkQueue: one immutable model, from which the CRD and the reference page are generated.

Place in the flow: whatever comes from the API server is parsed here once; every other module works with
these objects. Attributes are snake_case, the wire is camelCase. Unknown fields are passed over, so that an
operator can run beside a newer CRD; the API server is what refuses them. Rules (CEL) stand beside the
fields they speak about and are held by the API server; the model checks again only what code relies on.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from workqueue.contract import topology
from workqueue.contract.topology import ExchangeType, QueueType
from workqueue_operator.api import pod_template
from workqueue_operator.api.cel import IMMUTABLE_ADVICE, JsonSchema, rule, rules, unchanged
from workqueue_operator.names import GROUP, MAX_NAME_LENGTH

DEFAULT_MESSAGES_PER_REPLICA: Final = 10
MAX_REPLICAS: Final = 1000

UNKNOWN_COUNT: Final = "?"
"""What people see in place of a count that is not known: unknown is not zero, and `kubectl get` shows a missing
number as a blank."""

MOST_RETRY_DELAYS: Final = 64
"""Delay queues of one WorkQueue that are looked at: 38 can be in use at a time, and earlier ones may be left."""

_EMPTY: Final[JsonSchema] = {"default": {}}
"""The API server fills in an object that is left out, so that its own defaults show."""

_DAY: Final = 86_400
_WEEK: Final = 604_800
_DNS_NAME: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_ZONE: Final = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$"


def _cron_field(value: str, *others: str) -> str:
    """A pattern for one field: a list of values, ranges and steps, as cronsim reads them."""
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
"""What the pattern cannot see, such as the 30th of February, the operator finds and names in a condition."""

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
        use_attribute_docstrings=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """The object as the API server takes it; what was not given is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class DeletionPolicy(StrEnum):
    """What becomes of the queues when the WorkQueue is deleted."""

    RETAIN = "Retain"
    DELETE_IF_EMPTY = "DeleteIfEmpty"
    DELETE = "Delete"


class Wake(StrEnum):
    """How a message on an idle queue is noticed."""

    PUSH = "Push"
    POLL = "Poll"


class ImagePullPolicy(StrEnum):
    """When the kubelet pulls an image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


SAYABLE: Final = rule(
    "bytes(self).size() <= 30 || self.matches('^[ -~]*$')",
    "with other characters than those of ASCII it must not be longer than 30 bytes: RabbitMQ breaks the connection "
    "off when such a name makes an error too long",
)
"""Tried with RabbitMQ 4.0 and 4.3: 541 for a text of more than 255 bytes that is not ASCII, which names a queue up to
three times. The connection serves all WorkQueues of a broker."""


class SecretRef(_Model):
    """A Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""


class Exchange(_Model):
    """A durable exchange that is declared and bound to the queue."""

    name: str = Field(
        min_length=1,
        max_length=255,
        json_schema_extra=rules(
            rule("!self.startsWith('amq.')", "names that begin with amq. belong to RabbitMQ: choose another"),
            SAYABLE,
        ),
    )
    """Name of the exchange in RabbitMQ."""

    type: ExchangeType = ExchangeType.DIRECT
    """Direct, Topic or Fanout. Fixed for an exchange of this name."""

    routing_keys: tuple[RoutingKey, ...] = Field(
        default=(), max_length=50, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """Keys by which messages reach the queue; the queue's name when left out."""

    @property
    def settings(self) -> topology.Exchange:
        """What the topology needs to know about the exchange."""
        return topology.Exchange(self.name, self.type, self.routing_keys)


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
                "queue.name cannot be changed later: keep the old one, or create another WorkQueue",
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
                for argument in _ARGUMENTS
            ),
            rule(
                "!has(self.exchange) || !has(oldSelf.exchange) || self.exchange.name != oldSelf.exchange.name"
                " || self.exchange.type == oldSelf.exchange.type",
                "queue.exchange.type cannot be changed, since RabbitMQ fixes it for an exchange of this "
                "name: keep the old type, or name another exchange",
                "exchange",
            ),
            rule(
                "self.type != 'Classic' || !has(self.deliveryLimit)",
                "a Classic queue has no delivery limit: remove queue.deliveryLimit, or make a Quorum queue",
                "deliveryLimit",
            ),
            *(
                rule(
                    f"self.declare || !has(self.{argument})",
                    f"queue.declare is false, so the queue is used as it is: remove queue.{argument}",
                    argument,
                )
                for argument in ("exchange", *_ARGUMENTS)
            ),
            rule(
                "self.declare || self.deletionPolicy == 'Retain'",
                "queue.declare is false, so the queue belongs to somebody else and is not deleted: set "
                "queue.deletionPolicy to Retain",
                "deletionPolicy",
            ),
        )
    )

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=240,
        json_schema_extra=rules(
            rule("!self.startsWith('amq.')", "names that begin with amq. belong to RabbitMQ: choose another"),
            rule("bytes(self).size() <= 240", "must not be longer than 240 bytes"),
            SAYABLE,
        ),
    )
    """Name of the queue in RabbitMQ; the WorkQueue's own name when left out. Cannot be changed."""

    type: QueueType = QueueType.QUORUM
    """Quorum (replicated, the default) or Classic. A Classic queue without limits and TTL is declared without
    arguments, so that publishers that declare the queue themselves keep working. Cannot be changed."""

    declare: bool = True
    """Whether the operator declares the queue. False: somebody else does; it is used as it is, and nothing
    about it is changed."""

    exchange: Exchange | None = None
    """An exchange to declare and to bind the queue to."""

    max_length: int | None = Field(default=None, ge=1)
    """The most messages that may wait; publishers are refused beyond it. Cannot be changed."""

    max_length_bytes: int | None = Field(default=None, ge=1)
    """The most bytes that may wait; publishers are refused beyond it. Cannot be changed."""

    message_ttl_seconds: int | None = Field(default=None, ge=1, le=4_294_967)
    """How long a message may wait before it goes to the dead-letter queue. Cannot be changed."""

    delivery_limit: int | None = Field(default=None, ge=1, le=1000)
    """How often a message may come back because its worker died, before it goes to the dead-letter queue; 10
    when left out. A limit of 1 allows two attempts. Quorum queues only. Cannot be changed."""

    single_active_consumer: bool | None = None
    """Whether one worker at a time takes messages, in order. Replicas then stay at 0 or 1. Cannot be changed."""

    consumer_timeout_seconds: int | None = Field(default=None, ge=60, le=_WEEK)
    """How long RabbitMQ lets a worker hold a message before it takes it back; follows from
    worker.timeoutSeconds when left out. Cannot be changed."""

    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    """What becomes of the queues when this WorkQueue is deleted: Retain keeps them, DeleteIfEmpty deletes
    them once no message is left, Delete deletes them with their messages. Delay queues go too; those of an
    earlier retry.delaysSeconds only where the connection Secret has the key management-uri."""


class Retry(_Model):
    """What happens to a message whose handler failed."""

    max_attempts: int = Field(default=5, ge=1, le=100)
    """How often a message is tried before it goes to the dead-letter queue; 1 means no second try."""

    delays_seconds: tuple[Annotated[int, Field(ge=1, le=_DAY)], ...] = Field(
        default=(1, 10, 60),
        min_length=1,
        max_length=20,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    """How long a message waits before the second try, the third, and so on; the last one repeats."""


class ExecHandler(_Model):
    """A command run for each message: body on stdin, headers in the environment, exit code = outcome."""

    command: tuple[Annotated[str, Field(max_length=4096)], ...] = Field(
        min_length=1, max_length=100, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """The program and its arguments; no shell is involved. Exit 0 is success, 65 rejects the message, any
    other code tries it again."""


class HttpHandler(_Model):
    """A container beside the worker that takes each message as an HTTP POST; status code = outcome."""

    image: Image
    """Image of the container that serves the requests."""

    port: int = Field(default=8080, ge=1, le=65535)
    """Port on which it listens."""

    path: str = Field(
        default="/",
        max_length=1024,
        json_schema_extra=rules(rule("self.startsWith('/')", "must begin with '/', such as /jobs")),
    )
    """Path of the requests."""


class Handler(_Model):
    """What is done with a message: exactly one of python, exec and http."""

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
                "must be MODULE:FUNCTION, such as thumbs:resize",
            )
        ),
    )
    """A Python function as MODULE:FUNCTION, sync or async. It takes the message; returning is success."""

    exec: ExecHandler | None = None
    """A command that is run for each message."""

    http: HttpHandler | None = None
    """A container that is sent each message by HTTP."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(given is not None for given in (self.python, self.exec, self.http)) != 1:
            raise ValueError("give exactly one of python, exec and http")
        return self


class Worker(_Model):
    """The workers that the operator runs: a Deployment made from these parts."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.image) || has(self.handler.http)",
                "worker.image is missing: name the image that holds the worker and the handler",
            )
        )
    )

    image: Image | None = None
    """Image that holds the worker and the handler. With an http handler it may be left out: then it is the
    operator's own image."""

    handler: Handler
    """What is done with a message."""

    concurrency: int = Field(default=1, ge=1, le=1000)
    """How many messages one pod handles at a time."""

    timeout_seconds: int = Field(default=300, ge=1, le=_DAY)
    """How long a handler may take for one message. A pod that is stopped gets this long to finish."""

    env: pod_template.EnvVars = ()
    """Environment variables of the container that runs the handler."""

    env_from: pod_template.EnvFrom = ()
    """ConfigMaps and Secrets whose keys become environment variables of that container."""

    resources: pod_template.Resources | None = None
    """Compute resources of the container that runs the handler."""

    volumes: pod_template.Volumes = ()
    """Volumes of the pod. hostPath is refused."""

    volume_mounts: pod_template.VolumeMounts = ()
    """Where the container that runs the handler mounts volumes."""

    containers: pod_template.Sidecars = ()
    """Further containers of the pod."""

    service_account_name: ObjectName | None = None
    """ServiceAccount of the pod; the namespace's default when left out."""

    image_pull_secrets: pod_template.PullSecrets = ()
    """Secrets with registry credentials, in the same namespace."""

    image_pull_policy: ImagePullPolicy | None = None
    """Always, IfNotPresent or Never; Kubernetes' own choice when left out."""

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
    """Further labels of the pod."""

    pod_annotations: pod_template.Annotations = Field(default_factory=dict)
    """Further annotations of the pod."""

    security_context: pod_template.SecurityContext | None = None
    """Security settings of the container that runs the handler, laid over the operator's restricted ones.
    privileged is refused."""

    pod_security_context: pod_template.PodSecurityContext | None = None
    """Security settings of the pod, laid over the operator's restricted ones."""


class WorkloadRef(_Model):
    """A Deployment of the same namespace whose replicas are scaled and which is otherwise left alone."""

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
                "such as 0 8 * * 1-5",
            )
        ),
    ),
]


class Schedule(_Model):
    """A time span, again and again, in which there are at least so many replicas."""

    name: str | None = Field(default=None, max_length=63)
    """What the schedule is for; named in conditions."""

    start: _Cron
    """When the span begins, as a cron expression of five fields, such as `0 8 * * 1-5`."""

    end: _Cron
    """When the span ends, as a cron expression of five fields, such as `0 18 * * 1-5`."""

    time_zone: str = Field(
        default="Etc/UTC",
        min_length=1,
        max_length=64,
        json_schema_extra=rules(
            rule(
                # An unknown zone is an error of the rule. The API server has all zones, for a CronJob's timeZone.
                f"self.matches(r'{_ZONE}') && self != 'Local'"
                " && timestamp('2000-01-01T00:00:00Z').getHours(self) >= 0",
                "must be a time zone of the IANA database, such as Europe/Berlin",
            )
        ),
    )
    """Time zone of both, by its name in the IANA database, such as Europe/Berlin."""

    min_replicas: int = Field(ge=0, le=MAX_REPLICAS)
    """The fewest replicas while the span lasts."""


class Scaling(_Model):
    """How many replicas there are."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.minReplicas <= self.maxReplicas",
                "scaling.minReplicas is above scaling.maxReplicas: lower the one or raise the other",
                "minReplicas",
            ),
            rule(
                "!(has(self.messagesPerReplica) && has(self.targetDrainSeconds))",
                "give either scaling.messagesPerReplica or scaling.targetDrainSeconds, not both",
            ),
            rule(
                "!has(self.schedules) || self.schedules.all(span, span.minReplicas <= self.maxReplicas)",
                "a schedule's minReplicas is above scaling.maxReplicas: lower the one or raise the other",
                "schedules",
            ),
        )
    )

    min_replicas: int = Field(default=0, ge=0, le=MAX_REPLICAS)
    """The fewest replicas; 0 runs none while there is nothing to do."""

    max_replicas: int = Field(default=10, ge=1, le=MAX_REPLICAS)
    """The most replicas."""

    messages_per_replica: int | None = Field(default=None, ge=1, le=1_000_000)
    """How many messages, waiting or in work, one replica should have; 10 when neither this nor
    targetDrainSeconds is given."""

    target_drain_seconds: int | None = Field(default=None, ge=1, le=_DAY)
    """Instead of messagesPerReplica: as many replicas as handle the backlog within this time, going by the
    measured handler time."""

    scale_in_delay_seconds: int = Field(default=60, ge=0, le=_DAY)
    """Replicas shrink only to the highest count that was wanted in this time."""

    wake: Wake | None = None
    """How a message on an idle queue is noticed: Push (at once) or Poll (by looking twice a second). When left out,
    Push for worker and Poll for workloadRef."""

    schedules: tuple[Schedule, ...] = Field(
        default=(), max_length=20, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Higher minimums at certain times; where several apply, the highest counts."""

    @model_validator(mode="before")
    @classmethod
    def _default_target(cls, given: Any) -> Any:
        """No default in the schema: it would be there beside a given targetDrainSeconds."""
        targets = ("messagesPerReplica", "messages_per_replica", "targetDrainSeconds", "target_drain_seconds")
        if isinstance(given, Mapping) and all(given.get(key) is None for key in targets):
            return {**given, "messagesPerReplica": DEFAULT_MESSAGES_PER_REPLICA}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"minReplicas {self.min_replicas} is above maxReplicas {self.max_replicas}")
        if self.messages_per_replica is not None and self.target_drain_seconds is not None:
            raise ValueError("give either messagesPerReplica or targetDrainSeconds, not both")
        return self


_SHARED: Final = "!has(self.queue.singleActiveConsumer) || !self.queue.singleActiveConsumer"
"""Several workers may take messages at the same time."""


class WorkQueueSpec(_Model):
    """What a person asks for."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.worker) != has(self.workloadRef)",
                "give exactly one of spec.worker (the operator runs the workers) and spec.workloadRef (it "
                "scales a Deployment of yours)",
            ),
            rule(
                "!has(self.workloadRef) || !has(self.scaling.targetDrainSeconds)",
                "scaling.targetDrainSeconds needs the handler time that our own workers measure: use "
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
                "scaling.minReplicas, and that of each schedule, to 0 or 1",
                "scaling",
            ),
        )
    )

    connection_secret_ref: SecretRef
    """The Secret of the same namespace that says how to reach RabbitMQ, with the keys of the Service Binding
    specification: uri, or host, port, username, password and virtual-host; optional ca.crt, tls.crt, tls.key
    and management-uri."""

    suspend: bool = False
    """True stops scaling and declaring and leaves everything as it is."""

    replicas: int | None = Field(default=None, ge=0, le=MAX_REPLICAS)
    """Pins the count of replicas until it is removed; kubectl scale sets it. Normally left out."""

    queue: Queue = Field(default_factory=Queue, json_schema_extra=_EMPTY)
    """The queue in RabbitMQ."""

    retry: Retry = Field(default_factory=Retry, json_schema_extra=_EMPTY)
    """What happens to a message whose handler failed."""

    worker: Worker | None = None
    """The workers that the operator runs. Exactly one of worker and workloadRef."""

    workload_ref: WorkloadRef | None = None
    """A Deployment of yours whose replicas are scaled. Exactly one of worker and workloadRef."""

    scaling: Scaling = Field(default_factory=Scaling, json_schema_extra=_EMPTY)
    """How many replicas there are."""

    @property
    def most_replicas(self) -> int:
        """The most replicas that can have work: one where the queue hands messages to one consumer at a time."""
        return 1 if self.queue.single_active_consumer else self.scaling.max_replicas

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


class Condition(_Model):
    """One aspect of the WorkQueue's state."""

    type: str = Field(min_length=1, max_length=316)
    """Which aspect, such as Ready."""

    status: ConditionStatus
    """True, False or Unknown."""

    reason: str = Field(min_length=1, max_length=1024)
    """The cause in one CamelCase word."""

    message: str = Field(max_length=32768)
    """The cause in a sentence that says what to do."""

    last_transition_time: datetime | None = None
    """When the status last changed."""

    observed_generation: Count | None = None
    """The generation of the WorkQueue that it speaks about."""


class Columns(_Model):
    """What `kubectl get` shows: each count as text, or `?` when the operator does not know it at present."""

    messages: str | None = None
    """Messages that wait in the queue."""

    retrying: str | None = None
    """Messages that wait for their next attempt."""

    busy: str | None = None
    """Pods that are handling a message."""

    dead: str | None = None
    """Messages in the dead-letter queue."""


class WorkQueueStatus(_Model):
    """What the operator sees. Message counts above 100 are rounded to two significant digits.

    A count that the operator does not know at present is absent: unknown is not zero.
    """

    observed_generation: Count | None = None
    """The generation of the WorkQueue that the operator has worked on."""

    queue_name: str | None = None
    """Name of the queue in RabbitMQ."""

    replicas: Count | None = None
    """Pods that exist."""

    ready_replicas: Count | None = None
    """Pods that are Ready."""

    busy_replicas: Count | None = None
    """Pods that are handling a message."""

    desired_replicas: Count | None = None
    """Replicas that the operator asked for."""

    workers: str | None = None
    """Ready and desired replicas, such as 2/5; `?` when they are not known."""

    columns: Columns | None = None
    """The counts as `kubectl get` shows them."""

    selector: str | None = None
    """Label selector of the pods, for the scale subresource."""

    proven_template_hash: str | None = None
    """Hash of the last pod template of which a pod became Ready."""

    messages: Count | None = None
    """Messages that wait in the queue."""

    dead_letters: Count | None = None
    """Messages in the dead-letter queue."""

    retrying: Count | None = None
    """Messages that wait in delay queues for their next attempt. Absent for a workloadRef."""

    retry_delays_seconds: tuple[Count, ...] | None = Field(
        default=None, max_length=MOST_RETRY_DELAYS, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Delays whose queues exist: workers make such a queue with the first message that waits in it."""

    consumers: Count | None = None
    """Consumers of the queue, without the operator's own."""

    last_scale_time: datetime | None = None
    """When the operator last changed the count of replicas."""

    last_scale_reason: str | None = None
    """Why it did."""

    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """The state by aspect: Ready, QueueDeclared, DepthKnown, WorkloadApplied, WorkersAvailable, ScalingActive."""

    def condition(self, kind: str) -> Condition | None:
        """The condition of this type, if it is there."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class Metadata(_Model):
    """The part of the object's metadata that the operator works with."""

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
        """Others can be large (kubectl keeps the whole object in one) and mean nothing here."""
        if isinstance(given, Mapping):
            return {key: value for key, value in given.items() if str(key).startswith(f"{GROUP}/")}
        return given or {}


class WorkQueue(_Model):
    """A kind of job: a durable RabbitMQ queue and the workers that its depth asks for."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
                f"the name of a WorkQueue has at most {MAX_NAME_LENGTH} characters, since label values "
                "are made from it: choose a shorter one",
            )
        )
    )

    metadata: Metadata
    spec: WorkQueueSpec
    """What a person asks for."""

    status: WorkQueueStatus = Field(default_factory=WorkQueueStatus)
    """What the operator sees."""

    @field_validator("status", mode="before")
    @classmethod
    def _no_status_yet(cls, given: Any) -> Any:
        return given or {}

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name): identifies it in the cluster."""
        return self.metadata.namespace, self.metadata.name

    @property
    def queue_name(self) -> str:
        """The queue's name in RabbitMQ."""
        return self.spec.queue.name or self.metadata.name

    @property
    def queue_settings(self) -> topology.QueueSettings:
        """What the topology needs to know about the queue."""
        queue, exchange = self.spec.queue, self.spec.queue.exchange
        return topology.QueueSettings(
            name=self.queue_name,
            type=queue.type,
            exchange=None if exchange is None else exchange.settings,
            max_length=queue.max_length,
            max_length_bytes=queue.max_length_bytes,
            message_ttl_seconds=queue.message_ttl_seconds,
            delivery_limit=queue.delivery_limit,
            single_active_consumer=bool(queue.single_active_consumer),
            consumer_timeout_seconds=queue.consumer_timeout_seconds,
        )

    @property
    def wake(self) -> Wake:
        """How a message on the idle queue is to be noticed."""
        return self.spec.scaling.wake or (Wake.PUSH if self.spec.worker else Wake.POLL)

    @property
    def deleting(self) -> bool:
        """Whether somebody has deleted it."""
        return self.metadata.deletion_timestamp is not None


def timestamp(at: datetime) -> str:
    """A time, which must be in UTC, as the API server writes one: RFC 3339, to the second."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
