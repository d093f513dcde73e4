"""The hosts and addresses to which a connection Secret may direct the operator."""

from __future__ import annotations

import pytest

from workqueue_operator.destinations import ANYWHERE, Destinations


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "fe80::1%eth0",
        "224.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "100.100.100.200",
        "fd00:ec2::254",
        "no address",
    ],
)
def test_address_of_operator_node_or_metadata_service_is_refused(address: str) -> None:
    assert not Destinations().permits_address("rabbitmq.shop.svc", address)
    assert not Destinations(("*.svc",)).permits_address("rabbitmq.shop.svc", address)
    assert ANYWHERE.permits_address("rabbitmq.shop.svc", address)


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.1", "203.0.113.9", "fd00::7", "2001:db8::1"])
def test_ordinary_address_is_allowed(address: str) -> None:
    assert Destinations().permits_address("rabbitmq.shop.svc", address)


def test_exactly_listed_host_may_have_any_address() -> None:
    rule = Destinations(("localhost", "*"))

    assert rule.permits_address("LOCALHOST.", "127.0.0.1")
    assert not rule.permits_address("other", "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "permitted"),
    [
        ("rabbitmq.shop.svc", True),
        ("RabbitMQ.shop.svc.", True),
        ("rabbit.example.org", True),
        ("rabbitmq", False),
        ("svc", False),
        ("rabbit.example.org.evil.test", False),
    ],
)
def test_only_listed_hosts_are_permitted(host: str, *, permitted: bool) -> None:
    assert Destinations(("*.svc", "rabbit.example.org")).permits(host) is permitted


def test_every_host_is_permitted_without_a_list() -> None:
    assert Destinations().permits("rabbitmq")
