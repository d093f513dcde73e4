"""Which of several operators serves a namespace: each must reach the same result from what it can read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.wait import until
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube import ownership as module
from workqueue_operator.kube.ownership import Ownership

WIDE, SECOND, SHOP = "ops/wide", "infra/second", "shop-system/shop"


class Site:
    """An API server with namespaces and claims, seen with the rights of each release."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.listed: dict[str, str] = {}
        self.everywhere = ""
        self.cluster = FakeCluster()
        self.cluster.answer("GET", "/api/v1/namespaces", self._namespaces)
        self.cluster.answer("GET", "/leases", self._leases)
        self.cluster.answer("GET", "/clusterroles/workqueue.dev", self._cluster_role)
        self.changed: list[set[str]] = []
        self.known = {"shop", "mail"}

    def _namespaces(self, request: Request) -> Any:
        if request.path.endswith("/namespaces"):
            assert request.query["labelSelector"] == "workqueue.dev/operator"
            return {"items": [self._namespace(name) for name in self.labels]}
        return self._namespace(request.path.rpartition("/")[2])

    def _namespace(self, name: str) -> dict[str, Any]:
        labels = {"workqueue.dev/operator": self.labels[name]} if name in self.labels else {}
        return {"metadata": {"name": name, "labels": labels}}

    def _leases(self, request: Request) -> Any:
        if "/namespaces/" in request.path:
            namespace, _, name = request.path.removeprefix("/apis/coordination.k8s.io/v1/namespaces/").split(
                "/"
            )
            assert name == "workqueue.dev"
            holder = self.listed.get(namespace)
            return self._lease(namespace, holder) if holder else ClusterError(404, "not found")
        assert request.query == {"fieldSelector": "metadata.name=workqueue.dev"}
        return {"items": [self._lease(*one) for one in self.listed.items()]}

    def _cluster_role(self, _: Request) -> Any:
        if not self.everywhere:
            return ClusterError(404, "not found")
        return {"metadata": {"annotations": {"workqueue.dev/operator": self.everywhere}}, "rules": []}

    @staticmethod
    def _lease(namespace: str, holder: str) -> dict[str, Any]:
        return {"metadata": {"namespace": namespace}, "spec": {"holderIdentity": holder}}

    def operator(self, name: str, *namespaces: str) -> Ownership:
        return Ownership(self.cluster, name, namespaces, self.changed.append, lambda: self.known)

    async def servers(self, *operators: Ownership, namespace: str = "shop") -> list[str]:
        """The operators that claim to serve a namespace."""
        for operator in operators:
            await operator.first()
        return [one.operator for one in operators if await one.elsewhere(namespace) is None]


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.mark.parametrize(
    ("label", "expected"),
    [(None, SHOP), ("wide", WIDE), ("shop", SHOP), ("nobody", None)],
    ids=["no-label", "cluster-wide-release", "listing-release", "unknown-release"],
)
async def test_exactly_one_operator_serves_a_namespace(
    site: Site, label: str | None, expected: str | None
) -> None:
    site.listed = {"shop": SHOP}
    site.everywhere = WIDE
    if label:
        site.labels["shop"] = label

    found = await site.servers(site.operator(WIDE), site.operator(SECOND), site.operator(SHOP, "shop"))

    assert found == ([expected] if expected else [])


async def test_cluster_wide_operator_with_claim_serves_unlisted_namespaces(site: Site) -> None:
    site.listed = {"shop": SHOP}
    site.everywhere = WIDE

    assert await site.servers(site.operator(WIDE), site.operator(SECOND), namespace="mail") == [WIDE]


async def test_claim_of_another_operator_wins_over_a_list_without_one(site: Site) -> None:
    site.listed = {"shop": SHOP}

    assert await site.servers(site.operator("x/first", "shop"), site.operator(SHOP, "shop")) == [SHOP]


async def test_operator_without_claim_serves_unclaimed_namespaces(site: Site) -> None:
    assert await site.servers(site.operator(WIDE)) == [WIDE]
    assert await site.servers(site.operator(SHOP, "shop")) == [SHOP]


async def test_releases_of_same_name_are_distinguished_by_namespace(site: Site) -> None:
    site.listed = {"shop": "shop-system/workqueue"}
    site.everywhere = "ops/workqueue"
    site.labels["shop"] = "workqueue"

    found = await site.servers(site.operator("ops/workqueue"), site.operator("shop-system/workqueue", "shop"))

    assert found == ["shop-system/workqueue"]


async def test_claim_change_enqueues_only_affected_namespaces(site: Site) -> None:
    operator = site.operator(WIDE)
    await operator.first()

    site.listed = {"shop": SHOP}
    await operator.look()

    assert site.changed == [{"shop"}]
    assert await operator.elsewhere("shop") == SHOP


async def test_claim_of_a_new_namespace_is_read_before_its_first_pass(site: Site) -> None:
    operator = site.operator(WIDE)
    await operator.first()
    site.listed = {f"new-{number}": SHOP for number in range(10)}
    before = len(site.cluster.asked)

    answers = await asyncio.gather(*(operator.elsewhere(namespace) for namespace in site.listed))

    assert answers == [SHOP] * 10
    assert len(site.cluster.asked) == before + 3, "one look for all of them"


async def test_unreachable_api_server_changes_no_ownership(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    site.listed = {"shop": SHOP}
    operator = site.operator(WIDE)
    await operator.first()
    site.changed.clear()
    site.cluster.answer("GET", "/leases", ClusterError(503, "busy"))
    before = len(site.cluster.asked)

    watching = asyncio.create_task(operator.run())
    await until(lambda: len(site.cluster.asked) > before + 4)
    watching.cancel()

    assert await operator.elsewhere("shop") == SHOP
    assert site.changed == []


async def test_first_ownership_read_is_retried(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_AGAIN", 0.01)
    refusals = [ClusterError(0, "no answer"), ClusterError(429, "busy", retry_after=0.01)]
    site.cluster.answer(
        "GET", "/api/v1/namespaces", lambda request: refusals.pop() if refusals else site._namespaces(request)
    )

    await site.operator(WIDE).first()

    assert refusals == []


async def test_missing_right_is_reported_once_and_stops_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.cluster.answer("GET", "/api/v1/namespaces", ClusterError(403, "cannot get resource namespaces"))
    operator = site.operator(SHOP, "shop")

    await operator.first()
    await operator.look()

    assert await operator.elsewhere("shop") is None
    assert [record.getMessage() for record in caplog.records] == [
        "No permission to read the claims of other operators. This operator serves all its namespaces."
    ]


async def test_namespace_that_disappears_changes_the_ownership_of_no_other(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.labels = {"shop": "wide"}
    site.everywhere = WIDE
    operator = site.operator(SHOP, "gone", "shop")
    await operator.first()
    # The Role of the chart is deleted with the namespace.
    site.cluster.answer("GET", "/namespaces/gone", ClusterError(403, "cannot get resource namespaces"))

    await operator.look()
    await operator.look()

    assert await operator.elsewhere("shop") == "wide"
    assert await operator.elsewhere("gone") is None
    assert [record.getMessage() for record in caplog.records] == [
        "No permission to read the claims on some namespaces. This operator serves them."
    ]
