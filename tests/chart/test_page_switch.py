"""The web page in the chart: no objects while it is disabled, and minimal rights while it is enabled."""

from __future__ import annotations

from tests.support.helm import of_kind, template


def test_disabled_page_renders_no_objects() -> None:
    made = str(template({}))
    for word in ("page", "tokenreviews", "subjectaccessreviews"):
        assert word not in made


def test_enabled_page_may_only_review_tokens_and_find_leader() -> None:
    before = {(one["kind"], one["metadata"]["name"]) for one in template({})}
    objects = template({"page": {"enabled": True, "annotations": {"a": "b"}}})
    added = {one["kind"]: one for one in objects if (one["kind"], one["metadata"]["name"]) not in before}
    assert set(added) == {"Service", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    assert {(rule["resources"][0], *rule["verbs"]) for rule in added["ClusterRole"]["rules"]} == {
        ("tokenreviews", "create"),
        ("subjectaccessreviews", "create"),
    }
    assert added["Role"]["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    assert added["Service"]["metadata"]["annotations"] == {"a": "b"}
    (container,) = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"]
    assert {"name": "WORKQUEUE_PAGE_PORT", "value": "8081"} in container["env"]
    assert {"name": "page", "containerPort": 8081} in container["ports"]


def test_page_without_chart_rbac_renders_only_service() -> None:
    values = {"page": {"enabled": True}, "rbac": {"create": False}}
    names = {one["kind"] for one in template(values) if one["metadata"]["name"].endswith("-page")}
    assert names == {"Service"}
