"""The handlers of the measured workers, mounted from a ConfigMap; they tell the log when things happened."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workqueue import Message


def _tell(event: str, at: float) -> None:
    print(json.dumps({"bench": event, "at": at}), flush=True)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _process_started() -> float:
    """Seconds after the boot, to a hundredth (field 22 of proc(5)'s stat)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def noop(_: Message) -> None:
    """Nothing but the moment."""
    _tell("handled", _now())


def slow(message: Message) -> None:
    """As long as the message says."""
    message.cancelled.wait(float(message.body))


_tell("process", _process_started())
_tell("loaded", _now())
