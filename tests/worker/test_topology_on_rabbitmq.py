"""What the topology promises, on each supported RabbitMQ: declarations are accepted and nothing is lost."""

import itertools
import random
import time
from contextlib import contextmanager

import pika
import pika.exceptions
import pytest

from tests.support.wait import eventually
from workqueue.amqp.declaration import SAFE_AFTER_SECONDS
from workqueue.amqp.errors import DeclareError
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract import topology
from workqueue.contract.binding import from_url
from workqueue.contract.topology import Exchange, ExchangeType, QueueSettings, QueueType

SETTINGS = [
    ("quorum", QueueSettings("jobs")),
    ("classic", QueueSettings("jobs", QueueType.CLASSIC)),
    (
        "quorum with everything",
        QueueSettings(
            "jobs",
            max_length=100,
            max_length_bytes=10_000,
            message_ttl_seconds=60,
            delivery_limit=3,
            single_active_consumer=True,
            consumer_timeout_seconds=3600,
            exchange=Exchange("images", ExchangeType.TOPIC, ("thumb.*", "icon")),
        ),
    ),
    (
        "classic with everything",
        QueueSettings(
            "jobs",
            QueueType.CLASSIC,
            max_length=100,
            max_length_bytes=10_000,
            message_ttl_seconds=60,
            delivery_limit=3,
            single_active_consumer=True,
            consumer_timeout_seconds=3600,
            exchange=Exchange("images", ExchangeType.FANOUT),
        ),
    ),
]


@pytest.fixture
def publisher(every_vhost):
    with PublishPipeline(lambda: from_url(every_vhost.url), "test") as made:
        yield made


@contextmanager
def channel_of(vhost):
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def put(channel, queue, body=b"x", **properties):
    channel.basic_publish(
        "", queue, body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True
    )


def take(channel, queue):
    """Wait for the next message and return it."""
    return eventually(lambda: (got := channel.basic_get(queue))[0] and got)


@pytest.mark.parametrize("settings", [row[1] for row in SETTINGS], ids=[row[0] for row in SETTINGS])
def test_topology_is_accepted_and_second_declare_changes_nothing(every_vhost, publisher, settings):
    plan = topology.plan(settings)
    assert publisher.declare_plan(plan).result(), "created"
    assert not publisher.declare_plan(plan).result(), "there already"
    assert every_vhost.exists("jobs")
    assert every_vhost.exists("jobs.dead")
    delays = topology.delay_route("jobs", 10).plan
    assert publisher.declare_plan(delays).result()
    assert not publisher.declare_plan(delays).result()
    assert every_vhost.exists("jobs.retry.step.8s")


def test_exchange_routes_by_its_routing_keys(every_vhost, publisher):
    exchange = Exchange("images", ExchangeType.DIRECT, ("thumb", "icon"))
    publisher.declare_plan(topology.plan(QueueSettings("jobs", exchange=exchange))).result()
    with channel_of(every_vhost) as channel:
        channel.basic_publish("images", "thumb", b"1", mandatory=True)
        channel.basic_publish("images", "icon", b"2", mandatory=True)
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("images", "jobs", b"3", mandatory=True)
    assert every_vhost.depth("jobs").ready == 2


def test_conflicting_queue_is_named_and_not_changed(every_vhost, publisher):
    with channel_of(every_vhost) as channel:
        channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum"})
    with pytest.raises(
        DeclareError, match=r"^The queue jobs cannot be declared: 406 PRECONDITION_FAILED"
    ) as caught:
        publisher.declare_plan(topology.plan(QueueSettings("jobs"))).result()
    assert caught.value.code == 406
    publisher.declare_plan(
        topology.delay_route("jobs", 1).plan
    ).result()  # the refusal affects no other queue


def test_classic_topology_accepts_queue_declared_by_publisher_first(every_vhost, publisher):
    with channel_of(every_vhost) as channel:
        channel.queue_declare("hello", durable=True)
        put(channel, "hello", b"Hello World!")

        publisher.declare_plan(topology.plan(QueueSettings("hello", QueueType.CLASSIC))).result()

        assert take(channel, "hello")[2] == b"Hello World!"


def test_publisher_may_redeclare_queue_of_classic_topology(every_vhost, publisher):
    publisher.declare_plan(topology.plan(QueueSettings("hello", QueueType.CLASSIC))).result()

    with channel_of(every_vhost) as channel:
        channel.queue_declare("hello", durable=True)
        put(channel, "hello", b"Hello World!")

        assert take(channel, "hello")[2] == b"Hello World!"


def test_conflict_with_publisher_declaration_offers_both_remedies(every_vhost, publisher):
    with channel_of(every_vhost) as channel:
        channel.queue_declare("hello", durable=True)

    with pytest.raises(DeclareError) as caught:
        publisher.declare_plan(topology.plan(QueueSettings("hello"))).result()

    assert caught.value.code == 406
    assert "Classic without limits and TTL" in str(caught.value)
    assert "passively" in str(caught.value)


@pytest.mark.parametrize("kind", QueueType)
def test_full_queue_refuses_and_keeps_confirmed_messages(every_vhost, publisher, kind):
    publisher.declare_plan(topology.plan(QueueSettings("jobs", kind, max_length=3))).result()
    confirmed = refused = 0
    with channel_of(every_vhost) as channel:
        for _ in range(20):
            try:
                put(channel, "jobs")
                confirmed += 1
            except pika.exceptions.NackError:
                refused += 1
    assert refused > 0
    assert every_vhost.depth("jobs").ready == confirmed


def delayed(seconds, body=b"x", **properties):
    """A message and its way to the work queue."""
    route = topology.delay_route("jobs", seconds, properties.get("priority"))
    return Outgoing("", body, **properties).delayed(route, time.time() + seconds), route


def delay(publisher, seconds, body=b"x", **properties):
    outgoing, route = delayed(seconds, body, **properties)
    publisher.declare_plan(route.plan).result()
    publisher.publish(outgoing).result()


@pytest.mark.parametrize("kind", QueueType)
def test_delayed_message_returns_to_the_work_queue(every_vhost, publisher, kind):
    publisher.declare_plan(topology.plan(QueueSettings("jobs", kind))).result()
    with channel_of(every_vhost) as channel:
        delay(publisher, 1.5, b"later", headers={"a": 1}, message_id="m-1")
        method, properties, body = take(channel, "jobs")
        assert time.time() * 1000 >= properties.headers["x-workqueue-due-at"]
        assert (body, properties.message_id, properties.headers["a"]) == (b"later", "m-1", 1)
        assert properties.headers["x-first-death-queue"] == "jobs.retry.step.1s"
        # In any order: a reader finds a record by its queue.
        deaths = sorted(death["queue"] for death in properties.headers["x-death"])
        assert deaths == ["jobs.retry.last", "jobs.retry.step.1s", "jobs.retry.step.500ms"]
        channel.basic_ack(method.delivery_tag)


def test_message_in_a_delay_queue_of_an_earlier_release_returns(every_vhost, publisher):
    publisher.declare_plan(topology.plan(QueueSettings("jobs"))).result()
    earlier = topology.earlier_delay_queue_name("jobs", 1)
    with channel_of(every_vhost) as channel:
        arguments = {
            **topology.delay_queue("jobs", topology.LAST).arguments,
            "x-message-ttl": 1000,
        }
        del arguments["x-delivery-limit"]  # earlier releases had none
        channel.queue_declare(earlier, durable=True, arguments=arguments)
        put(channel, earlier, b"earlier", expiration="900")
        delay(publisher, 1, b"now")
        assert {take(channel, "jobs")[2] for _ in range(2)} == {b"earlier", b"now"}


def test_last_delay_queue_keeps_a_message_whose_work_queue_is_missing(every_vhost, publisher):
    delay(publisher, 0.5)
    # It has expired and does not count as ready, but the queue holds it until the target queue accepts it.
    eventually(lambda: every_vhost.depth("jobs.retry.last") == (0, 1))


def test_thousands_of_delays_need_few_queues_and_none_is_early(every_vhost, publisher):
    """Messages of many different delays, in random order, with priorities: none blocks another one."""
    publisher.declare_plan(topology.plan(QueueSettings("jobs"))).result()
    for priority in (None, 9):
        publisher.declare_plan(topology.delay_route("jobs", 3, priority).plan).result()
    delays = [0.5 + 2.5 * number / 2000 for number in range(2000)]
    random.Random(1).shuffle(delays)
    for seconds in delays:
        publisher.publish(delayed(seconds, priority=int(seconds * 1000) % 10)[0])
    early = []
    with channel_of(every_vhost) as channel:
        left = len(delays)
        for _, properties, _ in channel.consume("jobs", auto_ack=True):
            early += (
                [late] if (late := time.time() * 1000 - properties.headers["x-workqueue-due-at"]) < 0 else []
            )
            left -= 1
            if not left:
                break
    assert early == []


@pytest.mark.parametrize("first", [0, 4, 9], ids=["low", "normal", "high"])
def test_waiting_message_is_not_delayed_by_later_ones_of_any_priority(every_vhost, publisher, first):
    """From RabbitMQ 4.0 on, only the head of a class of priorities is looked at, or of each priority."""
    publisher.declare_plan(topology.plan(QueueSettings("jobs", QueueType.CLASSIC))).result()
    for priority in (None, 9):
        publisher.declare_plan(topology.delay_route("jobs", 2, priority).plan).result()
    publisher.publish(delayed(2, b"first", priority=first)[0]).result()

    with channel_of(every_vhost) as channel:
        for priority in itertools.cycle((0, 4, None, 5, 9, 31)):
            time.sleep(0.1)  # the rate of the messages that follow
            publisher.publish(delayed(2, priority=priority)[0]).result()
            if (got := channel.basic_get("jobs", auto_ack=True))[0]:
                break

    assert got[2] == b"first"
    assert got[1].priority == first


def test_high_priority_after_a_long_delay_is_in_a_header(every_vhost, publisher):
    delay(publisher, 40_000, priority=9)

    with channel_of(every_vhost) as channel:
        _, properties, _ = take(channel, "jobs.retry.step.32768s")
    assert (properties.priority, properties.headers["x-workqueue-original-priority"]) == (None, 9)


def test_message_waits_for_thirty_days(every_vhost, publisher):
    publisher.declare_plan(topology.plan(QueueSettings("jobs"))).result()
    delay(publisher, topology.LONGEST_DELAY_SECONDS)
    assert every_vhost.depth("jobs.retry.step.2097152s") == (1, 0)


def test_two_programs_declare_the_delay_queues_at_once(every_vhost, publisher):
    plans = [topology.delay_route("jobs", seconds).plan for seconds in (60, 2, 60, 10)]
    with PublishPipeline(lambda: from_url(every_vhost.url), "other") as other:
        declared = [pipeline.declare_plan(plan) for plan in plans for pipeline in (publisher, other)]
        created = [one.result() for one in declared]
    assert created[0]


@pytest.mark.slow
def test_delayed_messages_survive_broker_death(every_rabbitmq, every_vhost):
    count = 200
    with PublishPipeline(lambda: from_url(every_vhost.url), "test") as pipeline:
        pipeline.declare_plan(topology.plan(QueueSettings("jobs"))).result()
        pipeline.declare_plan(topology.delay_route("jobs", 30).plan).result()
        time.sleep(SAFE_AFTER_SECONDS)  # under test: from then on it is safe
        sent = [
            pipeline.publish(delayed(1 + 20 * number / count, message_id=str(number))[0])
            for number in range(count)
        ]
        for future in sent:
            future.result()
    every_rabbitmq.restart(kill=True)
    seen, early = set(), []
    with channel_of(every_vhost) as channel:
        for method, properties, _ in channel.consume("jobs", inactivity_timeout=60):
            assert method, f"{count - len(seen)} messages are missing"
            seen.add(properties.message_id)
            early += [1] if time.time() * 1000 < properties.headers["x-workqueue-due-at"] else []
            if len(seen) == count:
                break
    assert early == []


@pytest.mark.parametrize(
    "settings",
    [QueueSettings("jobs"), QueueSettings("jobs", QueueType.CLASSIC, message_ttl_seconds=3600)],
    ids=["quorum", "classic-with-ttl"],
)
def test_rejected_message_becomes_a_dead_letter(every_vhost, publisher, settings):
    publisher.declare_plan(topology.plan(settings)).result()
    with channel_of(every_vhost) as channel:
        put(channel, "jobs", b"bad")
        method, _, _ = take(channel, "jobs")
        channel.basic_reject(method.delivery_tag, requeue=False)
        _, properties, body = take(channel, "jobs.dead")
        assert body == b"bad"
        assert properties.headers["x-death"][0]["reason"] == "rejected"


def test_message_whose_workers_die_is_dead_lettered_at_the_limit(every_vhost, publisher):
    settings = QueueSettings("jobs", delivery_limit=1)
    publisher.declare_plan(topology.plan(settings)).result()
    with channel_of(every_vhost) as channel:
        put(channel, "jobs", b"bad")
    deaths = 0
    while every_vhost.depth("jobs").ready:
        with every_vhost.connect() as connection:
            eventually(lambda: connection.channel().basic_get("jobs")[0])
        deaths += 1
        eventually(lambda: every_vhost.depth("jobs").unacknowledged == 0)
    assert deaths == 1 + topology.WAKE_ALLOWANCE + 1
    with channel_of(every_vhost) as channel:
        _, properties, _ = take(channel, "jobs.dead")
        assert properties.headers["x-death"][0]["reason"] == "delivery_limit"


def test_dead_letter_survives_any_number_of_reads(every_vhost, publisher):
    publisher.declare(topology.dead_letter_queue("jobs")).result()
    with channel_of(every_vhost) as channel:
        put(channel, "jobs.dead", b"bad")
        for _ in range(30):
            method, _, _ = take(channel, "jobs.dead")
            channel.basic_nack(method.delivery_tag, requeue=True)
    for _ in range(10):
        with channel_of(every_vhost) as channel:
            take(channel, "jobs.dead")
    eventually(lambda: every_vhost.depth("jobs.dead") == (1, 0))


@pytest.mark.slow
def test_messages_survive_broker_death(rabbitmq):
    queues = ("quorum", "quorum.dead", "quorum.retry.step.2048s", "classic", "classic.dead")
    with rabbitmq.new_vhost() as vhost:
        with PublishPipeline(lambda: from_url(vhost.url), "test") as publisher:
            publisher.declare_plan(topology.plan(QueueSettings("quorum"))).result()
            publisher.declare_plan(topology.plan(QueueSettings("classic", QueueType.CLASSIC))).result()
            assert publisher.declare_plan(topology.delay_route("quorum", 3600).plan).result()
            time.sleep(SAFE_AFTER_SECONDS)  # under test: from then on it is safe
            for queue in queues:
                publisher.publish_and_wait(Outgoing(queue, b"x"))
        rabbitmq.restart(kill=True)
        eventually(lambda: [vhost.depth(queue).ready for queue in queues] == [1, 1, 1, 1, 1])


PERMISSIONS = [
    (
        "the operator declares with configure and read, and write on its queues and the default exchange",
        {"configure": r"^jobs(\..*)?$", "write": r"^(jobs(\..*)?|amq\.default)$", "read": r"^jobs(\..*)?$"},
    ),
]


@pytest.mark.parametrize("permissions", [row[1] for row in PERMISSIONS], ids=[row[0] for row in PERMISSIONS])
def test_documented_permissions_suffice_to_declare(every_vhost, permissions):
    broker, vhost = every_vhost.broker, every_vhost.name
    broker.add_user(f"user-{vhost}", "pw", vhost, **permissions)
    try:
        url = broker.url_of(vhost, f"user-{vhost}", "pw")
        with PublishPipeline(lambda: from_url(url), "test") as publisher:
            publisher.declare_plan(topology.plan(QueueSettings("jobs"))).result()
            publisher.declare_plan(topology.delay_route("jobs", 1).plan).result()
    finally:
        broker.delete_user(f"user-{vhost}")
