"""The errors of the contract, and the root of all errors of this package."""

# WorkerError
# |-- BindingError
# |-- UndecodableError, also a ValueError
# |-- the errors of a start, in worker/errors.py
# `-- the errors of RabbitMQ, in amqp/errors.py

from __future__ import annotations


class WorkerError(Exception):
    """The root of the tree. `str()` of it is one or more whole sentences for a person."""


class BindingError(WorkerError):
    """The connection data (a URL, a Secret or a folder of files) cannot be used as it is."""


class UndecodableError(WorkerError, ValueError):
    """The body of a message is not what the handler tried to read it as."""
