"""The page docs/reference.md: every field of a WorkQueue, made from the definition.

Place in the flow: `hack.generate` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from workqueue_operator import names
from workqueue_operator.api import crd
from workqueue_operator.api.cel import VALIDATIONS

Schema = dict[str, Any]

_HEAD: Final = f"""\
<!-- Generated from operator/workqueue_operator/api/workqueue.py by `python -m hack.generate`: do not edit. -->

# The WorkQueue resource

`apiVersion: {names.API_VERSION}`, `kind: {names.KIND}`; `kubectl explain {names.SHORT_NAME}.spec` shows the
same in a terminal. Fields that Kubernetes knows from pods are marked *as in a pod* and are passed on as they are.
"""

_BOUNDS: Final = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} entries",
}


def page() -> str:
    """The whole page as Markdown."""
    schema = crd.schema()
    sections = [
        _section(path, node)
        for part in ("spec", "status")
        for path, node in _objects(part, schema["properties"][part])
    ]
    return "\n".join([_HEAD, *sections])


def _objects(path: str, node: Schema) -> Iterator[tuple[str, Schema]]:
    """Every object that has fields of its own, from the top down."""
    if "properties" not in node:
        return
    yield path, node
    for name, below in node["properties"].items():
        inner = below.get("items", below)
        suffix = "[]" if "items" in below else ""
        yield from _objects(f"{path}.{name}{suffix}", inner)


def _section(path: str, node: Schema) -> str:
    lines = [
        f"## {path}",
        "",
        node["description"],
        "",
        "| Field | Type | Default | Description |",
        "|---|---|---|---|",
    ]
    required = node.get("required", ())
    for name, field in node["properties"].items():
        default = "**required**" if name in required else _default(field)
        lines.append(f"| `{name}` | {_type(field)} | {default} | {_cell(_describe(field))} |")
    rules = [rule["message"] for rule in node.get(VALIDATIONS, ())]
    if rules:
        lines += [
            "",
            "Refused, with the sentence that comes back:",
            "",
            *(f"- {message}" for message in rules),
        ]
    return "\n".join(lines) + "\n"


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "items" in field:
        return f"list of {_type(field['items'])}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"map to {_type(field['additionalProperties'])}"
    return str(field["type"])


def _default(field: Schema) -> str:
    default = field.get("default")
    return "" if default is None or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _describe(field: Schema) -> str:
    said = [str(field.get("description", ""))]
    if "enum" in field:
        said.append(f"One of {', '.join(f'`{value}`' for value in field['enum'])}.")
    bounds = [text.format(f"{field[key]:,}") for key, text in _BOUNDS.items() if key in field]
    if bounds:
        said.append(f"{_sentence(', '.join(bounds))}.")
    if "properties" not in field:
        said += [f"{_sentence(rule['message'])}." for rule in field.get(VALIDATIONS, ())]
    return " ".join(part for part in said if part)


def _sentence(text: str) -> str:
    """Return the text with a capital first letter. Unlike `str.capitalize`, keep the case of the rest."""
    return f"{text[:1].upper()}{text[1:]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
