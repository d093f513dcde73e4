"""A WorkQueue that names another connection Secret, on a real RabbitMQ."""

from __future__ import annotations

import pytest

from tests.support.brokers import channel_of
from tests.support.passes import KEY, api, operator, reports, workqueue
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue_operator.api.reasons import Reason
from workqueue_operator.errors import ClusterError


async def test_doorbell_goes_when_the_workqueue_names_a_secret_that_does_not_exist(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = reports(monkeypatch)
    cluster = api(vhost.url)
    cluster.answer("GET", "/secrets/missing", ClusterError(404, "not found"))
    async with operator(cluster, "team") as passes, channel_of(vhost) as channel:
        await passes.run()
        handle = passes.parts.brokers.known(KEY)
        assert handle is not None
        await until(lambda: handle.broker.has_doorbell("jobs"))

        moved = workqueue()
        moved["spec"]["connectionSecretRef"]["name"] = "missing"
        moved["metadata"] |= {"generation": 2, "resourceVersion": "2"}
        passes.parts.store.put_workqueue(moved)
        await passes.run()

        assert passes.parts.brokers.known(KEY) is None
        await until(lambda: not channel.queue_declare("jobs", passive=True).method.consumer_count)
        ready = next(one for one in reported[-1]["conditions"] if one["type"] == "Ready")
        assert ready["reason"] == Reason.SECRET_NOT_FOUND


async def test_doorbell_stays_while_its_secret_is_replaced(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tools delete a Secret and create it again."""
    reports(monkeypatch)
    cluster = api(vhost.url)
    async with operator(cluster, "team") as passes:
        await passes.run()
        handle = passes.parts.brokers.known(KEY)
        assert handle is not None
        await until(lambda: handle.broker.has_doorbell("jobs"))

        cluster.answer("GET", "/secrets/rabbitmq", ClusterError(404, "not found"))
        passes.parts.secrets.forget("team", "rabbitmq")
        await passes.run()

        assert passes.parts.brokers.known(KEY) is handle
        assert handle.broker.has_doorbell("jobs")
