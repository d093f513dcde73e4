"""Generate the CustomResourceDefinition from the model: `python -m workqueue_operator.api.crd` prints it.

The JSON schema from pydantic is converted to the structural form that Kubernetes accepts: no references, no `null`
branches, no titles. The running operator does not use this module.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import yaml

from workqueue_operator import names
from workqueue_operator.api import workqueue
from workqueue_operator.api.cel import VALIDATIONS, JsonSchema
from workqueue_operator.api.reasons import ADVICE, ConditionType, Reason
from workqueue_operator.api.workqueue import NEVER, WorkQueue, timestamp

HEADER: Final = (
    "# Generated from operator/workqueue_operator/api/workqueue.py by "
    "`python -m hack.generate`: do not edit.\n"
)

_DROPPED: Final = frozenset({"title", "$defs"})
_INT32: Final = 2**31 - 1


def crd() -> JsonSchema:
    """Return the whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema()},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": _printer_columns(),
                }
            ],
        },
    }


def schema() -> JsonSchema:
    """Return the structural OpenAPI schema of a WorkQueue."""
    written = WorkQueue.model_json_schema(by_alias=True)
    _describe(written)
    lowered = _lower(written, written["$defs"])
    properties = lowered["properties"]
    return {
        **lowered,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{names.API_VERSION}."},
            "kind": {"type": "string", "description": f"{names.KIND}."},
            "metadata": {"type": "object"},
            "spec": properties["spec"],
            "status": {**properties["status"], "default": _not_looked_at()},
        },
    }


def _describe(written: JsonSchema) -> None:
    """Add the docstrings of the fields. pydantic would parse the source for them at each start of the operator."""
    definitions = {**written["$defs"], WorkQueue.__name__: written}
    for made in ast.parse(inspect.getsource(workqueue)).body:
        if not isinstance(made, ast.ClassDef) or made.name not in definitions:
            continue
        for field, text in pairwise(made.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    alias = getattr(workqueue, made.name).model_fields[name].alias
                    definitions[made.name]["properties"][alias]["description"] = inspect.cleandoc(said)


def _not_looked_at() -> JsonSchema:
    """Return the status of a WorkQueue that no operator has reconciled yet.

    Without a condition, kstatus (and Flux, which uses it) would report a new WorkQueue as ready immediately.
    """
    condition = {
        "type": ConditionType.READY.value,
        "status": "Unknown",
        "reason": Reason.AWAITING_OPERATOR.value,
        "message": ADVICE[Reason.AWAITING_OPERATOR],
        "lastTransitionTime": timestamp(NEVER),
    }
    return {"conditions": [condition]}


def text() -> str:
    """Return the CustomResourceDefinition as YAML."""
    return HEADER + to_yaml(crd())


def to_yaml(document: Mapping[str, Any]) -> str:
    """Return plain YAML in the given order, without anchors."""
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class names it
        return True


def _lower(node: JsonSchema, definitions: Mapping[str, JsonSchema]) -> JsonSchema:
    """Convert one schema and its subschemas. Keeps the rules of a referenced type and of the field."""
    node = _flat(node, definitions)
    lowered: JsonSchema = {}
    for key, value in node.items():
        if key in _DROPPED or (key == "default" and value in (None, [])):
            continue
        if key == "properties":
            lowered[key] = {name: _lower(part, definitions) for name, part in value.items()}
        elif key in {"items", "additionalProperties"}:
            lowered[key] = _lower(value, definitions)
        elif key == VALIDATIONS:
            lowered[key] = [_in_order(rule, ("rule", "message", "fieldPath")) for rule in value]
        elif key == "description":
            lowered[key] = " ".join(value.split())
        else:
            lowered[key] = value
    if lowered.get("default") == {}:
        # The API server validates a default before it fills in the nested defaults.
        parts = lowered["properties"].items()
        lowered["default"] = {name: part["default"] for name, part in parts if "default" in part}
    if lowered.get("type") == "integer":
        lowered["format"] = "int32" if lowered.get("maximum", _INT32 + 1) <= _INT32 else "int64"
    return _in_order(lowered, ("type", "description", "default"), (VALIDATIONS, "required", "properties"))


def _flat(node: JsonSchema, definitions: Mapping[str, JsonSchema]) -> JsonSchema:
    """Return the node with its reference, or its single non-null branch, inlined."""
    while True:
        branches = [branch for branch in node.get("anyOf", ()) if branch != {"type": "null"}]
        if "$ref" in node:
            inner = definitions[node["$ref"].rsplit("/", 1)[1]]
        elif len(branches) == 1:
            inner = branches[0]
        else:
            return node
        outer = {key: value for key, value in node.items() if key not in {"$ref", "anyOf"}}
        stated = [*inner.get(VALIDATIONS, ()), *outer.get(VALIDATIONS, ())]
        node = {**inner, **outer, **({VALIDATIONS: stated} if stated else {})}


def _in_order(node: JsonSchema, first: tuple[str, ...], last: tuple[str, ...] = ()) -> JsonSchema:
    """Return the node with the keys in `first` first and the keys in `last` last, for readers."""
    middle = [key for key in node if key not in first and key not in last]
    return {key: node[key] for key in (*first, *middle, *last) if key in node}


def _printer_columns() -> list[JsonSchema]:
    def column(name: str, kind: str, path: str, description: str, *, wide: bool = False) -> JsonSchema:
        made: JsonSchema = {"name": name, "type": kind, "jsonPath": path, "description": description}
        return {**made, "priority": 1} if wide else made

    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        column("Ready", "string", f"{ready}.status", "The status of the condition Ready."),
        column("Messages", "integer", ".status.messages", "Messages waiting in the queue."),
        column("Workers", "integer", ".status.readyReplicas", "Pods that are Ready."),
        column("Desired", "integer", ".status.desiredReplicas", "Replica count that the operator set."),
        column("Busy", "integer", ".status.busyReplicas", "Pods with a message in the handler."),
        column("Dead", "integer", ".status.deadLetters", "Messages in the dead-letter queue."),
        column(
            "Retrying", "integer", ".status.retrying", "Messages waiting for their next attempt.", wide=True
        ),
        column("Queue", "string", ".status.queueName", "The queue in RabbitMQ.", wide=True),
        column("Type", "string", ".spec.queue.type", "Quorum or Classic.", wide=True),
        column("Reason", "string", f"{ready}.reason", "The reason of the condition Ready.", wide=True),
        column("Age", "date", ".metadata.creationTimestamp", "Time since creation."),
    ]


def main() -> None:
    """Print the CustomResourceDefinition."""
    sys.stdout.write(text())


if __name__ == "__main__":
    main()
