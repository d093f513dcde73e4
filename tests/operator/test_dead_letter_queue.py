"""Passes over a WorkQueue whose dead letters go to an existing queue, on a real RabbitMQ."""

from __future__ import annotations

from typing import Any

from tests.support.brokers import channel_of, put
from tests.support.fakecluster import FakeCluster
from tests.support.passes import KEY, Passes, api, operator, workqueue
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue_operator.api.workqueue import WorkQueueStatus


def shown(cluster: FakeCluster) -> tuple[str, str, int | None]:
    """Status and reason of QueueDeclared, and the dead letters, as last written."""
    written = [request.body for request in cluster.asked if request.path.endswith("/jobs/status")]
    found = WorkQueueStatus.model_validate(written[-1]["status"] if written else {})
    condition = found.condition("QueueDeclared")
    return ("", "", None) if condition is None else (condition.status, condition.reason, found.dead_letters)


async def poll(passes: Passes, queue: str) -> None:
    """Let the poller look at a queue now."""
    handle = passes.parts.brokers.known(KEY)
    assert handle is not None
    await handle.poller.ask(handle.poller.watch(KEY, queue))


async def test_missing_dead_letter_queue_is_a_condition_until_it_exists(vhost: VirtualHost) -> None:
    body: dict[str, Any] = workqueue()
    body["metadata"]["resourceVersion"] = "2"
    body["spec"]["queue"] = {"deadLetterQueue": "failed"}
    cluster = api(vhost.url)
    cluster.answer("PATCH", "/workqueues/jobs/status", body)
    async with operator(cluster, "team") as passes, channel_of(vhost) as channel:
        passes.parts.store.put_workqueue(body)
        await passes.run()
        await until(lambda: shown(cluster) == ("False", "DeadLetterQueueNotFound", None))
        assert not vhost.exists("jobs")

        channel.queue_declare("failed", durable=True)
        put(channel, "failed", b"theirs")
        await until(lambda: vhost.exists("failed") and vhost.depth("failed").ready == 1)
        await passes.run()
        await until(lambda: shown(cluster) == ("True", "Declared", 1))

        channel.queue_delete("failed")
        await until(lambda: not vhost.exists("failed"))
        await poll(passes, "failed")
        await passes.run()
        await until(lambda: shown(cluster)[:2] == ("False", "DeadLetterQueueNotFound"))
        assert not vhost.exists("failed")

        channel.queue_declare("failed", durable=True)
        await until(lambda: vhost.exists("failed"))
        await passes.run()
        await until(lambda: shown(cluster)[:2] == ("True", "Declared"))
        assert not vhost.exists("jobs.dead")
