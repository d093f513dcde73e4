"""Specs with one field that is wrong, or only just right: made from the schema of the definition, for each field."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from workqueue_operator.api import crd

Schema = dict[str, Any]
Path = tuple[str, ...]
"""Names of fields; `[]` is an item of a list, `{}` a value of a map."""

BASE: Final[dict[str, Any]] = {
    "connectionSecretRef": {"name": "rabbitmq"},
    "worker": {"image": "nothing:1", "handler": {"python": "a:b"}},
}

RIVALS: Final = {
    ("workloadRef",): ("worker",),
    ("worker", "handler", "exec"): ("python",),
    ("worker", "handler", "http"): ("python",),
    ("worker", "envFrom", "[]", "secretRef"): ("configMapRef",),
}
"""What must go when a field comes, since only one of them may be given."""

SAMPLES: Final[dict[Path, dict[str, Any]]] = {
    ("scaling", "schedules", "[]"): {"start": "0 8 * * *", "end": "0 18 * * *", "minReplicas": 1},
    ("worker", "envFrom", "[]"): {"configMapRef": {"name": "1"}},
    ("worker", "handler"): {"python": "a:b"},
}
"""Valid values where the schema has rules beside its types."""

WRONG_TYPES: Final[dict[str, tuple[Any, ...]]] = {
    "string": (7, True, {"a": 1}, ["a"]),
    "integer": ("seven", 1.5, True, [1]),
    "boolean": ("yes", 1),
    "array": ("a", {"a": 1}, 7),
    "object": ("a", ["a"], 7),
}
STRANGE: Final = ("", " ", "ü€😀", "a\u202eb", "a\nb", "a\x00b", "../../etc/passwd", "$(id)", "{{ .Values }}")
HUGE: Final = (-1, 2**31, 2**63 - 1, 2**63)

NOTHING: Final = object()


@dataclass(frozen=True)
class Case:
    """One spec.

    Attributes:
        title: the field, and what is the matter with it.
        field: the name by which a person would look for it.
    """

    title: str
    field: str
    spec: dict[str, Any]


def cases() -> Iterator[Case]:
    """Every field with every kind of mistake."""
    spec = crd.schema()["properties"]["spec"]
    for path, schema in _fields(spec):
        named = [name for name in path if name not in {"[]", "{}"}]
        where = ".".join(("spec", *path)).replace(".[]", "[]").replace(".{}", "{}")
        for what, value in _values(schema, path):
            if (made := _planted(spec, path, value)) is not None:
                yield Case(f"{where}: {what}", named[-1], made)


def _fields(schema: Schema, path: Path = ()) -> Iterator[tuple[Path, Schema]]:
    if path:
        yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from _fields(part, (*path, name))
    if "items" in schema:
        yield from _fields(schema["items"], (*path, "[]"))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _fields(schema["additionalProperties"], (*path, "{}"))


def _values(schema: Schema, path: Path) -> Iterator[tuple[str, Any]]:
    kind = schema.get("type", "string")
    yield "missing", NOTHING
    yield "null", None
    for value in WRONG_TYPES[kind]:
        yield f"{kind} expected, got {value!r}", value
    match kind:
        case "string":
            yield from ((f"strange: {value!r}", value) for value in STRANGE)
            longest = schema.get("maxLength", 1000)
            yield from ((f"{length} characters", "a" * length) for length in (longest, longest + 1, 100_000))
        case "integer":
            bounds = {
                bound + by
                for bound, by in ((schema.get("minimum"), -1), (schema.get("maximum"), 1))
                if bound is not None
            } | {schema[bound] for bound in ("minimum", "maximum") if bound in schema}
            yield from ((f"the number {value}", value) for value in (*sorted(bounds), *HUGE))
        case "array":
            item = _sample(schema.get("items", {}), (*path, "[]"))
            yield "empty", []
            yield "too many", [copy.deepcopy(item) for _ in range(schema.get("maxItems", 1000) + 1)]
        case "object":
            yield "empty", {}
            yield "a field that is not known", {**_sample(schema, path), "unknownField": 1}
            if "maxProperties" in schema:
                item = _sample(schema["additionalProperties"], (*path, "{}"))
                yield "too many", {f"key-{n}": item for n in range(schema["maxProperties"] + 1)}


def _sample(schema: Schema, path: Path) -> Any:
    """The shortest valid value."""
    if path in SAMPLES:
        return copy.deepcopy(SAMPLES[path])
    match schema.get("type", "string"):
        case "object":
            return {
                name: _sample(schema["properties"][name], (*path, name))
                for name in schema.get("required", ())
            }
        case "array":
            return [_sample(schema["items"], (*path, "[]"))] if schema.get("minItems") else []
        case "integer":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case _:
            return schema.get("enum", ["1"])[0]


def _planted(schema: Schema, path: Path, value: Any) -> dict[str, Any] | None:
    """The base with a value at a path, and around it what it needs; None: it is as the base is."""
    made: dict[str, Any] = copy.deepcopy(BASE)
    here: Any = made
    for at, name in enumerate(path[:-1], 1):
        _drop_rivals(here, path[:at])
        schema = _below(schema, name)
        if name == "[]":
            if not here:
                here.append(_sample(schema, path[:at]))
            here = here[0]
        else:
            here = here.setdefault("key" if name == "{}" else name, _sample(schema, path[:at]))
    _drop_rivals(here, path)
    last = {"{}": "key", "[]": 0}.get(path[-1], path[-1])
    if value is NOTHING:
        if not isinstance(here, dict) or last not in here:
            return None
        del here[last]
    elif last == 0:
        here[:] = [value]
    else:
        here[last] = value
    return made


def _drop_rivals(parent: Any, path: Path) -> None:
    for rival in RIVALS.get(path, ()):
        parent.pop(rival, None)


def _below(schema: Schema, name: str) -> Schema:
    if name == "[]":
        return dict(schema["items"])
    if name == "{}":
        return dict(schema["additionalProperties"])
    return dict(schema["properties"][name])
