"""Python handlers: a function named as `module:function`.

Place in the flow: loaded once at start. What cannot be loaded ends the process at once, with the sentence
that the pod's status will show.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path

from workqueue_worker.errors import HandlerLoadError

from .handler import Handler


def load(name: str) -> Handler:
    """Import `package.module:function` (or `module:object.method`); the working directory is on the path.

    Raises:
        HandlerLoadError: it does not exist, its import fails, or it cannot be called with one message.
    """
    module_name, _, path = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:
        raise HandlerLoadError(f"The handler {name} cannot be loaded: {_summary(error)}.") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise HandlerLoadError(f"The handler {name} cannot be loaded: {module_name} has no {path!r}.")
        found = getattr(found, part)
    if not callable(found):
        raise HandlerLoadError(f"The handler {name} cannot be called; it is a {type(found).__name__}.")
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise HandlerLoadError(f"The handler {name} must take one argument, the message: {error}.") from error
    except ValueError:
        pass  # some built-in functions have no signature to look at
    call = found if inspect.isroutine(found) else getattr(found, "__call__", found)  # noqa: B004
    return Handler(name, found, is_async=inspect.iscoroutinefunction(call))


def _summary(error: Exception) -> str:
    """The exception's last line and the last place in a file of the user's, not of the import system."""
    line = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{line} ({error.filename}, line {error.lineno})"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{line}{place}"
