"""What can happen between workers and RabbitMQ: the network refuses, delays, swallows, cuts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.work import Work
from tests.support.tcpproxy import ACKNOWLEDGEMENT, CONFIRMATION, COPY, DELIVERY, Cut, TcpProxy, tcp_proxy
from tests.support.wait import eventually
from tests.support.worker import ASYNC, THREADS


@pytest.fixture
def network(work: Work) -> Iterator[TcpProxy]:
    """What the workers connect through."""
    with tcp_proxy(work.broker.port) as proxy:
        work.declare()
        yield proxy


@pytest.mark.slow
@pytest.mark.parametrize(
    "handler",
    [THREADS, pytest.param(ASYNC, marks=pytest.mark.nightly)],
    ids=["in a thread", "as a coroutine"],
)
def test_work_survives_refused_connections(work: Work, network: TcpProxy, handler: str) -> None:
    work.start(2, port=network.port, handler=handler)
    with work.through("connection refused", within=60), network.refusing():
        eventually(lambda: work.connected == 0)
        work.await_sent(40)


@pytest.mark.nightly
def test_work_survives_slow_network(work: Work, network: TcpProxy) -> None:
    work.start(2, port=network.port)
    with (
        work.through("latency of 0.3 s in each direction", within=60, duplicates=False),
        network.slow(0.3),
    ):
        work.await_done(40)


@pytest.mark.nightly
def test_work_survives_black_hole_shorter_than_heartbeat(work: Work, network: TcpProxy) -> None:
    work.start(2, port=network.port)
    with work.through("black hole for 2 s", within=60, duplicates=False), network.black_hole():
        work.await_sent(80)
    assert work.lost_leases() == 0


@pytest.mark.nightly
def test_work_survives_black_hole_longer_than_heartbeats(work: Work, network: TcpProxy) -> None:
    work.start(2, "--heartbeat", "10", port=network.port)
    with work.through("black hole until heartbeats are missed", within=60), network.black_hole():
        eventually(lambda: work.connected == 0, 60)


CUTS = [
    pytest.param("a delivery", DELIVERY, marks=pytest.mark.nightly),
    ("an acknowledgement", ACKNOWLEDGEMENT),
    ("a copy", COPY),
    pytest.param("the confirmation of a copy", CONFIRMATION, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("name", "where"), CUTS)
def test_work_survives_connection_reset_within_a_frame(
    work: Work, network: TcpProxy, name: str, where: Cut
) -> None:
    work.start(2, port=network.port)
    with work.through(f"connection reset in the middle of {name}", within=60):
        for _ in range(3):
            network.cut(where)
