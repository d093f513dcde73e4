"""Start, watch and end a process, together with every process that it starts.

Each supervised process leads a process group of its own. It is ended with SIGTERM, and with SIGKILL after a grace
period. When it has ended, the rest of its group is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

KILL_SECONDS: Final = 2.0
"""How long a process may take to end after SIGTERM, before SIGKILL."""


class SupervisedProcess:
    """A process and its group.

    Args:
        command: the program and its arguments.
        options: further arguments of `subprocess.Popen`.

    Attributes:
        popen: for its pipes. Only this class waits for the process or signals it.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.popen = subprocess.Popen(command, start_new_session=True, **options)  # noqa: S603 - what the user configured
        self._lock = threading.Lock()
        self._ended = False
        self._killer: threading.Timer | None = None

    @property
    def pid(self) -> int:
        """Its process id, which is also the number of its group."""
        return self.popen.pid

    def terminate(self) -> None:
        """Send SIGTERM to the group now, and SIGKILL after `KILL_SECONDS`. Thread-safe."""
        with self._lock:
            if self._ended or self._killer is not None:
                return
            self._signal(signal.SIGTERM)
            self._killer = threading.Timer(KILL_SECONDS, self.kill)
            self._killer.daemon = True
        with contextlib.suppress(RuntimeError):  # no thread is free; `kill` is still possible
            self._killer.start()

    def kill(self) -> None:
        """Send SIGKILL to the group. Thread-safe."""
        with self._lock:
            if not self._ended:
                self._signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the process, kill the rest of its group, and return its exit code; negative for a signal."""
        # Wait without reaping: until the process is reaped, no other process can get its group's number.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._signal(signal.SIGKILL)
            self._ended = True
            killer = self._killer
        if killer is not None:
            killer.cancel()
        code = self.popen.wait()
        self._reap_group()
        return code

    def _reap_group(self) -> None:
        """Reap what was killed of its group, where the kernel has made it the worker's own: as process 1 of a pod.

        Nothing else would, and the pod would run out of process ids.
        """
        with contextlib.suppress(ChildProcessError):  # none is left, or another process reaps them
            while True:
                os.waitpid(-self.pid, 0)

    def watch(self, on_end: Callable[[int], None]) -> threading.Thread:
        """Call `on_end` with the exit code, in a thread of its own, which is returned."""
        thread = threading.Thread(target=lambda: on_end(self.wait()), name=f"watch-{self.pid}", daemon=True)
        thread.start()
        return thread

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def describe_end(code: int) -> str:
    """Return how a process ended: `exit code 3`, or `ended by SIGKILL`.

    Args:
        code: as `SupervisedProcess.wait` returns it.
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"ended by signal {-code}"
