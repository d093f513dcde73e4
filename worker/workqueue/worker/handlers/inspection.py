"""Look at a handler or hook that may be anything that can be called: decorated, partial, a method or an object.

`inspect` takes 4 ms to import. Handlers that are plain functions need nothing of this.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from workqueue.worker.errors import HandlerLoadError


def is_async(name: str, found: Any) -> bool:
    """Return whether the handler is async.

    Raises:
        HandlerLoadError: it is a generator function.
    """
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


def has_coroutine_function(function: Any) -> bool:
    """Return whether it is a coroutine function, or wraps one."""
    return any(inspect.iscoroutinefunction(layer) for layer in _layers(function))


def innermost(function: Any) -> Any:
    """Return the user's own function inside partials, methods, callable objects and decorators."""
    functions = [layer for layer in _layers(function) if inspect.isfunction(layer)]
    return functions[-1] if functions else function


def require_parameters(kind: str, hook: str, function: Any, parameters: Sequence[str]) -> None:
    """Check that a hook can be called with these parameters.

    Raises:
        HandlerLoadError: it cannot.
    """
    try:
        inspect.signature(function).bind(*parameters)
    except TypeError as error:
        raise HandlerLoadError(f"The {kind} {hook} must take ({', '.join(parameters)}): {error}.") from error
    except ValueError:  # some built-in functions have no signature
        return


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


def _runs_coroutines(layer: Any) -> bool:
    """Return whether a wrapper seems to run the coroutine of what it wraps, judged by the names in its code.

    A wrong guess never acknowledges: `_call` refuses a coroutine, and `asyncio.run` raises in a task.
    """
    code = getattr(layer, "__code__", None)
    return code is not None and (
        "run_until_complete" in code.co_names or {"asyncio", "run"} <= set(code.co_names)
    )
