"""Requests to the API server are a counter, with the suffix and the type that Prometheus expects."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from workqueue_operator import metrics as of_the_operator
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster
from workqueue_web import metrics as of_the_page


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (of_the_operator.Metrics, "workqueue_api_requests"),
        (of_the_page.Metrics, "workqueue_page_api_requests"),
    ],
    ids=["operator", "page"],
)
async def test_requests_are_a_counter(make: Any, name: str) -> None:
    metrics = make()
    nowhere = ApiClient(Configuration(host="http://127.0.0.1:1"))
    clusters = [Cluster(nowhere, on_request=metrics.api_requests.inc) for _ in range(2)]
    for cluster in (*clusters, clusters[0]):
        with pytest.raises(ClusterError):
            await cluster.get("/version")
    await nowhere.close()

    assert metrics.registry.get_sample_value(f"{name}_total") == 3
    assert {family.name: family.type for family in metrics.registry.collect()}[name] == "counter"
