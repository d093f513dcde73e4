"""What a Python handler takes: the message, or a typed payload with the message as an optional second argument."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from types import SimpleNamespace, UnionType
from typing import Any, Final

from workqueue import payloads
from workqueue.message import Message
from workqueue.worker.errors import HandlerLoadError

_TAKES_MESSAGE: Final = frozenset({Message, Any, object})
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_KEYWORD: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def adapt(name: str, found: Any, innermost: Any) -> Callable[[Message], Any]:
    """Return a function of the message that calls the handler with what it takes.

    Args:
        name: of the handler.
        found: the handler.
        innermost: the function inside its decorators, whose module resolves its annotations.

    Raises:
        HandlerLoadError: it takes something else, or its type cannot be resolved or validated.
    """
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except ValueError:  # some built-in functions have no signature
        return found  # type: ignore[no-any-return]
    scope = getattr(innermost, "__globals__", {})
    first = parameters[0] if parameters and parameters[0].kind in _POSITIONAL else None
    takes = Message if first is None or first.annotation is first.empty else _type_of(name, first, scope)
    if _takes_message(takes):
        _require_call(name, found, {})
        return found  # type: ignore[no-any-return]
    parse = _parser(name, takes)
    keyword = next(
        (
            one.name
            for one in parameters[1:]
            if one.kind in _BY_KEYWORD
            and one.annotation is not one.empty
            and _is_message(_type_of(name, one, scope))
        ),
        None,
    )
    _require_call(name, found, {} if keyword is None else {keyword: None})
    if keyword is None:
        return lambda message: found(parse(message.body))
    return lambda message: found(parse(message.body), **{keyword: message})


def _require_call(name: str, found: Any, keywords: dict[str, None]) -> None:
    try:
        inspect.signature(found).bind(None, **keywords)
    except TypeError as error:
        raise HandlerLoadError(
            f"The handler {name} must take one argument, the message, or a typed payload and `message: Message`:"
            f" {error}."
        ) from error


def _is_message(takes: Any) -> bool:
    """Whether it is `Message`, a class below it, or a union with one, such as `Message | None`."""
    if typing.get_origin(takes) in (typing.Union, UnionType):
        return any(map(_is_message, typing.get_args(takes)))
    return isinstance(takes, type) and issubclass(takes, Message)


def _takes_message(takes: Any) -> bool:
    if _is_message(takes):
        return True
    try:
        return takes in _TAKES_MESSAGE
    except TypeError:  # it cannot be hashed
        return False


def _type_of(name: str, parameter: inspect.Parameter, scope: dict[str, Any]) -> Any:
    annotation = parameter.annotation
    # Of this parameter only: the others may have types that are imported for type checkers only.
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, scope, include_extras=True)["it"]
    except Exception as error:
        if isinstance(annotation, str) and re.fullmatch(r"(\w+\.)*Message", annotation):
            return Message  # imported for type checkers only
        raise HandlerLoadError(
            f"The handler {name} cannot be loaded: the type {annotation!r} of its parameter {parameter.name} cannot"
            f" be resolved: {error}. Import it outside of `if TYPE_CHECKING`, in the handler's module."
        ) from error


def _parser(name: str, takes: Any) -> Callable[[bytes], Any]:
    kind = payloads.name_of(takes)
    if takes in (str, bytes):
        raise HandlerLoadError(
            f"The handler {name} takes {kind}. Take a Message, and use message.text() or message.body."
        )
    try:
        return payloads.parser(takes)
    except payloads.PydanticMissingError as error:
        raise HandlerLoadError(f"The handler {name} cannot be loaded. {error}") from error
    except Exception as error:
        raise HandlerLoadError(
            f"The handler {name} cannot be loaded: its payload's type {kind} cannot be validated:"
            f" {str(error).splitlines()[0]}"
        ) from error
