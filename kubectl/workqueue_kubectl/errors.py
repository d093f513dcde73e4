"""What can go wrong at the prompt, as sentences. All are told by `cli`, which also knows the exit codes."""

from __future__ import annotations


class PluginError(Exception):
    """Something failed; the message says what, where, and what to do."""


class KubectlFailed(PluginError):  # noqa: N818 - a sentence of kubectl's
    """kubectl ended with an error; the message is kubectl's own."""


class NotFound(KubectlFailed):
    """The API server has no such object."""
