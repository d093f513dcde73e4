"""A broker behind a tunnel: its certificate is verified for the broker's name, not for the tunnel's."""

from __future__ import annotations

import pytest

from tests.support.rabbitmq import Broker, VirtualHost
from workqueue.amqp.errors import UnreachableError
from workqueue.amqp.session import Session
from workqueue.contract.binding import TLS, Binding


def binding(broker: Broker, vhost: VirtualHost, server_name: str) -> Binding:
    tls = TLS(broker.certificates.authority.read_text(), server_name=server_name)
    return Binding((("127.0.0.1", broker.tls_port),), "guest", "guest", vhost.name, tls)


def test_tls_server_name_overrides_the_host(rabbitmq: Broker, vhost: VirtualHost) -> None:
    with Session(lambda: binding(rabbitmq, vhost, "localhost"), "test") as session:
        assert session.depth("nothing") is None
    with (
        pytest.raises(UnreachableError, match=r"certificate is not valid for 'rabbitmq\.queues\.svc'"),
        Session(lambda: binding(rabbitmq, vhost, "rabbitmq.queues.svc"), "test"),
    ):
        pytest.fail("it was let in")
