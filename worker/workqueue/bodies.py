"""Bodies of messages: Python values as bytes with a content type."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"


def encode(body: Any) -> tuple[bytes, str | None]:
    """Return a body as bytes, and its content type.

    Bytes stay as they are and have no content type. Text becomes UTF-8. A pydantic model, a dataclass, a dict and
    everything else that JSON has becomes JSON. What JSON lacks is written as pydantic does: dates and times in ISO
    8601, Decimal and UUID as text, an enum as its value, a set as a list.

    Raises:
        TypeError: JSON has nothing for a value in it.
        ValueError: JSON has no number for it (NaN and the infinities), or it contains itself.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body), None
    if isinstance(body, str):
        return body.encode(), TEXT
    to_json = getattr(body, "model_dump_json", None)
    if callable(to_json) and not isinstance(body, type):
        return to_json().encode(), JSON
    return json.dumps(body, default=_plain, allow_nan=False, separators=(",", ":")).encode(), JSON


def _plain(value: Any) -> Any:
    """What JSON cannot encode, such as models and dataclasses inside of lists and dicts."""
    # Most programs need none of these.
    from datetime import date, time
    from decimal import Decimal
    from enum import Enum
    from uuid import UUID

    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return list(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    kind = type(value).__qualname__
    raise TypeError(f"A value of the type {kind} cannot become JSON. Convert it, or give the body as bytes.")
