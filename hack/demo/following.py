"""Follow the output of kubectl commands that keep running, such as `get --watch` and `port-forward`.

kubectl can sign in to any cluster of a kubeconfig. It is restarted when it ends.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from workqueue_kubectl.dependent import dependent

PAUSE_SECONDS: Final = 0.5
STOP_SECONDS: Final = 5.0
LINES_KEPT: Final = 3


class Following:
    """Runs one command inside a `with` block.

    Args:
        on_line: called in a thread with each line.
    """

    def __init__(self, command: Sequence[str | Path], on_line: Callable[[str], None]) -> None:
        self._command = [str(part) for part in command]
        self._on_line = on_line
        self._process: subprocess.Popen[str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubectl", daemon=True)
        self.last_lines: list[str] = []
        """The last lines of output, for an error message."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._ended.is_set():
            # An interrupt at the terminal must not end the command before the demo ends it.
            with dependent(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process:
                self._process = process
                if self._ended.is_set():  # `__exit__` may not have seen the process
                    process.terminate()
                assert process.stdout is not None
                for line in process.stdout:
                    self.last_lines = [*self.last_lines, line.strip()][-LINES_KEPT:]
                    self._on_line(line)
            self._ended.wait(PAUSE_SECONDS)
