"""What a pass does about a worker whose handler runs for long, on a real RabbitMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.support.fakecluster import FakeCluster, Request
from tests.support.passes import api, applied, operator
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue_operator.names import ANNOTATION_PROTECTED, LABEL_WORKQUEUE, PROTECTION

POD = "/api/v1/namespaces/team/pods/jobs-worker-1"


@pytest.fixture
async def status() -> AsyncIterator[dict[str, Any]]:
    """The answer of the worker; `port` is that of its endpoint."""
    made: dict[str, Any] = {"slots": 1, "busy": 1, "consuming": True, "busySeconds": 45.0}

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(made)

    app = web.Application()
    app.router.add_get("/status", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made["port"] = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@pytest.fixture
def cluster(vhost: VirtualHost) -> FakeCluster:
    made = api(vhost.url)
    made.answer("PATCH", "/deployments/jobs-worker", with_one_replica)
    made.answer("PATCH", POD, lambda request: pod(2, request.body["metadata"]["annotations"]))
    return made


def with_one_replica(request: Request) -> dict[str, Any]:
    """The worker needs no scaling."""
    live = applied(request)
    return {**live, "spec": {**live["spec"], "replicas": 1}}


def pod(version: int, annotations: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "team",
            "name": "jobs-worker-1",
            "uid": "uid-pod",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {LABEL_WORKQUEUE: "jobs"},
            "annotations": annotations,
        },
        "spec": {"nodeName": "node-1"},
        "status": {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "containerStatuses": [{"name": "worker", "image": "jobs:1", "state": {"running": {}}}],
        },
    }


async def test_pass_protects_the_pod_of_a_long_handler(cluster: FakeCluster, status: dict[str, Any]) -> None:
    async with operator(cluster, "team", workers_port=status["port"]) as passes:
        passes.parts.store.put_pod(pod(1, {}))

        def written() -> list[Request]:
            return [request for request in cluster.asked if request.path == POD]

        await passes.run()
        await until(written)

        (request,) = written()
        assert request.body["metadata"]["annotations"] == {
            **PROTECTION,
            ANNOTATION_PROTECTED: "long-handler",
        }
        assert (request.method, request.body["metadata"]["uid"]) == ("PATCH", "uid-pod")
