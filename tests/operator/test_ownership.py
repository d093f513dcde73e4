"""A WorkQueue that another operator begins to serve, on a real RabbitMQ: the first one leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.fakecluster import FakeCluster
from tests.support.passes import KEY, api, operator
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until

OTHER = "team-system/other"


def claim(cluster: FakeCluster, holder: str | None) -> None:
    """Let an operator or none list the namespace."""

    lease = {"metadata": {"namespace": "team"}, "spec": {"holderIdentity": holder}}
    cluster.answer("GET", "/leases", {"items": [lease] if holder else []})


async def hears(vhost: VirtualHost, consumers: int) -> None:
    """Wait until the queue has this number of consumers."""

    def count() -> int:
        with vhost.connect() as connection:
            return int(connection.channel().queue_declare("jobs", passive=True).method.consumer_count)

    async def as_wanted() -> bool:
        return await asyncio.to_thread(count) == consumers

    await until(as_wanted)


def elsewhere(metrics: Any) -> list[tuple[str, str]]:
    (family,) = metrics.served_elsewhere.collect()
    return [(sample.labels["namespace"], sample.labels["operator"]) for sample in family.samples]


async def test_operator_ignores_foreign_workqueue_and_reports_it(
    vhost: VirtualHost,
) -> None:
    cluster = api(vhost.url)
    claim(cluster, None)
    async with operator(cluster) as passes:
        await passes.run()
        await hears(vhost, 1)

        claim(cluster, OTHER)
        await passes.parts.ownership.look()
        await passes.reported()
        cluster.asked.clear()
        due = await passes.run()
        await passes.run()
        await passes.reported()

        await hears(vhost, 0)
        assert (due.after, due.failed) == (None, False)
        assert passes.parts.brokers.known(KEY) is None
        assert elsewhere(passes.parts.metrics) == [("team", OTHER)]
        (event,) = [request.body for request in cluster.asked]
        assert (event["reason"], event["regarding"]["kind"]) == ("ServedElsewhere", "Namespace")
        assert OTHER in event["note"]

        claim(cluster, None)
        await passes.parts.ownership.look()
        await passes.run()
        await hears(vhost, 1)
        assert elsewhere(passes.parts.metrics) == []
