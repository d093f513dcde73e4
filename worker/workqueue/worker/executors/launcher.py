"""Start the processes that run a Python handler.

A process gets a socket for messages, a pipe for its answers, and a pipe for the tokens of cancelled messages. The end
of the last one shows that the worker is gone.

Answers have a pipe of their own. When the worker reads from a socket, Linux wakes a process that waits in `recv` at
its other end, since there is room for more. So each outcome would wake the process for nothing, at the cost of two
context switches.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

from workqueue.worker.config import RunConfig
from workqueue.worker.executors.frames import Settings
from workqueue.worker.supervisor import SupervisedProcess

MODULE: Final = "workqueue.worker.child"
METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable. A process writes the handler's metrics there, and the worker reads them."""

_PYTHON: Final = (
    sys.executable,
    *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
    "-P",  # a module of the user must not replace one of the standard library
    "-m",
)

FIRST_NAME: Final = "0-0"
"""For the metrics of the first process: of the first seat, and its first."""


class Child:
    """A process that runs a handler, as the worker sees it.

    Attributes:
        supervised: the process itself.
        socket: for messages; not blocking.
        answers: a pipe, or -1 when it is closed; not blocking.
    """

    def __init__(
        self, process: SupervisedProcess, connection: socket.socket, answers: int, cancellations: int
    ) -> None:
        self.supervised = process
        self.socket = connection
        self.answers = answers
        self._cancellations = cancellations
        self._lock = threading.Lock()

    def send_cancel(self, token: bytes) -> None:
        """Tell the process that a message is cancelled."""
        with self._lock:
            if self._cancellations >= 0:
                with contextlib.suppress(OSError):  # it has ended or does not read; the deadline ends it
                    os.write(self._cancellations, token)

    def close(self) -> None:
        """Close the connections. A process without a message then ends."""
        with self._lock:
            if self._cancellations >= 0:
                os.close(self._cancellations)
                os.close(self.answers)
                self._cancellations = self.answers = -1
        self.socket.close()


class Launcher:
    """Starts processes that load the handler.

    Args:
        config: the worker's configuration.
        name: the handler, `module:function`.

    Attributes:
        metrics_folder: where the processes write the handler's metrics.
    """

    def __init__(self, config: RunConfig, name: str) -> None:
        self.config = config
        self.name = name
        given = os.environ.get(METRICS_FOLDER)
        self._made_folder = None if given else tempfile.mkdtemp(prefix="workqueue-metrics-")
        self.metrics_folder = given or str(self._made_folder)
        self._first: tuple[str, Child] | None = None

    def launch_first(self) -> Launcher:
        """Start the first process early, while the worker still imports its own modules. Returns itself."""
        self._first = (FIRST_NAME, self.launch(FIRST_NAME))
        return self

    def launch(self, metrics_name: str) -> Child:
        """Start a process.

        Args:
            metrics_name: as in `Settings`.

        Raises:
            OSError: the machine has no resources for it.
        """
        if self._first is not None and self._first[0] == metrics_name:
            (_, child), self._first = self._first, None
            return child
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            connection, their_socket = socket.socketpair()
            ours.enter_context(connection)
            theirs.enter_context(their_socket)
            answers, their_answers = _pipe(ours, theirs)
            their_cancellations, cancellations = _pipe(theirs, ours)
            connection.setblocking(False)
            os.set_blocking(answers, False)
            os.set_blocking(cancellations, False)
            passed = (their_socket.fileno(), their_answers, their_cancellations)
            settings = Settings(
                self.name,
                self.config.retry._asdict(),
                self.config.queue,
                metrics_name,
                self.config.log_format,
                self.config.log_level,
                *passed,
            )
            process = SupervisedProcess(
                [*_PYTHON, MODULE, settings.to_argument()],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                env={
                    **os.environ,
                    **self.config.connection_environment(),
                    METRICS_FOLDER: self.metrics_folder,
                },
            )
            ours.pop_all()  # they stay open
        return Child(process, connection, answers, cancellations)

    def clear_metrics(self, metrics_name: str) -> None:
        """Remove the gauges of a process that has ended, as prometheus_client does for a process id."""
        for file in Path(self.metrics_folder).glob(f"gauge_live*_{metrics_name}.db"):
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder for metrics."""
        if self._made_folder is not None:
            shutil.rmtree(self._made_folder, ignore_errors=True)


def _pipe(reading: contextlib.ExitStack, writing: contextlib.ExitStack) -> tuple[int, int]:
    """Return the ends of a new pipe. The two stacks close them."""
    ends = os.pipe()
    reading.callback(os.close, ends[0])
    writing.callback(os.close, ends[1])
    return ends
