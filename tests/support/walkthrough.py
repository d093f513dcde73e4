"""Follow a page of the documentation: write its files, run its commands, compare their output.

A page is written for people. Comments before a block tell the test what a person does by reading:

    <!-- walkthrough: background -->             a command for a terminal of its own, which goes on
    <!-- walkthrough: background until TEXT -->  the same; the page goes on when its output has the text
    <!-- walkthrough: skip -->                   what is true of this checkout already, or is not for this place

A block `sh` is run, a block `text` is what the block before it prints, and a block that begins with a file's
name in a comment is written to that file.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.wait import eventually

_BLOCK: Final = re.compile(
    r"(?:^<!-- walkthrough: (?P<mark>\w+)(?: until (?P<until>[^\n]+?))? -->\n)?"
    r"^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_FILE: Final = re.compile(r"# ([\w.-]+)\n")
_HEADER: Final = re.compile(r"[A-Z]{2,}[A-Z() -]*(  |$)")
_BACKGROUND: Final = """
setsid bash -c {command} >{output} 2>&1 </dev/null & echo $! >>pids
for _ in $(seq 1200); do grep -q {until} {output} && break; sleep 0.1; done
grep -q {until} {output}
"""


@dataclass(frozen=True)
class Block:
    """One block of a page, in its order."""

    language: str
    body: str
    mark: str
    until: str


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of a page."""
    for found in _BLOCK.finditer(page):
        yield Block(found["language"], found["body"], found["mark"] or "", found["until"] or "")


def walk(page: Path, folder: Path, environment: Mapping[str, str], seconds: float) -> None:
    """Follow a page in `folder`.

    Raises:
        AssertionError: a command failed, or its output is not what the page shows.
    """
    script, expected = ["set -euo pipefail", "echo $$ >pids"], {}
    for number, block in enumerate(blocks(page.read_text())):
        name = _FILE.match(block.body)
        if block.mark == "skip":
            continue
        if block.language == "sh" and block.mark == "background":
            command, until = shlex.quote(block.body), shlex.quote(block.until)
            script.append(_BACKGROUND.format(command=command, output=f"output.{number}", until=until))
        elif block.language == "sh":
            script.append(f"{{\n{block.body}}} >output.{number} 2>&1")
        elif block.language == "text":
            expected[number] = block.body
        elif name:
            (folder / name[1]).write_text(block.body)
    try:
        process = subprocess.Popen(
            ["bash", "-c", "\n".join(script)],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        said = "not at its end" if code is None else f"exit code {code}"
        assert code == 0, f"{page.name}: {said} after {seconds:.0f} s at most\n{_last_output(folder)}"
        for number, text in expected.items():
            _compare(text, (folder / f"output.{number - 1}").read_text())
    finally:
        _end(folder / "pids")


def _last_output(folder: Path) -> str:
    """The output of the command that ran last."""
    outputs = sorted(folder.glob("output.*"), key=lambda path: path.stat().st_ctime)
    return outputs[-1].read_text()[-3000:] if outputs else "nothing was run"


def _compare(text: str, output: str) -> None:
    """Tables by their headers, since ages and counts differ; everything else line by line."""
    printed = [_squeezed(line) for line in output.splitlines()]
    for line in text.splitlines():
        if _HEADER.match(line):
            assert _squeezed(line) in printed, f"no {line!r} in\n{output}"
            return
        assert _squeezed(line) in printed, f"no {line!r} in\n{output}"


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def _end(pids: Path) -> None:
    """End the process groups of a script and of its background commands, and wait until all have ended."""
    groups = [int(pid) for pid in pids.read_text().split()]
    for group in groups:
        _signal(group, signal.SIGTERM)
    for group in groups:
        eventually(lambda group=group: not _signal(group, 0), 60, f"process group {group} has ended")


def _signal(group: int, number: int) -> bool:
    """Whether the process group still exists."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
