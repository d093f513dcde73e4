"""Errors that end a worker before it takes a message."""

# WorkerError, in contract/errors.py
# |-- ConfigurationError
# `-- HandlerLoadError

from __future__ import annotations

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
    """Return the sentence for a handler whose import takes too long."""
    return (
        f"The handler {name} cannot be loaded: its import took longer than {seconds:g} s."
        " Raise worker.startupTimeoutSeconds (--startup-timeout) or import less."
    )
