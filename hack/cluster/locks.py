"""File locks: one `up` or `down` of a cluster at a time, one maker of each cached thing at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.console import say


@contextmanager
def locked(file: Path, waiting: str) -> Iterator[None]:
    """Hold the lock `file` inside the block; the file is gone afterwards.

    Args:
        waiting: said once when somebody else holds it, as in "Another up or down is running; waiting."
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        with file.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    say(waiting)
                    told = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            # The holder before us removed the file that we waited for: whoever comes next takes a new one.
            if not _is_still(file, handle.fileno()):
                continue
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
