"""Rules that the API server itself holds, and how they are attached to a model.

Place in the flow: `model` and `podparts` state rules beside the fields they speak about; `crd` finds them in
the JSON schema under the key that Kubernetes gives them. Pure.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

JsonSchema: TypeAlias = dict[str, Any]

VALIDATIONS: Final = "x-kubernetes-validations"

IMMUTABLE_ADVICE: Final = (
    "since RabbitMQ fixes it when the queue is declared: keep the old value, or create another WorkQueue "
    "with another queue.name"
)


def rule(expression: str, message: str, field: str | None = None) -> JsonSchema:
    """One CEL rule.

    Args:
        expression: true for what is allowed.
        message: a sentence that says what to do, shown by `kubectl apply`.
        field: the property of `self` that the error should point at.
    """
    stated: JsonSchema = {"rule": expression, "message": message}
    if field is not None:
        stated["fieldPath"] = f".{field}"
    return stated


def rules(*stated: JsonSchema) -> JsonSchema:
    """The rules as a part of a JSON schema."""
    return {VALIDATIONS: list(stated)}


def unchanged(field: str) -> str:
    """The expression that an optional property of `self` is what it was, set or unset."""
    now, before = f"self.{field}", f"oldSelf.{field}"
    return f"has({now}) == has({before}) && (!has({now}) || {now} == {before})"
