"""The rules of the doorbell, each against every supported RabbitMQ, on quorum and classic queues."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from tests.support.brokers import PATIENCE, Probe, channel_of, probe, put, put_large, take_all
from tests.support.process import forget_peak, memory
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue.contract.binding import from_url
from workqueue.contract.topology import WAKE_ALLOWANCE, Queue, QueueSettings, QueueType, plan
from workqueue_operator.broker import doorbell
from workqueue_operator.scaling import gather
from workqueue_web.dead_letters import sample

TYPES = pytest.mark.parametrize("queue_type", list(QueueType), ids=lambda kind: kind.value)


async def declared(broker: Probe, *names: str, queue_type: QueueType = QueueType.QUORUM) -> None:
    await broker.ready()
    for name in names:
        await broker.declare(plan(QueueSettings(name, queue_type)))


async def declared_plainly(broker: Probe, names: list[str], queue_type: QueueType) -> None:
    """Declare many, some at the same time as passes do, each without a dead-letter queue."""
    for start in range(0, len(names), 20):
        some = names[start : start + 20]
        await asyncio.gather(
            *(broker.declare_queue(Queue(name, {"x-queue-type": queue_type.value.lower()})) for name in some)
        )


def consumers(vhost: VirtualHost) -> int:
    """Consumers of all queues of a virtual host, as the server itself counts them."""
    name = ",".join(map(str, vhost.name.encode()))
    return int(
        vhost.broker.evaluate(
            "length([1 || Q <- rabbit_amqqueue:list(<<" + name + ">>), _ <- rabbit_amqqueue:consumers(Q)])"
        )
    )


def connections(vhost: VirtualHost) -> int:
    """Connections that consume from the queues of a virtual host, as the server itself counts them."""
    name = ",".join(map(str, vhost.name.encode()))
    # A channel that is closing has no information.
    listed = (
        f"Q <- rabbit_amqqueue:list(<<{name}>>), C <- rabbit_amqqueue:consumers(Q),"
        "[{connection, P}] <- [catch rabbit_channel:info(element(1, C), [connection])]"
    )
    return int(vhost.broker.evaluate(f"length(lists:usort([P || {listed}]))"))


@TYPES
async def test_ring_requeues_messages_in_order_and_removes_doorbell(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await declared(broker, "jobs", queue_type=queue_type)
        assert await broker.install_doorbell("jobs")
        bodies = [f"{number}".encode() for number in range(20)]
        put(channel, "jobs", *bodies)
        await until(lambda: broker.told.rings)
        assert broker.doorbells == 0
        await until(lambda: ready(broker, "jobs", 20))
        await until(lambda: consumers(every_vhost) == 0)
        assert broker.told.rings == ["jobs"]
        taken = take_all(channel, "jobs")
        assert [body for body, _ in taken] == bodies
        # Requeued once, and no other message was delivered.
        assert taken[0][1] <= 1
        assert {count for _, count in taken[1:]} == {0}


async def ready(broker: Probe, queue: str, count: int) -> bool:
    return (await broker.counts(queue)).ready == count


@TYPES
async def test_message_count_agrees_soon_after_a_ring(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    """A ring means at least one message, but a passive declare may lag: by fewer polls than the operator makes."""
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await declared(broker, "jobs", queue_type=queue_type)
        for count in range(1, 21):
            # The doorbell rings again immediately when messages are left, so each round begins with an empty queue.
            assert await broker.install_doorbell("jobs")
            put(channel, "jobs", *[b"x"] * 3)
            await until(lambda wanted=count: len(broker.told.rings) == wanted)
            polls = 1
            while not await ready(broker, "jobs", 3):
                polls += 1
                await asyncio.sleep(gather.RING_PAUSE)
            assert polls <= gather.RING_AGREES_WITHIN / gather.RING_PAUSE
            channel.queue_purge("jobs")
            await until(lambda: ready(broker, "jobs", 0))


@TYPES
async def test_scale_in_to_zero_sees_every_message(every_vhost: VirtualHost, queue_type: QueueType) -> None:
    """Cancel the worker, install the doorbell, poll: a message published at any moment is counted or rings."""
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await declared(broker, "jobs", queue_type=queue_type)
        with every_vhost.connect() as publishing:
            publisher = publishing.channel()
            publisher.confirm_delivery()
            for round_ in range(40):
                worker = channel.basic_consume("jobs", lambda *_: None)
                rings = len(broker.told.rings)
                go = threading.Event()

                def publish(wait: float = round_ * 0.0001, go: threading.Event = go) -> None:
                    go.wait()
                    threading.Event().wait(wait)
                    put(publisher, "jobs", b"x")

                publishing_thread = asyncio.create_task(asyncio.to_thread(publish))
                go.set()
                # Deliveries to the worker are requeued, as a worker does when it retires.
                for method, _, _ in channel.basic_cancel(worker) or ():
                    channel.basic_nack(method.delivery_tag)
                installed = await broker.install_doorbell("jobs")
                seen = (await broker.counts("jobs")).ready
                await publishing_thread
                if installed and not seen:
                    await until(lambda before=rings: len(broker.told.rings) > before)
                broker.remove_doorbell("jobs")
                await until(lambda: ready(broker, "jobs", 1))
                channel.queue_purge("jobs")


@TYPES
async def test_one_ring_disturbs_no_other_doorbell(every_vhost: VirtualHost, queue_type: QueueType) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        names = [f"jobs-{number}" for number in range(300 if queue_type is QueueType.CLASSIC else 130)]
        await broker.ready()
        await declared_plainly(broker, names, queue_type)
        assert all(await asyncio.gather(*(broker.install_doorbell(name) for name in names)))
        assert broker.doorbells == len(names)
        channels = -(-len(names) // doorbell.DOORBELLS_PER_CHANNEL)
        assert len(broker._doorbells._channels) == channels  # type: ignore[union-attr]
        put(channel, names[7], b"x")
        await until(lambda: broker.told.rings)
        await until(lambda: consumers(every_vhost) == len(names) - 1)
        assert (broker.told.rings, broker.told.falls) == ([names[7]], [])
        put(channel, names[-1], b"x")
        await until(lambda: broker.told.rings == [names[7], names[-1]])


@TYPES
async def test_ring_during_many_installs_gets_its_message_once(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    """A cancel that waited behind other consumes would let the message be redelivered repeatedly."""
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        names = [f"jobs-{number}" for number in range(doorbell.DOORBELLS_PER_CHANNEL)]
        await broker.ready()
        await declared_plainly(broker, names, queue_type)
        waiting = names[::8]
        for name in waiting:
            put(channel, name, b"first", b"second")
        await asyncio.gather(*(broker.install_doorbell(name) for name in names))
        await until(lambda: sorted(broker.told.rings) == sorted(waiting))
        for name in waiting:
            await until(lambda name=name: ready(broker, name, 2))
            taken = take_all(channel, name)
            assert {body for body, _ in taken} == {b"first", b"second"}
            assert max(count for _, count in taken) <= 1
        assert broker.doorbells == len(names) - len(waiting)


@TYPES
async def test_doorbells_installed_and_removed_under_load_lose_no_message(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        names = [f"jobs-{number}" for number in range(10)]
        await declared(broker, *names, queue_type=queue_type)
        bodies = [(name, b"x") for _ in range(5) for name in names]
        publishing = asyncio.create_task(
            asyncio.to_thread(lambda: [put(channel, name, body) for name, body in bodies])
        )
        for _ in range(WAKE_ALLOWANCE // 2):  # before RabbitMQ 4.3, more would exceed the delivery limit
            if publishing.done():
                break
            hanging = [asyncio.create_task(broker.install_doorbell(name)) for name in names]
            await asyncio.sleep(0)
            for name in names[::2]:
                broker.remove_doorbell(name)
            await asyncio.gather(*hanging)
            for name in names:
                broker.remove_doorbell(name)
        await publishing
        # Longer than the operator waits for an answer before it closes a channel.
        await until(lambda: consumers(every_vhost) == 0, seconds=2 * PATIENCE)
        for name in names:
            await until(lambda name=name: ready(broker, name, 5), seconds=2 * PATIENCE)
        assert broker.doorbells == 0


@TYPES
async def test_removed_doorbell_leaves_no_consumer(every_vhost: VirtualHost, queue_type: QueueType) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await declared(broker, "jobs", queue_type=queue_type)
        for _ in range(10):
            assert await broker.install_doorbell("jobs")
            broker.remove_doorbell("jobs")
        await until(lambda: consumers(every_vhost) == 0)
        hanging = asyncio.create_task(broker.install_doorbell("jobs"))
        await asyncio.sleep(0)
        broker.remove_doorbell("jobs")
        assert not await hanging
        put(channel, "jobs", b"x")
        await until(lambda: ready(broker, "jobs", 1))
        await until(lambda: consumers(every_vhost) == 0)
        assert (broker.told.rings, broker.told.falls) == ([], [])


async def test_worker_gets_messages_before_the_doorbell(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await declared(broker, "jobs")
        assert await broker.install_doorbell("jobs")
        taken: list[bytes] = []
        channel.basic_consume("jobs", lambda _, __, ___, body: taken.append(body), auto_ack=True)
        with every_vhost.connect() as publishing:
            put(publishing.channel(), "jobs", *[b"x"] * 10)
        channel.connection.process_data_events(0)
        await until(lambda: channel.connection.process_data_events(0.01) or len(taken) == 10)
        assert broker.told.rings == []


@TYPES
async def test_refused_doorbell_affects_no_other(every_vhost: VirtualHost, queue_type: QueueType) -> None:
    server = every_vhost.broker
    server.add_user("bell", "secret", every_vhost.name, read="^open-")
    try:
        async with (
            probe(server.url_of(every_vhost.name, "bell", "secret")) as broker,
            channel_of(every_vhost) as channel,
        ):
            names = ["open-1", "closed 'to' us", "open-2", "open-3"]
            await broker.ready()
            for name in names:
                channel.queue_declare(
                    name, durable=True, arguments={"x-queue-type": queue_type.value.lower()}
                )
            installed = await asyncio.gather(*(broker.install_doorbell(name) for name in names))
            assert not installed[1]
            ((queue, refusal),) = broker.told.falls
            assert queue == names[1]
            assert refusal is not None
            assert refusal[0] == 403
            await until(lambda: consumers(every_vhost) == broker.doorbells == 3)
            put(channel, "open-1", b"x")
            await until(lambda: broker.told.rings == ["open-1"])
            assert broker.generation == 1
    finally:
        server.delete_user("bell")


async def test_doorbell_refused_by_exclusive_consumer_affects_no_other(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await broker.ready()
        for name in ("jobs", "other"):
            channel.queue_declare(name, durable=True)
        channel.basic_consume("jobs", lambda *_: None, exclusive=True)
        assert await broker.install_doorbell("other")
        assert not await broker.install_doorbell("jobs")
        ((queue, refusal),) = broker.told.falls
        assert queue == "jobs"
        assert refusal is not None
        assert refusal[0] == 403
        await until(lambda: broker.doorbells == 1)


@TYPES
async def test_doorbell_on_missing_queue_is_refused(every_vhost: VirtualHost, queue_type: QueueType) -> None:
    async with probe(every_vhost.url) as broker:
        await declared(broker, "other", queue_type=queue_type)
        assert await broker.install_doorbell("other")
        assert not await broker.install_doorbell("jobs")
        ((queue, refusal),) = broker.told.falls
        assert queue == "jobs"
        assert refusal is not None
        assert refusal[0] == 404
        await until(lambda: consumers(every_vhost) == 1)


@TYPES
@pytest.mark.parametrize("same_type", [True, False], ids=["of the same type", "of another type"])
async def test_doorbell_works_after_its_queue_is_recreated(
    every_vhost: VirtualHost, queue_type: QueueType, *, same_type: bool
) -> None:
    """The next doorbells work, and the connection with all other doorbells stays open."""
    other_type = QueueType.CLASSIC if queue_type is QueueType.QUORUM else QueueType.QUORUM
    next_type = queue_type if same_type else other_type
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await declared(broker, "jobs", "other", queue_type=queue_type)
        assert await broker.install_doorbell("other")
        for round_ in range(3):
            now, then = (queue_type, next_type) if round_ % 2 == 0 else (next_type, queue_type)
            assert await broker.install_doorbell("jobs")
            # The doorbell rang and was removed before, so that the channel has used this queue in every way.
            put(channel, "jobs", b"x")
            await until(lambda before=round_: len(broker.told.rings) == 3 * before + 1)
            await until(lambda: ready(broker, "jobs", 1))
            channel.queue_purge("jobs")
            assert await broker.install_doorbell("jobs")
            falls = len(broker.told.falls)
            channel.queue_delete("jobs")
            await until(lambda before=falls: len(broker.told.falls) > before)
            assert broker.told.falls[-1] == ("jobs", None)
            await broker.declare(plan(QueueSettings("jobs", then)))
            for again in range(2):
                assert await broker.install_doorbell("jobs"), (now, then)
                put(channel, "jobs", b"x")
                await until(lambda rings=3 * round_ + 2 + again: len(broker.told.rings) == rings)
                await until(lambda: ready(broker, "jobs", 1))
                channel.queue_purge("jobs")
                await until(lambda: ready(broker, "jobs", 0))
        assert broker.generation == 1
        assert broker.has_doorbell("other")


@TYPES
async def test_recreated_queue_gets_a_new_doorbell_channel(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    """The old channel remembers the old queue: a doorbell of another type on it would end the connection (541)."""
    other_type = QueueType.CLASSIC if queue_type is QueueType.QUORUM else QueueType.QUORUM
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await declared(broker, "jobs", "other", queue_type=queue_type)
        assert await broker.install_doorbell("other")
        assert await broker.install_doorbell("jobs")
        put(channel, "jobs", b"x")
        await until(lambda: broker.told.rings == ["jobs"])
        await broker.delete_queue("jobs")
        broker.mark_vanished("jobs")
        await broker.declare(plan(QueueSettings("jobs", other_type)))
        for rings in (2, 3):
            assert await broker.install_doorbell("jobs")
            put(channel, "jobs", b"x")
            await until(lambda rings=rings: len(broker.told.rings) == rings)
            await until(lambda: ready(broker, "jobs", 1))
            channel.queue_purge("jobs")
            await until(lambda: ready(broker, "jobs", 0))
        assert broker.generation == 1
        assert broker.has_doorbell("other")


async def test_lost_connection_removes_all_doorbells_and_next_ones_work(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker:
        names = [f"jobs-{number}" for number in range(5)]
        await declared(broker, *names)
        await asyncio.gather(*(broker.install_doorbell(name) for name in names))
        server = every_vhost.broker
        hanging = [asyncio.create_task(broker.install_doorbell(name)) for name in names]
        server.close_connections()
        await asyncio.gather(*hanging)
        await until(lambda: broker.generation == 2)
        assert broker.doorbells == 0
        assert broker.told.falls == []
        assert await broker.install_doorbell("jobs-3")
        async with channel_of(every_vhost) as channel:
            put(channel, "jobs-3", b"x")
        await until(lambda: broker.told.rings == ["jobs-3"])
    await until(lambda: consumers(every_vhost) == 0)


LARGE = 16 * 1024 * 1024
GROWTH = 8 * 2**20
AT_ONCE = 50


@pytest.mark.slow
@TYPES
async def test_fifty_simultaneous_large_bodies_are_discarded(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    """Bodies are discarded as they arrive."""
    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        names = [f"jobs-{number}" for number in range(AT_ONCE)]
        await broker.ready()
        await declared_plainly(broker, names, queue_type)
        body = bytes(LARGE)
        for name in names:
            await asyncio.to_thread(put, channel, name, body)
        forget_peak(os.getpid())
        before = memory(os.getpid())
        await asyncio.gather(*(broker.install_doorbell(name) for name in names))
        await until(lambda: len(set(broker.told.rings)) == AT_ONCE, seconds=240)
        grown = memory(os.getpid(), "VmHWM") - before
        print(f"{AT_ONCE} bodies of 16 MiB: {grown / 2**20:.0f} MiB at most")
        assert grown < GROWTH
        for name in names:
            await until(lambda queue=name: ready(broker, queue, 1))


@TYPES
async def test_large_message_on_idle_queue_does_not_grow_operator_memory(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    async with probe(every_vhost.url) as broker:
        await declared(broker, "jobs", queue_type=queue_type)
        assert await broker.install_doorbell("jobs")
        forget_peak(os.getpid())
        before = memory(os.getpid())

        size = await put_large(every_vhost, "jobs")
        await until(lambda: broker.told.rings == ["jobs"], seconds=120)

        grown = memory(os.getpid(), "VmHWM") - before
        print(f"a message of {size / 2**20:.0f} MiB: grown by {grown / 2**20:.1f} MiB")
        assert grown < GROWTH
        await until(lambda: ready(broker, "jobs", 1))
        assert broker.generation == 1


@TYPES
async def test_queue_with_large_messages_has_its_doorbell_on_another_connection(
    every_vhost: VirtualHost, queue_type: QueueType
) -> None:
    async def installed(*queues: str) -> bool:
        return all([await broker.install_doorbell(queue) for queue in queues])

    async with probe(every_vhost.url) as broker, channel_of(every_vhost) as channel:
        await declared(broker, "documents", "jobs", queue_type=queue_type)
        assert await installed("documents", "jobs")
        assert connections(every_vhost) == 1
        for number, (size, expected) in enumerate([(LARGE, 2), (LARGE, 2), (1, 1)], 1):
            await asyncio.to_thread(put, channel, "documents", bytes(size))
            await until(lambda wanted=number: broker.told.rings == ["documents"] * wanted)
            await until(lambda: ready(broker, "documents", 1))
            channel.queue_purge("documents")
            await until(lambda: installed("documents", "jobs"))
            await until(lambda wanted=expected: connections(every_vhost) == wanted)
            assert broker.doorbells == 2


async def test_lost_connection_for_large_messages_is_reported_and_reopened(vhost: VirtualHost) -> None:
    async with probe(vhost.url) as broker, channel_of(vhost) as channel:
        await declared(broker, "documents")
        assert await broker.install_doorbell("documents")
        await asyncio.to_thread(put, channel, "documents", bytes(LARGE))
        await until(lambda: broker.told.rings == ["documents"])
        channel.queue_purge("documents")
        await until(lambda: broker.install_doorbell("documents"))
        broker.told.falls.clear()
        name = ",".join(map(str, vhost.name.encode()))
        vhost.broker.evaluate(
            "[rabbit_networking:close_connection(rabbit_misc:pget(connection, "
            "rabbit_channel:info(element(1, C), [connection])), <<>>) || "
            f"Q <- rabbit_amqqueue:list(<<{name}>>), C <- rabbit_amqqueue:consumers(Q)]"
        )
        await until(lambda: ("documents", None) in broker.told.falls)
        await until(lambda: broker.install_doorbell("documents"))
        assert broker.generation == 1, "the connection for all queues stays"


async def test_sampling_large_dead_letters_does_not_grow_memory(every_vhost: VirtualHost) -> None:
    async with probe(every_vhost.url) as broker:
        await declared(broker, "jobs")
        size = await put_large(every_vhost, "jobs.dead")
        sample(from_url(every_vhost.url), "jobs", most=0)
        forget_peak(os.getpid())
        before = memory(os.getpid())

        found = await asyncio.to_thread(sample, from_url(every_vhost.url), "jobs")

        grown = memory(os.getpid(), "VmHWM") - before
        print(f"a dead letter of {size / 2**20:.0f} MiB: grown by {grown / 2**20:.1f} MiB")
        assert (found.sampled, found.total) == (1, 1)
        assert grown < GROWTH
        await until(lambda: ready(broker, "jobs.dead", 1))


async def test_few_channels_are_enough_for_polls_questions_and_doorbells(vhost: VirtualHost) -> None:
    """RabbitMQ's channel_max is often set to a few dozen."""
    names = [f"jobs-{number}" for number in range(20)]
    with vhost.broker.channel_max(8):
        async with probe(vhost.url) as broker:
            await broker.ready()
            await declared_plainly(broker, names, QueueType.CLASSIC)

            polls, questions = (asyncio.gather(*map(ask, names)) for ask in (broker.poll, broker.counts))
            doorbells = await asyncio.gather(*map(broker.install_doorbell, names))

            assert all(counts.ready == 0 for counts in (*await polls, *await questions))
            assert all(doorbells)


async def test_doorbell_without_a_channel_is_silent_until_the_next_attempt(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each doorbell of a queue that is declared elsewhere has a channel of its own."""
    monkeypatch.setattr(doorbell, "RETRY_SECONDS", (0.1, 0.1))
    names = [f"jobs-{number}" for number in range(12)]
    with vhost.broker.channel_max(8):
        async with probe(vhost.url) as broker:
            await broker.ready()
            await declared_plainly(broker, names, QueueType.CLASSIC)

            found = [await broker.install_doorbell(name, ours=False) for name in names]

            assert found == sorted(found, reverse=True), "the first ones have theirs"
            assert found[0]
            assert not found[-1]
            assert broker.doorbell_is_silent(names[-1])
            for name in names[:-1]:
                broker.remove_doorbell(name)
            await until(lambda: (names[-1], None) in broker.told.falls)
            await until(lambda: broker.install_doorbell(names[-1], ours=False))
            assert not broker.doorbell_is_silent(names[-1])


async def test_doorbell_that_loses_the_connection_after_its_proof_is_not_waited_for(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer and the end of the connection may arrive together."""

    async def prove(doorbells: doorbell.Doorbells, _queue: str) -> bool:
        doorbells._connection.close()
        return False

    monkeypatch.setattr(doorbell.Doorbells, "_prove", prove)
    async with probe(vhost.url) as broker:
        await broker.ready()

        installed = await asyncio.wait_for(broker.install_doorbell("jobs"), PATIENCE / 3)

        assert not installed
        await until(lambda: broker.generation == 2)
        assert broker.doorbells == 0
