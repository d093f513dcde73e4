"""The operator's Broker under test: a connection that records its callbacks, and helpers for messages."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pika
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.rabbitmq import VirtualHost
from workqueue.contract.binding import Binding, from_url
from workqueue_operator.broker.connection import Broker
from workqueue_operator.errors import ReconcileError

PATIENCE: Final = 60.0
"""Seconds for which the operator waits for RabbitMQ in tests/operator. A busy machine is no silent broker."""


@dataclass
class Told:
    """What a Broker has called back."""

    rings: list[str] = field(default_factory=list)
    falls: list[tuple[str, tuple[int, str] | None]] = field(default_factory=list)
    states: int = 0


class Probe(Broker):
    """A Broker that keeps what it tells."""

    def __init__(self, binding: Binding | str) -> None:
        self.told = told = Told()

        def count() -> None:
            told.states += 1

        super().__init__(
            from_url(binding) if isinstance(binding, str) else binding,
            told.rings.append,
            lambda queue, refusal: told.falls.append((queue, refusal)),
            count,
        )


@asynccontextmanager
async def probe(binding: Binding | str) -> AsyncIterator[Probe]:
    """A Broker that is connected, or tries to be."""
    made = Probe(binding)
    try:
        yield made
    finally:
        await made.close()


async def connect_error_of(binding: Binding | str) -> ReconcileError:
    """Why a Broker cannot connect."""
    async with probe(binding) as broker:
        try:
            await broker.ready()
        except ReconcileError as problem:
            return problem
    raise AssertionError("it is connected")


@asynccontextmanager
async def channel_of(vhost: VirtualHost) -> AsyncIterator[BlockingChannel]:
    """A plain channel with confirms, for the test's own use."""
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def put(channel: BlockingChannel, queue: str, *bodies: bytes) -> None:
    """Publish persistent messages; each is confirmed when this returns."""
    for body in bodies:
        channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True)


def take_all(channel: BlockingChannel, queue: str) -> list[tuple[bytes, int]]:
    """Take (and acknowledge) what waits: each body, and how often it was delivered before."""
    taken = []
    while (got := channel.basic_get(queue))[0] is not None:
        method, properties, body = got
        count = (properties.headers or {}).get("x-delivery-count", int(method.redelivered))
        taken.append((body, count))
        channel.basic_ack(method.delivery_tag)
    return taken


_PUBLISH_LARGE: Final = """
import sys, pika
connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
channel = connection.channel()
channel.confirm_delivery()
channel.basic_publish("", sys.argv[2], bytes(int(sys.argv[3])), mandatory=True)
connection.close()
"""


async def put_large(vhost: VirtualHost, queue: str) -> int:
    """Publish one large message and return its size in bytes: 100 MiB where RabbitMQ's default limit allows it.

    A process of its own publishes, so that the body is not part of this process' memory.
    """
    mebibytes = 100 if vhost.broker.series == "3.10" else 16
    arguments = (vhost.url, queue, str(mebibytes * 2**20))
    publisher = await asyncio.create_subprocess_exec(sys.executable, "-c", _PUBLISH_LARGE, *arguments)
    assert await publisher.wait() == 0
    return mebibytes * 2**20
