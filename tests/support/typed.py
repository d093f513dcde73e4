"""Commands that pages show in passing, run where their names exist.

`walkthrough` follows a page step by step. The other pages show single indented commands for a WorkQueue of the
reader: here one WorkQueue replaces all of them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.support.ports import free_port

_FENCE: Final = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_COMMAND: Final = re.compile(
    r"^ {4}((?:kubectl|helm|pip|curl|workqueue|rabbitmq\w*(?:-\w+)?) .*)$", re.MULTILINE
)
_CONTINUED: Final = re.compile(r"\\\n *")
_FORWARD: Final = re.compile(
    r"^(?P<command> *kubectl .*\bport-forward .*) (?P<port>\d+)(?P<remote>:\d+)?$", re.MULTILINE
)
_SECONDS: Final = 240.0


def commands(page: str) -> Iterator[str]:
    """Every indented command of a page, in one line."""
    yield from _COMMAND.findall(_FENCE.sub("", _CONTINUED.sub("", page)))


def with_free_ports(page: str) -> str:
    """A page whose port-forwards listen on ports that nothing else on this machine uses."""
    free: dict[str, int] = {}

    def forward(found: re.Match[str]) -> str:
        port = free.setdefault(found["port"], free_port())
        return f"{found['command']} {port}{found['remote'] or ':' + found['port']}"

    page = _FORWARD.sub(forward, page)
    return re.sub(r"localhost:(\d+)", lambda found: f"localhost:{free.get(found[1], found[1])}", page)


class Terminal:
    """Runs commands, each with the names that it needs.

    Args:
        names: replacements for words in a command, called just before the command runs.
        inside: the prefix for a program that this machine lacks.
        prepare: called with each command before it runs.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        names: Mapping[str, Callable[[str], str]],
        inside: Mapping[str, Callable[[], str]],
        prepare: Callable[[str], object],
    ) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._names = names
        self._inside = inside
        self._prepare = prepare

    def type(self, typed: Iterable[str]) -> None:
        """Run commands in sequence; what they forward stays until the last has ended.

        Raises:
            AssertionError: one failed.
        """
        with ExitStack() as forwards:
            for written in typed:
                self._prepare(written)
                command = self._meant(written)
                if _FORWARD.match(command):
                    forwards.enter_context(self._forward(command))
                else:
                    self._run(command)

    def _meant(self, command: str) -> str:
        for word, name in self._names.items():
            if re.search(rf"\b{word}\b", command):
                command = re.sub(rf"\b{word}\b", name(command), command)
        program = command.split()[0]
        return f"{self._inside[program]()} {command}" if program in self._inside else command

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail\n{command}"],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            input="y\n",
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"

    @contextmanager
    def _forward(self, command: str) -> Iterator[None]:
        """A port-forward while the context lasts."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert "Forwarding from" in first, f"{command}\n{first}"
            yield
        finally:
            process.terminate()
            process.communicate(timeout=60)
