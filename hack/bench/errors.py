"""The one error of the benchmarks."""


class BenchError(Exception):
    """Says what could not be measured and why."""
