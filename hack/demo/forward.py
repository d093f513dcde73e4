"""RabbitMQ's port on this machine, through `kubectl port-forward`, which is started again when it ends."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hack.demo.errors import DemoError
from workqueue_worker.binding import Binding

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 20.0
PAUSE_SECONDS: Final = 0.5
STOP_SECONDS: Final = 5.0


class Forward:
    """Forwards a free local port for as long as the context lasts.

    Args:
        kubectl: the command, up to and including the namespace.
        target: such as `service/rabbitmq`.
        binding: how RabbitMQ is reached within the cluster.
    """

    def __init__(self, kubectl: Sequence[str | Path], target: str, binding: Binding) -> None:
        port = binding.addresses[0][1]
        self._command = [*map(str, kubectl), "port-forward", f"--address={HOST}", target, f":{port}"]
        self._binding = binding
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self._said: list[str] = []
        self._open = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="port-forward", daemon=True)

    def binding(self) -> Binding:
        """How RabbitMQ is reached from this machine at this moment."""
        return replace(self._binding, addresses=((HOST, self._port),))

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            DemoError: no port was forwarded in time.
        """
        self._thread.start()
        if not self._open.wait(START_SECONDS):
            said = "; ".join(self._said[-2:]) or "kubectl said nothing"
            self._stop()
            raise DemoError(f"RabbitMQ's port was not forwarded to this machine: {said}.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._ended.set()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
        self._thread.join(STOP_SECONDS)

    def _keep(self) -> None:
        while not self._ended.is_set():
            # In a session of its own: an interrupt at the terminal is for us, who still need the port then.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            with self._process as process:
                assert process.stdout is not None
                for line in process.stdout:
                    self._said = [*self._said[-9:], line.strip()]
                    if found := re.match(rf"Forwarding from {re.escape(HOST)}:(\d+)", line):
                        self._port = int(found[1])
                        self._open.set()
            self._ended.wait(PAUSE_SECONDS)
