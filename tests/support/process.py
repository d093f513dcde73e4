"""What the kernel tells of a process: proc_pid_status(5)."""

from __future__ import annotations

from pathlib import Path


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes: `VmRSS` what a process holds, `VmHWM` the most it ever held."""
    return _figure(pid, what) * 1024


def threads(pid: int) -> int:
    """How many threads it has."""
    return _figure(pid, "Threads")


def forget_peak(pid: int) -> None:
    """Let `VmHWM` begin anew at what is held now (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _figure(pid: int, what: str) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{what}:")[1].split()[0])
