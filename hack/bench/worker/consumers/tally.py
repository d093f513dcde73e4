"""Count the messages of a consumer and report their rate. All contenders use this module.

A handler calls `tick()` for each message. Each slot has one message at a time, so the next one comes only after the
acknowledgement of the previous one, and the measured time includes acknowledgements. `race` passes the settings in an
environment variable and reads the result from a pipe.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import mmap
import os
import resource
import struct
import time
from contextlib import suppress
from pathlib import Path

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


MOST_PROCESSES = 64
_HEAD = struct.Struct("ddI")
_COUNTS = struct.Struct(f"{MOST_PROCESSES}Q")
_COUNT = struct.Struct("Q")
SHARED_BYTES = _HEAD.size + _COUNTS.size


class SharedTally:
    """The same for a consumer whose handlers run in several processes, which count in a shared file.

    Args:
        shared: the file. It has the begin, the processor time until then, the number of processes, and a count for
            each.
    """

    def __init__(self, pipe: int, warm: int, count: int, seconds: float, shared: str) -> None:
        self._pipe = pipe
        self._warm = warm
        self._last = warm + count
        self._seconds = seconds
        self._path = shared
        self._process = 0
        self._calls = 0

    def tick(self) -> None:
        """Count one message."""
        if self._process != os.getpid():
            self._join()
        self._calls += 1
        _COUNT.pack_into(self._map, self._place, self._calls)
        total = sum(_COUNTS.unpack_from(self._map, _HEAD.size))
        if total < self._warm:
            return
        begun, processor, processes = _HEAD.unpack_from(self._map)
        now = time.perf_counter()
        if not begun:
            _HEAD.pack_into(self._map, 0, now, self._all_processor_seconds(), processes)
        elif begun != float("inf") and (total >= self._last or now - begun >= self._seconds):
            _HEAD.pack_into(self._map, 0, float("inf"), 0.0, processes)
            used = self._all_processor_seconds() - processor
            result = {"messages": total - self._warm, "seconds": now - begun, "processor_seconds": used}
            os.write(self._pipe, json.dumps(result).encode() + b"\n")

    def _join(self) -> None:
        self._process, self._parent, self._calls = os.getpid(), os.getppid(), 0
        with open(self._path, "r+b") as file:  # noqa: PTH123
            self._map = mmap.mmap(file.fileno(), SHARED_BYTES)
            fcntl.flock(file, fcntl.LOCK_EX)
            begun, processor, number = _HEAD.unpack_from(self._map)
            _HEAD.pack_into(self._map, 0, begun, processor, number + 1)
            fcntl.flock(file, fcntl.LOCK_UN)  # the map keeps the file open, and so the lock
        self._place = _HEAD.size + number * _COUNT.size
        try:
            os.fstat(self._pipe)
        except OSError:  # only the parent has inherited it
            self._pipe = os.open(f"/proc/{self._parent}/fd/{self._pipe}", os.O_WRONLY)

    def _all_processor_seconds(self) -> float:
        """Return the processor time of the parent and its other children, too."""
        ticks = 0
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = file.read_text().rsplit(")", 1)[1].split()
                if self._parent in {int(file.parent.name), int(fields[1])}:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def asked() -> Tally | SharedTally:
    """Return the tally with the settings from the environment."""
    settings = json.loads(os.environ[VARIABLE])
    return SharedTally(**settings) if "shared" in settings else Tally(**settings)
