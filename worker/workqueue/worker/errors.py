"""The errors that end a worker before it takes a message."""

# WorkerError, in contract/errors.py
# |-- ConfigurationError
# `-- HandlerLoadError

from __future__ import annotations

from workqueue.contract.errors import WorkerError


class ConfigurationError(WorkerError):
    """The configuration is wrong. Carries every mistake that was found, not only the first.

    Args:
        mistakes: one sentence for each mistake, in the order in which they were found.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class HandlerLoadError(WorkerError):
    """The handler cannot be loaded or reached, so that no message may be taken."""
