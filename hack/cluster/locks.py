"""Lock files: one `up` or `down` of a cluster at a time, and one build of each cached artifact at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.console import say


@contextmanager
def locked(file: Path, waiting: str) -> Iterator[None]:
    """Hold the lock `file` inside the block, and delete the file afterwards.

    Args:
        waiting: printed once while another process holds the lock, as in "Another up or down is running; waiting."
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    is_announced = False
    while True:
        with file.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not is_announced:
                    say(waiting)
                    is_announced = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            # The previous holder deleted the file while this process waited for it. Lock a new file.
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
