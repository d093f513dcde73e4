"""A RabbitMQ cluster of three nodes on loopback, whose nodes can be killed one by one.

Each node is a `Broker` with a name and ports of its own. They find each other through one epmd, Erlang's name
service, which belongs to the cluster: one started by a node would die with that node.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pika

from tests.support.ports import free_port
from tests.support.rabbitmq import Broker, Member, in_namespaces, installed
from tests.support.wait import eventually

NODES: Final = 3
JOIN_SECONDS: Final = 60.0

# RabbitMQ 3.10 has only the second variant.
_RUNNING: Final = (
    "length(try rabbit_nodes:list_running() catch error:undef -> rabbit_nodes:all_running() end)"
)


class RabbitCluster:
    """Three nodes.

    Attributes:
        nodes: in no particular order; each can be killed and started again.
    """

    def __init__(self, series: str, folder: Path) -> None:
        names = tuple(f"rabbit-{number}@localhost" for number in range(1, NODES + 1))
        port, cookie = free_port(), uuid.uuid4().hex
        self.nodes = [
            Broker(series, folder / name, management=False, member=Member(name, port, cookie, names))
            for name in names
        ]
        self._folder = folder
        self._epmd_port = port
        self._root = installed(series)
        self._epmd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all nodes and wait until they are one cluster."""
        home = self._folder / "epmd"
        home.mkdir()
        epmd = ("env", "--ignore-environment", "PATH=/usr/bin:/bin", "epmd", "-address", "127.0.0.1")
        self._epmd = in_namespaces(
            self._root, home, [*epmd, "-port", str(self._epmd_port)], self._folder / "epmd.log"
        )
        eventually(lambda: _answers(self._epmd_port))
        for node in self.nodes:
            node.spawn()
        for node in self.nodes:
            node.wait_until_ready()
        eventually(lambda: all(self.members(node) == NODES for node in self.nodes), JOIN_SECONDS)

    def members(self, node: Broker) -> int:
        """How many running nodes this node sees, including itself."""
        return int(node.evaluate(_RUNNING))

    def url(self, vhost: str, first: Broker | None = None) -> str:
        """The AMQP URL of a virtual host with the addresses of all nodes, as guest.

        Args:
            first: the node that clients try first.
        """
        nodes = sorted(self.nodes, key=lambda node: node is not first)
        places = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        return self.nodes[0].url_of(vhost).replace(f"127.0.0.1:{self.nodes[0].port}", places)

    @property
    def running(self) -> list[Broker]:
        """The nodes that run."""
        return [node for node in self.nodes if node.is_running]

    def start_missing(self) -> None:
        """Start the nodes that were killed."""
        missing = [node for node in self.nodes if not node.is_running]
        for node in missing:
            node.spawn()
        for node in missing:
            node.wait_until_ready()

    def connect(self, vhost: str) -> pika.BlockingConnection:
        """A plain connection to the first node that takes one."""
        return pika.BlockingConnection([pika.URLParameters(node.url_of(vhost)) for node in self.nodes])

    def leader_of(self, queue: str, vhost: str) -> Broker:
        """Wait for a leader of a quorum queue and return its node."""

        def found() -> Broker | None:
            name = self.running[0].leader(queue, vhost)
            return next((node for node in self.running if node.node == name), None)

        leader = eventually(found)
        assert leader is not None
        return leader

    @contextmanager
    def without_majority(self, queue: str, vhost: str) -> Iterator[None]:
        """One quorum queue has only its leader left while the context lasts; no other queue is affected."""
        leader = self.leader_of(queue, vhost)
        with ExitStack() as stack:
            for node in self.running:
                if node is not leader:
                    stack.enter_context(node.suspended_member(queue, vhost))
            yield

    def close(self) -> None:
        """Kill everything and remove the data."""
        for node in self.nodes:
            node.close()
        if self._epmd is not None:
            self._epmd.communicate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def rabbit_cluster(series: str) -> Iterator[RabbitCluster]:
    """A cluster while the context lasts."""
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="rabbitmq-cluster-", ignore_cleanup_errors=True)
        )
        cluster = RabbitCluster(series, Path(folder))
        stack.callback(cluster.close)
        cluster.start()
        yield cluster
