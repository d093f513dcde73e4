"""Processes of this machine, told apart from later ones that got the same number."""

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
    """A process: its number, the clock tick at which it started, and the boot in which it did."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this number now; None if there is none, or only its remains."""
        try:
            stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The program's name stands in brackets and may itself hold spaces and brackets.
        state, *fields = stat.rpartition(")")[2].split()
        if state in "ZX":
            return None
        return cls(pid, int(fields[18]), (PROC / "sys/kernel/random/boot_id").read_text().strip())

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return Process.of(self.pid) == self


def with_arguments(*arguments: str) -> list[Process]:
    """The processes whose command line has these arguments one after the other."""
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
    """The numbers of a process's children."""
    try:
        return [int(child) for child in (PROC / f"{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def program(pid: int) -> str:
    """The name of the program that a process runs; empty if it is gone."""
    try:
        return Path((PROC / f"{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")).name
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill(processes: Iterable[Process]) -> bool:
    """Kill processes with SIGKILL and wait until they are gone; False if one is still there after 20 s."""
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
