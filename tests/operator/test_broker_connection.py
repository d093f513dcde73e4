"""The operator's connection to RabbitMQ: it connects, reports why it cannot, and reconnects."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import PATIENCE, Probe, channel_of, connect_error_of, probe, put
from tests.support.ports import free_port
from tests.support.rabbitmq import Broker as Server
from tests.support.rabbitmq import VirtualHost, running
from tests.support.wait import until
from workqueue.contract.binding import TLS, Binding, from_url
from workqueue.contract.topology import BrokerVersion, QueueSettings, plan
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker import connection
from workqueue_operator.broker.connection import Broker
from workqueue_operator.destinations import Destinations
from workqueue_operator.errors import ReconcileError

CONNECTIONS = "length(rabbit_networking:connections())"


@pytest.fixture
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 1.0)


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that accepts connections and never sends a byte."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield listening.getsockname()[1]


async def test_broker_connects_and_knows_server_version(every_rabbitmq: Server) -> None:
    async with probe(every_rabbitmq.url) as broker:
        await broker.ready()
        assert broker.connected
        assert broker.version == BrokerVersion.parse(every_rabbitmq.version)
        assert broker.told.states == 1


async def test_wrong_password_is_reported_but_not_shown(every_rabbitmq: Server) -> None:
    problem = await connect_error_of(every_rabbitmq.url_of("/", password="wrong-secret"))
    assert problem.reason is Reason.AUTHENTICATION_FAILED
    assert "'guest'" in problem.message
    assert "wrong-secret" not in problem.message


async def test_missing_virtual_host_is_reported(every_rabbitmq: Server) -> None:
    problem = await connect_error_of(every_rabbitmq.url_of("nowhere"))
    assert problem.reason is Reason.VIRTUAL_HOST_NOT_FOUND
    assert "'nowhere'" in problem.message


async def test_denied_virtual_host_is_distinguished_from_missing_one(
    every_rabbitmq: Server, every_vhost: VirtualHost
) -> None:
    every_rabbitmq.add_user("stranger", "secret", "/")
    try:
        problem = await connect_error_of(every_rabbitmq.url_of(every_vhost.name, "stranger", "secret"))
    finally:
        every_rabbitmq.delete_user("stranger")
    assert problem.reason is Reason.PERMISSION_DENIED
    assert "'stranger'" in problem.message


@pytest.mark.parametrize("of", ["user", "virtual-host"])
async def test_limit_of_connections_is_named(vhost: VirtualHost, of: str) -> None:
    vhost.broker.add_user(vhost.name, "secret", vhost.name)
    none = '{"max-connections": 0}'
    if of == "user":
        vhost.broker.ctl("set_user_limits", vhost.name, none)
    else:
        vhost.broker.ctl("set_vhost_limits", "-p", vhost.name, none)

    try:
        problem = await connect_error_of(vhost.broker.url_of(vhost.name, vhost.name, "secret"))
    finally:
        vhost.broker.delete_user(vhost.name)

    assert problem.reason is Reason.BROKER_UNREACHABLE
    assert "limit (0) is reached" in problem.message
    assert "Raise the limit" in problem.message
    assert "set_permissions" not in problem.message


async def test_refused_port_is_unreachable() -> None:
    problem = await connect_error_of(f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    assert problem.reason is Reason.BROKER_UNREACHABLE
    assert "Connection refused" in problem.message or "ConnectionRefused" in problem.message


async def test_unknown_host_is_unreachable() -> None:
    problem = await connect_error_of("amqp://guest:guest@no-such-host.invalid/")
    assert problem.reason is Reason.BROKER_UNREACHABLE
    assert "no-such-host.invalid" in problem.message


@pytest.mark.usefixtures("quick_limits")
async def test_connection_attempt_into_black_hole_times_out() -> None:
    with black_hole() as port:
        async with probe(f"amqp://guest:guest@127.0.0.1:{port}/") as broker:
            for _ in range(2):  # the first attempt, and its error as seen later
                with pytest.raises(ReconcileError) as caught:
                    await broker.ready()
                assert caught.value.reason in {Reason.BROKER_UNREACHABLE, Reason.BROKER_TIMEOUT}
                assert f"127.0.0.1:{port}" in caught.value.message


async def test_attempts_that_begin_together_end_at_different_times() -> None:
    """The ends of hundreds in one turn of the event loop would delay a ring."""
    async with probe(f"amqp://guest:guest@127.0.0.1:{free_port()}/") as broker:
        parameters = [one for _ in range(20) for one in await broker._all_parameters()]

    seconds = [one.socket_timeout for one in parameters]
    assert len(set(seconds)) == len(parameters)
    assert all(0 < one <= connection.CONNECT_TIMEOUT for one in seconds)
    assert [one.stack_timeout for one in parameters] == seconds


async def test_broker_closes_while_connecting_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 3600.0)
    with black_hole() as port:
        async with probe(f"amqp://guest:guest@127.0.0.1:{port}/"):
            await until(lambda: is_open_to(port))


def is_open_to(port: int) -> bool:
    """Whether this machine has a connection to a port of loopback."""
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return any((row[2], row[3]) == (f"0100007F:{port:04X}", "01") for row in rows)


async def test_broker_stopping_within_handshake_is_not_a_wrong_password(rabbitmq: Server) -> None:
    """The proxy forwards the server's greeting and disconnects on the response."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_server = await asyncio.open_connection("127.0.0.1", rabbitmq.port)
        to_server.write(await reader.read(8))
        writer.write(await upstream.read(4096))
        await reader.read(4096)
        to_server.close()
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        problem = await connect_error_of(f"amqp://guest:guest@127.0.0.1:{port}/")
    assert problem.reason is Reason.BROKER_UNREACHABLE


async def test_server_of_another_protocol_is_unreachable() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        problem = await connect_error_of(f"amqp://guest:guest@127.0.0.1:{port}/")
    assert problem.reason is Reason.BROKER_UNREACHABLE


@pytest.mark.usefixtures("quick_limits")
async def test_first_responding_address_is_used(rabbitmq: Server) -> None:
    with black_hole() as port:
        where = f"127.0.0.1:{free_port()},127.0.0.1:{port},127.0.0.1:{rabbitmq.port}"
        async with probe(f"amqp://guest:guest@{where}/") as broker:
            await until(lambda: broker.connected)


async def test_password_and_virtual_host_may_have_special_characters(every_rabbitmq: Server) -> None:
    user, password, vhost = "jürgen@team:a", "p/ä%s:w@rd?#&+ ", "team/jobs %2F+ü"
    with every_rabbitmq.new_vhost(vhost) as made:
        every_rabbitmq.add_user(user, password, vhost)
        try:
            async with probe(every_rabbitmq.url_of(vhost, user, password)) as broker:
                await broker.ready()
                await broker.declare(plan(QueueSettings("jobs")))
                assert made.exists("jobs")
        finally:
            every_rabbitmq.delete_user(user)


# -- TLS


def tls_binding(server: Server, authority: str, **changes: str) -> Binding:
    return from_url(server.url_of("/", tls=True))._replace(tls=TLS(authority=authority, **changes))


async def test_broker_connects_over_tls_with_private_ca(every_rabbitmq: Server) -> None:
    async with probe(
        tls_binding(every_rabbitmq, every_rabbitmq.certificates.authority.read_text())
    ) as broker:
        await broker.ready()


async def test_broker_authenticates_with_client_certificate(every_rabbitmq: Server) -> None:
    certificates = every_rabbitmq.certificates
    binding = tls_binding(
        every_rabbitmq,
        certificates.authority.read_text(),
        certificate=certificates.client_certificate.read_text(),
        private_key=certificates.client_key.read_text(),
    )
    async with probe(binding._replace(username="", password="")) as broker:
        await broker.ready()


async def test_server_certificate_of_unknown_ca_is_refused(rabbitmq: Server) -> None:
    problem = await connect_error_of(tls_binding(rabbitmq, ""))
    assert problem.reason is Reason.BROKER_UNREACHABLE
    assert "certificate" in problem.message.lower()


@pytest.mark.parametrize(
    "changes",
    [
        {"authority": "no certificate"},
        {"authority": "kein Zertifikat: ä"},
        {"certificate": "no certificate", "private_key": "no key"},
    ],
    ids=[
        "an authority that is no PEM",
        "an authority that is not even ASCII",
        "a certificate that is no PEM",
    ],
)
async def test_unreadable_certificate_is_blamed_on_the_secret(
    rabbitmq: Server, changes: dict[str, str]
) -> None:
    problem = await connect_error_of(tls_binding(rabbitmq, **{"authority": "", **changes}))
    assert problem.reason is Reason.SECRET_INVALID
    assert "ca.crt" in problem.message


# -- connection loss and reconnect


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may stop and kill."""
    with running() as server:
        yield server


async def lost(broker: Probe) -> ReconcileError:
    await until(lambda: not broker.connected and broker.problem is not None)
    with pytest.raises(ReconcileError) as caught:
        await broker.ready()
    return caught.value


@pytest.mark.slow
async def test_broker_reconnects_after_restart_or_kill_and_doorbells_ring(
    own_server: Server,
) -> None:
    async with probe(own_server.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("jobs")))
        for round_, kill in enumerate((False, True), start=1):
            assert await broker.install_doorbell("jobs")
            await asyncio.to_thread(own_server.kill if kill else own_server.stop)
            problem = await lost(broker)
            assert problem.reason is Reason.BROKER_UNREACHABLE
            assert broker.doorbells == 0
            assert not await broker.install_doorbell("jobs")
            with pytest.raises(ReconcileError):
                await broker.counts("jobs")
            await asyncio.to_thread(own_server.start)
            await until(lambda: broker.connected)
            assert broker.generation == round_ + 1
            await until(lambda: broker.install_doorbell("jobs"))
            with own_server.connect() as plain:
                put(plain.channel(), "jobs", b"x")
            await until(lambda count=round_: len(broker.told.rings) == count)
            with own_server.connect() as plain:
                await until(lambda: plain.channel().queue_purge("jobs").method.message_count == 1)


async def test_frozen_server_times_out_and_its_late_responses_do_no_harm(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CALL_TIMEOUT", 1.0)
    async with probe(own_server.url) as broker:
        await broker.ready()
        for name in ("one", "two"):
            await broker.declare(plan(QueueSettings(name)))
        with own_server.connect() as plain:
            put(plain.channel(), "two", b"a", b"b")
        assert broker._questions is not None
        with own_server.frozen():
            answers = await asyncio.gather(
                *(broker.counts("one") for _ in range(3 * connection.ASKING)), return_exceptions=True
            )
        assert {type(answer) for answer in answers} == {ReconcileError}
        assert {answer.reason for answer in answers if isinstance(answer, ReconcileError)} == {
            Reason.BROKER_TIMEOUT
        }
        await until(lambda: ("one", None) in broker.told.falls)
        broker._questions._seconds = PATIENCE

        async def answers_again() -> bool:
            # Not before every late answer has come.
            try:
                return (await broker.counts("one")).ready == 0
            except ReconcileError:
                return False

        await until(answers_again)
        for _ in range(2 * connection.ASKING):
            assert (await broker.counts("one")).ready == 0
            assert (await broker.counts("two")).ready == 2
        # Extra channels are closed.
        wanted = connection.ASKING + connection.DECLARING + 1
        await until(lambda: int(own_server.evaluate("length(rabbit_channel:list())")) <= wanted)


async def test_cancelled_request_leaves_no_channel_behind(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker:
        await broker.ready()
        await broker.declare(plan(QueueSettings("one")))
        await broker.declare(plan(QueueSettings("two")))
        async with channel_of(vhost) as channel:
            put(channel, "two", b"a", b"b")
        for _ in range(50):
            asking = [asyncio.create_task(broker.counts("one")) for _ in range(12)]
            await asyncio.sleep(0)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            assert (await broker.counts("two")).ready == 2


async def test_unexpected_error_does_not_end_reconnecting(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an unexpected error")

    with monkeypatch.context() as broken:
        broken.setattr(Probe, "_all_parameters", fail)
        async with probe(vhost.url) as broker:
            with pytest.raises(ReconcileError) as caught:
                await broker.ready()
            assert caught.value.reason is Reason.INTERNAL_ERROR
            broken.undo()
            await until(lambda: broker.connected)


async def test_immediately_closed_connections_are_retried_with_growing_delay(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest: list[float] = []

    def uniform(_: float, upper: float) -> float:
        longest.append(upper)
        return 0.0

    monkeypatch.setattr("random.uniform", uniform)
    monkeypatch.setattr(connection, "STEADY_SECONDS", 3600.0)
    async with probe(vhost.url) as broker:

        async def lose() -> None:
            before = len(longest)
            await until(lambda: broker.connected)
            broker._connection.close()
            await until(lambda: len(longest) > before)

        for _ in range(6):
            await lose()
        assert longest == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
        monkeypatch.setattr(connection, "STEADY_SECONDS", 0.0)
        await lose()
        assert longest[-1] == 0.2
        await until(lambda: broker.connected)


async def test_one_connection_serves_any_number_of_queues(own_server: Server) -> None:
    async with probe(own_server.url) as broker:
        await broker.ready()
        names = [f"jobs-{number}" for number in range(40)]
        await asyncio.gather(*(broker.declare(plan(QueueSettings(name))) for name in names))
        assert all(await asyncio.gather(*(broker.install_doorbell(name) for name in names)))
        await asyncio.gather(*(broker.counts(name) for name in names))
        # RabbitMQ may still be closing those of an earlier test.
        await until(lambda: own_server.evaluate(CONNECTIONS) == "1")
    await until(lambda: own_server.evaluate(CONNECTIONS) == "0")


async def test_one_tls_context_serves_all_addresses_and_attempts(
    monkeypatch: pytest.MonkeyPatch, rabbitmq: Server
) -> None:
    """Building one takes tens of milliseconds, so it happens outside the event loop."""
    built_in: list[threading.Thread] = []
    make = ssl.create_default_context

    def noted(**arguments: Any) -> ssl.SSLContext:
        built_in.append(threading.current_thread())
        return make(**arguments)

    monkeypatch.setattr(ssl, "create_default_context", noted)
    authority = rabbitmq.certificates.authority.read_text() + "\n"
    binding = Binding((("127.0.0.1", free_port()),) * 16, "guest", "guest", tls=TLS(authority))
    async with probe(binding) as broker:
        with pytest.raises(ReconcileError):
            await broker.ready()
        async with probe(binding) as other:
            with pytest.raises(ReconcileError):
                await other.ready()

    assert len(built_in) == 1
    assert built_in[0] is not threading.main_thread()


async def test_secret_cannot_point_at_operator_itself(rabbitmq: Server) -> None:
    def nothing(*_: object) -> None:
        pass

    for host, rule, sentence in (
        ("127.0.0.1", Destinations(), "'127.0.0.1' resolves to 127.0.0.1, an address of the operator"),
        ("localhost", Destinations(), "'localhost' resolves to "),
        ("localhost", Destinations(("*.svc",)), "allowedBrokerHosts does not list 'localhost'"),
    ):
        binding = from_url(rabbitmq.url)._replace(addresses=((host, rabbitmq.port),))
        broker = Broker(binding, nothing, nothing, nothing, rule)
        try:
            with pytest.raises(ReconcileError, match=sentence) as caught:
                await broker.ready()
            assert caught.value.reason is Reason.SECRET_INVALID
        finally:
            await broker.close()


async def test_allowed_address_is_used_beside_a_refused_one(rabbitmq: Server) -> None:
    """A short host name is tried unchanged, too, and only the longer form may be allowed."""

    def nothing(*_: object) -> None:
        pass

    addresses = (("other", rabbitmq.port), ("127.0.0.1", rabbitmq.port))
    binding = from_url(rabbitmq.url)._replace(addresses=addresses)
    broker = Broker(binding, nothing, nothing, nothing, Destinations(("127.0.0.1",)))
    try:
        await broker.ready()
    finally:
        await broker.close()
