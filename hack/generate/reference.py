"""Generate docs/reference.md, every field of a WorkQueue, from its definition."""

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

All fields of a WorkQueue (`apiVersion: {names.API_VERSION}`, `kind: {names.KIND}`). `kubectl explain
{names.SHORT_NAME}.spec` shows the same in a terminal. The operator copies fields that are marked *as in a pod*
unchanged to the worker pods.
"""

_BOUNDS: Final = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} entries",
}


def page() -> str:
    """Return the page as Markdown."""
    schema = crd.schema()
    sections = [
        _section(path, node)
        for part in ("spec", "status")
        for path, node in _objects(part, schema["properties"][part])
    ]
    return "\n".join([_HEAD, *sections])


def _objects(path: str, node: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield every object with fields of its own, from the top down."""
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
            "The API server refuses a WorkQueue that breaks one of these rules, with this message:",
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
    sentences = [str(field.get("description", ""))]
    if "enum" in field:
        sentences.append(f"One of {', '.join(f'`{value}`' for value in field['enum'])}.")
    bounds = [text.format(f"{field[key]:,}") for key, text in _BOUNDS.items() if key in field]
    if bounds:
        sentences.append(f"{_sentence(', '.join(bounds))}.")
    if "properties" not in field:
        sentences += [f"{_sentence(rule['message'])}." for rule in field.get(VALIDATIONS, ())]
    return " ".join(part for part in sentences if part)


def _sentence(text: str) -> str:
    """Return the text with a capital first letter. Unlike `str.capitalize`, keep the case of the rest."""
    return f"{text[:1].upper()}{text[1:]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
