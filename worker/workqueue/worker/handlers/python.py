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
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workqueue.message import Message
from workqueue.worker.errors import HandlerLoadError
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import HandlerFailed


def load(name: str) -> Handler:
    """Import `package.module:function` (or `module:object.method`); the working directory is on the path.

    Raises:
        HandlerLoadError: it does not exist, its import fails, or it does not take one argument.
    """
    found = _find(name)
    if inspect.isclass(found):
        raise HandlerLoadError(f"The handler {name} is a class. Use a function or an instance of the class.")
    if not callable(found):
        raise HandlerLoadError(f"The handler {name} cannot be called; it is a {type(found).__name__}.")
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise HandlerLoadError(f"The handler {name} must take one argument, the message: {error}.") from error
    except ValueError:
        pass  # some built-in functions have no signature
    for layer in _layers(found):
        if inspect.iscoroutinefunction(layer):
            return Handler(name, functools.partial(_call_async, found), is_async=True)
        if inspect.isgeneratorfunction(layer) or inspect.isasyncgenfunction(layer):
            raise HandlerLoadError(
                f"The handler {name} is a generator function, so calling it runs nothing. Remove `yield`."
            )
        if _runs_coroutines(layer):
            break
    return Handler(name, functools.partial(_call, found))


def _find(name: str) -> Any:
    module_name, _, path = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        # Also SystemExit: a module that calls sys.exit() must not end the worker with its exit code.
        raise HandlerLoadError(f"The handler {name} cannot be loaded: {_summary(error)}.") from error
    try:
        return operator.attrgetter(path)(module)
    except AttributeError as error:
        raise HandlerLoadError(
            f"The handler {name} cannot be loaded: {module_name} has no {path!r}."
        ) from error
    except Exception as error:
        raise HandlerLoadError(f"The handler {name} cannot be loaded: {_summary(error)}.") from error


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


def _call(function: Callable[[Message], object], message: Message) -> None:
    result = function(message)
    if result is not None:
        _refuse_unfinished(result)


async def _call_async(function: Callable[[Message], Any], message: Message) -> None:
    result = function(message)
    if inspect.isawaitable(result):  # a decorator around a coroutine function may return None instead
        result = await result
    if result is not None:
        _refuse_unfinished(result)


def _refuse_unfinished(result: object) -> None:
    """Raise if a handler returned work that has not run.

    Raises:
        HandlerFailed: the result is an awaitable or a generator.
    """
    if not (inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result)):
        return
    if inspect.iscoroutine(result):
        result.close()  # otherwise Python warns later that it was never awaited
    raise HandlerFailed(
        f"The handler returned a {type(result).__name__}, which nothing runs. Make the handler `async def`,"
        " or await what it returns."
    )


def _summary(error: BaseException) -> str:
    """Return the exception's last line and its last place in a file of the user, not of the import system."""
    line = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{line} ({error.filename}, line {error.lineno})"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{line}{place}"
