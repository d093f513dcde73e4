"""Identify processes of this machine, even if a later process gets the same number."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
DEATH_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Process:
    """A process: its number, the clock tick at which it started, and the boot in which it started."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has this number now, or None if it has ended, even if it was not reaped."""
        try:
            stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The program's name is in brackets and may itself contain spaces and brackets.
        state, *fields = stat.rpartition(")")[2].split()
        if state in "ZX":
            return None
        return cls(pid, int(fields[18]), (PROC / "sys/kernel/random/boot_id").read_text().strip())

    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        return Process.of(self.pid) == self


def with_arguments(*arguments: str) -> list[Process]:
    """Return the processes whose command line contains these arguments in a row."""
    wanted = "\0".join(("", *arguments, "")).encode()
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command_line = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if wanted in command_line and (process := Process.of(int(entry.name))):
            found.append(process)
    return found


def children(pid: int) -> list[int]:
    """Return the numbers of a process's children."""
    try:
        return [int(child) for child in (PROC / f"{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def program(pid: int) -> str:
    """Return the name of the program of a process, or an empty string if the process is gone."""
    try:
        return Path((PROC / f"{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")).name
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill(processes: Iterable[Process]) -> bool:
    """Kill processes with SIGKILL and return whether all are gone within 20 s."""
    remaining = list(processes)
    for process in remaining:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + DEATH_SECONDS
    while remaining := [process for process in remaining if process.is_alive()]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
