"""Run a command that ends with this process, also when this process is killed.

A command in a session of its own would go on without the terminal and without this process. Its first process forks.
The parent becomes the command. The child waits for the end of a pipe, whose other end only this process holds: the
system closes it however this process ends. This works on Linux and macOS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

STOP_SECONDS: Final = 5.0

_WATCH: Final = """
import os, signal, sys, time
pipe, seconds, command = int(sys.argv[1]), float(sys.argv[2]), os.getpid()
if os.fork():
    os.set_inheritable(pipe, False)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
    os.execv(sys.argv[3], sys.argv[3:])
nothing = os.open(os.devnull, os.O_RDWR)
for stream in range(3):
    os.dup2(nothing, stream)
os.read(pipe, 1)
for number in (signal.SIGTERM, signal.SIGKILL):
    deadline = time.monotonic() + seconds
    if os.getppid() == command:
        os.kill(command, number)
    while os.getppid() == command and time.monotonic() < deadline:
        time.sleep(0.05)
"""
"""Arguments: the reading end of the pipe, seconds until SIGKILL, the command."""


@contextmanager
def dependent(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a command in a session of its own while the context lasts. Ctrl-C at the terminal does not reach it.

    Args:
        command: the path of a program, and its arguments.
        options: as for `subprocess.Popen`.
    """
    waiting, held = os.pipe()
    try:
        try:
            process = subprocess.Popen(  # noqa: S603 - what the caller wants
                [sys.executable, "-I", "-S", "-c", _WATCH, str(waiting), str(STOP_SECONDS), *command],
                pass_fds=(waiting,),
                start_new_session=True,
                **options,
            )
        finally:
            os.close(waiting)
        with process:
            try:
                yield process
            finally:
                end(process)
    finally:
        os.close(held)


def end(process: subprocess.Popen[Any], seconds: float = STOP_SECONDS) -> None:
    """End a process and wait for it. Does nothing if it has ended.

    Args:
        seconds: how long it may take before it is killed.
    """
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
