"""RabbitMQ's port on this machine, through `kubectl port-forward`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from hack.demo.errors import DemoError
from hack.demo.following import Following
from workqueue.contract.binding import Binding

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 20.0


@contextmanager
def forwarded(
    kubectl: Sequence[str | Path], target: str, binding: Binding
) -> Iterator[Callable[[], Binding]]:
    """Forward a free local port for as long as the context lasts.

    Args:
        kubectl: the command, up to and including the namespace.
        target: such as `service/rabbitmq`.
        binding: how RabbitMQ is reached within the cluster.

    Returns:
        A function that says how RabbitMQ is reached from this machine at that moment.

    Raises:
        DemoError: no port was forwarded in time.
    """
    ports: list[int] = []
    is_open = threading.Event()

    def on_line(line: str) -> None:
        if found := re.match(rf"Forwarding from {re.escape(HOST)}:(\d+)", line):
            ports.append(int(found[1]))
            is_open.set()

    def here() -> Binding:
        return replace(binding, addresses=((HOST, ports[-1]),))

    command = [*kubectl, "port-forward", f"--address={HOST}", target, f":{binding.addresses[0][1]}"]
    with Following(command, on_line) as following:
        if not is_open.wait(START_SECONDS):
            said = "; ".join(following.said) or "kubectl said nothing"
            raise DemoError(f"RabbitMQ's port was not forwarded to this machine: {said}.")
        yield here
