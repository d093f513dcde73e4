"""Count the messages of a consumer and report their rate. All contenders use this module.

A handler calls `tick()` for each message. Each slot has one message at a time, so the next one comes only after the
acknowledgement of the previous one, and the measured time includes acknowledgements. `race` passes the settings in an
environment variable and reads the result from a pipe.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import time

VARIABLE = "WORKQUEUE_BENCH_TALLY"


class Tally:
    """Counts up to `count` calls after the first `warm` calls, for at most `seconds`.

    Args:
        pipe: the file descriptor for the result.
    """

    def __init__(self, pipe: int, warm: int, count: int, seconds: float) -> None:
        self._pipe = pipe
        self._warm = warm
        self._last = warm + count
        self._seconds = seconds
        self._calls = itertools.count(1)  # `next` on it is atomic, so threads need no lock
        self._begun = time.perf_counter()
        self._processor = 0.0

    def tick(self) -> None:
        """Count one message."""
        call = next(self._calls)
        if call <= self._warm:
            if call == self._warm:
                self._processor, self._begun = processor_seconds(), time.perf_counter()
            return
        now = time.perf_counter()
        if call >= self._last or now - self._begun >= self._seconds:
            self._report(call - self._warm, now - self._begun)

    def _report(self, messages: int, seconds: float) -> None:
        processor = processor_seconds() - self._processor
        self._begun = float("inf")
        self._last = 1 << 62
        result = {"messages": messages, "seconds": seconds, "processor_seconds": processor}
        os.write(self._pipe, json.dumps(result).encode() + b"\n")


def processor_seconds() -> float:
    """Return the processor time of this process, in user and system mode."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def asked() -> Tally:
    """Return the tally with the settings from the environment."""
    return Tally(**json.loads(os.environ[VARIABLE]))
