"""A process by its PID: what the kernel reports (proc_pid_status(5)), and how to freeze it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.wait import eventually


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes: `VmRSS` what a process holds, `VmHWM` the most it ever held."""
    return _figure(pid, what) * 1024


def threads(pid: int) -> int:
    """How many threads it has."""
    return _figure(pid, "Threads")


def processor_seconds(pid: int) -> float:
    """The processor time that all its threads have used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def named(name: str) -> list[int]:
    """The PIDs of the processes with this name (at most 15 characters)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if path.read_text().rstrip() == name:
                found.append(int(path.parent.name))
    return found


def forget_peak(pid: int) -> None:
    """Reset `VmHWM` to the current usage (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop the process while the context lasts (SIGSTOP); it must outlive the context."""
    os.kill(pid, signal.SIGSTOP)
    # Threads that are running go on for a moment.
    eventually(lambda: _states(pid) <= {"T", "t"}, what="all threads have stopped")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _states(pid: int) -> set[str]:
    """The states of all its threads."""
    found = set()
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found.add(status.read_text().rpartition(")")[2].split()[0])
    return found


def _figure(pid: int, what: str) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{what}:")[1].split()[0])
