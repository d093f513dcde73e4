"""The web page in the chart: no objects while it is disabled; its own pods and minimal rights while it is enabled."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from tests.support.helm import of_kind, only, template
from workqueue_web import actions

Object = dict[str, Any]

READ = {
    ("workqueues", "list"),
    ("workqueues", "watch"),
    ("pods", "list"),
    ("pods", "watch"),
    ("events", "list"),
    ("secrets", "get"),
}
LEASE = {("leases", "get")}
REVIEWER = "system:auth-delegator"
"""Kubernetes' ClusterRole for TokenReviews and SubjectAccessReviews."""


def of_the_page(**values: Any) -> list[Object]:
    """The objects of the enabled page."""
    objects = template({**values, "page": {"enabled": True, **values.get("page", {})}})
    label = "app.kubernetes.io/component"
    return [made for made in objects if made["metadata"]["labels"].get(label) == "page"]


def environment(objects: list[Object]) -> list[Object]:
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    found: list[Object] = container["env"]
    return found


def rights(role: Object) -> set[tuple[str, str]]:
    return {(name, verb) for rule in role["rules"] for name in rule["resources"] for verb in rule["verbs"]}


def bound_cluster_roles(objects: list[Object]) -> set[str]:
    return {binding["roleRef"]["name"] for binding in of_kind(objects, "ClusterRoleBinding")}


def accounts(objects: list[Object]) -> set[str]:
    """The ServiceAccounts that have rights."""
    bindings = [*of_kind(objects, "ClusterRoleBinding"), *of_kind(objects, "RoleBinding")]
    return {subject["name"] for binding in bindings for subject in binding["subjects"]}


def test_disabled_page_renders_no_objects() -> None:
    made = str(template({}))
    for word in ("page", REVIEWER):
        assert word not in made


@pytest.mark.parametrize("namespaces", [[], ["shop"]], ids=["cluster-wide", "listed"])
def test_enabled_page_changes_no_object_of_the_operator(namespaces: list[str]) -> None:
    values: Object = {"watchNamespaces": namespaces, "networkPolicy": {"enabled": True}}
    enabled = template({**values, "page": {"enabled": True}})
    added = of_the_page(**values)
    assert [made for made in enabled if made not in added] == template(values)


def test_page_renders_the_snapshot(snapshot: SnapshotAssertion) -> None:
    assert yaml.safe_dump_all(of_the_page(), sort_keys=False) == snapshot


def test_cluster_wide_page_only_reads_and_reviews() -> None:
    objects = of_the_page()
    assert rights(only(objects, "ClusterRole")) == READ
    assert [rights(role) for role in of_kind(objects, "Role")] == [LEASE]
    assert bound_cluster_roles(objects) == {"workqueue-operator-page", REVIEWER}


def test_page_with_listed_namespaces_reads_nothing_elsewhere() -> None:
    objects = of_the_page(watchNamespaces=["shop", "mail"])
    assert of_kind(objects, "ClusterRole") == []
    assert bound_cluster_roles(objects) == {REVIEWER}
    roles = {role["metadata"]["namespace"]: rights(role) for role in of_kind(objects, "Role")}
    assert roles == {"shop": READ, "mail": READ, "workqueue-system": LEASE}


def test_page_reads_only_the_lease_of_its_release() -> None:
    role = only(of_the_page(leaderElection={"leaseName": "jobs"}), "Role")
    assert role["rules"][0]["resourceNames"] == ["jobs"]
    without = of_the_page(leaderElection={"enabled": False})
    assert of_kind(without, "Role") == []
    assert "WORKQUEUE_LEASE_NAME" not in str(without)


@pytest.mark.parametrize("namespaces", [[], ["shop"]], ids=["cluster-wide", "listed"])
def test_actions_add_two_rights_and_a_policy_that_limits_them(namespaces: list[str]) -> None:
    objects = of_the_page(watchNamespaces=namespaces, page={"actions": {"enabled": True}})
    (role,) = [one for one in objects if one["kind"].endswith("Role") and rights(one) >= READ]
    assert rights(role) - READ == {("workqueues", "patch"), ("events", "create")}
    assert {"name": "WORKQUEUE_PAGE_ACTIONS", "value": "true"} in environment(objects)
    policy = only(objects, "ValidatingAdmissionPolicy")["spec"]
    (condition,) = policy["matchConditions"]
    assert '"system:serviceaccount:workqueue-system:workqueue-operator-page"' in condition["expression"]
    assert policy["failurePolicy"] == "Fail"
    binding = only(objects, "ValidatingAdmissionPolicyBinding")
    assert binding["spec"]["validationActions"] == ["Deny"]
    assert binding["spec"]["policyName"] == only(objects, "ValidatingAdmissionPolicy")["metadata"]["name"]


def test_policy_admits_exactly_the_fields_that_actions_change() -> None:
    objects = of_the_page(page={"actions": {"enabled": True}})
    (variable,) = only(objects, "ValidatingAdmissionPolicy")["spec"]["variables"]
    changed = {
        actions._change(actions.Wish(action, "uid", 1, "0" * 16, replicas=1))["path"]
        for action in actions.Action
        if not action.is_about_dead_letters
    }
    assert {f"/spec/{name}" for name in yaml.safe_load(variable["expression"])} == changed


def test_page_of_an_older_chart_has_no_actions() -> None:
    """With --reuse-values the value does not exist."""
    assert "PAGE_ACTIONS" not in str(of_the_page(page={"actions": None}))


@pytest.mark.parametrize("names", [["rabbitmq", "other"], []], ids=["two-secrets", "no-secrets"])
def test_page_reads_only_named_secrets(names: list[str]) -> None:
    objects = of_the_page(page={"connectionSecrets": names})
    rules = [rule for rule in only(objects, "ClusterRole")["rules"] if "secrets" in rule["resources"]]
    assert [rule["resourceNames"] for rule in rules] == ([names] if names else [])
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    told = [one["value"] for one in container["env"] if one["name"] == "WORKQUEUE_CONNECTION_SECRETS"]
    assert told == ([",".join(names)] if names else [])


def test_page_has_its_own_service_account() -> None:
    objects = of_the_page()
    account = only(objects, "ServiceAccount")["metadata"]["name"]
    assert account == "workqueue-operator-page"
    assert only(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == account
    assert accounts(objects) == {account}


def test_existing_service_account_is_used_and_not_created() -> None:
    objects = of_the_page(page={"serviceAccountName": "viewer"})
    assert of_kind(objects, "ServiceAccount") == []
    assert only(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "viewer"
    assert accounts(objects) == {"viewer"}


def test_service_selects_pods_of_the_page_only() -> None:
    objects = template({"page": {"enabled": True, "annotations": {"a": "b"}}})
    (service,) = [made for made in of_kind(objects, "Service") if made["metadata"]["name"].endswith("-page")]
    assert service["metadata"]["annotations"] == {"a": "b"}
    selected = [
        made["metadata"]["name"]
        for made in of_kind(objects, "Deployment")
        if service["spec"]["selector"].items() <= made["spec"]["template"]["metadata"]["labels"].items()
    ]
    assert selected == ["workqueue-operator-page"]


def test_only_several_replicas_have_a_disruption_budget() -> None:
    assert of_kind(of_the_page(), "PodDisruptionBudget") == []
    budget = only(of_the_page(page={"replicaCount": 2}), "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1


def test_page_is_scraped_if_the_operator_is() -> None:
    assert of_kind(of_the_page(), "ServiceMonitor") == []
    objects = of_the_page(metrics={"serviceMonitor": {"enabled": True}})
    monitor, service = only(objects, "ServiceMonitor"), only(objects, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_page_without_chart_rbac_renders_no_roles() -> None:
    kinds = {made["kind"] for made in of_the_page(rbac={"create": False})}
    assert kinds == {"ServiceAccount", "Deployment", "Service"}
