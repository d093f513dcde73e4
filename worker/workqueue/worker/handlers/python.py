"""Python handlers: a function named as `module:function`, loaded once at start.

A handler that returns work that did not run, such as a coroutine, has failed. Otherwise its message would be
acknowledged without being handled.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from workqueue import hooks as user_hooks
from workqueue.hooks import Hooks, name_of
from workqueue.message import Message
from workqueue.worker.errors import HandlerLoadError, summary
from workqueue.worker.handlers import calls
from workqueue.worker.handlers.calls import ReplyPublisher
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import RetryPolicy

DEFAULT_RETRY: Final = RetryPolicy()

_NOT_PLAIN: Final = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200
"""Flags of code: `*args`, `**keywords`, generator, coroutine, awaitable generator, async generator."""

MIDDLEWARE: Final = "middleware"
FAILURE_HOOK: Final = "failure hook"
_PARAMETERS: Final = {
    MIDDLEWARE: ("message", "call_next"),
    FAILURE_HOOK: ("message", "error", "final"),
}


def load(name: str, retry: RetryPolicy = DEFAULT_RETRY, replies: ReplyPublisher | None = None) -> Handler:
    """Import `package.module:function` (or `module:object.method`); the working directory is on the path.

    Args:
        retry: for the failure hooks, which get told whether an attempt was the last.
        replies: publishes answers.

    Raises:
        HandlerLoadError: it does not exist, its import fails, or it cannot be called as a handler.
    """
    found = _find(name)
    try:
        return assemble(name, found, retry, replies, [sys.modules[name.partition(":")[0]]])
    except HandlerLoadError:
        raise
    except Exception as error:  # such as an object of the user that raises when it is asked for an attribute
        raise HandlerLoadError(f"The handler {name} cannot be loaded: {summary(error)}.") from error


def assemble(
    name: str,
    found: Any,
    retry: RetryPolicy,
    replies: ReplyPublisher | None,
    modules: Sequence[ModuleType] = (),
) -> Handler:
    """Return the handler of a function, with the marked functions of its module and of `modules`.

    Raises:
        HandlerLoadError: it cannot be called as a handler.
    """
    if isinstance(found, type):
        raise HandlerLoadError(f"The handler {name} is a class. Use a function or an instance of the class.")
    if not callable(found):
        raise HandlerLoadError(f"The handler {name} cannot be called; it is a {type(found).__name__}.")
    is_plain = _is_plain(found)
    is_async, innermost, function = False, found, found
    if not is_plain:
        from workqueue.worker.handlers import inspection

        is_async, innermost = inspection.is_async(name, found), inspection.innermost(found)
    hooks = user_hooks.find([*modules, *_module_of(innermost, modules)])
    _check_hooks(name, hooks, is_async=is_async)
    lifespan = None
    if hooks.lifespans:
        from workqueue.worker.handlers.lifespan import Lifespan

        lifespan = Lifespan(name, hooks.lifespans[0])
    if not is_plain:
        from workqueue.worker.handlers import signature

        function = signature.adapt(name, found, innermost)
    call = calls.build(function, hooks, retry, lifespan, replies, is_async=is_async)
    return Handler(name, call, is_async, lifespan)


def _is_plain(found: Any) -> bool:
    """Whether it is a function that takes the message and nothing else, as most handlers.

    All others are read with `inspect`, whose import takes 4 ms.
    """
    if type(found) is not FunctionType or vars(found):  # a decorator leaves `__wrapped__` or marks
        return False
    code: CodeType = found.__code__
    if code.co_flags & _NOT_PLAIN or code.co_argcount != 1 or code.co_kwonlyargcount:
        return False
    try:
        takes = found.__annotations__.get(code.co_varnames[0], Message)
    except NameError:  # Python 3.14 evaluates the type now, and it is imported for type checkers only
        return False
    return (found.__globals__.get(takes) if isinstance(takes, str) else takes) is Message


def _check_hooks(name: str, hooks: Hooks, *, is_async: bool) -> None:
    if len(hooks.lifespans) > 1:
        names = " and ".join(map(name_of, hooks.lifespans))
        raise HandlerLoadError(
            f"The handler {name} has more than one lifespan: {names}. Use one, with contextlib.ExitStack if"
            " necessary."
        )
    if not hooks.middleware and not hooks.on_failure:
        return
    from workqueue.worker.handlers import inspection

    for kind, functions in ((MIDDLEWARE, hooks.middleware), (FAILURE_HOOK, hooks.on_failure)):
        for function in functions:
            hook = name_of(function)
            inspection.require_parameters(kind, hook, function, _PARAMETERS[kind])
            hook_is_async = inspection.has_coroutine_function(function)
            if hook_is_async and not is_async:
                raise HandlerLoadError(
                    f"The {kind} {hook} is async and the handler {name} is not. Make both async, or neither."
                )
            if kind == MIDDLEWARE and is_async and not hook_is_async:
                raise HandlerLoadError(
                    f"The {kind} {hook} is not async and the handler {name} is. Make both async, or neither."
                )


def _module_of(innermost: Any, known: Sequence[ModuleType]) -> list[ModuleType]:
    """Return the module that defines the handler, unless it is known: the named one may only import the function."""
    module = sys.modules.get(getattr(innermost, "__module__", None) or "")
    return [] if module is None or module in known else [module]


def _find(name: str) -> Any:
    module_name, _, path = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        # Also SystemExit: a module that calls sys.exit() must not end the worker with its exit code.
        raise HandlerLoadError(f"The handler {name} cannot be loaded: {summary(error)}.") from error
    try:
        return operator.attrgetter(path)(module)
    except AttributeError as error:
        raise HandlerLoadError(
            f"The handler {name} cannot be loaded: {module_name} has no {path!r}."
        ) from error
    except Exception as error:
        raise HandlerLoadError(f"The handler {name} cannot be loaded: {summary(error)}.") from error
