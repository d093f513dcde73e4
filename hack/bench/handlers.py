"""The handlers of the measured workers, mounted from a ConfigMap. They log the time of each event."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workqueue import Message


def _log(event: str, at: float) -> None:
    print(json.dumps({"bench": event, "at": at}), flush=True)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _process_started() -> float:
    """Return the start in seconds after the boot, to 0.01 s (field 22 of stat in proc(5))."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def noop(_: Message) -> None:
    """Log the time."""
    _log("handled", _now())


def slow(message: Message) -> None:
    """Sleep for as many seconds as the message says."""
    message.cancelled.wait(float(message.body))


_log("process", _process_started())
_log("loaded", _now())
