"""Render the objects that run the workers of a WorkQueue. PURE.

`apply` applies them. They never contain replicas: only `scale` writes the count.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from workqueue.contract.topology import DEFAULT_DELIVERY_LIMIT, QueueType
from workqueue.contract.worker_api import LIVE_PATH, PORT, READY_PATH, Isolation, Variable
from workqueue_operator.api.workqueue import Handler, PodSecurity, Retry, Wake, Worker, WorkQueue
from workqueue_operator.kube.views import PROVEN_SURGE
from workqueue_operator.names import (
    ANNOTATION_BROKER,
    ANNOTATION_EVICTABLE_VOLUMES,
    ANNOTATION_TEMPLATE_HASH,
    API_VERSION,
    BINDING_NAME,
    BINDING_ROOT,
    ENDPOINT_PORT_NAME,
    HANDLER_CONTAINER,
    KIND,
    LABEL_RETIRING,
    RETIREMENT_FOLDER,
    RETIREMENT_KEY,
    RETIREMENT_SECRET_TYPE,
    WORKER_CONTAINER,
    pod_labels,
    pod_selector,
    retirement_secret_name,
    workload_name,
)
from workqueue_operator.workers.merge import laid_over

Object: TypeAlias = dict[str, Any]

USER_ID: Final = 65532
"""runAsNonRoot alone fails on an image whose user is root, so the pod names a user."""

_USER: Final = {"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID}

GRACE_MARGIN_SECONDS: Final = 15
"""Seconds beyond the handler's timeout: to requeue unfinished messages and close the connections."""

BESIDE_HANDLER: Final[Object] = {
    "requests": {"cpu": "20m", "memory": "64Mi"},
    "limits": {"cpu": "1", "memory": "512Mi"},
}
"""Resources of the worker beside an http handler: a namespace with a quota refuses pods without."""

STARTUP_MARGIN_SECONDS: Final = 15
"""Seconds beyond the handler's startup timeout: for the start of Python, and for the worker's own error."""

_RESTRICTED: Final[Object] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""What the restricted Pod Security Standard requires of a container, beside the settings of the pod."""

_DEFAULT_ACCOUNT: Final = "default"
"""The ServiceAccount of pods that name none."""

_BINDING_VOLUME: Final = "workqueue-binding"
_RETIREMENT_VOLUME: Final = "workqueue-retirement"
_TMP_VOLUME: Final = "workqueue-tmp"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the operator's configuration adds.

    Attributes:
        worker_image: for WorkQueues with an http handler and no image.
        network_policy: whether workers get a NetworkPolicy.
        metrics_from: NetworkPolicy peers that may scrape the workers' metrics beside the operator.
        operator_peer: the NetworkPolicy peer that is this operator.
        pull_secrets: names of the Secrets with registry credentials for `worker_image`.
        other_ports: whether that NetworkPolicy leaves all other ports of the pods open.
    """

    worker_image: str = ""
    network_policy: bool = False
    metrics_from: tuple[Object, ...] = ()
    operator_peer: Object = field(default_factory=dict)
    pull_secrets: tuple[str, ...] = ()
    other_ports: bool = True


def owner_reference(workqueue: WorkQueue) -> Object:
    """Return the owner reference: Kubernetes deletes the object with its WorkQueue."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": workqueue.metadata.name,
        "uid": workqueue.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def deployment(workqueue: WorkQueue, defaults: Defaults, *, broker: str, proven_hash: str | None) -> Object:
    """The Deployment, without replicas.

    Args:
        broker: `Binding.display`. A worker reads the mounted Secret only when it connects, so a Secret that names
            another broker replaces the pods.
        proven_hash: the hash of a template that has had a Ready pod. A template without one replaces the old pods
            one at a time.
    """
    name, worker = workqueue.metadata.name, workqueue.spec.worker
    assert worker is not None  # noqa: S101 - the caller has looked
    template = _pod_template(workqueue, worker, defaults)
    if worker.template is not None:
        template = _with_users_parts(template, worker.template)
        template["metadata"]["labels"] |= _own_labels(name)
    template["metadata"]["annotations"][ANNOTATION_BROKER] = broker
    hashed = template_hash(template)
    template["metadata"]["annotations"][ANNOTATION_TEMPLATE_HASH] = hashed
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(workqueue),
        "spec": {
            "selector": {"matchLabels": pod_selector(name)},
            "revisionHistoryLimit": 2,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxUnavailable": 0,
                    "maxSurge": PROVEN_SURGE if hashed == proven_hash else 1,
                },
            },
            "template": template,
        },
    }


def template_hash(template: Object) -> str:
    """A short hash of a pod template."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:12]


def disruption_budget(workqueue: WorkQueue) -> Object:
    """The PodDisruptionBudget: a node drain evicts few workers at a time, and broken workers immediately."""
    worker = workqueue.spec.worker
    assert worker is not None  # noqa: S101 - the caller has looked
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(workqueue),
        "spec": {
            "maxUnavailable": worker.disruption.max_unavailable,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": pod_selector(workqueue.metadata.name)},
        },
    }


def network_policy(workqueue: WorkQueue, defaults: Defaults) -> Object:
    """The NetworkPolicy: only operator and metrics peers reach the endpoint. By default other ports stay open.

    A NetworkPolicy cannot exclude one port, so the rule names the port ranges on both sides of it. Where another
    policy denies all, that rule would open those ports.
    """
    endpoint: Object = {
        "ports": [{"port": PORT, "protocol": "TCP"}],
        "from": [defaults.operator_peer, *defaults.metrics_from],
    }
    others = {
        "ports": [
            {"port": 1, "endPort": PORT - 1, "protocol": "TCP"},
            {"port": PORT + 1, "endPort": 65535, "protocol": "TCP"},
            {"port": 1, "endPort": 65535, "protocol": "UDP"},
        ]
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(workqueue),
        "spec": {
            "podSelector": {"matchLabels": pod_selector(workqueue.metadata.name)},
            "policyTypes": ["Ingress"],
            "ingress": [endpoint, others] if defaults.other_ports else [endpoint],
        },
    }


def retirement_secret(workqueue: WorkQueue, key: bytes) -> Object:
    """The Secret with the key that signs calls to the workers."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {**metadata(workqueue), "name": retirement_secret_name(workqueue.metadata.name)},
        "type": RETIREMENT_SECRET_TYPE,
        "data": {RETIREMENT_KEY: base64.b64encode(key).decode()},
    }


def metadata(workqueue: WorkQueue) -> Object:
    """The metadata that the Deployment and the objects beside it have in common."""
    return {
        "name": workload_name(workqueue.metadata.name),
        "namespace": workqueue.metadata.namespace,
        "labels": pod_labels(workqueue.metadata.name),
        "ownerReferences": [owner_reference(workqueue)],
    }


def _pod_template(workqueue: WorkQueue, worker: Worker, defaults: Defaults) -> Object:
    wire = worker.to_wire()
    name = workqueue.metadata.name
    spec: Object = {
        # An apply without a name would keep the last one, which the API server copies into the deprecated field
        # serviceAccount.
        "serviceAccountName": worker.service_account_name or _DEFAULT_ACCOUNT,
        "automountServiceAccountToken": worker.service_account_name is not None,
        "enableServiceLinks": False,
        # Process 1 ignores SIGTERM until it has set a handler. A worker that receives it while starting would go on,
        # consume, and be killed in a handler at the end of its grace period. So the worker is not process 1.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": worker.timeout_seconds + GRACE_MARGIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            **(_USER if worker.pod_security is PodSecurity.RESTRICTED else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
            **wire.get("podSecurityContext", {}),
        },
        "containers": [
            _worker_container(workqueue, worker, wire, defaults),
            *map(_sidecar, wire.get("containers", [])),
        ],
        "volumes": [
            {
                "name": _BINDING_VOLUME,
                "secret": {"secretName": workqueue.spec.connection_secret_ref.name, "defaultMode": 0o440},
            },
            {
                "name": _RETIREMENT_VOLUME,
                # A pod also starts without the Secret. Until it appears, the worker refuses to retire.
                "secret": {
                    "secretName": retirement_secret_name(name),
                    "optional": True,
                    "defaultMode": 0o440,
                },
            },
            {"name": _TMP_VOLUME, "emptyDir": {}},
            *wire.get("volumes", []),
        ],
    }
    if worker.handler.http is not None:
        spec["initContainers"] = [_handler_container(worker, wire)]
    for part in (
        "imagePullSecrets",
        "nodeSelector",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "priorityClassName",
    ):
        if wire.get(part):
            spec[part] = wire[part]
    if worker.image is None and defaults.pull_secrets:
        secrets = [*spec.get("imagePullSecrets", []), *({"name": name} for name in defaults.pull_secrets)]
        spec["imagePullSecrets"] = _last_of_each(secrets, "name")
    return {
        "metadata": {
            "labels": {**wire.get("podLabels", {}), **_own_labels(name)},
            "annotations": {ANNOTATION_EVICTABLE_VOLUMES: _TMP_VOLUME, **wire.get("podAnnotations", {})},
        },
        "spec": spec,
    }


def _with_users_parts(template: Object, users: Object) -> Object:
    """Lay worker.template over the operator's. Containers that it adds are restricted as worker.containers are."""
    merged = laid_over(template, users)
    for part in ("containers", "initContainers"):
        own = {container["name"] for container in template["spec"].get(part, [])}
        if containers := merged["spec"].get(part):
            merged["spec"][part] = [one if one["name"] in own else _sidecar(one) for one in containers]
    return merged


def _own_labels(name: str) -> dict[str, str]:
    return {**pod_labels(name), LABEL_RETIRING: "false"}


def _worker_container(workqueue: WorkQueue, worker: Worker, wire: Object, defaults: Defaults) -> Object:
    container: Object = {
        "name": WORKER_CONTAINER,
        "image": worker.image or defaults.worker_image,
        "command": ["workqueue", "run"],
        "env": _environment(workqueue, worker),
        "ports": [{"name": ENDPOINT_PORT_NAME, "containerPort": PORT, "protocol": "TCP"}],
        # An import may hold the interpreter, so that the endpoint does not answer. The worker ends a start that takes
        # too long, and says why; the kubelet ends it only if the worker cannot.
        "startupProbe": _probe(
            READY_PATH, period=1, failures=worker.startup_timeout_seconds + STARTUP_MARGIN_SECONDS
        ),
        "readinessProbe": _probe(READY_PATH, period=2, failures=3),
        "livenessProbe": _probe(LIVE_PATH, period=10, failures=6),
        "securityContext": _security_context(wire)
        if worker.handler.http is None
        else _beside_handler(worker, wire),
        "volumeMounts": [
            {"name": _BINDING_VOLUME, "mountPath": f"{BINDING_ROOT}/{BINDING_NAME}", "readOnly": True},
            {"name": _RETIREMENT_VOLUME, "mountPath": RETIREMENT_FOLDER, "readOnly": True},
            {"name": _TMP_VOLUME, "mountPath": "/tmp"},  # noqa: S108 - a path inside the pod
        ],
    }
    if worker.image_pull_policy is not None:
        container["imagePullPolicy"] = wire["imagePullPolicy"]
    if worker.handler.http is None:
        _add_own_parts(container, wire)
    else:
        container["resources"] = wire.get("workerResources", BESIDE_HANDLER)
    return container


def _handler_container(worker: Worker, wire: Object) -> Object:
    """The image of an http handler, as a native sidecar. Kubernetes stops it after the worker has drained."""
    http = worker.handler.http
    assert http is not None  # noqa: S101 - for the type checker; the caller has looked
    container: Object = {
        "name": HANDLER_CONTAINER,
        "image": http.image,
        "restartPolicy": "Always",
        "ports": [{"name": "handler", "containerPort": http.port, "protocol": "TCP"}],
        "securityContext": _security_context(wire),
        "env": [],
        "volumeMounts": [{"name": _TMP_VOLUME, "mountPath": "/tmp"}],  # noqa: S108 - a path inside the pod
    }
    if worker.image_pull_policy is not None:
        container["imagePullPolicy"] = wire["imagePullPolicy"]
    for part in ("command", "args"):
        if words := getattr(http, part):
            container[part] = list(words)
    _add_own_parts(container, wire)
    return container


def _add_own_parts(container: Object, wire: Object) -> None:
    """Add the user's settings to the container that runs the handler."""
    container["env"] += wire.get("env", [])
    container["volumeMounts"] += wire.get("volumeMounts", [])
    container["env"] = _last_of_each(container["env"], "name")
    container["volumeMounts"] = _last_of_each(container["volumeMounts"], "mountPath")
    for part in ("envFrom", "resources"):
        if wire.get(part):
            container[part] = wire[part]


def _last_of_each(entries: list[Object], key: str) -> list[Object]:
    """Keep the user's entry where the operator has one of the same key. Server-side apply refuses a key twice."""
    return list({entry[key]: entry for entry in entries}.values())


def _security_context(wire: Object) -> Object:
    return {"readOnlyRootFilesystem": True, **_restricted(wire.get("securityContext", {}))}


def _beside_handler(worker: Worker, wire: Object) -> Object:
    """The security context of the worker beside an http handler: its user differs from the handler's.

    The containers share a process namespace. With the same user the handler could read the connection under /proc. A
    platform that decides the user gives both the same.
    """
    if worker.pod_security is PodSecurity.PLATFORM:
        return _security_context({})
    users = [wire.get(part, {}).get("runAsUser") for part in ("securityContext", "podSecurityContext")]
    handler = next((user for user in users if user is not None), USER_ID)
    return {**_security_context({}), "runAsUser": handler + 1}


def _sidecar(container: Object) -> Object:
    """The user's container with the same restrictions. Its root file system stays writable: its image may need
    that."""
    return {**container, "securityContext": _restricted(container.get("securityContext", {}))}


def _restricted(given: Object) -> Object:
    """Merge the user's settings into the standard's. All capabilities stay dropped, whichever the user adds."""
    return {**_RESTRICTED, **given, "capabilities": {**given.get("capabilities", {}), "drop": ["ALL"]}}


def _probe(path: str, *, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": ENDPOINT_PORT_NAME},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _environment(workqueue: WorkQueue, worker: Worker) -> list[Object]:
    spec = workqueue.spec
    settings = {
        **_handler_setting(worker.handler),
        Variable.QUEUE: workqueue.queue_name,
        Variable.QUEUE_TYPE: (QueueType(spec.queue.type)).value,
        Variable.MAX_ATTEMPTS: str(spec.retry.max_attempts),
        **_retry_setting(spec.retry),
        Variable.MAX_AGE_SECONDS: str(spec.retry.max_age_seconds),
        Variable.TIMEOUT_SECONDS: str(worker.timeout_seconds),
        Variable.GRACE_SECONDS: str(worker.timeout_seconds),
        Variable.CONCURRENCY: str(worker.concurrency),
        Variable.STARTUP_TIMEOUT_SECONDS: str(worker.startup_timeout_seconds),
        Variable.PORT: str(PORT),
        Variable.LOG_FORMAT: "json",
        Variable.SERVICE_BINDING_ROOT: BINDING_ROOT,
        Variable.BINDING: f"{BINDING_ROOT}/{BINDING_NAME}",
        Variable.RETIREMENT_KEY_FILE: f"{RETIREMENT_FOLDER}/{RETIREMENT_KEY}",
    }
    settings |= _isolation_settings(worker)
    if workqueue.limit is not None:
        settings[Variable.LIMIT_QUEUE] = workqueue.limit.name
    if workqueue.rate_limit is not None:
        settings[Variable.LIMIT_RATE_QUEUE] = workqueue.rate_limit.name
    if spec.queue.dead_letter_queue is not None:
        settings[Variable.DEAD_LETTER_QUEUE] = spec.queue.dead_letter_queue
    if spec.queue.declare and spec.queue.type is QueueType.QUORUM:
        settings[Variable.DELIVERY_LIMIT] = str(spec.queue.delivery_limit or DEFAULT_DELIVERY_LIMIT)
        if workqueue.wake is Wake.PUSH:
            # The doorbell that started the first worker has returned its message once, and before 4.3
            # RabbitMQ counts that.
            settings[Variable.WAKE_DELIVERIES] = "1"
    downward = {Variable.POD_NAME: "metadata.name", Variable.POD_UID: "metadata.uid"}
    return [{"name": str(name), "value": value} for name, value in settings.items()] + [
        {"name": str(name), "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in downward.items()
    ]


def _isolation_settings(worker: Worker) -> dict[str, str]:
    if worker.handler.python is None:
        return {}
    settings: dict[str, str] = {Variable.ISOLATION: Isolation(worker.isolation).value}
    if worker.recycle is not None and worker.recycle.max_messages is not None:
        settings[Variable.RECYCLE_MESSAGES] = str(worker.recycle.max_messages)
    if worker.recycle is not None and worker.recycle.max_memory is not None:
        settings[Variable.RECYCLE_MEMORY] = worker.recycle.max_memory
    return settings


def _retry_setting(retry: Retry) -> dict[str, str]:
    if retry.backoff is not None:
        return {Variable.BACKOFF: str(retry.backoff.settings)}
    return {Variable.DELAYS_SECONDS: ",".join(map(str, retry.delays))}


def _handler_setting(handler: Handler) -> dict[str, str]:
    if handler.python is not None:
        return {Variable.HANDLER_PYTHON: handler.python}
    if handler.exec is not None:
        return {Variable.HANDLER_EXEC: json.dumps(list(handler.exec.command))}
    http = handler.http
    assert http is not None  # noqa: S101 - the model holds exactly one
    return {Variable.HANDLER_HTTP: f"http://127.0.0.1:{http.port}{http.path}"}
