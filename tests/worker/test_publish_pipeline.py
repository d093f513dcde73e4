"""The publisher on real brokers: each message is confirmed or fails with a named error."""

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import pika
import pytest

from tests.support.wait import eventually
from workqueue.amqp import publish_pipeline
from workqueue.amqp.errors import BrokerError, DeclareError, NotSent, Refused, Returned, Unconfirmed
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract import topology
from workqueue.contract.binding import TLS, from_url
from workqueue.contract.topology import Queue, QueueSettings, QueueType

PATIENCE = 60.0
QUORUM = {"x-queue-type": "quorum"}


@contextmanager
def publishing(vhost, **options):
    with PublishPipeline(lambda: from_url(vhost.url), "test", **options) as publisher:
        yield publisher


def received(vhost, queue):
    """All messages of a queue: (properties, body)."""
    with vhost.connect() as connection:
        channel = connection.channel()
        total = vhost.depth(queue).ready
        arriving = channel.consume(queue, auto_ack=True)
        return [next(arriving)[1:] for _ in range(total)]


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_confirmed_message_is_in_the_queue(every_vhost, kind):
    with publishing(every_vhost) as publisher:
        publisher.declare(Queue("q", {"x-queue-type": kind})).result()
        futures = [publisher.publish(Outgoing("q", b"%d" % number)) for number in range(1500)]
        assert [future.result() for future in futures] == [None] * 1500
        assert publisher.pending == 0
    assert sorted(int(body) for _, body in received(every_vhost, "q")) == list(range(1500))


def test_published_properties_arrive_unchanged(vhost):
    outgoing = Outgoing(
        "q",
        b"\x00body",
        headers={"text": "ü", "number": 7, "list": [1, "a"], "none": None, "yes": True},
        message_id="my-id",
        content_type="text/x",
        content_encoding="gzip",
        priority=3,
        correlation_id="c",
        reply_to="r",
        expiration="60000",
        timestamp=1_700_000_000,
        type="t",
        user_id="guest",
        app_id="a",
    )
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", {})).result()
        publisher.publish_and_wait(outgoing)
    [(properties, body)] = received(vhost, "q")
    assert body == outgoing.body
    given = {name: value for name, value in outgoing._asdict().items() if hasattr(properties, name)}
    given.pop("body", None)
    assert {name: getattr(properties, name) for name in given} == given
    assert properties.delivery_mode == 2


def test_message_gets_an_id_and_a_timestamp(vhost):
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", {})).result()
        for _ in range(3):
            publisher.publish_and_wait(Outgoing("q", b""))
    found = received(vhost, "q")
    assert len({properties.message_id for properties, _ in found}) == 3
    assert all(abs(properties.timestamp - time.time()) < 60 for properties, _ in found)


SIZES = [
    ("empty", 0),
    ("of one frame", 131_064),
    ("of a frame and a byte", 131_065),
    ("of many frames", 3_000_000),
]


@pytest.mark.parametrize("size", [row[1] for row in SIZES], ids=[row[0] for row in SIZES])
def test_body_of_any_size_arrives_whole(vhost, size):
    body = bytes(range(256)) * (size // 256 + 1)
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", {})).result()
        publisher.publish_and_wait(Outgoing("q", body[:size]))
    assert [got for _, got in received(vhost, "q")] == [body[:size]]


def test_only_unroutable_message_is_returned(every_vhost):
    with publishing(every_vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        queues = ["missing" if number % 3 == 0 else "q" for number in range(300)]
        # Two messages with the same id, as after a retry of the program: each has its own result.
        futures = [
            publisher.publish(Outgoing(queue, b"", message_id=f"{n // 2}")) for n, queue in enumerate(queues)
        ]
        wait(futures)
        for number, (queue, future) in enumerate(zip(queues, futures, strict=True)):
            error = future.exception()
            if queue == "q":
                assert error is None
            else:
                assert isinstance(error, Returned)
                assert (error.exchange, error.routing_key, error.message_id) == (
                    "",
                    "missing",
                    f"{number // 2}",
                )
                assert "312 NO_ROUTE" in str(error)
    assert every_vhost.depth("q").ready == 200


@pytest.mark.parametrize("kind", QueueType)
def test_message_refused_by_full_queue_is_nacked(every_vhost, kind):
    confirmed = 0
    with publishing(every_vhost) as publisher:
        publisher.declare_plan(topology.plan(QueueSettings("q", kind, max_length=5))).result()
        while not (error := publisher.publish(Outgoing("q", b"", message_id=f"m{confirmed}")).exception()):
            confirmed += 1
        assert isinstance(error, Refused)
        assert error.message_id == f"m{confirmed}"
        assert "to queue q was refused" in str(error)
    assert every_vhost.depth("q").ready == confirmed


def test_publisher_with_one_channel_goes_on_after_a_refusal(vhost, monkeypatch):
    """It opens another channel, which RabbitMQ allows only when the first is closed."""
    monkeypatch.setattr(publish_pipeline, "DOUBT_SECONDS", 0.0)
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.queue_declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        channel.queue_declare("q")
    with vhost.broker.channel_max(1), publishing(vhost) as publisher:
        publisher.publish_and_wait(Outgoing("full", b""))
        with pytest.raises(Refused):
            publisher.publish_and_wait(Outgoing("full", b""))
        publisher.publish_and_wait(Outgoing("q", b""))


def test_missing_exchange_fails_only_its_own_messages(every_vhost):
    with publishing(every_vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        with pytest.raises(Refused, match=r"404 NOT_FOUND - no exchange 'missing'"):
            publisher.publish_and_wait(Outgoing("key", b"", exchange="missing"))
        publisher.publish_and_wait(Outgoing("q", b""))


def test_messages_around_a_refused_one_are_unconfirmed(vhost):
    """RabbitMQ closes the channel and does not say at which message."""
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        with vhost.broker.frozen():
            futures = [
                publisher.publish(one)
                for one in (Outgoing("key", b"", exchange="missing"), Outgoing("q", b""))
            ]
            eventually(lambda: len(publisher._unconfirmed) == 2, what="both are sent")
        errors = [future.exception() for future in futures]
    assert [type(error) for error in errors] == [Unconfirmed, Unconfirmed]
    assert all("404 NOT_FOUND - no exchange 'missing'" in str(error) for error in errors)


def test_forbidden_publish_fails_with_the_reason(vhost):
    vhost.broker.add_user(vhost.name, "pw", vhost.name, write="^$")
    url = vhost.broker.url_of(vhost.name, vhost.name, "pw")
    try:
        with (
            PublishPipeline(lambda: from_url(url), "test") as publisher,
            pytest.raises(Refused, match=r"403 ACCESS_REFUSED"),
        ):
            publisher.publish_and_wait(Outgoing("q", b""))
    finally:
        vhost.broker.delete_user(vhost.name)


def test_message_above_the_brokers_limit_is_refused(vhost):
    """RabbitMQ 4 takes 16 MiB."""
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        with pytest.raises(Refused, match=r"406 PRECONDITION_FAILED - message size 16777217 is larger than"):
            publisher.publish_and_wait(Outgoing("q", bytes(16 * 1024 * 1024 + 1)))
        publisher.publish_and_wait(Outgoing("q", b""))


UNENCODABLE = [
    ("a header of a type that AMQP does not have", Outgoing("q", b"", headers={"a": object()})),
    ("a routing key that is too long", Outgoing("q" * 256, b"")),
    ("a message id that is too long", Outgoing("q", b"", message_id="i" * 256)),
    ("a priority that is too high", Outgoing("q", b"", priority=256)),
]


@pytest.mark.parametrize("outgoing", [row[1] for row in UNENCODABLE], ids=[row[0] for row in UNENCODABLE])
def test_unencodable_message_fails_alone(vhost, outgoing):
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", {})).result()
        futures = [publisher.publish(one) for one in (Outgoing("q", b"1"), outgoing, Outgoing("q", b"2"))]
        assert isinstance(futures[1].exception(), NotSent)
        assert futures[0].result() is futures[2].result() is None
    assert [body for _, body in received(vhost, "q")] == [b"1", b"2"]


def test_lost_connection_settles_every_pending_message(every_vhost):
    """Confirmed messages are stored. Unconfirmed ones may be stored, once. No message is sent twice."""
    total = 1500
    with publishing(every_vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        futures = []
        for number in range(total):
            futures.append(publisher.publish(Outgoing("q", b"", message_id=str(number))))
            if number in {500, 1000}:
                every_vhost.broker.close_connections()
        wait(futures)
        errors = [future.exception() for future in futures]
        assert publisher.connection.generation >= 2
        publisher.publish_and_wait(Outgoing("q", b"", message_id="after"))
    assert {type(error) for error in errors} <= {type(None), Unconfirmed}
    found = [properties.message_id for properties, _ in received(every_vhost, "q")]
    confirmed = {str(number) for number, error in enumerate(errors) if error is None}
    assert confirmed <= set(found)
    assert len(found) == len(set(found))


def test_unconfirmed_message_fails_when_connection_breaks(vhost):
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", {})).result()
        publisher.publish_and_wait(Outgoing("q", b""))
        with vhost.broker.frozen():
            futures = [publisher.publish(Outgoing("q", b"")) for _ in range(10)]
            publisher.connection.call(lambda: publisher.connection.abort("cut by a test"))
            wait(futures)
        assert {type(future.exception()) for future in futures} == {Unconfirmed}
        publisher.publish_and_wait(Outgoing("q", b""))


def test_broker_death_loses_no_confirmed_message(rabbitmq):
    with rabbitmq.new_vhost() as vhost, publishing(vhost, timeout_seconds=60) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        rabbitmq.save_queues()
        stop = threading.Event()
        futures = []

        def publish():
            while not stop.is_set():
                futures.append(publisher.publish(Outgoing("q", b"", message_id=str(len(futures)))))

        thread = threading.Thread(target=publish)
        thread.start()
        eventually(lambda: len(futures) > 2000)
        rabbitmq.restart(kill=True)
        stop.set()
        thread.join()
        wait(futures)
        publisher.publish_and_wait(Outgoing("q", b"", message_id="after"))
        confirmed = {str(n) for n, future in enumerate(futures) if future.exception() is None}
        found = {properties.message_id for properties, _ in received(vhost, "q")}
        assert confirmed <= found
        assert "after" in found


def test_message_waits_for_connection_until_its_timeout():
    with PublishPipeline(lambda: from_url("amqp://127.0.0.1:1"), "test", timeout_seconds=0.5) as publisher:
        future = publisher.publish(Outgoing("q", b""))
        with pytest.raises(NotSent, match=r"not connected for 0.5 s: .*Connection refused"):
            future.result()
        with pytest.raises(BrokerError, match=r"not connected for 0.5 s"):
            publisher.declare(Queue("q", {})).result()


def test_resource_alarm_delays_messages_until_it_ends(every_vhost):
    broker = every_vhost.broker
    with publishing(every_vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        publisher.publish_and_wait(Outgoing("q", b""))
        assert not publisher.blocked
        with broker.memory_alarm():
            # RabbitMQ accepts one and then reports its alarm.
            publisher.publish_and_wait(Outgoing("q", b""))
            eventually(lambda: publisher.blocked)
            futures = [publisher.publish(Outgoing("q", b"")) for _ in range(100)]
            declared = publisher.declare(Queue("other", QUORUM))
            assert not any(future.done() for future in futures)
        wait(futures, timeout=20)
        assert [future.exception() for future in futures] == [None] * 100
        declared.result()
        assert not publisher.blocked
    assert every_vhost.depth("q").ready == 102


def test_resource_alarm_longer_than_timeout_fails_the_message(vhost):
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        with vhost.broker.memory_alarm():
            publisher.publish_and_wait(Outgoing("q", b""))
            eventually(lambda: publisher.blocked)
            publisher._timeout_seconds = 1.0
            with pytest.raises(NotSent, match="because of its memory or disk alarm"):
                publisher.publish_and_wait(Outgoing("q", b""))


def test_full_publish_limit_blocks_the_publisher(vhost):
    with publishing(vhost, window=10) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        with vhost.broker.memory_alarm():
            publisher.publish_and_wait(Outgoing("q", b""))
            eventually(lambda: publisher.blocked)
            futures = [publisher.publish(Outgoing("q", b"")) for _ in range(10)]
            thread = threading.Thread(target=publisher.publish_and_wait, args=(Outgoing("q", b""),))
            thread.start()
            thread.join(0.3)
            assert thread.is_alive()
            assert publisher.pending == 10
        thread.join(20)
        assert not thread.is_alive()
        wait(futures)
    assert vhost.depth("q").ready == 12


def test_interrupted_thread_keeps_no_other_waiting(vhost):
    with publishing(vhost) as publisher, ThreadPoolExecutor(9) as threads:
        publisher.declare(Queue("q", QUORUM)).result()
        # As SIGINT does, which a test process may ignore.
        before = signal.signal(signal.SIGUSR1, signal.default_int_handler)

        def interrupt():
            eventually(lambda: publisher.pending == 9)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        with vhost.broker.frozen():
            others = [threads.submit(publisher.publish_and_wait, Outgoing("q", b"")) for _ in range(8)]
            eventually(lambda: publisher.pending == 8)
            threads.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                publisher.publish_and_wait(Outgoing("q", b""))
        signal.signal(signal.SIGUSR1, before)

        assert [one.result(20) for one in others] == [None] * 8
        publisher.publish_and_wait(Outgoing("q", b""))
    assert vhost.depth("q").ready == 10


def test_full_publish_limit_is_named_in_the_timeout(vhost):
    with publishing(vhost, window=1) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        publisher._timeout_seconds = 0.5
        with vhost.broker.frozen():
            publisher.publish(Outgoing("q", b""))
            with pytest.raises((NotSent, Unconfirmed), match=r"RabbitMQ has sent no confirm for 0\.5 s"):
                publisher.publish_and_wait(Outgoing("q", b""))


def test_late_confirmation_ends_the_channel_before_the_message_fails(every_vhost):
    with publishing(every_vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        publisher.publish_and_wait(Outgoing("q", b"early"))
        channel = publisher._channel
        was_closed = []
        publisher._timeout_seconds = 1.0

        with every_vhost.broker.suspended("q", every_vhost.name):
            future = publisher.publish(Outgoing("q", b"late"))
            future.add_done_callback(lambda _: was_closed.append(channel.is_closed))
            with pytest.raises(Unconfirmed, match="RabbitMQ has sent no confirm for 1 s"):
                future.result()

        eventually(lambda: was_closed == [True])
        publisher._timeout_seconds = PATIENCE
        publisher.publish_and_wait(Outgoing("q", b"after"))
        assert publisher.connection.generation == 1


def test_broker_that_answers_nothing_loses_the_connection_before_the_message_fails(vhost):
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        publisher.publish_and_wait(Outgoing("q", b"early"))
        was_closed = []
        channel = publisher._channel
        publisher._timeout_seconds = 1.0

        with vhost.broker.frozen():
            future = publisher.publish(Outgoing("q", b"late"))
            future.add_done_callback(lambda _: was_closed.append(channel.is_closed))
            with pytest.raises(Unconfirmed, match="RabbitMQ has sent no confirm for 1 s"):
                future.result()

        eventually(lambda: was_closed == [True])
        eventually(lambda: publisher.connection.generation == 2)
        publisher._timeout_seconds = PATIENCE
        publisher.publish_and_wait(Outgoing("q", b"after"))


def test_submit_accepts_a_message_beyond_the_publish_limit():
    with PublishPipeline(
        lambda: from_url("amqp://127.0.0.1:1"), "test", window=1, timeout_seconds=60
    ) as publisher:
        futures = [publisher.submit(Outgoing("q", b"")) for _ in range(3)]

        assert publisher.pending == 3
        publisher.close(0)
        assert {type(future.exception()) for future in futures} == {NotSent}
        assert publisher.pending == 0


def test_withdrawn_submitted_message_is_not_sent(vhost):
    with publishing(vhost) as publisher:
        publisher.declare(Queue("q", QUORUM)).result()
        wanted = {"a": True, "b": True}

        with vhost.broker.memory_alarm():
            publisher.publish_and_wait(Outgoing("q", b""))
            eventually(lambda: publisher.blocked)
            futures = {
                name: publisher.submit(Outgoing("q", name.encode()), lambda name=name: wanted[name])
                for name in wanted
            }
            wanted["b"] = False

        assert futures["a"].result() is None
        with pytest.raises(NotSent, match="no longer needed"):
            futures["b"].result()
    assert [body for _, body in received(vhost, "q")] == [b"", b"a"]


def test_publish_limit_in_bytes_admits_one_large_message_at_a_time(vhost):
    with publishing(vhost, window_bytes=1000) as publisher:
        publisher.declare(Queue("q", {})).result()
        futures = [publisher.publish(Outgoing("q", bytes(5000))) for _ in range(10)]
        wait(futures)
    assert len(received(vhost, "q")) == 10


def test_threads_share_a_publisher(vhost):
    with publishing(vhost, window=50) as publisher:
        publisher.declare(Queue("q", {})).result()

        def publish():
            for _ in range(200):
                publisher.publish_and_wait(Outgoing("q", b""))

        threads = [threading.Thread(target=publish) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(received(vhost, "q")) == 2000


async def test_tasks_share_a_publisher_and_wait_for_its_limit(vhost):
    with publishing(vhost, window=50) as publisher:
        await asyncio.wrap_future(publisher.declare(Queue("q", {})))
        outcomes = await asyncio.gather(
            *(publisher.publish_async(Outgoing("q" if n % 2 else "missing", b"")) for n in range(1000)),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [Returned, type(None)] * 500
    assert len(received(vhost, "q")) == 500


async def test_cancelled_task_disturbs_no_other(vhost):
    with publishing(vhost) as publisher:
        await asyncio.wrap_future(publisher.declare(Queue("q", {})))
        tasks = [asyncio.create_task(publisher.publish_async(Outgoing("q", b""))) for _ in range(100)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks[1::2])
        await publisher.publish_async(Outgoing("q", b""))
        assert publisher.wait(5)


def test_close_waits_for_confirms_and_then_refuses_messages(vhost):
    publisher = PublishPipeline(lambda: from_url(vhost.url), "test").start()
    publisher.declare(Queue("q", {})).result()
    futures = [publisher.publish(Outgoing("q", b"")) for _ in range(500)]
    publisher.close()
    assert [future.exception() for future in futures] == [None] * 500
    publisher.close()  # harmless
    with pytest.raises(BrokerError, match="closed"):
        publisher.publish(Outgoing("q", b""))
    with pytest.raises(BrokerError, match="closed"):
        publisher.declare(Queue("q", {}))


def test_close_without_connection_settles_every_pending_message():
    publisher = PublishPipeline(lambda: from_url("amqp://127.0.0.1:1"), "test").start()
    future = publisher.publish(Outgoing("q", b""))
    publisher.close(0.1)
    assert isinstance(future.exception(), NotSent)


def test_publisher_uses_tls_with_private_ca_and_client_certificate(every_vhost):
    broker = every_vhost.broker
    certificates = broker.certificates
    tls = TLS(
        certificates.authority.read_text(),
        certificates.client_certificate.read_text(),
        certificates.client_key.read_text(),
    )
    url = broker.url_of(every_vhost.name, tls=True)
    with PublishPipeline(lambda: from_url(url, tls), "test") as publisher:
        publisher.declare(Queue("q", {})).result()
        wait([publisher.publish(Outgoing("q", bytes(100_000))) for _ in range(50)])
    assert len(received(every_vhost, "q")) == 50


def test_undeclarable_queue_is_named(vhost):
    vhost.broker.add_user(vhost.name, "pw", vhost.name, configure="^$")
    url = vhost.broker.url_of(vhost.name, vhost.name, "pw")
    try:
        with (
            PublishPipeline(lambda: from_url(url), "test") as publisher,
            pytest.raises(DeclareError) as caught,
        ):
            publisher.declare(Queue("q", {})).result()
        assert (caught.value.code, "q" in caught.value.name) == (403, True)
    finally:
        vhost.broker.delete_user(vhost.name)


def test_publisher_messages_equal_those_of_pika(vhost):
    """Our encoder makes the frames; test_publisher_encoding compares them byte for byte."""
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.queue_declare("q")
        channel.basic_publish(
            "", "q", b"x", pika.BasicProperties(message_id="m", timestamp=1, delivery_mode=2)
        )
    with publishing(vhost) as publisher:
        publisher.publish_and_wait(Outgoing("q", b"x", message_id="m", timestamp=1))
    first, second = received(vhost, "q")
    assert first == second
