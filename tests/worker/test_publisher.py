"""The publishers that programs import, on real brokers."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest

from tests.support.rabbitmq import Broker, VirtualHost
from tests.support.wait import eventually
from workqueue import (
    AsyncPublisher,
    NotSent,
    Publisher,
    PublishManyError,
    Refused,
    Returned,
    Unconfirmed,
)
from workqueue.contract import topology
from workqueue.contract.errors import BindingError


class Model(pydantic.BaseModel):
    number: int


@dataclass
class Picture:
    name: str
    model: Model


BODIES: dict[str, tuple[Any, bytes, str | None]] = {
    "bytes": (b"\x00a", b"\x00a", None),
    "bytearray": (bytearray(b"a"), b"a", None),
    "text": ("ü", "ü".encode(), "text/plain; charset=utf-8"),
    "dict": ({"a": [1, None, "ü"]}, b'{"a":[1,null,"\\u00fc"]}', "application/json"),
    "None": (None, b"null", "application/json"),
    "number": (7, b"7", "application/json"),
    "pydantic model": (Model(number=1), b'{"number":1}', "application/json"),
    "dataclass": (Picture("a", Model(number=1)), b'{"name":"a","model":{"number":1}}', "application/json"),
    "models in a list": ([Model(number=1)], b'[{"number":1}]', "application/json"),
}


@pytest.fixture
def queue(vhost: VirtualHost) -> str:
    with vhost.connect() as connection:
        connection.channel().queue_declare("jobs", durable=True)
    return "jobs"


def received(vhost: VirtualHost, queue: str) -> list[tuple[Any, bytes]]:
    """All messages of a queue: properties and body."""

    def take() -> Iterator[tuple[Any, bytes]]:
        with vhost.connect() as connection:
            channel = connection.channel()
            while (found := channel.basic_get(queue, auto_ack=True))[0] is not None:
                yield found[1], found[2]

    return list(take())


@pytest.mark.parametrize(("body", "data", "content_type"), BODIES.values(), ids=BODIES)
def test_body_is_encoded_by_its_type(
    vhost: VirtualHost, queue: str, body: Any, data: bytes, content_type: str | None
) -> None:
    with Publisher(vhost.url) as publisher:
        publisher.publish(body, queue=queue)
    ((properties, arrived),) = received(vhost, queue)
    assert (arrived, properties.content_type) == (data, content_type)
    assert properties.delivery_mode == 2


@pytest.mark.parametrize("body", [object(), {"a": b"1"}, float("nan"), Model])
def test_body_that_json_does_not_have_is_refused(vhost: VirtualHost, queue: str, body: Any) -> None:
    with Publisher(vhost.url) as publisher, pytest.raises((TypeError, ValueError)):
        publisher.publish(body, queue=queue)
    assert not received(vhost, queue)


def test_properties_arrive_unchanged(vhost: VirtualHost, queue: str) -> None:
    with Publisher(vhost.url) as publisher:
        sent = publisher.publish(
            b"x",
            queue=queue,
            priority=3,
            expires=60,
            message_id="mine",
            headers={"a": 1},
            content_type="image/png",
            reply_to="answers",
            correlation_id="c",
        )
        made = publisher.publish(b"y", queue=queue)
    (first, _), (second, _) = received(vhost, queue)
    assert sent == first.message_id == "mine"
    assert made == second.message_id
    assert (first.priority, first.expiration, first.headers) == (3, "60000", {"a": 1})
    assert (first.content_type, first.reply_to, first.correlation_id) == ("image/png", "answers", "c")


def test_exchange_routes_by_key(vhost: VirtualHost, queue: str) -> None:
    with Publisher(vhost.url) as publisher:
        with pytest.raises(Returned) as caught:
            publisher.publish(b"x", exchange="amq.direct", routing_key="k")
        with vhost.connect() as connection:
            connection.channel().queue_bind(queue, "amq.direct", "k")
        publisher.publish(b"x", exchange="amq.direct", routing_key="k")
    assert caught.value.message_id
    assert len(received(vhost, queue)) == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "a queue or an exchange"),
    "both": ({"queue": "a", "exchange": "b"}, "a queue or an exchange"),
    "routing key of a queue": ({"queue": "a", "routing_key": "k"}, "routing_key"),
    "delay of an exchange": ({"exchange": "a", "delay": 1}, "delay"),
    "delay and expires": ({"queue": "a", "delay": 1, "expires": 1}, "combined"),
    "long delay": ({"queue": "a", "delay": 2_592_001}, "2592000"),
    "negative delay": ({"queue": "a", "delay": -1}, "delay"),
    "priority": ({"queue": "a", "priority": 256}, "255"),
    "expires": ({"queue": "a", "expires": 0}, "expires"),
}


@pytest.mark.parametrize(("options", "says"), WRONG.values(), ids=WRONG)
def test_wrong_option_is_refused_before_connecting(options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Publisher("amqp://127.0.0.1:1").publish(b"", **options)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Unknown options: countdown, que. The options are queue, exchange"):
        Publisher("amqp://127.0.0.1:1").publish(b"", que="a", countdown=30)  # type: ignore[call-arg]


@pytest.mark.parametrize("bodies", ["text", b"bytes", {"a": 1}], ids=["text", "bytes", "dict"])
async def test_one_body_is_not_many(bodies: Any) -> None:
    with pytest.raises(TypeError, match="publish_many takes a list or another iterable of bodies"):
        Publisher("amqp://127.0.0.1:1").publish_many(bodies, queue="a")
    with pytest.raises(TypeError, match="publish_many takes a list or another iterable of bodies"):
        await AsyncPublisher("amqp://127.0.0.1:1").publish_many(bodies, queue="a")


def test_missing_queue_full_queue_and_missing_broker_have_their_own_errors(vhost: VirtualHost) -> None:
    with vhost.connect() as connection:
        connection.channel().queue_declare(
            "full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
    with Publisher(vhost.url) as publisher:
        with pytest.raises(Returned):
            publisher.publish(b"", queue="missing")
        publisher.publish(b"", queue="full")
        with pytest.raises(Refused):
            publisher.publish(b"", queue="full")
    with Publisher("amqp://127.0.0.1:1", timeout_seconds=0.5) as publisher, pytest.raises(NotSent) as caught:
        publisher.publish(b"", queue="jobs")
    assert "not connected" in str(caught.value)


def test_delayed_message_arrives_later_with_its_priority(every_vhost: VirtualHost) -> None:
    with every_vhost.connect() as connection:
        plan = topology.plan(topology.QueueSettings("jobs"))
        for one in plan.queues:
            connection.channel().queue_declare(one.name, durable=True, arguments=dict(one.arguments))
    with Publisher(every_vhost.url) as publisher:
        begun = time.monotonic()
        publisher.publish(b"later", queue="jobs", delay=1, priority=7)
        publisher.publish(b"now", queue="jobs", delay=0)
        # The first message to a new delay queue waits until the queue is safe, so the time is measured from here.
        assert every_vhost.exists("jobs.retry.high.1s")
        eventually(lambda: every_vhost.depth("jobs").ready == 2, 30)
        assert time.monotonic() - begun >= 1
        with every_vhost.connect() as connection:
            connection.channel().queue_delete("jobs.retry.high.1s")
        publisher.publish(b"again", queue="jobs", delay=1, priority=7)
        eventually(lambda: every_vhost.depth("jobs").ready == 3, 30)
    found = {body: properties.priority for properties, body in received(every_vhost, "jobs")}
    assert found == {b"now": None, b"later": 7, b"again": 7}


def test_many_messages_are_pipelined(vhost: VirtualHost, queue: str) -> None:
    with Publisher(vhost.url) as publisher:
        ids = publisher.publish_many(({"n": n} for n in range(3000)), queue=queue)
    found = received(vhost, queue)
    assert [properties.message_id for properties, _ in found] == ids
    assert [json.loads(body)["n"] for _, body in found] == list(range(3000))


def test_failure_among_many_says_what_to_publish_again(vhost: VirtualHost) -> None:
    with vhost.connect() as connection:
        connection.channel().queue_declare(
            "full", durable=True, arguments={"x-max-length": 10, "x-overflow": "reject-publish"}
        )
    with Publisher(vhost.url) as publisher, pytest.raises(PublishManyError) as caught:
        publisher.publish_many((b"%d" % n for n in range(100_000)), queue="full")
    error = caught.value
    stored = {int(body) for _, body in received(vhost, "full")}
    assert error.read < 100_000
    assert stored | set(error.errors) == set(range(error.read))
    assert not stored & set(error.errors)
    assert all(isinstance(one, Refused) for one in error.errors.values())


def test_threads_share_a_publisher_through_lost_connections(
    rabbitmq: Broker, vhost: VirtualHost, queue: str
) -> None:
    stored: list[str] = []

    def work(worker: int) -> None:
        for number in range(200):
            publish(f"{worker}-{number}")

    def publish(message_id: str) -> None:
        while True:
            with suppress(Unconfirmed):
                stored.append(publisher.publish(b"", queue=queue, message_id=message_id))
                return

    with Publisher(vhost.url, name="through") as publisher, ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(work, worker) for worker in range(8)]
        for _ in range(3):
            before = len(stored)
            eventually(lambda before=before: len(stored) > before or all(t.done() for t in tasks), 30)
            rabbitmq.close_connections()
        for task in tasks:
            task.result(120)
    arrived = {properties.message_id for properties, _ in received(vhost, queue)}
    assert arrived == set(stored)
    assert len(arrived) == 1600


def _publish_in_child(publisher: Publisher, queue: str) -> None:
    publisher.publish(str(os.getpid()), queue=queue)


def test_publisher_works_in_forked_processes(vhost: VirtualHost, queue: str) -> None:
    """As in a server that loads the application and then forks its workers."""
    publisher = Publisher(vhost.url)
    publisher.publish(str(os.getpid()), queue=queue)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_publish_in_child, args=(publisher, queue)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    publisher.publish(str(os.getpid()), queue=queue)
    publisher.close()
    found = received(vhost, queue)
    assert len({properties.message_id for properties, _ in found}) == len(found)
    senders = [int(body) for _, body in found]
    assert sorted(senders) == sorted([os.getpid(), os.getpid(), *(child.pid or 0 for child in children)])


def test_environment_names_the_broker(
    vhost: VirtualHost, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKQUEUE_URL", vhost.url)
    with Publisher() as publisher:
        publisher.publish(b"", queue=queue)
    assert len(received(vhost, queue)) == 1


def test_invalid_connection_data_are_refused_at_once() -> None:
    with pytest.raises(BindingError, match="scheme"):
        Publisher("http://rabbitmq")
    with pytest.raises(ValueError, match="not both"):
        Publisher("amqp://a", binding="/bindings/rabbitmq")


async def test_tasks_publish_and_await_the_confirm(vhost: VirtualHost, queue: str) -> None:
    async with AsyncPublisher(vhost.url) as publisher:
        ids = await asyncio.gather(*(publisher.publish({"n": n}, queue=queue) for n in range(100)))
        with pytest.raises(Returned):
            await publisher.publish(b"", queue="missing")
        ids += await publisher.publish_many((b"" for _ in range(1500)), queue=queue)

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b""

        with pytest.raises(PublishManyError):
            await publisher.publish_many(endless(), queue="missing")
        await publisher.publish(b"later", queue=queue, delay=1)
    found = await asyncio.to_thread(lambda: received(vhost, queue))
    assert {properties.message_id for properties, _ in found} >= set(ids)
