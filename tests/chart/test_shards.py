"""Several releases of the chart in one cluster, each with its own namespaces: docs/operations.md."""

from __future__ import annotations

from typing import Any

from tests.support.helm import of_kind, only, template

FIRST = {"watchNamespaces": ["shop", "mail"]}
SECOND = {"watchNamespaces": ["video"], "crds": {"enabled": False}}


def identities(objects: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in objects}


def test_shards_share_no_object() -> None:
    first, second = template(FIRST, release="shard-a"), template(SECOND, release="shard-b")
    assert not identities(first) & identities(second)


def test_shards_have_separate_leases_and_rights() -> None:
    leases = set()
    for values, release in ((FIRST, "shard-a"), (SECOND, "shard-b")):
        objects = template(values, release=release)
        (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
        leases.add({one["name"]: one.get("value") for one in container["env"]}["WORKQUEUE_LEASE_NAME"])
        where = {role["metadata"]["namespace"] for role in of_kind(objects, "Role")}
        assert where == {*values["watchNamespaces"], "workqueue-system"}
        assert not of_kind(objects, "ClusterRole")
    assert len(leases) == 2
