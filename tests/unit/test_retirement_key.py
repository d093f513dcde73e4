"""The Secret with a WorkQueue's retirement key: created once, read again, never a foreign one."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.workers import render, retirement_key
from workqueue_operator.workers.apply import WorkloadApplier
from workqueue_operator.workers.retirement_key import RetirementKeys

NAME = "jobs-retirement-key"


class ApiServer(FakeCluster):
    """Keeps one Secret."""

    def __init__(self) -> None:
        super().__init__()
        self.secret: dict[str, Any] | None = None
        self.answer("POST", "/secrets", self._create)
        self.answer("GET", f"/secrets/{NAME}", lambda _: self.secret or ClusterError(404, "not found"))

    def _create(self, request: Request) -> Any:
        if self.secret is not None:
            return ClusterError(409, "already exists")
        self.secret = request.body
        return self.secret

    @property
    def key(self) -> bytes:
        assert self.secret is not None
        return base64.b64decode(self.secret["data"]["key"])


@pytest.fixture
def cluster() -> ApiServer:
    return ApiServer()


async def test_retirement_key_is_random_and_owned_by_its_workqueue(cluster: ApiServer) -> None:
    await RetirementKeys(cluster, SystemClock()).ensure(workqueue())

    assert cluster.secret is not None
    assert cluster.secret["metadata"]["name"] == NAME
    assert cluster.secret["metadata"]["ownerReferences"] == [render.owner_reference(workqueue())]
    assert cluster.secret["type"] == "workqueue.dev/retirement-key"
    assert len(cluster.key) >= 32
    first, cluster.secret = cluster.key, None
    await RetirementKeys(cluster, SystemClock()).ensure(workqueue())
    assert cluster.key != first


async def test_retirement_key_is_created_once_and_cached_for_a_minute(cluster: ApiServer) -> None:
    keys = RetirementKeys(cluster, SystemClock())
    await keys.ensure(workqueue())
    await keys.ensure(workqueue())

    assert await keys.read(workqueue()) == cluster.key
    assert [request.method for request in cluster.asked] == ["POST"]


async def test_another_operator_process_uses_existing_key(cluster: ApiServer) -> None:
    await RetirementKeys(cluster, SystemClock()).ensure(workqueue())
    first = cluster.key
    successor = RetirementKeys(cluster, SystemClock())
    await successor.ensure(workqueue())

    assert await successor.read(workqueue()) == first


async def test_deleted_secret_is_recreated(cluster: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = RetirementKeys(cluster, SystemClock())
    await keys.ensure(workqueue())
    first, cluster.secret = cluster.key, None
    monkeypatch.setattr(retirement_key, "MAX_AGE", 0.0)

    assert await keys.read(workqueue()) == cluster.key != first


async def test_foreign_secret_is_not_used(cluster: ApiServer) -> None:
    cluster.secret = {"metadata": {"name": NAME}, "data": {"key": base64.b64encode(b"theirs").decode()}}

    with pytest.raises(ReconcileError) as caught:
        await RetirementKeys(cluster, SystemClock()).read(workqueue())
    assert caught.value.reason is Reason.NAME_CONFLICT


@pytest.mark.parametrize("data", [None, {}, {"key": "?"}], ids=["no data", "no key", "no base64"])
async def test_unreadable_key_is_empty(cluster: ApiServer, data: Any) -> None:
    """An empty key signs no valid request: the worker counts as busy."""
    owners = [render.owner_reference(workqueue())]
    cluster.secret = {"metadata": {"name": NAME, "ownerReferences": owners}, "data": data}
    assert await RetirementKeys(cluster, SystemClock()).read(workqueue()) == b""


async def test_quota_that_is_full_does_not_hide_the_secret_that_exists(cluster: ApiServer) -> None:
    """A quota refuses an object before its name is looked at."""
    await RetirementKeys(cluster, SystemClock()).ensure(workqueue())
    cluster.answer("POST", "/secrets", ClusterError(403, "exceeded quota: secrets"))
    await RetirementKeys(cluster, SystemClock()).ensure(workqueue())


async def test_refused_secret_is_named(cluster: ApiServer) -> None:
    cluster.answer(
        "POST", "/secrets", ClusterError(403, 'secrets is forbidden: User "operator" cannot create')
    )
    cluster.answer("PATCH", "/deployments/jobs-worker", lambda request: _live(request.body))
    workload = WorkloadApplier(cluster, cluster, render.Defaults(), lambda _: None, SystemClock())

    refusal = (await workload.ensure(workqueue(), None)).refusal

    assert refusal is not None
    assert refusal.reason is Reason.API_FORBIDDEN
    assert NAME in refusal.message
    assert cluster.paths("PATCH")[0].endswith("/deployments/jobs-worker"), "the workers do not wait for it"
    unknown = await workload.retirement_key(workqueue())
    assert isinstance(unknown, Unknown)
    assert unknown.reason is Reason.API_FORBIDDEN


def _live(body: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {**body["metadata"], "uid": "d1", "generation": 1}, "spec": body["spec"]}
