"""Functions of the user that the worker calls around the handler: lifespan, middleware and failure hook.

A decorator only marks a function. The worker looks for marked functions in the module that `workqueue run` names and
in the module that defines the handler. Functions that these modules import from others count too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__workqueue_hook__"


def lifespan(function: F) -> F:
    """Mark what is open while the worker handles messages: a function that yields once.

    The part before `yield` runs before the first message, and the part after it when the last handler has returned.
    Handlers get the yielded value as `message.context`.
    """
    return _marked(function, "lifespan")


def middleware(function: F) -> F:
    """Mark a function `(message, call_next)` that runs around each call of the handler.

    It calls `call_next(message)`. The first one of a module is the outermost.
    """
    return _marked(function, "middleware")


def on_failure(function: F) -> F:
    """Mark a function `(message, error, final)` that runs when an attempt has failed.

    `final` is True if the message becomes a dead letter, and False if it is retried.
    """
    return _marked(function, "on_failure")


class Hooks(NamedTuple):
    """The marked functions of some modules, in the order of their definition."""

    lifespans: tuple[Callable[..., Any], ...] = ()
    middleware: tuple[Callable[..., Any], ...] = ()
    on_failure: tuple[Callable[..., Any], ...] = ()


def find(modules: Iterable[ModuleType]) -> Hooks:
    """Return the marked functions of the modules. A function with two names is returned once."""
    # By identity, since a callable object may not be hashable.
    # A copy, since a thread of the user may set a variable of its module meanwhile.
    members = [value for module in modules for value in list(vars(module).values())]
    found = {id(value): value for value in members if _kind(value)}
    values = list(found.values())
    return Hooks(
        tuple(value for value in values if _kind(value) == "lifespan"),
        tuple(value for value in values if _kind(value) == "middleware"),
        tuple(value for value in values if _kind(value) == "on_failure"),
    )


def name_of(function: Any) -> str:
    """Return the name of a callable, for log lines and errors."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _marked(function: F, kind: str) -> F:
    setattr(function, _MARK, kind)
    return function


def _kind(value: Any) -> str | None:
    # Not getattr: a module may contain objects that have every attribute, such as mocks, and some that raise when
    # asked for one, such as Flask's `current_app` outside of an application.
    try:
        kind = object.__getattribute__(value, "__dict__").get(_MARK)
    except Exception:  # noqa: BLE001 - whatever it raises, it is not marked
        return None
    return kind if isinstance(kind, str) else None
