"""Errors that end a worker before it takes a message."""

# WorkerError, in contract/errors.py
# |-- ConfigurationError
# `-- HandlerLoadError

from __future__ import annotations

import traceback
from typing import Final

from workqueue.contract.errors import WorkerError

LONGEST_SUMMARY: Final = 2_000
"""Characters. A pod's termination message has 4 KiB."""


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
    """Return what the exception says, and its last place in a file of the user, not of the import system."""
    described = traceback.TracebackException(type(error), error, None, compact=True)
    described.__notes__ = None  # they would come last
    line = list(described.format_exception_only())[-1].strip()
    if len(line) > LONGEST_SUMMARY:
        line = f"{line[:LONGEST_SUMMARY]}..."
    if isinstance(error, SyntaxError):
        return f"{line} ({error.filename}, line {error.lineno})"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{line}{place}"
