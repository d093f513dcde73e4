"""The command line `workqueue`, run as users run it: in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

SECONDS: Final = 240.0
COMMAND: Final = (sys.executable, "-m", "workqueue")
PLUGIN: Final = (sys.executable, "-m", "workqueue_kubectl")


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on standard output."""
        return json.loads(self.out)


def environment(url: str | None = None, **more: str) -> dict[str, str]:
    """An environment without the machine's own settings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("WORKQUEUE_", "SERVICE_"))
    }
    paths = os.pathsep.join(sys.path)
    return kept | {"PYTHONPATH": paths} | ({"WORKQUEUE_URL": url} if url else {}) | more


def workqueue(*arguments: str, url: str | None = None, stdin: str | bytes = "", **more: str) -> Done:
    """Run a command to its end."""
    return _run(
        [*COMMAND, *arguments],
        stdin.encode() if isinstance(stdin, str) else stdin,
        environment(url, **more),
    )


def kubectl_workqueue(*arguments: str, **more: str) -> Done:
    """Run a command of kubectl's plugin to its end, without kubectl."""
    return _run([*PLUGIN, *arguments], b"", environment(**more))


def _run(command: Sequence[str], stdin: bytes, environment: dict[str, str]) -> Done:
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        env=environment,
        timeout=SECONDS,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def started(arguments: Sequence[str], url: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command; the caller ends it."""
    return subprocess.Popen([*COMMAND, *arguments], env=environment(url), **options)
