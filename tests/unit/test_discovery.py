"""Prerequisites of the watch: the operator waits for them, and reports and skips unusable namespaces."""

from __future__ import annotations

import logging

import pytest

from tests.support.fakecluster import FakeCluster, Request
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube import discovery
from workqueue_operator.kube.discovery import usable_namespaces, wait_for_resource

GROUP = "/apis/workqueue.dev/v1alpha1"
NOT_FOUND = ClusterError(404, "the server could not find the requested resource")


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "PAUSE", 0.0)


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    for kind in ("workqueues", "deployments", "pods"):
        made.answer("GET", f"/namespaces/team/{kind}", {"items": []})
    return made


@pytest.mark.parametrize(
    "before",
    [NOT_FOUND, {"resources": [{"name": "others"}]}, ClusterError(503, "busy"), ClusterError(0, "no answer")],
    ids=["no such group", "no such kind", "an API server that is busy", "none that answers"],
)
async def test_operator_waits_for_missing_crd(
    cluster: FakeCluster, before: object, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    def answer(_: Request) -> object:
        nonlocal asked
        asked += 1
        return before if asked <= 3 else {"resources": [{"name": "workqueues"}]}

    cluster.answer("GET", GROUP, answer)
    with caplog.at_level(logging.WARNING):
        await wait_for_resource(cluster)
    assert asked == 4
    assert [record.message for record in caplog.records] == [
        "Waiting for the CRD: the API server does not serve WorkQueues yet."
    ], "told once"


async def test_forbidden_namespace_is_skipped_and_reported(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.answer("GET", "/namespaces/secret/", ClusterError(403, "no right in secret"))
    with caplog.at_level(logging.WARNING):
        usable = await usable_namespaces(cluster, ["secret", "team"])
    assert usable == (("team",), {"secret": "no right in secret"})
    assert [vars(record)["namespace"] for record in caplog.records] == ["secret"]


async def test_operator_waits_while_no_namespace_is_usable(cluster: FakeCluster) -> None:
    def answer(_: Request) -> object:
        return {"items": []} if len(cluster.asked) > 9 else ClusterError(403, "not yet")

    cluster.answer("GET", "/namespaces/team/pods", answer)
    assert await usable_namespaces(cluster, ["team"]) == (("team",), {})
    assert len(cluster.asked) > 9


async def test_empty_namespace_list_means_whole_cluster(cluster: FakeCluster) -> None:
    assert await usable_namespaces(cluster, []) == ((), {})
    assert not cluster.asked
