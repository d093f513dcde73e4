"""The plugin's errors. `cli` prints them and chooses the exit code."""

# PluginError             a command failed
# └── KubectlError        kubectl failed; has kubectl's message
#     └── NotFoundError   the API server has no such object

from __future__ import annotations


class PluginError(Exception):
    """A command failed. The message says what is wrong, where, and what to do."""


class KubectlError(PluginError):
    """kubectl failed. The message is from kubectl."""


class NotFoundError(KubectlError):
    """The API server has no such object."""
