"""Run other programs. A failure becomes one sentence that ends with the program's output."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from hack.cluster.errors import ClusterError

LAST_LINES: Final = 12

_running: Final[set[subprocess.Popen[bytes]]] = set()


def end_all() -> None:
    """End the programs that other threads wait for. Their errors follow."""
    for process in tuple(_running):
        process.terminate()


def run(
    command: Sequence[str | Path],
    *,
    doing: str,
    stdin: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Run a command and return its standard output.

    Args:
        doing: the purpose. Errors begin with it, as in "Importing an image".
        stdin: an open file that becomes the command's standard input.
        environment: added to the environment of this process.
        timeout: seconds.

    Raises:
        ClusterError: the program is missing, failed or took too long.
    """
    arguments = [str(part) for part in command]
    where = {"env": {**os.environ, **(environment or {})}, "cwd": folder}
    with _started(arguments, doing, stdin or subprocess.DEVNULL, subprocess.PIPE, **where) as process:
        try:
            printed, complaint = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise ClusterError(f"{doing} took longer than {timeout:.0f} s: {' '.join(arguments)}") from error
    output = printed.decode(errors="replace")
    if process.returncode != 0:
        raise failure(doing, arguments, process.returncode, complaint.decode(errors="replace") or output)
    return output


def run_with_lines(
    command: Sequence[str | Path],
    *,
    doing: str,
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Run a long command and pass each line of its output to `on_line` immediately.

    Raises:
        ClusterError: as for `run`.
    """
    arguments = [str(part) for part in command]
    lines: list[str] = []
    where = {"env": {**os.environ, **(environment or {})}, "cwd": folder}
    with _started(arguments, doing, subprocess.DEVNULL, subprocess.STDOUT, **where) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.decode(errors="replace").rstrip())
            on_line(lines[-1])
    if process.returncode != 0:
        raise failure(doing, arguments, process.returncode, "\n".join(lines))


@contextmanager
def _started(
    arguments: list[str], doing: str, stdin: IO[bytes] | int, stderr: int, **where: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the block. `end_all` can end it."""
    try:
        process = subprocess.Popen(arguments, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, **where)
    except FileNotFoundError as error:
        raise ClusterError(f"{doing} needs the program {arguments[0]}, which is not installed.") from error
    _running.add(process)
    try:
        with process:
            yield process
    finally:
        _running.discard(process)


def failure(doing: str, arguments: Sequence[str], code: int, output: str) -> ClusterError:
    """Return the error for a command whose exit code is not 0."""
    if "no space left on device" in output.lower():
        return ClusterError(f"{doing} failed because the disk is full: free some space and run this again.")
    last = "\n".join(f"  {line}" for line in output.strip().splitlines()[-LAST_LINES:])
    return ClusterError(f"{doing} failed: {arguments[0]} ended with exit code {code} and said:\n{last}")
