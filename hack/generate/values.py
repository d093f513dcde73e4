"""Read a chart's values.yaml: each value with the comment above it.

`hack.generate` makes the chart's values.schema.json, files/defaults.json and the table in its README from them.

A value is a leaf (a scalar, a list, an empty map, or a map whose `@schema` names a type) or a group of values. The
comment lines above a key are its description. A line `@schema {...}` extends its JSON schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

MARK: Final = "@schema "
_TYPES: Final = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Value:
    """One key of values.yaml.

    Attributes:
        path: the keys from the top to this one.
        default: the default value.
        description: the comment; empty for a group.
        extra: the extension of its JSON schema.
        group: the values below; empty for a leaf.
    """

    path: tuple[str, ...]
    default: Any
    description: str
    extra: dict[str, Any]
    group: tuple[Value, ...] = ()

    @property
    def name(self) -> str:
        """Return the name in the notation of `helm --set`."""
        return ".".join(self.path)

    def leaves(self) -> Iterator[Value]:
        """Yield this value if it is a leaf, otherwise all leaves below it."""
        if not self.group:
            yield self
        for value in self.group:
            yield from value.leaves()


def read(text: str) -> tuple[Value, ...]:
    """Return the values of a values.yaml.

    Raises:
        TypeError: the text is not a map.
        ValueError: a leaf has no description.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError("values.yaml is not a map")
    return _group(root, (), text.splitlines(), yaml.safe_load(text))


def schema(values: tuple[Value, ...]) -> dict[str, Any]:
    """Return the JSON schema of a chart's values. It refuses unknown values, so that typos are found.

    Only `global` may have more: the charts of an umbrella chart share it.
    """
    top = _object(values)
    top["properties"]["global"]["additionalProperties"] = True
    return {"$schema": "http://json-schema.org/draft-07/schema#", **top}


def defaults(values: tuple[Value, ...]) -> dict[str, Any]:
    """Return all defaults, and those of groups and scalars only. A list or a free map may be null, which is empty."""
    return {"all": {value.path[-1]: value.default for value in values}, "never null": _never_null(values)}


def _never_null(values: tuple[Value, ...]) -> dict[str, Any]:
    return {
        value.path[-1]: _never_null(value.group) if value.group else value.default
        for value in values
        if value.group or isinstance(value.default, (bool, int, float, str))
    }


def table(values: tuple[Value, ...]) -> str:
    """Return the values as a Markdown table."""
    rows = ["| Value | Default | Description |", "|---|---|---|"]
    for value in (leaf for top in values for leaf in top.leaves()):
        default = json.dumps(value.default).replace("|", "\\|")
        rows.append(f"| `{value.name}` | `{default}` | {value.description.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def _group(
    node: yaml.MappingNode, path: tuple[str, ...], lines: list[str], defaults: dict[str, Any]
) -> tuple[Value, ...]:
    made = []
    for key, below in node.value:
        here = (*path, key.value)
        description, extra = _comment(lines, key.start_mark.line)
        default = defaults[key.value]
        group: tuple[Value, ...] = ()
        if isinstance(below, yaml.MappingNode) and below.value and "type" not in extra:
            group = _group(below, here, lines, default)
        elif not description:
            raise ValueError(
                f"values.yaml: {'.'.join(here)} has no comment above it. Describe the value there."
            )
        made.append(Value(here, default, description, extra, group))
    return tuple(made)


def _comment(lines: list[str], at: int) -> tuple[str, dict[str, Any]]:
    text: list[str] = []
    extra: dict[str, Any] = {}
    first = at
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    for line in lines[first:at]:
        comment = line.strip().removeprefix("#").strip()
        if comment.startswith(MARK):
            extra.update(yaml.safe_load(comment.removeprefix(MARK)))
        else:
            text.append(comment)
    return " ".join(text), extra


def _object(values: tuple[Value, ...]) -> dict[str, Any]:
    properties = {value.path[-1]: _schema(value) for value in values}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema(value: Value) -> dict[str, Any]:
    if value.group:
        return _object(value.group)
    return {
        "type": _TYPES[type(value.default)],
        "description": value.description,
        "default": value.default,
        **value.extra,
    }
