"""CEL rules, which the API server enforces, in the JSON schema of a model. Pure."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

JsonSchema: TypeAlias = dict[str, Any]

INT_OR_STRING: Final[JsonSchema] = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
}
"""The schema of a value that Kubernetes accepts as a number and as text."""

VALIDATIONS: Final = "x-kubernetes-validations"

IMMUTABLE_ADVICE: Final = (
    "because RabbitMQ fixes it when the queue is declared: keep the old value, or create another WorkQueue "
    "with another queue.name"
)


def rule(expression: str, message: str, field: str | None = None) -> JsonSchema:
    """Return one CEL rule.

    Args:
        expression: true for allowed values.
        message: what to do; `kubectl apply` shows it.
        field: the property of `self` that the error points at.
    """
    stated: JsonSchema = {"rule": expression, "message": message}
    if field is not None:
        stated["fieldPath"] = f".{field}"
    return stated


def rules(*stated: JsonSchema) -> JsonSchema:
    """Return the rules as part of a JSON schema."""
    return {VALIDATIONS: list(stated)}


def unchanged(field: str) -> str:
    """Return the expression that an optional property of `self` has not changed, set or unset."""
    now, before = f"self.{field}", f"oldSelf.{field}"
    return f"has({now}) == has({before}) && (!has({now}) || {now} == {before})"
