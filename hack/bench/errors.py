"""The error of hack.bench."""


class BenchError(Exception):
    """The message says which measurement failed and why."""
