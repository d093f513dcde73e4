"""The web page in the chart: nothing of it while it is off, and no more rights than it needs when it is on."""

from __future__ import annotations

from tests.support.helm import of_kind, template


def test_while_it_is_off_nothing_of_it_is_there() -> None:
    made = str(template({}))
    for word in ("page", "tokenreviews", "subjectaccessreviews"):
        assert word not in made


def test_switched_on_it_may_ask_who_somebody_is_and_where_the_leader_is_and_nothing_else() -> None:
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


def test_without_rights_of_the_charts_only_the_service_is_made() -> None:
    values = {"page": {"enabled": True}, "rbac": {"create": False}}
    names = {one["kind"] for one in template(values) if one["metadata"]["name"].endswith("-page")}
    assert names == {"Service"}
