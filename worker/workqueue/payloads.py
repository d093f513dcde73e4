"""Bodies as typed values: pydantic models, dataclasses, TypedDicts and everything else that pydantic validates.

pydantic is imported at the first use, since most handlers need none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from workqueue.contract.errors import UndecodableError

MOST_MISTAKES: Final = 10
"""How many mistakes of one body an error names."""


class PydanticMissingError(ImportError):
    """A payload has a type, and pydantic 2 is not installed."""


@lru_cache(maxsize=256)
def parser(kind: Any) -> Callable[[bytes], Any]:
    """Return a function that parses JSON into a value of this type.

    The function raises UndecodableError, with the place of each mistake.

    Raises:
        PydanticMissingError: pydantic 2 is not installed.
        PydanticUserError: pydantic cannot validate the type. Many other types of exceptions are possible.
    """
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError as error:
        raise PydanticMissingError(
            f"A payload of the type {name_of(kind)} needs pydantic 2, which is not installed."
            " Install it, or take a Message and use message.json()."
        ) from error
    validate = TypeAdapter(kind).validate_json

    def parse(body: bytes) -> Any:
        try:
            return validate(body)
        except ValidationError as error:
            raise UndecodableError(f"The body is not a valid {name_of(kind)}: {_mistakes(error)}.") from error

    return parse


def name_of(kind: Any) -> str:
    """Return a type as in the user's code."""
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


def _mistakes(error: Any) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    texts = [
        ": ".join(filter(None, [".".join(map(str, one["loc"])), one["msg"]])) for one in found[:MOST_MISTAKES]
    ]
    if len(found) > MOST_MISTAKES:
        texts.append(f"and {len(found) - MOST_MISTAKES} more")
    return "; ".join(texts)
