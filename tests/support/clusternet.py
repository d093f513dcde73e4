"""The network of the local cluster, from a test: sockets in it, and processes that run in it.

A socket stays in the network namespace that it was created in. So a proxy of the test can listen where pods and
an operator process in the cluster's network reach it, and lead to servers on the machine's loopback.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from hack.cluster import lifecycle
from hack.cluster.daemons import ADDRESS
from hack.cluster.instance import Instance

NODE_ADDRESS: Final = ADDRESS
"""Where pods reach what listens in the cluster's network."""

LOOPBACK: Final = "127.0.0.1"

_CLONE_NEWNET: Final = 0x40000000
T = TypeVar("T")


def command(*arguments: str) -> list[str]:
    """A command line that runs another in the cluster's network; the process keeps its number.

    Raises:
        ClusterError: the local cluster is not up.
    """
    return lifecycle.inside(Instance.from_environment(), arguments)


def listen(address: str = LOOPBACK) -> socket.socket:
    """A socket that listens on a free port in the cluster's network."""

    def make() -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, 0))
        made.listen(128)
        return made

    return _in_network(make)


def get(port: int, path: str) -> str:
    """What a server on the loopback of the cluster's network answers.

    Raises:
        OSError: no server listens.
        AssertionError: it answered with an error.
    """
    with _in_network(lambda: socket.create_connection((LOOPBACK, port), timeout=5)) as connected:
        connection = http.client.HTTPConnection(LOOPBACK, port)
        connection.sock = connected
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
    assert response.status < 400, f"{path}: {response.status} {text}"
    return text


def _in_network(make: Callable[[], T]) -> T:
    """Run something in a thread that is in the cluster's network, and ends."""
    record = Instance.from_environment().record()
    assert record is not None, "this needs the local cluster: run `make cluster`, and leave CLUSTER unset"

    def enter() -> T:
        network = os.open(f"/proc/{record.node.pid}/ns/net", os.O_RDONLY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(network, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            return make()
        finally:
            os.close(network)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()
