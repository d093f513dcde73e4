"""A control group with a limit for memory, as a container has one."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.support.wait import eventually

ROOT: Final = Path("/sys/fs/cgroup")
VERSION_1: Final = ROOT / "memory"


@contextmanager
def memory_limit(process: int, size: int) -> Iterator[None]:
    """Let a process, its children and all that they start use `size` bytes. At the end they are killed."""
    if VERSION_1.exists():
        parent, limit = VERSION_1, "memory.limit_in_bytes"
    else:
        parent, limit = ROOT, "memory.max"
        (ROOT / "cgroup.subtree_control").write_text("+memory")
    group = parent / f"workqueue-test-{uuid.uuid4()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(size))
        for one in (process, *children(process)):
            (group / "cgroup.procs").write_text(str(one))
        yield
    finally:
        eventually(lambda: not _kill_all(group / "cgroup.procs"))
        group.rmdir()


def _kill_all(members: Path) -> list[str]:
    found = members.read_text().split()
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return found


def children(process: int) -> list[int]:
    """The processes that any thread of a process has started."""
    found: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, file.read_text().split())
    return found
