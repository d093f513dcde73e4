"""The errors of the contract, and the root of all errors of this package."""

# WorkerError
# |-- BindingError
# |-- UndecodableError, also a ValueError
# |-- the errors of a start, in worker/errors.py
# `-- the errors of RabbitMQ, in amqp/errors.py

from __future__ import annotations


class WorkerError(Exception):
    """The root of the tree. Its `str()` is one or more complete sentences."""


class BindingError(WorkerError):
    """The connection data (a URL, a Secret or a folder of files) is incomplete or invalid."""


class UndecodableError(WorkerError, ValueError):
    """The body of a message is not in the format that the handler asked for."""
