"""Python handlers: a function named as `module:function`, loaded once at start.

A handler that returns work that did not run, such as a coroutine, has failed. Otherwise its message would be
acknowledged without being handled.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from workqueue import hooks as user_hooks
from workqueue.hooks import Hooks, name_of
from workqueue.worker.errors import HandlerLoadError, summary
from workqueue.worker.handlers import calls, signature
from workqueue.worker.handlers.calls import ReplyPublisher
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import RetryPolicy

DEFAULT_RETRY: Final = RetryPolicy()

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
    if inspect.isclass(found):
        raise HandlerLoadError(f"The handler {name} is a class. Use a function or an instance of the class.")
    if not callable(found):
        raise HandlerLoadError(f"The handler {name} cannot be called; it is a {type(found).__name__}.")
    is_async = _is_async(name, found)
    hooks = user_hooks.find([*modules, *_module_of(found, modules)])
    _check_hooks(name, hooks, is_async=is_async)
    lifespan = None
    if hooks.lifespans:
        from workqueue.worker.handlers.lifespan import Lifespan

        lifespan = Lifespan(name, hooks.lifespans[0])
    function = signature.adapt(name, found, _innermost(found))
    call = calls.build(function, hooks, retry, lifespan, replies, is_async=is_async)
    return Handler(name, call, is_async, lifespan)


def _is_async(name: str, found: Any) -> bool:
    for layer in _layers(found):
        if inspect.iscoroutinefunction(layer):
            return True
        if inspect.isgeneratorfunction(layer) or inspect.isasyncgenfunction(layer):
            raise HandlerLoadError(
                f"The handler {name} is a generator function, so calling it runs nothing. Remove `yield`."
            )
        if _runs_coroutines(layer):
            break
    return False


def _check_hooks(name: str, hooks: Hooks, *, is_async: bool) -> None:
    if len(hooks.lifespans) > 1:
        names = " and ".join(map(name_of, hooks.lifespans))
        raise HandlerLoadError(
            f"The handler {name} has more than one lifespan: {names}. Use one, with contextlib.ExitStack if"
            " necessary."
        )
    for kind, functions in ((MIDDLEWARE, hooks.middleware), (FAILURE_HOOK, hooks.on_failure)):
        for function in functions:
            hook = name_of(function)
            _require_parameters(kind, hook, function)
            hook_is_async = any(inspect.iscoroutinefunction(layer) for layer in _layers(function))
            if hook_is_async and not is_async:
                raise HandlerLoadError(
                    f"The {kind} {hook} is async and the handler {name} is not. Make both async, or neither."
                )
            if kind == MIDDLEWARE and is_async and not hook_is_async:
                raise HandlerLoadError(
                    f"The {kind} {hook} is not async and the handler {name} is. Make both async, or neither."
                )


def _require_parameters(kind: str, hook: str, function: Any) -> None:
    parameters = _PARAMETERS[kind]
    try:
        inspect.signature(function).bind(*parameters)
    except TypeError as error:
        raise HandlerLoadError(f"The {kind} {hook} must take ({', '.join(parameters)}): {error}.") from error
    except ValueError:  # some built-in functions have no signature
        return


def _module_of(found: Any, known: Sequence[ModuleType]) -> list[ModuleType]:
    """Return the module that defines the handler, unless it is known: the named one may only import the function."""
    module = sys.modules.get(getattr(_innermost(found), "__module__", None) or "")
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


def _layers(function: Any) -> Iterator[Any]:
    """Yield a callable and the callables inside it, outermost first.

    Unwraps functools.partial, methods, callable objects and functools.wraps.
    """
    waiting, seen = [function], set()
    while waiting:
        layer = waiting.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer
        if hasattr(layer, "__wrapped__"):
            waiting.append(layer.__wrapped__)
        if isinstance(layer, (functools.partial, functools.partialmethod)):
            waiting.append(layer.func)
        elif inspect.ismethod(layer):
            waiting.append(layer.__func__)
        elif not inspect.isroutine(layer):
            waiting.append(type(layer).__call__)


def _innermost(function: Any) -> Any:
    """Return the user's own function inside partials, methods, callable objects and decorators."""
    functions = [layer for layer in _layers(function) if inspect.isfunction(layer)]
    return functions[-1] if functions else function


def _runs_coroutines(layer: Any) -> bool:
    """Return whether a wrapper seems to run the coroutine of what it wraps, judged by the names in its code.

    A wrong guess never acknowledges: `_call` refuses a coroutine, and `asyncio.run` raises in a task.
    """
    code = getattr(layer, "__code__", None)
    return code is not None and (
        "run_until_complete" in code.co_names or {"asyncio", "run"} <= set(code.co_names)
    )
