"""Which nodes are cordoned, as far as the operator may know."""

from __future__ import annotations

import contextlib

from tests.support.fakecluster import FakeCluster
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.cordons import Cordons


async def test_only_cordoned_nodes_are_listed() -> None:
    cluster = FakeCluster()
    cluster.answer("GET", "/api/v1/nodes", {"items": [{"metadata": {"name": "node-1"}}]})
    cordons = Cordons(cluster)
    await cordons.look()
    assert cordons.nodes == {"node-1"}
    assert cluster.asked[0].query["fieldSelector"] == "spec.unschedulable=true"


async def test_previous_nodes_stay_while_the_api_server_does_not_answer() -> None:
    cluster = FakeCluster()
    cluster.answer("GET", "/api/v1/nodes", {"items": [{"metadata": {"name": "node-1"}}]})
    cordons = Cordons(cluster)
    await cordons.look()
    cluster.answer("GET", "/api/v1/nodes", ClusterError(0, "no answer"))
    with contextlib.suppress(ClusterError):
        await cordons.look()
    assert cordons.nodes == {"node-1"}
