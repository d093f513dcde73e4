"""`workqueue run --reload`: run the worker in a process of its own, and start it again when a Python file changes.

The worker finishes its messages first. A terminal sends Ctrl-C to both processes; SIGTERM is passed on. When this
process is killed, the worker ends, too. Otherwise it would go on with old code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from workqueue.contract.worker_api import ExitCode
from workqueue.worker.errors import ConfigurationError

LOOK_MILLISECONDS: Final = 200

PARENT_SECONDS: Final = 0.5
"""Pause between two looks of the worker at its parent process."""


def supervise() -> int:
    """Run the worker with the arguments of this process until it is stopped, and return its exit code.

    Raises:
        ConfigurationError: the library watchfiles is missing.
    """
    try:
        import watchfiles
    except ImportError:
        raise ConfigurationError(
            ["--reload needs the library watchfiles: pip install 'workqueue-operator[reload]'."]
        ) from None
    worker = _Worker()
    for changes in watchfiles.watch(
        Path.cwd(),
        watch_filter=watchfiles.PythonFilter(),
        stop_event=worker.stopping,
        rust_timeout=LOOK_MILLISECONDS,
        yield_on_timeout=True,
        raise_interrupt=False,
    ):
        # The first turn comes when the folder is watched, so that no change is missed.
        if worker.process is None or changes:
            worker.restart(sorted(Path(path).name for _, path in changes))
        elif worker.process.poll() in {ExitCode.DONE, ExitCode.CONFIGURATION}:
            break
    return worker.wait()


class _Worker:
    """The process of the worker, and the signals of this process."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self._is_ending = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def restart(self, changed: list[str]) -> None:
        """Stop the process, if there is one, and start another."""
        if self.process is not None:
            _say(f"{', '.join(changed)} changed. The worker finishes its messages and starts again.")
            self._is_ending = True
            self.process.terminate()
            self.process.wait()
            self._is_ending = False
        if not self.stopping.is_set():
            command = [sys.executable, "-m", __name__, str(os.getpid()), *sys.argv[1:], "--no-reload"]
            # Python takes two versions of a file for the same if they have one size and were written within a second.
            environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
            self.process = subprocess.Popen(command, env=environment)  # noqa: S603 - the command that the user gave
            if self.stopping.is_set():  # since the line above
                self.process.terminate()

    def wait(self) -> int:
        """Wait for the end of the process."""
        return 0 if self.process is None else self.process.wait()

    def _stop(self, number: int, _frame: object) -> None:
        # A second SIGTERM would end the time that handlers have.
        has_begun = self._is_ending and not self.stopping.is_set()
        self.stopping.set()
        if number == signal.SIGTERM and self.process is not None and not has_begun:
            self.process.terminate()


def _say(sentence: str) -> None:
    print(f"workqueue run: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - output of a command


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _run_worker() -> int:
    """Run a command as a child of `supervise`, whose process id is the first argument."""
    from workqueue.cli.main import main

    parent, *words = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), name="parent", daemon=True).start()
    return main(words)


if __name__ == "__main__":
    sys.exit(_run_worker())
