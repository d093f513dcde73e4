"""What the API server admits, and how it refuses the rest: one row for each rule of the CRD."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.support.admission import BASE, Admission, RefusedError
from tests.support.kstatus import kstatus
from tests.support.objects import merged

Spec = dict[str, Any]


class Row(NamedTuple):
    """A spec, as a change of the shortest valid one, and the sentence that comes back."""

    case: str
    change: Spec
    sentence: str


def template(**spec: Any) -> Spec:
    return worker(template={"spec": spec})


def worker(**parts: Any) -> Spec:
    return {"worker": parts}


def queue(**parts: Any) -> Spec:
    return {"queue": parts}


def scaling(**parts: Any) -> Spec:
    return {"scaling": parts}


def handler(**given: Any) -> Spec:
    return {"worker": {"handler": {"python": None, **given}}}


EXCHANGE = {"name": "images", "type": "Topic", "routingKeys": ["thumb.#", "icon.#"]}
REF = {"worker": None, "workloadRef": {"name": "celery"}}
SPAN = {"start": "0 8 * * 1-5", "end": "0 18 * * 1-5", "timeZone": "Europe/Berlin", "minReplicas": 5}

VALID = {
    "the shortest WorkQueue": {},
    "a Classic queue": queue(type="Classic"),
    "a queue with every argument": queue(
        name="images/thumbs äöü",
        exchange=EXCHANGE,
        maxLength=1000,
        maxLengthBytes=10**10,
        messageTTLSeconds=3600,
        deliveryLimit=3,
        singleActiveConsumer=True,
        consumerTimeoutSeconds=3600,
        deletionPolicy="DeleteIfEmpty",
    ),
    "a queue declared elsewhere": queue(name="theirs", declare=False),
    "a dead-letter queue declared elsewhere": queue(name="theirs", declare=False, deadLetterQueue="failed"),
    "an exec handler": handler(exec={"command": ["./resize", "--fast"]}),
    "http-handler-without-project-image": {
        "worker": {
            "image": None,
            "handler": {"python": None, "http": {"image": "thumbs-go:1", "path": "/jobs"}},
        }
    },
    "a method of a class as handler": handler(python="shop.mail:Mailer.send"),
    "a Deployment of the user's": REF,
    "limits of both kinds": {"limits": {"concurrency": 5, "ratePerSecond": 1000, "burst": 10}},
    "less than one start per second": {"limits": {"ratePerSecond": 0.1}},
    "a drain time": scaling(targetDrainSeconds=60),
    "a waiting time": scaling(maxWaitSeconds=30),
    "a backoff of defaults": {"retry": {"backoff": {}}},
    "a backoff instead of the delays": {"retry": {"delaysSeconds": None, "backoff": {"jitter": "Full"}}},
    "a schedule": scaling(schedules=[SPAN]),
    "schedules in other zones": scaling(
        schedules=[
            {**SPAN, "timeZone": zone}
            for zone in (
                "Etc/UTC",
                "UTC",
                "America/Argentina/Buenos_Aires",
                "Etc/GMT+12",
                "America/Port-au-Prince",
            )
        ]
    ),
    "schedules with all that cron has": scaling(
        schedules=[
            {**SPAN, "start": "*/15,7 0-5/2,23 1,L jan-mar,12 mon-fri", "end": "59 00 LW * 5#2,7L"},
            {**SPAN, "start": "0  8 * * SUN", "end": "0 18 31 DEC 0-7"},
        ]
    ),
    "a pinned count": {"replicas": 0},
    "environment from everywhere": worker(
        env=[
            {"name": "A", "value": "1"},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
            {"name": "WORKQUEUE_LOG_FORMAT", "value": "text"},
        ],
        envFrom=[{"prefix": "X_", "configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}],
    ),
    "resources as numbers and texts": worker(
        resources={"requests": {"cpu": 1, "memory": "64Mi"}, "limits": {"example.com/gpu": "1"}}
    ),
    "volumes of any kind but hostPath": worker(
        volumes=[
            {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        ],
        volumeMounts=[{"name": "scratch", "mountPath": "/scratch", "subPathExpr": "$(A)"}],
    ),
    "bindings to the exchanges of others": queue(
        bindings=[
            {"exchange": "amq.topic", "routingKey": "orders.#"},
            {"exchange": "amq.headers", "arguments": {"x-match": "any", "format": "pdf", "pages": 1}},
        ]
    ),
    "a headers exchange": queue(
        exchange={"name": "documents", "type": "Headers"},
        bindings=[{"exchange": "documents", "arguments": {"format": "pdf"}}],
    ),
    "a pod template": worker(
        template={
            "metadata": {"labels": {"team": "images"}, "annotations": {"example.com/note": "text"}},
            "spec": {
                "runtimeClassName": "gvisor",
                "schedulerName": "volcano",
                "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db"]}],
                "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
                "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}],
                "initContainers": [{"name": "model", "image": "model:1", "command": ["fetch"]}],
                "containers": [
                    {
                        "name": "worker",
                        "resources": {"claims": [{"name": "gpu"}]},
                        "volumeMounts": [{"name": "model", "mountPath": "/model"}],
                        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
                    }
                ],
                "volumes": [{"name": "model", "emptyDir": {}}],
            },
        }
    ),
    "a budget in percent, and users of the platform": worker(
        disruption={"maxUnavailable": "100%"}, podSecurity="Platform"
    ),
    "a stock image with a script": {
        "worker": {
            "image": None,
            "handler": {
                "python": None,
                "http": {"image": "node:24", "command": ["node"], "args": ["/scripts/serve.js"]},
            },
            "workerResources": {"limits": {"cpu": 1, "memory": "1Gi"}},
        }
    },
    "a sidecar and every scheduling wish": worker(
        containers=[{"name": "proxy", "image": "proxy:1", "ports": [{"containerPort": 3128}]}],
        serviceAccountName="thumbs",
        imagePullSecrets=[{"name": "registry"}],
        imagePullPolicy="Always",
        nodeSelector={"disk": "ssd"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        affinity={"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        topologySpreadConstraints=[
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        priorityClassName="batch",
        podLabels={"team": "images"},
        podAnnotations={"example.com/note": "a long text, with spaces"},
        securityContext={
            "runAsUser": 1000,
            "readOnlyRootFilesystem": False,
            "capabilities": {"add": ["NET_BIND_SERVICE"]},
            "seccompProfile": {"type": "Localhost", "localhostProfile": "mine.json"},
        },
        podSecurityContext={"fsGroup": 1000},
    ),
}

INVALID = [
    Row(
        "no connection",
        {"connectionSecretRef": None},
        "spec.connectionSecretRef: Required value",
    ),
    Row(
        "a Secret that cannot exist",
        {"connectionSecretRef": {"name": "Rabbit_MQ"}},
        "must be the name of a Kubernetes object: lower case letters, digits, '-' and '.'",
    ),
    Row(
        "neither worker nor workloadRef",
        {"worker": None},
        "give exactly one of spec.worker (the operator runs the workers) and spec.workloadRef "
        "(the operator scales your Deployment)",
    ),
    Row(
        "both worker and workloadRef",
        {"workloadRef": {"name": "celery"}},
        "give exactly one of spec.worker (the operator runs the workers) and spec.workloadRef "
        "(the operator scales your Deployment)",
    ),
    Row(
        "no handler",
        handler(),
        "give exactly one of worker.handler.python, worker.handler.exec and worker.handler.http",
    ),
    Row(
        "two handlers",
        handler(python="thumbs:resize", exec={"command": ["./resize"]}),
        "give exactly one of worker.handler.python, worker.handler.exec and worker.handler.http",
    ),
    Row(
        "a handler that is only a module",
        handler(python="thumbs"),
        "must be MODULE:FUNCTION, for example thumbs:resize",
    ),
    Row(
        "a handler that is a file",
        handler(python="./thumbs.py:f"),
        "must be MODULE:FUNCTION, for example thumbs:resize",
    ),
    Row(
        "an empty command",
        handler(exec={"command": []}),
        "spec.worker.handler.exec.command in body should have at",
    ),
    Row(
        "a path without slash",
        handler(http={"image": "x", "path": "jobs"}),
        "must begin with '/', for example /jobs",
    ),
    Row(
        "a handler without an image",
        worker(image=None),
        "worker.image is missing: set it to the image that contains the worker and the handler",
    ),
    Row(
        "an isolated command",
        worker(handler={"python": None, "exec": {"command": ["true"]}}, isolation="Process"),
        "only a Python handler can be isolated",
    ),
    Row(
        "recycling without processes",
        worker(recycle={"maxMessages": 10}),
        "only the processes of a Python handler can be recycled: set worker.isolation to Process",
    ),
    Row(
        "memory without a number",
        worker(isolation="Process", recycle={"maxMemory": "much"}),
        "must be a number of bytes, with Ki, Mi or Gi for a unit, for example 500Mi",
    ),
    Row("an image with spaces", worker(image="thumbs: 1"), "must be an image reference without spaces"),
    Row(
        "no time for a message",
        worker(timeoutSeconds=0),
        "spec.worker.timeoutSeconds in body should be greater than",
    ),
    Row(
        "no slot",
        worker(concurrency=0),
        "spec.worker.concurrency in body should be greater than or equal to 1",
    ),
    Row(
        "an unknown queue type",
        queue(type="Stream"),
        'spec.queue.type: Unsupported value: "Stream": supported values: "Quorum", "Classic"',
    ),
    Row(
        "a queue name of RabbitMQ's own",
        queue(name="amq.jobs"),
        "names that begin with amq. are reserved by RabbitMQ: choose another name",
    ),
    Row("a queue name that is too long in bytes", queue(name="ä" * 121), "must not be longer than 230 bytes"),
    Row(
        "a queue name that RabbitMQ cannot put into an error",
        queue(name="ä" * 16),
        "must not be longer than 30 bytes",
    ),
    Row(
        "an exchange name that RabbitMQ cannot put into an error",
        queue(exchange={"name": "ä" * 16}),
        "must not be longer than 30 bytes",
    ),
    Row(
        "a delivery limit on a Classic queue",
        queue(type="Classic", deliveryLimit=3),
        "a Classic queue has no delivery limit: remove queue.deliveryLimit, or set queue.type to Quorum",
    ),
    Row(
        "an exchange of RabbitMQ's own",
        queue(exchange={"name": "amq.topic"}),
        "names that begin with amq. are reserved by RabbitMQ: choose another name",
    ),
    *(
        Row(
            f"{argument} on a queue declared elsewhere",
            queue(declare=False, **{argument: value}),
            f"queue.declare is false, so the operator does not configure the queue: remove queue.{argument}",
        )
        for argument, value in (
            ("exchange", EXCHANGE),
            ("maxLength", 1),
            ("maxLengthBytes", 1),
            ("messageTTLSeconds", 1),
            ("deliveryLimit", 1),
            ("singleActiveConsumer", True),
            ("consumerTimeoutSeconds", 60),
        )
    ),
    Row(
        "deleting a queue declared elsewhere",
        queue(declare=False, deletionPolicy="Delete"),
        "queue.declare is false, so the operator does not delete the queue: set queue.deletionPolicy to Retain",
    ),
    Row(
        "dead letters in the queue itself",
        queue(name="images", deadLetterQueue="images"),
        "queue.deadLetterQueue is the queue itself: name another queue",
    ),
    Row(
        "no attempt",
        {"retry": {"maxAttempts": 0}},
        "spec.retry.maxAttempts in body should be greater than or equal",
    ),
    Row(
        "no delays",
        {"retry": {"delaysSeconds": []}},
        "spec.retry.delaysSeconds in body should have at least 1 items",
    ),
    Row(
        "delays and a backoff",
        {"retry": {"delaysSeconds": [1], "backoff": {}}},
        "give either retry.delaysSeconds or retry.backoff, not both: set the other one to null",
    ),
    Row(
        "a backoff that begins above its maximum",
        {"retry": {"backoff": {"initialSeconds": 61, "maxSeconds": 60}}},
        "retry.backoff.initialSeconds is above retry.backoff.maxSeconds: lower initialSeconds or raise maxSeconds",
    ),
    Row(
        "a backoff that does not grow",
        {"retry": {"backoff": {"factor": 1}}},
        "spec.retry.backoff.factor in body should be greater than or equal to 2",
    ),
    Row(
        "a minimum above the maximum",
        scaling(minReplicas=20),
        "scaling.minReplicas is above scaling.maxReplicas: lower minReplicas or raise maxReplicas",
    ),
    Row(
        "two targets",
        scaling(messagesPerReplica=10, targetDrainSeconds=60),
        "give only one of scaling.messagesPerReplica, scaling.targetDrainSeconds and scaling.maxWaitSeconds",
    ),
    Row(
        "a drain time and a waiting time",
        scaling(targetDrainSeconds=60, maxWaitSeconds=30),
        "give only one of scaling.messagesPerReplica, scaling.targetDrainSeconds and scaling.maxWaitSeconds",
    ),
    Row(
        "a waiting time of zero",
        scaling(maxWaitSeconds=0),
        "spec.scaling.maxWaitSeconds in body should be greater than or equal to 1",
    ),
    Row(
        "a waiting time for workers that are not ours",
        {**REF, **scaling(maxWaitSeconds=30)},
        "scaling.maxWaitSeconds needs the handler times, which only the operator's workers measure: use "
        "scaling.messagesPerReplica with workloadRef",
    ),
    Row(
        "a drain time for workers that are not ours",
        {**REF, **scaling(targetDrainSeconds=60)},
        "scaling.targetDrainSeconds needs the handler time, which only the operator's workers measure: use "
        "scaling.messagesPerReplica with workloadRef",
    ),
    Row(
        "a limit on workers of others",
        {**REF, "limits": {"concurrency": 5}},
        "only the operator's workers keep to spec.limits: remove spec.limits, or use spec.worker",
    ),
    Row(
        "limits without a number",
        {"limits": {"group": "shop"}},
        "give limits.concurrency, limits.ratePerSecond, or both",
    ),
    Row(
        "a burst without a rate",
        {"limits": {"concurrency": 5, "burst": 5}},
        "limits.burst belongs to limits.ratePerSecond: set it, or remove limits.burst",
    ),
    Row(
        "a burst below a hundredth of the rate",
        {"limits": {"ratePerSecond": 1000, "burst": 9}},
        "limits.burst must be at least a hundredth of limits.ratePerSecond: raise it, or remove it",
    ),
    Row(
        "two slots for a single active consumer",
        {**queue(singleActiveConsumer=True), **worker(concurrency=2)},
        "with queue.singleActiveConsumer one slot takes messages and the others stay idle: set "
        "worker.concurrency to 1",
    ),
    Row(
        "two workers for a single active consumer",
        {**queue(singleActiveConsumer=True), **scaling(minReplicas=2)},
        "with queue.singleActiveConsumer one worker takes messages and the others stay idle: set "
        "scaling.minReplicas, and minReplicas of each schedule, to 0 or 1",
    ),
    Row(
        "two scheduled workers for a single active consumer",
        {**queue(singleActiveConsumer=True), **scaling(schedules=[SPAN])},
        "with queue.singleActiveConsumer one worker takes messages and the others stay idle: set "
        "scaling.minReplicas, and minReplicas of each schedule, to 0 or 1",
    ),
    Row(
        "a schedule above the maximum",
        scaling(schedules=[{**SPAN, "minReplicas": 11}]),
        "a schedule's minReplicas is above scaling.maxReplicas: lower minReplicas or raise maxReplicas",
    ),
    Row(
        "a schedule with seconds",
        scaling(schedules=[{**SPAN, "start": "0 0 8 * * 1-5"}]),
        "must be a cron expression of five fields (minute, hour, day, month, weekday), for example 0 8 * * 1-5",
    ),
    *(
        Row(
            f"a schedule with {case}",
            scaling(schedules=[{**SPAN, **changes}]),
            "must be a cron expression of five fields (minute, hour, day, month, weekday), for example 0 8 * * 1-5",
        )
        for case, changes in {
            "an hour that is none": {"start": "0 24 * * *"},
            "a weekday that is none": {"end": "0 18 * * MOON"},
            "a step of zero": {"end": "*/0 18 * * *"},
            "a word": {"start": "at eight in the morning"},
        }.items()
    ),
    *(
        Row(
            f"a schedule in {case}",
            scaling(schedules=[{**SPAN, "timeZone": zone}]),
            "must be a time zone of the IANA database, for example Europe/Berlin",
        )
        for case, zone in {
            "a zone that does not exist": "Europe/Berlinn",
            "half a zone": "Europe",
            "a path": "../../etc/passwd",
            "an offset": "+02:00",
            "the server's own zone": "Local",
        }.items()
    ),
    Row("an unknown way to wake", scaling(wake="Pull"), 'supported values: "Push", "Poll"'),
    Row(
        "a pinned count below zero",
        {"replicas": -1},
        "spec.replicas in body should be greater than or equal to 0",
    ),
    Row(
        "a StatefulSet as workload",
        {**REF, "workloadRef": {"name": "x", "kind": "StatefulSet"}},
        'spec.workloadRef.kind: Unsupported value: "StatefulSet": supported values: "Deployment"',
    ),
    Row(
        "the node's files",
        worker(volumes=[{"name": "etc", "hostPath": {"path": "/etc"}}]),
        "hostPath would give the worker access to the node's files: use a persistentVolumeClaim, emptyDir, configMap "
        "or another volume type",
    ),
    Row(
        "a volume name reserved by the operator",
        worker(volumes=[{"name": "workqueue-binding", "emptyDir": {}}]),
        "volume names that begin with workqueue- are reserved for the operator: choose another name",
    ),
    Row(
        "a mount over the connection data",
        worker(volumeMounts=[{"name": "x", "mountPath": "/bindings/rabbitmq"}]),
        "/bindings holds the connection data of RabbitMQ: mount the volume elsewhere",
    ),
    Row(
        "a variable of ours",
        worker(env=[{"name": "WORKQUEUE_QUEUE", "value": "other"}]),
        "names that begin with WORKQUEUE_ are reserved for the worker (except WORKQUEUE_LOG_*): choose another "
        "name",
    ),
    Row(
        "the place of the connection data",
        worker(env=[{"name": "SERVICE_BINDING_ROOT", "value": "/"}]),
        "the operator sets SERVICE_BINDING_ROOT: choose another name",
    ),
    Row(
        "a variable with two sources",
        worker(env=[{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        "give either value or valueFrom, not both",
    ),
    Row(
        "a variable given twice",
        worker(env=[{"name": "A"}, {"name": "A"}]),
        "spec.worker.env[1]: Duplicate value",
    ),
    Row(
        "variables from nothing",
        worker(envFrom=[{"prefix": "X_"}]),
        "give exactly one of configMapRef and secretRef",
    ),
    Row(
        "a privileged worker",
        worker(securityContext={"privileged": True}),
        "a worker cannot be privileged: remove securityContext.privileged",
    ),
    Row(
        "privilege escalation",
        worker(securityContext={"allowPrivilegeEscalation": True}),
        "a worker cannot gain privileges: remove securityContext.allowPrivilegeEscalation",
    ),
    Row(
        "a dangerous capability",
        worker(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
        'spec.worker.securityContext.capabilities.add[0]: Unsupported value: "SYS_ADMIN"',
    ),
    Row(
        "an open /proc",
        worker(securityContext={"procMount": "Unmasked"}),
        'spec.worker.securityContext.procMount: Unsupported value: "Unmasked"',
    ),
    Row("root", worker(securityContext={"runAsUser": 0}), "a worker cannot run as root"),
    Row("root perhaps", worker(securityContext={"runAsNonRoot": False}), "a worker cannot run as root"),
    Row("root in the whole pod", worker(podSecurityContext={"runAsUser": 0}), "a worker cannot run as root"),
    Row(
        "no seccomp profile",
        worker(podSecurityContext={"seccompProfile": {"type": "Unconfined"}}),
        "a worker cannot be unconfined: remove seccompProfile.type, or choose RuntimeDefault",
    ),
    Row(
        "no AppArmor profile",
        worker(securityContext={"appArmorProfile": {"type": "Unconfined"}}),
        "a worker cannot be unconfined: remove appArmorProfile.type, or choose RuntimeDefault",
    ),
    Row(
        "a sidecar that is root",
        worker(containers=[{"name": "x", "image": "x", "securityContext": {"runAsUser": 0}}]),
        "a worker cannot run as root",
    ),
    Row(
        "a container that is a host process",
        worker(securityContext={"windowsOptions": {"hostProcess": True}}),
        "a worker cannot be a host process: remove windowsOptions.hostProcess",
    ),
    Row(
        "a privileged sidecar",
        worker(containers=[{"name": "x", "image": "x", "securityContext": {"privileged": True}}]),
        "a worker cannot be privileged: remove securityContext.privileged",
    ),
    Row(
        "a host process",
        worker(podSecurityContext={"windowsOptions": {"hostProcess": True}}),
        "a worker cannot be a host process: remove windowsOptions.hostProcess",
    ),
    Row(
        "a headers exchange without a binding",
        queue(exchange={"name": "documents", "type": "Headers"}),
        "a Headers exchange routes by headers: remove queue.exchange.routingKeys, and add a binding",
    ),
    Row(
        "a headers exchange with routing keys",
        queue(
            exchange={"name": "documents", "type": "Headers", "routingKeys": ["a"]},
            bindings=[{"exchange": "documents"}],
        ),
        "a Headers exchange routes by headers",
    ),
    Row(
        "bindings of a queue that is not declared",
        queue(declare=False, bindings=[{"exchange": "amq.topic"}]),
        "queue.declare is false, so the operator does not configure the queue: remove queue.bindings",
    ),
    Row(
        "a template with the worker's command",
        template(containers=[{"name": "worker", "command": ["sh"]}]),
        "readinessProbe, livenessProbe of the container worker: leave them out",
    ),
    Row(
        "a template with the image of the http handler",
        template(initContainers=[{"name": "handler", "image": "other:1"}]),
        "the operator decides image, command, args, ports, restartPolicy of the container handler: leave them out",
    ),
    Row(
        "a template with a reserved variable",
        template(containers=[{"name": "worker", "env": [{"name": "WORKQUEUE_URL", "value": "amqp://x"}]}]),
        "names that begin with WORKQUEUE_ are reserved for the worker",
    ),
    Row(
        "a template with a mount over the binding",
        template(
            containers=[
                {"name": "worker", "volumeMounts": [{"name": "a", "mountPath": "/bindings/rabbitmq"}]}
            ]
        ),
        "/bindings holds the connection data of RabbitMQ: mount the volume elsewhere",
    ),
    Row(
        "a template with the operator's volume",
        template(volumes=[{"name": "workqueue-binding", "emptyDir": {}}]),
        "volume names that begin with workqueue- are reserved for the operator: choose another name",
    ),
    Row(
        "a template with files of the node",
        template(volumes=[{"name": "etc", "hostPath": {"path": "/etc"}}]),
        "hostPath would give the worker access to the node's files",
    ),
    Row(
        "a template with a privileged container",
        template(containers=[{"name": "worker", "securityContext": {"privileged": True}}]),
        "a worker cannot be privileged: remove securityContext.privileged",
    ),
    Row(
        "a template with a label of the operator",
        worker(template={"metadata": {"labels": {"workqueue.dev/workqueue": "other"}}}),
        "keys that begin with workqueue.dev/ are reserved for the operator: remove them",
    ),
    *(
        Row(f"a template with {name}", template(**{name: value}), f"leave {name} out")
        for name, value in {
            "hostNetwork": True,
            "hostPID": False,
            "hostIPC": True,
            "restartPolicy": "Never",
            "shareProcessNamespace": False,
            "terminationGracePeriodSeconds": 1,
            "activeDeadlineSeconds": 1,
            "ephemeralContainers": [{"name": "debug"}],
        }.items()
    ),
    Row(
        "resources of a worker without http handler",
        worker(workerResources={"limits": {"cpu": 1}}),
        "worker.workerResources is for an http handler: use worker.resources",
    ),
    Row(
        "a budget of nobody", worker(disruption={"maxUnavailable": 0}), "should be greater than or equal to 1"
    ),
    Row("a budget of 0 percent", worker(disruption={"maxUnavailable": "0%"}), "should match"),
    Row(
        "a port of the node",
        worker(containers=[{"name": "x", "image": "x", "ports": [{"containerPort": 1, "hostPort": 1}]}]),
        "hostPort would use a port of the node: remove it",
    ),
    Row(
        "a sidecar with the worker's name",
        worker(containers=[{"name": "worker", "image": "x"}]),
        "the names worker and handler are reserved for the operator: choose another name",
    ),
    Row(
        "a label of ours",
        worker(podLabels={"workqueue.dev/workqueue": "other"}),
        "keys that begin with workqueue.dev/ are reserved for the operator: remove them",
    ),
    Row("the node's network", worker(hostNetwork=True), 'unknown field "spec.worker.hostNetwork"'),
    Row(
        "a field that does not exist",
        scaling(cooldownPeriod=30),
        'unknown field "spec.scaling.cooldownPeriod"',
    ),
    Row(
        "a quantity that is none",
        worker(resources={"limits": {"cpu": "a lot"}}),
        "spec.worker.resources.limits.cpu",
    ),
]


class Change(NamedTuple):
    """Two specs, as changes of the shortest one, and the sentence that comes back; None: it is allowed."""

    case: str
    before: Spec
    after: Spec
    sentence: str | None


FIXED = (
    " cannot be changed, because RabbitMQ fixes it when the queue is declared: keep the old value, or create "
    "another WorkQueue with another queue.name"
)
ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "maxLength": (1, 2),
    "maxLengthBytes": (1, 2),
    "messageTTLSeconds": (1, 2),
    "deliveryLimit": (1, 2),
    "singleActiveConsumer": (True, False),
    "consumerTimeoutSeconds": (60, 61),
    "deadLetterQueue": ("failed", "broken"),
}
CHANGES = [
    *(
        Change(f"the queue's name, {how}", before, after, "queue.name cannot be changed")
        for how, before, after in (
            ("to another", queue(name="a"), queue(name="b")),
            ("set later", {}, queue(name="a")),
            ("removed later", queue(name="a"), {}),
        )
    ),
    Change("the queue's type", {}, queue(type="Classic"), f"queue.type{FIXED}"),
    *(
        Change(f"{argument}, {how}", before, after, f"queue.{argument}{FIXED}")
        for argument, (one, other) in ARGUMENTS.items()
        for how, before, after in (
            ("to another", queue(**{argument: one}), queue(**{argument: other})),
            ("set later", {}, queue(**{argument: one})),
            ("removed later", queue(**{argument: one}), {}),
        )
    ),
    Change(
        "an exchange's type",
        queue(exchange=EXCHANGE),
        queue(exchange={**EXCHANGE, "type": "Direct"}),
        "queue.exchange.type cannot be changed, because RabbitMQ fixes it when the exchange is declared: keep "
        "the old type, or use another exchange name",
    ),
    Change(
        "an exchange, together with its type",
        queue(exchange=EXCHANGE),
        queue(exchange={"name": "other"}),
        None,
    ),
    Change("an exchange, later", {}, queue(exchange=EXCHANGE), None),
    Change("arguments, once we declare the queue", queue(declare=False), queue(maxLength=1), None),
    Change("arguments, once we no longer declare it", queue(maxLength=1), queue(declare=False), None),
    Change(
        "everything that is not the queue", {}, {**scaling(maxReplicas=50), **worker(concurrency=4)}, None
    ),
    Change("the policy of deletion", {}, queue(deletionPolicy="Delete"), None),
    Change("a pinned count, released", {"replicas": 3}, {}, None),
]


@pytest.mark.parametrize("change", VALID.values(), ids=VALID)
def test_valid_workqueue_is_admitted(admission: Admission, change: Spec) -> None:
    admission.create(merged(BASE, change))


@pytest.mark.parametrize("row", INVALID, ids=lambda row: row.case)
def test_invalid_workqueue_is_refused_with_advice(admission: Admission, row: Row) -> None:
    with pytest.raises(RefusedError) as refused:
        admission.create(merged(BASE, row.change))
    assert row.sentence in str(refused.value)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.case)
def test_update_is_admitted_or_refused_with_advice(admission: Admission, change: Change) -> None:
    with admission.stored(merged(BASE, change.before)) as stored:
        if change.sentence is None:
            admission.update(stored, merged(BASE, change.after))
            return
        with pytest.raises(RefusedError) as refused:
            admission.update(stored, merged(BASE, change.after))
        assert change.sentence in str(refused.value)


def test_name_is_limited_to_52_characters(admission: Admission) -> None:
    admission.create(BASE, name="x" * 52)
    with pytest.raises(RefusedError, match="the name of a WorkQueue has at most 52 characters"):
        admission.create(BASE, name="x" * 53)


def test_defaults_are_persisted(admission: Admission) -> None:
    assert admission.create(BASE)["spec"] == {
        "connectionSecretRef": {"name": "rabbitmq"},
        "suspend": False,
        "queue": {"type": "Quorum", "declare": True, "deletionPolicy": "Retain"},
        "retry": {"maxAttempts": 5, "maxAgeSeconds": 86400},
        "worker": {
            "image": "thumbs:1",
            "handler": {"python": "thumbs:resize"},
            "concurrency": 1,
            "timeoutSeconds": 300,
            "isolation": "Thread",
            "startupTimeoutSeconds": 60,
            "podSecurity": "Restricted",
            "disruption": {"maxUnavailable": 1},
        },
        "scaling": {"minReplicas": 0, "maxReplicas": 10, "scaleInDelaySeconds": 60},
    }


def test_kubernetes_fields_are_stored_unchanged(admission: Admission) -> None:
    given = merged(BASE, VALID["a sidecar and every scheduling wish"])
    kept = admission.create(given)["spec"]["worker"]
    assert {key: kept[key] for key in given["worker"]} == given["worker"]


def test_unseen_workqueue_is_not_ready(admission: Admission) -> None:
    made = admission.create(BASE)
    (condition,) = made["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == (
        "Ready",
        "Unknown",
        "AwaitingOperator",
    )
    assert "watches this namespace" in condition["message"]
    assert kstatus(made) == "InProgress"
