"""Deletion of queues with their WorkQueue: all of them, and with DeleteIfEmpty only after all are empty."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.brokers import channel_of, put
from tests.support.deletion import (
    ASKED,
    EARLIER,
    QUEUES,
    SPEC,
    STEPS,
    deleted,
    finalizer,
    let_go,
    secret_of,
    told,
)
from tests.support.fakecluster import FakeCluster
from tests.support.rabbitmq import Broker as Server
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from tests.support.worker import Worker, Workers, publish
from tests.support.workqueue import workqueue
from workqueue import Publisher
from workqueue.contract.topology import (
    LAST,
    QueueType,
    dead_letter_queue,
    delay_plan,
    delay_queue,
    earlier_delay_queue_name,
    ledger,
    work_queue,
)
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import PodView
from workqueue_operator.reconcile.finalize import Finalizer


async def declare(vhost: VirtualHost, **queue: str) -> None:
    async with channel_of(vhost) as channel:
        work, steps = work_queue(deleted("Delete", **queue).queue_settings), delay_plan("jobs", STEPS)
        like_earlier = delay_queue("jobs", LAST).arguments
        others = {
            queue.name: queue.arguments for queue in (work, dead_letter_queue("jobs"), *steps.queues)
        } | {
            earlier_delay_queue_name("jobs", delay): {**like_earlier, "x-message-ttl": delay * 1000}
            for delay in (SPEC, ASKED, EARLIER)
        }
        for name, arguments in others.items():
            channel.queue_declare(name, durable=True, arguments=dict(arguments))
        for exchange in steps.steps:
            channel.exchange_declare(exchange.name, "topic", durable=True)


async def declare_alone(vhost: VirtualHost, queue_type: QueueType) -> None:
    async with channel_of(vhost) as channel:
        dead = dead_letter_queue("jobs")
        channel.queue_declare(dead.name, durable=True, arguments=dict(dead.arguments))
        queue = work_queue(deleted("Delete", type=queue_type.value).queue_settings)
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))


def left(vhost: VirtualHost) -> list[str]:
    return [name for name in QUEUES if vhost.exists(name)]


async def test_delete_removes_every_known_delay_queue(every_vhost: VirtualHost) -> None:
    await declare(every_vhost)
    async with finalizer(every_vhost) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(every_vhost) == [f"jobs.retry.{EARLIER}s"]
        assert let_go(cluster)


async def test_delete_with_management_api_removes_every_delay_queue(every_vhost: VirtualHost) -> None:
    await declare(every_vhost)
    uri = {"management-uri": every_vhost.broker.management_url}
    async with finalizer(every_vhost, **uri) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(every_vhost) == []
        assert let_go(cluster)
    exchanges = every_vhost.broker.ctl("list_exchanges", "-p", every_vhost.name, "name", "--silent")
    assert "jobs" not in exchanges


@pytest.mark.parametrize("policy", ["Delete", "DeleteIfEmpty"])
async def test_cancels_are_deleted_with_the_queue(every_vhost: VirtualHost, policy: str) -> None:
    await declare_alone(every_vhost, QueueType.QUORUM)
    with Publisher(every_vhost.url) as publisher:
        publisher.cancel("one", queue="jobs")

    async with finalizer(every_vhost) as (under_test, cluster):
        await until(lambda: is_finished(under_test, policy))
        assert let_go(cluster)

    assert not every_vhost.exists("jobs.cancels")
    exchanges = every_vhost.broker.ctl("list_exchanges", "-p", every_vhost.name, "name", "--silent")
    assert "jobs.cancels" not in exchanges


async def test_foreign_queue_with_the_name_of_the_cancels_is_kept(vhost: VirtualHost) -> None:
    await declare_alone(vhost, QueueType.QUORUM)
    async with channel_of(vhost) as channel:
        channel.queue_declare("jobs.cancels", durable=True)

    async with finalizer(vhost) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert let_go(cluster)

    assert (vhost.exists("jobs.cancels"), vhost.exists("jobs")) == (True, False)


@pytest.mark.parametrize("is_foreign", [False, True])
async def test_ledger_of_recurring_messages_is_deleted_with_the_queue(
    vhost: VirtualHost, is_foreign: bool
) -> None:
    await declare_alone(vhost, QueueType.QUORUM)
    arguments = {} if is_foreign else dict(ledger("jobs").arguments)
    async with channel_of(vhost) as channel:
        channel.queue_declare("jobs.recurring", durable=True, arguments=arguments)

    async with finalizer(vhost) as (under_test, cluster):
        gone = deleted("Delete", {"name": "tick", "everySeconds": 60})
        assert await under_test.finalize(gone) is None
        assert let_go(cluster)

    assert (vhost.exists("jobs.recurring"), vhost.exists("jobs")) == (is_foreign, False)


async def is_finished(under_test: Finalizer, policy: str) -> bool:
    return await under_test.finalize(deleted(policy)) is None


async def test_unreachable_management_api_blocks_nothing_and_is_reported(vhost: VirtualHost) -> None:
    await declare(vhost)
    uri = {"management-uri": f"http://127.0.0.1:{vhost.broker.port}"}
    async with finalizer(vhost, **uri) as (under_test, cluster):
        assert await under_test.finalize(deleted("Delete")) is None
        assert left(vhost) == [f"jobs.retry.{EARLIER}s"]
        assert let_go(cluster)
        await until(lambda: "may be left" in told(cluster))


@pytest.mark.parametrize("where", ["jobs", "jobs.dead", f"jobs.retry.{ASKED}s", f"jobs.retry.{EARLIER}s"])
async def test_delete_if_empty_waits_for_a_message_in_any_queue(vhost: VirtualHost, where: str) -> None:
    await declare(vhost)
    uri = {"management-uri": vhost.broker.management_url}
    async with (
        finalizer(vhost, hidden_seconds=0, **uri) as (under_test, cluster),
        channel_of(vhost) as channel,
    ):
        put(channel, where, b"x")
        assert await under_test.finalize(deleted("DeleteIfEmpty")) is not None
        assert left(vhost) == QUEUES
        assert not let_go(cluster)
        await until(lambda: f"{where!r} is in use (1 waiting" in told(cluster))
        channel.queue_purge(where)
        assert await under_test.finalize(deleted("DeleteIfEmpty")) is None
        assert left(vhost) == []
        assert let_go(cluster)


@pytest.mark.parametrize("policy", ["Delete", "DeleteIfEmpty"])
async def test_queue_of_another_kind_is_kept(vhost: VirtualHost, policy: str) -> None:
    """It is a quorum queue, whose conditional deletion would close the connection (540)."""
    await declare(vhost)
    async with finalizer(vhost, hidden_seconds=0) as (under_test, cluster):
        assert await under_test.finalize(deleted(policy, type="Classic")) is None

        assert vhost.exists("jobs")
        assert let_go(cluster)
        await until(lambda: "was left behind" in told(cluster))


async def test_queue_that_another_program_declared_is_kept(vhost: VirtualHost) -> None:
    async with (
        finalizer(vhost, hidden_seconds=0) as (under_test, cluster),
        channel_of(vhost) as channel,
    ):
        channel.queue_declare("jobs", durable=True)
        put(channel, "jobs", b"theirs")

        assert await under_test.finalize(deleted("Delete")) is None

        assert vhost.depth("jobs").ready == 1
        assert let_go(cluster)
        await until(lambda: "was left behind" in told(cluster))


@pytest.mark.parametrize("policy", ["Delete", "DeleteIfEmpty"])
async def test_dead_letter_queue_of_others_is_kept(vhost: VirtualHost, policy: str) -> None:
    await declare(vhost, deadLetterQueue="failed")
    async with (
        finalizer(vhost, hidden_seconds=0) as (under_test, cluster),
        channel_of(vhost) as channel,
    ):
        channel.queue_declare("failed", durable=True)
        put(channel, "failed", b"theirs")
        await until(lambda: vhost.depth("failed").ready == 1)

        assert await under_test.finalize(deleted(policy, deadLetterQueue="failed")) is None

        assert not vhost.exists("jobs")
        assert vhost.depth("failed").ready == 1
        assert let_go(cluster)


async def test_delay_queue_is_deleted_only_when_no_message_can_be_hidden(
    every_vhost: VirtualHost,
) -> None:
    """Its message has expired while the work queue was missing: a passive declare does not count it."""
    await declare(every_vhost)
    delay = f"jobs.retry.{SPEC}s"
    async with finalizer(every_vhost) as (under_test, cluster), channel_of(every_vhost) as channel:
        channel.queue_delete("jobs")
        put(channel, delay, b"x")
        await until(lambda: every_vhost.depth(delay) == (0, 1))
        assert await under_test.finalize(deleted("DeleteIfEmpty")) is not None
        assert left(every_vhost) == QUEUES, "the work queue is back, so that it can return"
        assert not let_go(cluster)
        await until(lambda: f"{delay!r}" in told(cluster))


@pytest.mark.parametrize("queue_type", list(QueueType), ids=lambda kind: kind.value)
@pytest.mark.parametrize("policy", ["Delete", "DeleteIfEmpty"])
async def test_deletion_refuses_while_foreign_consumer_is_on_queue(
    every_vhost: VirtualHost, policy: str, queue_type: QueueType
) -> None:
    await declare_alone(every_vhost, queue_type)
    going = deleted(policy, type=queue_type.value)
    async with finalizer(every_vhost) as (under_test, cluster), channel_of(every_vhost) as channel:
        tag = channel.basic_consume("jobs", lambda *_: None, arguments={"x-priority": -1000})

        assert await under_test.finalize(going) is not None

        assert every_vhost.exists("jobs")
        assert not let_go(cluster)
        await until(lambda: "'jobs' is in use (0 waiting, 1 consuming)" in told(cluster))

        channel.basic_cancel(tag)
        assert await under_test.finalize(going) is None
        assert not every_vhost.exists("jobs")
        assert let_go(cluster)


@pytest.mark.parametrize("namespace", ["team", "other"])
async def test_queue_shared_through_another_address_is_kept(vhost: VirtualHost, namespace: str) -> None:
    await declare(vhost)
    store = Store(lambda _: None)
    store.put_workqueue(theirs("their-jobs", namespace, "jobs"))
    async with finalizer(vhost, store=store) as (under_test, cluster), channel_of(vhost) as channel:
        put(channel, "jobs", b"kept")
        cluster.answer("GET", "/secrets/by-name", secret_of(uri=vhost.url.replace("127.0.0.1", "localhost")))

        assert await under_test.finalize(deleted("Delete")) is None

        assert vhost.depth("jobs").ready == 1
        assert let_go(cluster)
        await until(lambda: "was left behind" in told(cluster))
        assert ("their-jobs" in told(cluster)) is (namespace == "team")


async def test_same_queue_name_on_another_broker_does_not_block_deletion(
    vhost: VirtualHost, rabbitmq_43: Server
) -> None:
    await declare(vhost)
    store = Store(lambda _: None)
    store.put_workqueue(theirs("their-jobs", "other", "jobs"))
    with rabbitmq_43.new_vhost(vhost.name) as elsewhere:
        await declare(elsewhere)
        async with finalizer(vhost, store=store) as (under_test, cluster):
            cluster.answer("GET", "/secrets/by-name", secret_of(uri=elsewhere.url))

            assert await under_test.finalize(deleted("Delete")) is None

            assert not vhost.exists("jobs")
            assert elsewhere.exists("jobs")


async def test_delete_if_empty_keeps_workers_until_handlers_end(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, {"id": 1, "do": "sleep", "seconds": 600})
    await until(lambda: worker.status()["busy"] == 1)
    store = store_with(worker, replicas=1)
    going = deleted("DeleteIfEmpty")
    async with finalizer(vhost, hidden_seconds=0, store=store, port=worker.port or 0) as (
        under_test,
        cluster,
    ):
        cluster.answer("PATCH", "/deployments/jobs-worker", lambda request: deployment(request.body))

        assert await under_test.finalize(going) is not None

        assert scaled(cluster) == []
        await until(lambda: "1 messages are in handlers" in told(cluster))
        await until(lambda: statuses(cluster) and statuses(cluster)[-1]["busyReplicas"] == 1)

        # RabbitMQ requeues its message, as after a failed handler, and no worker is left.
        worker.kill()
        store.pods.clear()
        store._pods_of.clear()
        store.put_deployment(deployment({"spec": {"replicas": 0}}))
        await until(lambda: vhost.depth("jobs").ready == 1)
        assert await under_test.finalize(going) is not None
        assert scaled(cluster) == [1]
        await until(lambda: statuses(cluster)[-1]["messages"] == 1)

        with vhost.connect() as connection:
            connection.channel().queue_purge("jobs")
        assert await under_test.finalize(going) is None
        assert scaled(cluster) == [1, 0]
        assert not vhost.exists("jobs")


def theirs(name: str, namespace: str, queue: str) -> dict[str, Any]:
    """A WorkQueue on a queue, with the Secret `by-name`."""
    body = workqueue(name=name, queue={"name": queue}).model_dump(mode="json", by_alias=True)
    body["metadata"] |= {"namespace": namespace, "uid": "uid-2", "resourceVersion": "1"}
    body["spec"]["connectionSecretRef"] = {"name": "by-name"}
    return body


def store_with(worker: Worker, replicas: int) -> Store:
    """A store with one worker's pod and its Deployment."""
    store = Store(lambda _: None)
    pod = PodView("pod-0", "u", "127.0.0.1", True, True, False, "hash", False, None, workqueue="jobs")
    store.pods["team", "pod-0"] = pod
    store._pods_of["team", "jobs"].add(("team", "pod-0"))
    store.put_deployment(deployment({"spec": {"replicas": replicas}}))
    return store


_VERSION = iter(range(1, 1000))


def deployment(change: dict[str, Any]) -> dict[str, Any]:
    """The workers' Deployment after a patch."""
    owner = {
        "apiVersion": "workqueue.dev/v1alpha1",
        "kind": "WorkQueue",
        "name": "jobs",
        "controller": True,
        "uid": "uid-1",
    }
    return {
        "metadata": {
            "name": "jobs-worker",
            "namespace": "team",
            "uid": "d-1",
            "generation": 1,
            "resourceVersion": str(next(_VERSION)),
            "labels": {"workqueue.dev/workqueue": "jobs"},
            "ownerReferences": [owner],
        },
        "spec": {"template": {}, **change["spec"]},
        "status": {"replicas": change["spec"]["replicas"]},
    }


def scaled(cluster: FakeCluster) -> list[int]:
    """The counts that were written."""
    return [
        request.body["spec"]["replicas"]
        for request in cluster.asked
        if request.path.endswith("/jobs-worker/scale")
    ]


def statuses(cluster: FakeCluster) -> list[dict[str, Any]]:
    """The statuses that were written."""
    return [request.body["status"] for request in cluster.asked if request.path.endswith("/status")]
