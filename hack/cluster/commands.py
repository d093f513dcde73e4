"""Run other programs. A failure becomes one sentence that ends with the program's output."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from hack.cluster.errors import ClusterError

LAST_LINES: Final = 12


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
    try:
        done = subprocess.run(
            arguments,
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{doing} needs the program {arguments[0]}, which is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{doing} took longer than {timeout:.0f} s: {' '.join(arguments)}") from error
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise failure(doing, arguments, done.returncode, done.stderr.decode(errors="replace") or output)
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
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{doing} needs the program {arguments[0]}, which is not installed.") from error
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            on_line(lines[-1])
    if process.returncode != 0:
        raise failure(doing, arguments, process.returncode, "\n".join(lines))


def failure(doing: str, arguments: Sequence[str], code: int, output: str) -> ClusterError:
    """Return the error for a command whose exit code is not 0."""
    if "no space left on device" in output.lower():
        return ClusterError(f"{doing} failed because the disk is full: free some space and run this again.")
    last = "\n".join(f"  {line}" for line in output.strip().splitlines()[-LAST_LINES:])
    return ClusterError(f"{doing} failed: {arguments[0]} ended with exit code {code} and said:\n{last}")
