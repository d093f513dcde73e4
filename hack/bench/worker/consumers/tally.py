"""Counts the messages of a consumer and says how fast they came; the same few lines in every contender.

Place in the flow: a handler calls `tick()` for each message. With one message at a time for each slot, the next
comes only when the one before is acknowledged, so that acknowledgements are in the time. What `race` asked for
comes in the environment; the result goes back through a pipe.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import time

VARIABLE = "WORKQUEUE_BENCH_TALLY"


class Tally:
    """Counts `count` calls after the first `warm`, or as many as there are in `seconds`.

    Args:
        pipe: file descriptor that the result is written to.
    """

    def __init__(self, pipe: int, warm: int, count: int, seconds: float) -> None:
        self._pipe = pipe
        self._warm = warm
        self._last = warm + count
        self._seconds = seconds
        self._calls = itertools.count(1)  # its steps are atomic, so that threads need no lock
        self._begun = time.perf_counter()
        self._processor = 0.0

    def tick(self) -> None:
        """One message."""
        call = next(self._calls)
        if call <= self._warm:
            if call == self._warm:
                self._processor, self._begun = processor_seconds(), time.perf_counter()
            return
        now = time.perf_counter()
        if call >= self._last or now - self._begun >= self._seconds:
            self._tell(call - self._warm, now - self._begun)

    def _tell(self, messages: int, seconds: float) -> None:
        processor = processor_seconds() - self._processor
        self._begun = float("inf")
        self._last = 1 << 62
        result = {"messages": messages, "seconds": seconds, "processor_seconds": processor}
        os.write(self._pipe, json.dumps(result).encode() + b"\n")


def processor_seconds() -> float:
    """What this process has used of a processor, in user and system mode."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def asked() -> Tally:
    """The tally that the benchmark asked this process for."""
    return Tally(**json.loads(os.environ[VARIABLE]))
