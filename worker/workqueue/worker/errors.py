"""Errors that end a worker before it takes a message."""

# WorkerError, in contract/errors.py
# |-- ConfigurationError
# `-- HandlerLoadError

from __future__ import annotations

import traceback

from workqueue.contract.errors import WorkerError


class ConfigurationError(WorkerError):
    """The configuration is wrong. It contains every mistake, not only the first.

    Args:
        mistakes: one sentence per mistake, in the order of discovery.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class HandlerLoadError(WorkerError):
    """The handler cannot be loaded or reached, so the worker must not take messages."""


def too_slow(name: str, seconds: float) -> str:
    """Return the sentence for a handler whose import, with its lifespan, takes too long."""
    return (
        f"The handler {name} cannot be loaded: its import and lifespan took longer than {seconds:g} s."
        " Raise worker.startupTimeoutSeconds (--startup-timeout) or do less there."
    )


def summary(error: BaseException) -> str:
    """Return the exception's last line and its last place in a file of the user, not of the import system."""
    line = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{line} ({error.filename}, line {error.lineno})"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{line}{place}"
