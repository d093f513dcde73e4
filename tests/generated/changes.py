"""Changes of a WorkQueue's spec, drawn from the schema of the CRD: JSON merge patches. Most are valid.

Strings with a meaning come from `EXAMPLES`, because no schema says which image or time zone exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.support.kubernetes import CHECKOUT
from tests.support.objects import Object

CRD: Final = CHECKOUT / "manifests/crd/workqueues.yaml"

MOST_PLAIN: Final = 3
"""Replicas: each pod is an object with a place in etcd, and a controller makes it."""


class Examples(NamedTuple):
    """Values of a field that the API server takes, and values that it refuses or that no Deployment can have."""

    good: Sequence[Any]
    bad: Sequence[Any] = ()


_NAME: Final = Examples(["a", "b-1"], ["A b", "", "x" * 254])
_QUANTITIES: Final = Examples(["1", 2, "500m", "64Mi"], ["-1", "1 GB"])
_CRON: Final = Examples(["0 8 * * *", "0 18 * * 1-5", "* * * * *"], ["61 * * * *", "@daily"])
_LABELS: Final = Examples(
    [{"a": "b"}, {"example.com/c": "d", "e": ""}], [{"workqueue.dev/x": "y"}, {"A b": "c"}]
)

EXAMPLES: Final[dict[str, Examples]] = {
    "connectionSecretRef.name": Examples(["rabbitmq", "other", "missing"], ["A b"]),
    "workloadRef.name": Examples(["mine", "missing"], ["A b"]),
    "spec.replicas": Examples(range(MOST_PLAIN + 1), [-1, 1001, 1.5, "2"]),
    "minReplicas": Examples(range(MOST_PLAIN + 1), [-1, 1001]),
    "scaleInDelaySeconds": Examples([0, 1], [-1, 86_401]),
    "queue.name": Examples(["jobs", "images"], ["amq.x", "ü" * 16]),
    "queue.exchange.name": Examples(["uploads", "events", "ü"], ["amq.topic", "ü" * 16]),
    "queue.bindings.exchange": Examples(["amq.topic", "amq.headers", "events", "missing"], [""]),
    "routingKeys[]": Examples(["jobs", "a.*.#", "", "ü"], ["x" * 256]),
    "routingKey": Examples(["jobs", "a.*.#", ""], ["x" * 256]),
    "bindings.arguments": Examples(
        [{}, {"x-match": "any", "a": 1}, {"a": "b"}], [{"a": True}, {"x-match": "b"}]
    ),
    "deadLetterQueue": Examples(["failed", "missing"], ["", "jobs"]),
    "image": Examples(["jobs:1", "jobs:2"], ["a b", ""]),
    "python": Examples(["jobs:handle", "jobs.mail:Mailer.send"], ["jobs"]),
    "path": Examples(["/jobs", "/"], ["jobs"]),
    "maxMemory": Examples(["500Mi", "1000000"], ["0", "1 GB"]),
    "start": _CRON,
    "end": _CRON,
    "timeZone": Examples(["Etc/UTC", "Europe/Berlin"], ["Mars/Base", "Local"]),
    "maxUnavailable": Examples([1, 3, "50%", "100%"], [0, "0%", "all"]),
    "limits": Examples([{"cpu": 1}, {"memory": "64Mi"}], [{"cpu": "-1"}, {"A b": 1}]),
    "requests": Examples([{"cpu": "100m"}, {"memory": "64Mi"}], [{"cpu": "3"}, {"memory": "1 GB"}]),
    "divisor": _QUANTITIES,
    "worker.env": Examples(
        [
            [{"name": "A", "value": "1"}],
            [{"name": "B", "value": "$(A)"}, {"name": "A", "value": "{{ü}}"}],
            [{"name": "TMPDIR", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        ],
        [[{"name": "WORKQUEUE_QUEUE", "value": "x"}], [{"name": "A b"}], [{"name": "A"}, {"name": "A"}]],
    ),
    "fieldPath": Examples(["metadata.name", "status.podIP"], ["nothing"]),
    "resource": Examples(["limits.memory", "requests.cpu"], ["nothing"]),
    "volumes": Examples(
        [
            [{"name": "data", "emptyDir": {}}],
            [{"name": "data", "configMap": {"name": "a"}}],
            [
                {"name": "data", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "more", "secret": {"secretName": "a"}},
            ],
        ],
        [
            [{"name": "data", "hostPath": {"path": "/"}}],
            [{"name": "data"}],
            [{"name": "A b", "emptyDir": {}}],
            [{"name": "data", "emptyDir": {}, "configMap": {"name": "a"}}],
            [{"name": "data", "nothing": {}}],
            [{"name": "workqueue-tmp", "emptyDir": {}}],
        ],
    ),
    "volumeMounts": Examples(
        [[{"name": "data", "mountPath": "/data"}], [{"name": "workqueue-tmp", "mountPath": "/cache"}]],
        [[{"name": "none", "mountPath": "/data"}], [{"name": "data", "mountPath": "/bindings/x"}]],
    ),
    "worker.containers": Examples(
        [
            [{"name": "side", "image": "side:1"}],
            [
                {"name": "side", "image": "side:2", "ports": [{"containerPort": 80}]},
                {"name": "b", "image": "b:1"},
            ],
        ],
        [
            [{"name": "worker", "image": "side:1"}],
            [{"name": "side"}],
            [{"name": "side", "image": "side:1", "ports": [{"containerPort": "many"}]}],
            [{"name": "side", "image": "side:1", "securityContext": {"privileged": True}}],
        ],
    ),
    "serviceAccountName": Examples(["a", "b.c"], ["A b"]),
    "priorityClassName": Examples(["system-node-critical", "missing"], ["A b"]),
    "nodeSelector": _LABELS,
    "podLabels": _LABELS,
    "podAnnotations": Examples(
        [{"a": "b"}, {"example.com/c": "ü {{}}"}], [{"workqueue.dev/x": "y"}, {"A b": "c"}]
    ),
    "metadata.labels": _LABELS,
    "metadata.annotations": Examples([{"a": "b"}, {"example.com/c": "ü"}], [{"workqueue.dev/x": "y"}]),
    "tolerations": Examples(
        [[{"operator": "Exists"}], [{"key": "a", "value": "b", "effect": "NoSchedule"}]],
        [[{"operator": "Nonsense"}], [{"tolerationSeconds": "long"}], [{"nothing": 1}]],
    ),
    "affinity": Examples(
        [{}, {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}],
        [{"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}, {"nothing": 1}],
    ),
    "topologySpreadConstraints": Examples(
        [[{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]],
        [[{"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}], [{}]],
    ),
    "worker.securityContext": Examples(
        [
            {},
            {"readOnlyRootFilesystem": False},
            {"runAsUser": 1000},
            {"capabilities": {"add": ["NET_BIND_SERVICE"]}},
        ],
        [{"privileged": True}, {"runAsUser": 0}, {"runAsUser": -5}, {"nothing": 1}, {"runAsGroup": "many"}],
    ),
    "worker.podSecurityContext": Examples(
        [
            {},
            {"fsGroup": 5},
            {"runAsUser": 1000},
            {"seccompProfile": {"type": "Localhost", "localhostProfile": "a"}},
        ],
        [{"runAsNonRoot": False}, {"seccompProfile": {"type": "Localhost"}}, {"fsGroup": "many"}],
    ),
    "template.spec": Examples(
        [
            {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"]}},
            {"containers": [{"name": "worker", "terminationMessagePolicy": "FallbackToLogsOnError"}]},
            {
                "containers": [
                    {"name": "worker", "env": [{"name": "A", "value": "2"}]},
                    {"name": "c", "image": "c:1"},
                ]
            },
            {"volumes": [{"name": "workqueue-tmp", "emptyDir": {"medium": "Memory"}}]},
            {"runtimeClassName": "kata", "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}]},
        ],
        [
            {"dnsPolicy": "Nonsense"},
            {"nothing": 1},
            {"tolerations": "all"},
            {"hostNetwork": True},
            {"containers": [{"name": "worker", "image": "other:1"}]},
            {"containers": [{"name": "c"}]},
            {"hostAliases": [{}]},
            {"hostAliases": "none"},
        ],
    ),
    "name": _NAME,
    "key": Examples(["a", "b.c"], ["A b", ""]),
}
"""By the end of a field's path. The longest end that fits counts."""

_EXEC: Final[Object] = {"python": None, "http": None, "exec": {"command": ["./resize", "--fast"]}}
_HTTP: Final[Object] = {"python": None, "exec": None, "http": {"image": "web:1"}}
_OWN: Final[Object] = {"image": "jobs:1", "handler": {"python": "jobs:handle"}}

TOGETHER: Final[Sequence[Object]] = (
    {"worker": {"handler": _EXEC}},
    {"worker": {"handler": _HTTP}},
    {"worker": {"handler": _HTTP, "image": None}},
    {"worker": None, "workloadRef": {"name": "mine"}},
    {"worker": _OWN, "workloadRef": None},
    {"worker": {"isolation": "Process", "recycle": {"maxMessages": 10}}},
    {"queue": {"singleActiveConsumer": True}, "scaling": {"minReplicas": 1}, "worker": {"concurrency": 1}},
    {"queue": {"declare": False, "exchange": None, "bindings": None, "deletionPolicy": "Retain"}},
    {"queue": {"declare": True}},
    {"queue": {"exchange": {"name": "uploads", "type": "Topic", "routingKeys": ["a.*"]}}},
    {
        "queue": {
            "exchange": {"name": "uploads", "type": "Headers", "routingKeys": None},
            "bindings": [{"exchange": "uploads", "arguments": {"a": 1}}],
        }
    },
    {"scaling": {"minReplicas": 2, "maxReplicas": 3}},
    {"scaling": {"messagesPerReplica": None, "targetDrainSeconds": 60}},
    {"scaling": {"messagesPerReplica": None, "maxWaitSeconds": 30}},
    {"retry": {"delaysSeconds": None, "backoff": {"jitter": "Full"}}},
    {"retry": {"delaysSeconds": [1, 5], "backoff": None}},
    {
        "worker": {
            "volumes": [{"name": "data", "emptyDir": {}}],
            "volumeMounts": [{"name": "data", "mountPath": "/d"}],
        }
    },
)
"""Changes of several fields that the CRD admits only together."""

_ONE_IN: Final = 8
"""Of so many values one is bad."""


def schema() -> Object:
    """Return the schema of the spec."""
    crd = yaml.load(CRD.read_text(), yaml.CSafeLoader)
    version: Object = crd["spec"]["versions"][0]
    spec: Object = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def paths(part: Object | None = None, path: str = "spec") -> Iterator[str]:
    """Return the paths of all fields. A list of objects has that of its entries; entries of other lists end in []."""
    part = part or schema()
    yield path
    for name, one in part.get("properties", {}).items():
        yield from paths(one, f"{path}.{name}")
    if part.get("type") == "array":
        yield from paths(part["items"], _of_items(part, path))


def _of_items(part: Object, path: str) -> str:
    return path if "properties" in part["items"] else f"{path}[]"


def changes() -> SearchStrategy[Object]:
    """Merge patches for a spec: one field at any depth, or a few that belong together."""
    return st.integers(1, 4).flatmap(
        lambda number: st.sampled_from(TOGETHER) if number == 1 else _inside(schema(), "spec")
    )


def _inside(part: Object, path: str) -> SearchStrategy[Object]:
    """Patches that change one field of an object."""
    fields: dict[str, Object] = part["properties"]
    return st.sampled_from(sorted(fields)).flatmap(
        lambda name: _field(fields[name], f"{path}.{name}").map(lambda value: {name: value})
    )


def _field(part: Object, path: str) -> SearchStrategy[Any]:
    options = [_value(part, path), st.none()]
    if "properties" in part:
        options = [_inside(part, path), *options]
    return st.one_of(options)


def _value(part: Object, path: str) -> SearchStrategy[Any]:
    good, bad = _good(part, path), _bad(part, path)
    return st.integers(1, _ONE_IN).flatmap(lambda number: bad if number == _ONE_IN else good)


def _examples(path: str) -> Examples | None:
    ends = [end for end in EXAMPLES if path.endswith(f".{end}") or path == end]
    return EXAMPLES[max(ends, key=len)] if ends else None


def _good(part: Object, path: str) -> SearchStrategy[Any]:
    examples = _examples(path)
    if part.get("type") == "array":
        lists = st.lists(
            _value(part["items"], _of_items(part, path)), min_size=part.get("minItems", 0), max_size=2
        )
        return lists if examples is None else st.one_of(st.sampled_from(examples.good), lists)
    if examples is not None:
        return st.sampled_from(examples.good)
    match part.get("type"):
        case "boolean":
            return st.booleans()
        case "integer":
            lowest, highest = part.get("minimum", 0), part.get("maximum", 2**31)
            return st.sampled_from([lowest, lowest + 1, part.get("default", lowest), highest])
        case "object":
            return _object(part, path)
        case _:
            return st.sampled_from(part.get("enum") or _texts(part))


def _texts(part: Object) -> list[str]:
    texts = ["a", "b c", "ü{{}}$(A)", "x" * part.get("maxLength", 1000), ""]
    return [text for text in texts if len(text) >= part.get("minLength", 0)]


def _object(part: Object, path: str) -> SearchStrategy[Object]:
    if "properties" not in part:
        return st.dictionaries(st.sampled_from(["a", "b"]), _good(part.get("additionalProperties", {}), path))
    fields = {name: _value(one, f"{path}.{name}") for name, one in part["properties"].items()}
    required = {name: fields.pop(name) for name in part.get("required", ())}
    few = st.lists(st.sampled_from(sorted(fields)), max_size=2, unique=True) if fields else st.just([])
    return few.flatmap(
        lambda names: st.fixed_dictionaries({**required, **{name: fields[name] for name in names}})
    )


def _bad(part: Object, path: str) -> SearchStrategy[Any]:
    if (examples := _examples(path)) is not None and examples.bad:
        return st.sampled_from(examples.bad)
    match part.get("type"):
        case "boolean":
            return st.just("yes")
        case "integer":
            return st.sampled_from([part.get("minimum", 0) - 1, part.get("maximum", 2**31) + 1, "many", 1.5])
        case "array":
            return st.sampled_from(["none", [None], [{}] * (part.get("maxItems", 100) + 1)])
        case "object":
            return st.sampled_from(["none", [], {"nothing": 1}])
        case _:
            return st.sampled_from(["x" * (part.get("maxLength", 1000) + 1), "Nonsense", 1, True])
