"""The end of a process whose exit hooks never return."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import atexit, time
from workqueue.worker.ending import leave
print("done 7")
atexit.register(time.sleep, 600)
leave(0)
"""


def test_what_was_printed_is_not_lost_when_an_exit_hook_never_returns() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        check=True,
        timeout=120,
    )
    assert ended.stdout == b"done 7\n"
