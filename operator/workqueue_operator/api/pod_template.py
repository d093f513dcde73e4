"""The parts of a pod template that a WorkQueue may set. Pure.

Values stay plain dicts in the form of Kubernetes, because the operator does not interpret them. Schemas of parts that
grow with Kubernetes keep unknown fields. They declare each forbidden field, because a CEL rule sees declared fields
only.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from pydantic import WithJsonSchema

from workqueue_operator.api.cel import INT_OR_STRING, JsonSchema, rule, rules
from workqueue_operator.names import BINDING_ROOT, GROUP, HANDLER_CONTAINER, WORKER_CONTAINER

JsonObject: TypeAlias = dict[str, Any]
"""Part of a Kubernetes object, in the form of the API."""

RESERVED_VOLUME_PREFIX: Final = "workqueue-"
RESERVED_ENV_PREFIX: Final = "WORKQUEUE_"
OPEN_ENV_PREFIX: Final = "WORKQUEUE_LOG_"
"""Reserved variables that users may set."""

_QUANTITY: Final[JsonSchema] = {
    **INT_OR_STRING,
    "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
}


def _text(description: str, limit: int = 253) -> JsonSchema:
    return {"type": "string", "maxLength": limit, "description": description}


def _object(description: str, required: tuple[str, ...] = (), **properties: JsonSchema) -> JsonSchema:
    schema: JsonSchema = {"type": "object", "description": description, "properties": properties}
    if required:
        schema["required"] = list(required)
    return schema


def _open(description: str, **properties: JsonSchema) -> JsonSchema:
    """Return the schema of an object that keeps unknown fields."""
    schema: JsonSchema = {
        "type": "object",
        "description": description,
        "x-kubernetes-preserve-unknown-fields": True,
    }
    return {**schema, "properties": properties} if properties else schema


def _list(items: JsonSchema, limit: int, key: str | None = None) -> JsonSchema:
    schema: JsonSchema = {"type": "array", "maxItems": limit, "items": items}
    if key is None:
        return {**schema, "x-kubernetes-list-type": "atomic"}
    items.setdefault("required", [key])
    return {**schema, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def _map(values: JsonSchema, limit: int) -> JsonSchema:
    return {"type": "object", "maxProperties": limit, "additionalProperties": values}


def _quantities(description: str) -> JsonSchema:
    return {**_map(_QUANTITY, 20), "description": description}


_optional: Final[JsonSchema] = {"type": "boolean", "description": "Whether the object or key may be missing."}

_from_key: Final = {
    "name": _text("Name of the object, in the same namespace."),
    "key": _text("Key in the object."),
    "optional": _optional,
}


def _words(description: str) -> JsonSchema:
    return _list({"type": "string", "maxLength": 32768}, 100) | {"description": description}


_own_env_names: Final = (
    rule(
        f"!self.name.startsWith('{RESERVED_ENV_PREFIX}') || self.name.startsWith('{OPEN_ENV_PREFIX}')",
        f"names that begin with {RESERVED_ENV_PREFIX} are reserved for the worker (except {OPEN_ENV_PREFIX}*): "
        "choose another name",
        "name",
    ),
    rule(
        "self.name != 'SERVICE_BINDING_ROOT'",
        "the operator sets SERVICE_BINDING_ROOT: choose another name",
        "name",
    ),
)

_any_env_var: Final = _open(
    "An environment variable, as in a container.", name=_text("Name of the variable.")
) | rules(*_own_env_names)

_env_var: Final = _object(
    "One environment variable.",
    ("name",),
    name=_text("Name of the variable."),
    value=_text("Value of the variable. $(OTHER) refers to another variable.", 32768),
    valueFrom=_object(
        "Source of the value, instead of `value`.",
        configMapKeyRef=_object("A key of a ConfigMap.", ("name", "key"), **_from_key),
        secretKeyRef=_object("A key of a Secret.", ("name", "key"), **_from_key),
        fieldRef=_object(
            "A field of the pod.",
            ("fieldPath",),
            apiVersion=_text("API version of the path. Defaults to v1."),
            fieldPath=_text("For example metadata.name or status.podIP."),
        ),
        resourceFieldRef=_object(
            "A resource of the container.",
            ("resource",),
            containerName=_text("Name of the container. Defaults to the container of the handler."),
            resource=_text("For example limits.memory."),
            divisor={**_QUANTITY, "description": "Unit of the value. Defaults to 1."},
        ),
    ),
) | rules(
    *_own_env_names,
    rule("!has(self.value) || !has(self.valueFrom)", "give either value or valueFrom, not both"),
)

_env_from: Final = _object(
    "All keys of a ConfigMap or Secret as environment variables.",
    prefix=_text("Prefix of each name."),
    configMapRef=_object("The ConfigMap.", ("name",), name=_from_key["name"], optional=_optional),
    secretRef=_object("The Secret.", ("name",), name=_from_key["name"], optional=_optional),
) | rules(
    rule("has(self.configMapRef) != has(self.secretRef)", "give exactly one of configMapRef and secretRef")
)

_volume: Final = _open(
    "A volume, as in a pod. hostPath is not allowed.",
    name=_text("Name of the volume.", 63),
    hostPath=_open("Not allowed: a worker must not access the node's files."),
) | rules(
    rule(
        "!has(self.hostPath)",
        "hostPath would give the worker access to the node's files: use a persistentVolumeClaim, emptyDir, configMap "
        "or another volume type",
    ),
    rule(
        f"!self.name.startsWith('{RESERVED_VOLUME_PREFIX}')",
        f"volume names that begin with {RESERVED_VOLUME_PREFIX} are reserved for the operator: choose another name",
        "name",
    ),
)

_volume_mount: Final = _open(
    "A volume mount, as in a container.",
    name=_text("Name of a volume.", 63),
    mountPath=_text("Path of the mount in the container.", 1024),
) | {
    "required": ["name", "mountPath"],
    **rules(
        rule(
            f"self.mountPath != '{BINDING_ROOT}' && !self.mountPath.startsWith('{BINDING_ROOT}/')",
            f"{BINDING_ROOT} holds the connection data of RabbitMQ: mount the volume elsewhere",
            "mountPath",
        )
    ),
}

# Rules for the restricted Pod Security Standard. An image that needs more permissions runs in the user's own
# Deployment, which spec.workloadRef scales.
_ADD: Final = "NET_BIND_SERVICE"
"""The only capability that the standard allows."""

_own_user: Final = {
    "runAsUser": {"type": "integer", "format": "int64", "description": "Numeric user ID. 0 is not allowed."},
    "runAsNonRoot": {"type": "boolean", "description": "false is not allowed."},
}

_confinement: Final = {
    name: _open("As in a pod. The type Unconfined is not allowed.", type=_text("Type of the profile.", 64))
    | rules(
        rule(
            "!has(self.type) || self.type != 'Unconfined'",
            f"a worker cannot be unconfined: remove {name}.type, or choose RuntimeDefault",
        )
    )
    for name in ("seccompProfile", "appArmorProfile")
}

_windows: Final = {
    "windowsOptions": _open(
        "As in a pod. hostProcess is not allowed.",
        hostProcess={"type": "boolean", "description": "true is not allowed."},
    )
    | rules(
        rule(
            "!has(self.hostProcess) || !self.hostProcess",
            "a worker cannot be a host process: remove windowsOptions.hostProcess",
        )
    )
}

_not_root: Final = rule(
    "(!has(self.runAsUser) || self.runAsUser != 0) && (!has(self.runAsNonRoot) || self.runAsNonRoot)",
    "a worker cannot run as root: remove runAsUser: 0 and runAsNonRoot: false, or scale your own Deployment with "
    "spec.workloadRef",
)

_security_context: Final = _open(
    "Security settings of a container, as in a pod, within the restricted Pod Security Standard.",
    privileged={"type": "boolean", "description": "true is not allowed."},
    allowPrivilegeEscalation={"type": "boolean", "description": "true is not allowed."},
    procMount={"type": "string", "enum": ["Default"], "description": "Only Default is allowed."},
    capabilities=_open(
        f"As in a pod. All capabilities are dropped. Only {_ADD} can be added.",
        add={
            "type": "array",
            "description": f"Capabilities to add: {_ADD} or none.",
            "maxItems": 1,
            "items": {"type": "string", "enum": [_ADD]},
            "x-kubernetes-list-type": "atomic",
        },
    ),
    **_own_user,
    **_confinement,
    **_windows,
) | rules(
    rule(
        "!has(self.privileged) || !self.privileged",
        "a worker cannot be privileged: remove securityContext.privileged",
    ),
    rule(
        "!has(self.allowPrivilegeEscalation) || !self.allowPrivilegeEscalation",
        "a worker cannot gain privileges: remove securityContext.allowPrivilegeEscalation",
    ),
    _not_root,
)

_pod_security_context: Final = _open(
    "Security settings of the pod, for example fsGroup, within the restricted Pod Security Standard.",
    **_own_user,
    **_confinement,
    **_windows,
) | rules(_not_root)

_host_port: Final = {
    "hostPort": {"type": "integer", "description": "Not allowed: it would use a port of the node."}
}
_no_host_port: Final = rules(rule("!has(self.hostPort)", "hostPort would use a port of the node: remove it"))

_sidecar: Final = _open(
    "A container that runs next to the worker, as in a pod, within the restricted Pod Security Standard. hostPort is "
    "not allowed.",
    name=_text("Name of the container.", 63),
    ports=_list(
        _open("A port, as in a container. hostPort is not allowed.", **_host_port) | _no_host_port, 20
    ),
    securityContext=_security_context,
) | rules(
    rule(
        f"!(self.name in ['{WORKER_CONTAINER}', '{HANDLER_CONTAINER}'])",
        f"the names {WORKER_CONTAINER} and {HANDLER_CONTAINER} are reserved for the operator: choose another name",
        "name",
    )
)

_own_keys_only: Final = rules(
    rule(
        f"self.all(key, !key.startsWith('{GROUP}/'))",
        f"keys that begin with {GROUP}/ are reserved for the operator: remove them",
    )
)

_of_operator: Final = {
    WORKER_CONTAINER: ("image", "command", "args", "ports", "readinessProbe", "livenessProbe"),
    HANDLER_CONTAINER: ("image", "command", "args", "ports", "restartPolicy"),
}
"""Fields of its containers that the operator decides. A template cannot change them."""

_template_container: Final = _open(
    "A container, as in a pod. worker, and handler of an http handler, are the operator's containers. Any other name "
    "adds one.",
    name=_text("Name of the container.", 63),
    image=_text("Image of the container.", 1000),
    command=_words("Command of the container."),
    args=_words("Arguments of the command."),
    env=_list(_any_env_var, 100, "name") | {"description": "Environment variables."},
    ports=_list(
        _open("A port, as in a container. hostPort is not allowed.", **_host_port) | _no_host_port, 20
    ),
    volumeMounts=_list(_volume_mount, 50, "mountPath"),
    securityContext=_security_context,
    readinessProbe=_open("As in a container."),
    livenessProbe=_open("As in a container."),
    restartPolicy=_text("Always makes an init container a sidecar.", 20),
) | rules(
    *(
        rule(
            f"self.name != '{name}' || !({' || '.join(f'has(self.{field})' for field in fields)})",
            f"the operator decides {', '.join(fields)} of the container {name}: leave them out",
        )
        for name, fields in _of_operator.items()
    )
)

_FIXED_SCHEMAS: Final[dict[str, JsonSchema]] = {
    "hostNetwork": {"type": "boolean"},
    "hostPID": {"type": "boolean"},
    "hostIPC": {"type": "boolean"},
    "restartPolicy": {"type": "string", "maxLength": 20},
    "shareProcessNamespace": {"type": "boolean"},
    "terminationGracePeriodSeconds": {"type": "integer"},
    "activeDeadlineSeconds": {"type": "integer"},
    "ephemeralContainers": {
        "type": "array",
        "maxItems": 1,
        "items": _open("A container."),
        "x-kubernetes-list-type": "atomic",
    },
}

_FIXED: Final = {
    "hostNetwork": "it would give the worker the network of its node",
    "hostPID": "it would give the worker the processes of its node",
    "hostIPC": "it would give the worker the IPC of its node",
    "restartPolicy": "a Deployment always restarts its containers",
    "shareProcessNamespace": "the worker must not be process 1",
    "terminationGracePeriodSeconds": "it follows worker.timeoutSeconds",
    "activeDeadlineSeconds": "a Deployment has none",
    "ephemeralContainers": "only kubectl debug adds them",
}
"""Fields of a pod that a template cannot change, and why."""

_template: Final = _object(
    "Everything else of the pods.",
    metadata=_object(
        "Labels and annotations.",
        labels=_map({"type": "string", "maxLength": 63}, 50) | _own_keys_only | {"description": "Labels."},
        annotations=_map({"type": "string", "maxLength": 16384}, 50)
        | _own_keys_only
        | {"description": "Annotations."},
    ),
    spec=_open(
        "The specification, as in a pod. The API server checks it when the operator applies the Deployment.",
        containers=_list(_template_container, 10, "name"),
        initContainers=_list(_template_container, 10, "name"),
        volumes=_list(_volume, 50, "name"),
        securityContext=_pod_security_context,
        **{
            name: {**_FIXED_SCHEMAS[name], "description": f"Not allowed: {why}."}
            for name, why in _FIXED.items()
        },
    )
    | rules(*(rule(f"!has(self.{name})", f"{why}: leave {name} out", name) for name, why in _FIXED.items())),
)

EnvVars: TypeAlias = Annotated[tuple[JsonObject, ...], WithJsonSchema(_list(_env_var, 200, "name"))]
EnvFrom: TypeAlias = Annotated[tuple[JsonObject, ...], WithJsonSchema(_list(_env_from, 50))]
Resources: TypeAlias = Annotated[
    JsonObject,
    WithJsonSchema(
        _object(
            "Compute resources of the container.",
            limits=_quantities("Maximum that the container may use."),
            requests=_quantities("Amount that the scheduler reserves."),
        )
    ),
]
Volumes: TypeAlias = Annotated[tuple[JsonObject, ...], WithJsonSchema(_list(_volume, 50, "name"))]
VolumeMounts: TypeAlias = Annotated[
    tuple[JsonObject, ...], WithJsonSchema(_list(_volume_mount, 50, "mountPath"))
]
Sidecars: TypeAlias = Annotated[tuple[JsonObject, ...], WithJsonSchema(_list(_sidecar, 10, "name"))]
PullSecrets: TypeAlias = Annotated[
    tuple[JsonObject, ...],
    WithJsonSchema(
        _list(_object("A Secret with registry credentials.", name=_text("Name of the Secret.")), 20, "name")
    ),
]
NodeSelector: TypeAlias = Annotated[
    dict[str, str], WithJsonSchema(_map({"type": "string", "maxLength": 63}, 50))
]
Tolerations: TypeAlias = Annotated[
    tuple[JsonObject, ...], WithJsonSchema(_list(_open("A toleration, as in a pod."), 50))
]
Affinity: TypeAlias = Annotated[JsonObject, WithJsonSchema(_open("Affinity, as in a pod."))]
SpreadConstraints: TypeAlias = Annotated[
    tuple[JsonObject, ...], WithJsonSchema(_list(_open("A topology spread constraint, as in a pod."), 10))
]
Labels: TypeAlias = Annotated[
    dict[str, str], WithJsonSchema(_map({"type": "string", "maxLength": 63}, 50) | _own_keys_only)
]
Annotations: TypeAlias = Annotated[
    dict[str, str], WithJsonSchema(_map({"type": "string", "maxLength": 16384}, 50) | _own_keys_only)
]
SecurityContext: TypeAlias = Annotated[JsonObject, WithJsonSchema(_security_context)]
PodSecurityContext: TypeAlias = Annotated[JsonObject, WithJsonSchema(_pod_security_context)]
Template: TypeAlias = Annotated[JsonObject, WithJsonSchema(_template)]
Words: TypeAlias = Annotated[tuple[str, ...], WithJsonSchema(_words(""))]
