"""Forward RabbitMQ's port to this machine with `kubectl port-forward`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """Forward a free local port inside a `with` block.

    Args:
        kubectl: the command, up to and including the namespace.
        target: such as `service/rabbitmq`.
        binding: the address of RabbitMQ within the cluster.

    Returns:
        A function that returns the current address of RabbitMQ on this machine.

    Raises:
        DemoError: no port was forwarded within the time limit.
    """
    ports: list[int] = []
    is_open = threading.Event()

    def on_line(line: str) -> None:
        if found := re.match(rf"Forwarding from {re.escape(HOST)}:(\d+)", line):
            ports.append(int(found[1]))
            is_open.set()

    def here() -> Binding:
        return binding._replace(addresses=((HOST, ports[-1]),))

    command = [*kubectl, "port-forward", f"--address={HOST}", target, f":{binding.addresses[0][1]}"]
    with Following(command, on_line) as following:
        if not is_open.wait(START_SECONDS):
            output = "; ".join(following.last_lines) or "kubectl printed nothing"
            raise DemoError(f"RabbitMQ's port was not forwarded to this machine: {output}.")
        yield here
