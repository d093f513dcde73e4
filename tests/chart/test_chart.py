"""What the chart renders from its values: valid objects, minimal rights, pods for the strictest standard."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from hack.generate.files import CHART, chart_values
from hack.generate.values import Value
from tests.support import helm, podsecurity
from tests.support.helm import HelmError, of_kind, only, template
from workqueue_operator.api import crd

Object = dict[str, Any]

EVERYTHING: Object = {
    "replicaCount": 3,
    "image": {"repository": "registry.example/workqueue-operator", "digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "fullnameOverride": "jobs",
    "commonLabels": {"example.com/team": "platform"},
    "crds": {"annotations": {"argocd.argoproj.io/sync-options": "ServerSideApply=true"}},
    "rbac": {"aggregate": True, "readNodes": True},
    "watchNamespaces": ["shop", "mail"],
    "workerImage": "registry.example/worker:1",
    "workerNetworkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {}}]},
    "logFormat": "text",
    "leaderElection": {"leaseName": "jobs-leader"},
    "serviceAccount": {"name": "jobs-operator", "annotations": {"example.com/role": "jobs"}},
    "service": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]},
    "metrics": {
        "service": {"annotations": {"a": "b"}, "labels": {"c": "d"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True, "namespace": "grafana", "annotations": {"grafana_folder": "Jobs"}},
    },
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        "egress": {"enabled": True},
    },
    "extraVolumes": [{"name": "ca", "configMap": {"name": "company-ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/company", "readOnly": True}],
    "deploymentAnnotations": {"reloader.stakater.com/auto": "true"},
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
    "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["rabbitmq.example"]}],
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.10"]},
    "runtimeClassName": "gvisor",
    "extraEnv": [{"name": "SSL_CERT_DIR", "value": "/etc/ssl/certs"}],
    "podLabels": {"team": "platform"},
    "podAnnotations": {"example.com/note": "yes"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "infra", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "priorityClassName": "system-cluster-critical",
}
VALUES: dict[str, Object] = {
    "the defaults": {},
    "listed namespaces": {"watchNamespaces": ["shop", "mail"]},
    "one replica without an election": {"replicaCount": 1, "leaderElection": {"enabled": False}},
    "nothing that can be left out": {
        "crds": {"enabled": False},
        "rbac": {"create": False, "aggregate": False},
        "serviceAccount": {"create": False},
        "podDisruptionBudget": {"enabled": False},
        "metrics": {"service": {"enabled": False}},
        "resources": {},
    },
    "everything at once": EVERYTHING,
    "the web page": {
        "page": {
            "enabled": True,
            "replicaCount": 2,
            "from": [{"namespaceSelector": {}}],
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "hosts": ["queues.example.com"],
                "tls": [{"secretName": "queues-tls", "hosts": ["queues.example.com"]}],
            },
            "httpRoute": {
                "enabled": True,
                "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
                "hostnames": ["queues.example.com"],
            },
        },
        "watchNamespaces": ["shop", "mail"],
        "networkPolicy": {"enabled": True, "egress": {"enabled": True}},
        "metrics": {"serviceMonitor": {"enabled": True}},
    },
}

OPERATOR_RULES = {
    ("workqueue.dev", "workqueues"): {"get", "list", "watch", "patch"},
    ("workqueue.dev", "workqueues/status"): {"patch"},
    ("workqueue.dev", "workqueues/finalizers"): {"update"},
    ("apps", "deployments"): {"get", "list", "watch", "create", "patch"},
    ("apps", "deployments/scale"): {"patch"},
    ("apps", "replicasets"): {"get"},
    ("", "configmaps"): {"get"},
    ("", "pods"): {"list", "watch", "patch"},
    ("autoscaling", "horizontalpodautoscalers"): {"list"},
    ("policy", "poddisruptionbudgets"): {"create", "patch"},
    ("networking.k8s.io", "networkpolicies"): {"create", "patch"},
    ("", "secrets"): {"get", "create"},
    ("events.k8s.io", "events"): {"create"},
}
"""All rights of the operator in the namespaces of WorkQueues."""

LISTED_RULES = {
    **OPERATOR_RULES,
    ("", "namespaces"): {"get"},
    ("coordination.k8s.io", "leases"): {"get"},
}
CLUSTER_RULES = {
    **OPERATOR_RULES,
    ("", "namespaces"): {"list"},
    ("coordination.k8s.io", "leases"): {"list"},
    ("rbac.authorization.k8s.io", "clusterroles"): {"get"},
}
"""The same, with the Leases that state which release serves a namespace."""


def rules(role: Object) -> dict[tuple[str, str], set[str]]:
    granted: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault((group, resource), set()).update(rule["verbs"])
    return granted


def pod(objects: list[Object]) -> Object:
    found: Object = only(objects, "Deployment")["spec"]["template"]["spec"]
    return found


def environment(objects: list[Object]) -> dict[str, str | None]:
    (container,) = pod(objects)["containers"]
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def test_chart_passes_helm_lint() -> None:
    said = helm.run("lint", "--strict", CHART)
    assert "0 chart(s) failed" in said
    assert "[WARNING]" not in said


FOREIGN = {"monitoring.coreos.com", "gateway.networking.k8s.io"}
"""API groups that are no part of Kubernetes."""

read_schema = cache(kubernetes_validate.utils.schema_contents)  # otherwise read again for each object


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_rendered_objects_are_valid_in_supported_kubernetes(
    values: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", read_schema)
    for made in template(values, tests=True):
        if made["apiVersion"].partition("/")[0] not in FOREIGN:
            for version in ("1.30" if made["kind"].startswith("ValidatingAdmission") else "1.29", "1.35"):
                kubernetes_validate.validate(made, version, strict=True)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_meet_restricted_standard(values: Object) -> None:
    objects = template(values, tests=True)
    pods = [made["spec"] for made in of_kind(objects, "Pod")]
    pods += [made["spec"]["template"]["spec"] for made in of_kind(objects, "Deployment")]
    assert [podsecurity.violations(spec) for spec in pods] == [[]] * len(pods)
    for container in (container for spec in pods for container in spec["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_objects_carry_recommended_labels(values: Object) -> None:
    for made in template(values, tests=True):
        labels = made["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "workqueue-operator"
        assert labels["app.kubernetes.io/instance"] == helm.RELEASE
        assert {"app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"} <= set(labels)


def test_default_values_render_the_snapshot(snapshot: SnapshotAssertion) -> None:
    objects = template({"crds": {"enabled": False}})
    assert [f"{made['kind']}/{made['metadata']['name']}" for made in objects] == snapshot
    assert yaml.safe_dump_all(objects, sort_keys=False) == snapshot


def test_key_without_a_value_is_an_empty_list_or_map() -> None:
    """As `watchNamespaces:` in a file whose entries are comments. helm passes null on."""
    enabled: Object = {
        "page": {"enabled": True},
        "metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
        "workerNetworkPolicy": {"enabled": True},
    }

    def without(values: Object, given: Object) -> Object:
        found = dict(given)
        for key, value in values.items():
            if value in ([], {}):
                found[key] = None
            elif isinstance(value, dict) and (inner := without(value, given.get(key, {}))):
                found[key] = inner
        return found

    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    assert template(without(defaults, enabled), tests=True) == template(enabled, tests=True)


def test_section_or_scalar_without_a_value_is_the_default() -> None:
    """As `page:` in a file whose other lines are comments."""
    values = chart_values()
    enabled = {"page": {"enabled": True}, "metrics": {"prometheusRule": {"enabled": True}}}

    def without_scalars(group: tuple[Value, ...], given: Object) -> Object:
        return {
            value.path[-1]: without_scalars(value.group, given.get(value.path[-1], {}))
            if value.group
            else given.get(value.path[-1])
            for value in group
            if value.group or not isinstance(value.default, (list, dict))
        }

    sections = {value.path[-1]: None for value in values if value.group}
    inner = {
        top.path[-1]: {value.path[-1]: None for value in top.group if value.group}
        for top in values
        if top.group
    }

    assert template(sections, tests=True) == template({}, tests=True)
    assert template(inner, tests=True) == template({}, tests=True)
    assert template(without_scalars(values, enabled), tests=True) == template(enabled, tests=True)


@pytest.mark.parametrize(
    "template_file", sorted((CHART / "templates").rglob("*.*")), ids=lambda path: path.name
)
def test_template_begins_with_the_defaults(template_file: Path) -> None:
    """Otherwise a section that is null fails in it, depending on the order in which helm renders templates."""
    head = '{{- include "workqueue-operator.defaults" . -}}\n'

    assert template_file.suffix == ".tpl" or template_file.read_text().startswith(head)


def test_cluster_wide_operator_has_only_rights_it_uses() -> None:
    roles = {role["metadata"]["name"]: rules(role) for role in of_kind(template({}), "ClusterRole")}
    assert roles["workqueue-operator"] == CLUSTER_RULES
    assert roles["workqueue.dev"] == {}
    (binding,) = of_kind(template({}), "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == "workqueue-operator"
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "workqueue-operator", "namespace": helm.NAMESPACE}
    ]


def test_operator_with_listed_namespaces_has_no_rights_elsewhere() -> None:
    objects = template({"watchNamespaces": ["shop", "mail"]})
    assert not of_kind(objects, "ClusterRoleBinding")
    roles = {
        (role["metadata"]["namespace"], role["metadata"]["name"]): rules(role)
        for role in of_kind(objects, "Role")
    }
    assert roles.pop((helm.NAMESPACE, "workqueue-operator-leader")) == {
        ("coordination.k8s.io", "leases"): {"create", "get", "update"}
    }
    assert roles == {(place, "workqueue-operator"): LISTED_RULES for place in ("shop", "mail")}
    for binding in of_kind(objects, "RoleBinding"):
        key = binding["metadata"]["namespace"], binding["roleRef"]["name"]
        assert key in {*roles, (helm.NAMESPACE, "workqueue-operator-leader")}
        assert binding["subjects"][0]["namespace"] == helm.NAMESPACE


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["shop"]}], ids=["cluster-wide", "listed"])
def test_nodes_are_read_only_on_request(values: Object) -> None:
    def of_nodes(objects: list[Object]) -> list[tuple[str, set[tuple[str, str]]]]:
        roles = [*of_kind(objects, "ClusterRole"), *of_kind(objects, "Role")]
        return [
            (role["kind"], {(name, verb) for name in rule["resources"] for verb in rule["verbs"]})
            for role in roles
            for rule in role.get("rules") or []
            if "nodes" in rule["resources"]
        ]

    def is_told(objects: list[Object]) -> bool:
        (deployment,) = of_kind(objects, "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        return {"name": "WORKQUEUE_READ_NODES", "value": "true"} in container["env"]

    without, with_nodes = template(values), template({**values, "rbac": {"readNodes": True}})
    assert (of_nodes(without), is_told(without)) == ([], False)
    assert (of_nodes(with_nodes), is_told(with_nodes)) == ([("ClusterRole", {("nodes", "list")})], True)


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["shop"]}], ids=["cluster-wide", "listed"])
def test_claims_are_readable_by_name_only(values: Object) -> None:
    objects = [*of_kind(template(values), "ClusterRole"), *of_kind(template(values), "Role")]
    role = next(role for role in objects if role["metadata"]["name"] == "workqueue-operator")
    named = [rule for rule in role["rules"] if set(rule["resources"]) & {"leases", "clusterroles"}]
    assert named
    assert all(rule["resourceNames"] == ["workqueue.dev"] for rule in named)


def test_release_states_namespaces_it_serves() -> None:
    holder = f"{helm.NAMESPACE}/{helm.RELEASE}"
    leases = of_kind(template({"watchNamespaces": ["shop", "mail"]}), "Lease")
    assert {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in leases} == {
        ("shop", "workqueue.dev"),
        ("mail", "workqueue.dev"),
    }
    assert {one["spec"]["holderIdentity"] for one in leases} == {holder}
    wide = template({})
    assert not of_kind(wide, "Lease")
    (claim,) = [one for one in of_kind(wide, "ClusterRole") if one["metadata"]["name"] == "workqueue.dev"]
    assert claim["metadata"]["annotations"]["workqueue.dev/operator"] == holder
    assert claim["rules"] == []


def test_operator_can_access_only_its_own_lease() -> None:
    role = next(
        role for role in of_kind(template(EVERYTHING), "Role") if role["metadata"]["name"] == "jobs-leader"
    )
    assert [rule.get("resourceNames") for rule in role["rules"]] == [None, ["jobs-leader"]]
    assert role["rules"][0]["verbs"] == ["create"]


def test_edit_role_writes_workqueues_and_view_role_only_reads() -> None:
    roles = {role["metadata"]["name"]: role for role in of_kind(template({}), "ClusterRole")}
    edit, view = roles["workqueue-operator-edit"], roles["workqueue-operator-view"]
    aggregated = "rbac.authorization.k8s.io/aggregate-to-"
    assert {label for label in edit["metadata"]["labels"] if label.startswith(aggregated)} == {
        f"{aggregated}edit",
        f"{aggregated}admin",
    }
    assert {label for label in view["metadata"]["labels"] if label.startswith(aggregated)} == {
        f"{aggregated}view"
    }
    assert "create" in rules(edit)["workqueue.dev", "workqueues"]
    assert set().union(*rules(view).values()) == {"get", "list", "watch"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(
            {},
            {
                "WORKQUEUE_WATCH_NAMESPACES": "",
                "WORKQUEUE_WORKER_IMAGE": "workqueue-operator:{version}",
                "WORKQUEUE_LEADER_ELECTION": "true",
                "WORKQUEUE_LEASE_NAME": "workqueue-operator",
                "WORKQUEUE_PORT": "8080",
                "WORKQUEUE_POLL_SECONDS": "0.5",
                "WORKQUEUE_IDLE_POLL_SECONDS": "30",
                "WORKQUEUE_LOG_FORMAT": "json",
                "WORKQUEUE_LOG_LEVEL": "info",
                "WORKQUEUE_WORKER_NETWORK_POLICY": "false",
                "WORKQUEUE_POD_NAME": None,
                "WORKQUEUE_POD_NAMESPACE": None,
            },
            id="default-values",
        ),
        pytest.param(
            EVERYTHING,
            {
                "WORKQUEUE_WATCH_NAMESPACES": "shop,mail",
                "WORKQUEUE_WORKER_IMAGE": "registry.example/worker:1",
                "WORKQUEUE_WORKER_PULL_SECRETS": "registry",
                "WORKQUEUE_LEADER_ELECTION": "true",
                "WORKQUEUE_LEASE_NAME": "jobs-leader",
                "WORKQUEUE_LOG_FORMAT": "text",
                "WORKQUEUE_WORKER_NETWORK_POLICY": "true",
                "WORKQUEUE_METRICS_FROM": '[{"namespaceSelector":{}}]',
                "SSL_CERT_DIR": "/etc/ssl/certs",
            },
            id="all-values",
        ),
    ],
)
def test_values_become_environment_variables_of_operator(
    values: Object, expected: dict[str, str | None]
) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    given = environment(template(values))
    for name, value in expected.items():
        assert given[name] == (value and value.replace("{version}", version))


def test_digest_overrides_tag() -> None:
    image = pod(template({"image": {"tag": "2", "digest": f"sha256:{'a' * 64}"}}))["containers"][0]["image"]
    assert image == f"workqueue-operator@sha256:{'a' * 64}"


def test_crd_matches_model_and_survives_uninstall() -> None:
    definition = only(template({}), "CustomResourceDefinition")
    assert definition["spec"] == crd.crd()["spec"]
    assert definition["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    removed = only(template({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in removed["metadata"]
    assert not of_kind(template({"crds": {"enabled": False}}), "CustomResourceDefinition")


def test_single_replica_has_no_disruption_budget() -> None:
    assert only(template({}), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert not of_kind(template({"replicaCount": 1}), "PodDisruptionBudget")


def test_monitors_select_existing_objects() -> None:
    objects = template(EVERYTHING)
    service, monitor = only(objects, "Service"), only(objects, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    workers = only(objects, "PodMonitor")
    assert workers["spec"]["namespaceSelector"] == {"matchNames": ["shop", "mail"]}


def rules_of(values: Object) -> dict[str, Object]:
    made = template({"metrics": {"prometheusRule": {"enabled": True, **values}}})
    return {
        rule["alert"]: rule
        for group in only(made, "PrometheusRule")["spec"]["groups"]
        for rule in group["rules"]
    }


def test_chart_alerts_match_alert_file() -> None:
    file = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    rules = {"enabled": True, "labels": {"release": "prometheus"}}
    made = only(template({"metrics": {"prometheusRule": rules}}), "PrometheusRule")
    assert made["spec"] == file
    assert made["metadata"]["labels"]["release"] == "prometheus"


def test_operator_without_pods_is_noticed_beside_another_release() -> None:
    def condition(**monitor: Any) -> str:
        metrics = {"prometheusRule": {"enabled": True}, "serviceMonitor": monitor}
        groups = only(template({"metrics": metrics}, release="a"), "PrometheusRule")["spec"]["groups"]
        (found,) = [
            rule["expr"]
            for group in groups
            for rule in group["rules"]
            if rule["alert"] == "WorkQueueOperatorWithoutLeader"
        ]
        return str(found).partition(" or ")[2]

    own = f'absent(workqueue_leader{{namespace="{helm.NAMESPACE}", job="a-workqueue-operator"}})'
    assert condition(enabled=True) == own
    assert condition(enabled=True, relabelings=[{"action": "labeldrop"}]) == "absent(workqueue_leader)"
    assert condition(enabled=False) == "absent(workqueue_leader)"


def test_alerts_can_be_disabled_labelled_and_linked_to_own_runbooks() -> None:
    names = set(rules_of({}))
    changed = rules_of(
        {
            "disabled": ["WorkQueueDeadLetters"],
            "alertLabels": {"team": "jobs", "severity": "page"},
            "runbookUrl": "https://wiki.example/jobs/",
        }
    )
    assert names - set(changed) == {"WorkQueueDeadLetters"}
    for name, rule in changed.items():
        assert rule["labels"] == {"team": "jobs", "severity": "page"}
        assert rule["annotations"]["runbook_url"] == f"https://wiki.example/jobs/{name}"


def test_dashboard_is_discoverable_by_grafana() -> None:
    made = only(template(EVERYTHING), "ConfigMap")
    assert made["metadata"]["namespace"] == "grafana"
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = made["data"].values()
    assert json.loads(text) == json.loads((CHART / "files/dashboard.json").read_text())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        pytest.param({"replicas": 3}, "additional properties 'replicas' not allowed", id="unknown-value"),
        pytest.param(
            {"image": {"name": "x"}}, "additional properties 'name' not allowed", id="unknown-nested-value"
        ),
        pytest.param({"replicaCount": "two"}, "got string, want integer", id="word-for-a-number"),
        pytest.param({"replicaCount": -1}, "minimum: got -1, want 0", id="negative-count"),
        pytest.param({"watchNamespaces": "shop"}, "got string, want array", id="namespace-without-list"),
        pytest.param({"watchNamespaces": ["Shop"]}, "does not match pattern", id="impossible-namespace"),
        pytest.param(
            {"watchNamespaces": ["shop", "shop"]}, "items at 0 and 1 are equal", id="duplicate-namespace"
        ),
        pytest.param({"logLevel": "loud"}, "value must be one of 'debug', 'info'", id="unknown-log-level"),
        pytest.param({"sweepSeconds": 0}, "exclusiveMinimum: got 0, want 0", id="poll-without-pause"),
        pytest.param({"image": {"digest": "sha256:1"}}, "does not match pattern", id="truncated-digest"),
        pytest.param(
            {"metrics": {"prometheusRule": {"alertLabels": {"team": 1}}}},
            "got number, want string",
            id="numeric-label",
        ),
        pytest.param({"podAnnotations": {"a": True}}, "at '/podAnnotations/a': got boolean", id="annotation"),
        pytest.param({"nodeSelector": {"gpu": True}}, "at '/nodeSelector/gpu': got boolean", id="node-label"),
        pytest.param({"extraEnv": [{"name": "A", "value": 1}]}, "at '/extraEnv/0/value'", id="variable"),
        pytest.param({"imagePullSecrets": [{}]}, "missing property 'name'", id="nameless-pull-secret"),
        pytest.param(
            {"podDisruptionBudget": {"maxUnavailable": "half"}},
            "does not match pattern",
            id="disruption-budget-in-words",
        ),
        pytest.param({"image": {"repository": "jobs:1"}}, "at '/image/repository'", id="tag-in-repository"),
        pytest.param(
            {"leaderElection": {"leaseName": "A"}}, "at '/leaderElection/leaseName'", id="lease-name"
        ),
        pytest.param({"nameOverride": "Jobs"}, "at '/nameOverride'", id="capital-letter-in-name"),
        pytest.param({"fullnameOverride": "my_jobs"}, "at '/fullnameOverride'", id="underscore-in-name"),
        pytest.param(
            {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
            "metrics.serviceMonitor needs the Service: set metrics.service.enabled to true",
            id="monitor-without-target",
        ),
    ],
)
def test_invalid_values_are_refused(values: Object, sentence: str) -> None:
    with pytest.raises(HelmError) as refused:
        template(values)
    assert sentence in str(refused.value)


def test_missing_values_have_safe_defaults() -> None:
    """`helm upgrade --reuse-values` leaves out what an older chart did not have: see test_previous_chart.py."""
    of_the_page = ("replicaCount", "connectionSecrets", "serviceAccountName", "resources")
    older = {
        "admissionPolicy": None,
        "allowedBrokerHosts": None,
        "networkPolicy": {"enabled": True, "egress": None},
        "page": {"enabled": True, "audience": None, **dict.fromkeys(of_the_page)},
    }
    objects = template(older)
    assert of_kind(objects, "ValidatingAdmissionPolicy")
    policies = of_kind(objects, "NetworkPolicy")
    assert [policy["spec"]["policyTypes"] for policy in policies] == [["Ingress"]] * 2


def test_values_schema_covers_every_value_and_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    for value in (leaf for top in chart_values() for leaf in top.leaves()):
        node = schema
        for key in value.path:
            node = node["properties"][key]
        assert node["default"] == value.default
        assert node["description"] == value.description
        assert value.description.endswith(".")


def test_helm_test_pod_is_not_selected_as_operator() -> None:
    objects = template({"watchNamespaces": ["shop"]}, tests=True)
    tester = only(objects, "Pod")
    assert tester["metadata"]["namespace"] == "shop"
    selector = only(objects, "Service")["spec"]["selector"]
    assert not selector.items() <= tester["metadata"]["labels"].items()


def test_annotations_of_values_are_texts() -> None:
    """Kubernetes refuses other types, and the message of helm then does not name the value."""
    for value in (leaf for top in chart_values() for leaf in top.leaves()):
        if value.path[-1].lower().endswith(("annotations", "labels", "nodeselector")):
            assert value.extra["additionalProperties"] == {"type": "string"}, value.name


def test_extra_variable_replaces_the_variable_of_the_chart() -> None:
    """Server-side apply, the default of helm 4, refuses a name twice."""
    extra = [
        {"name": "WORKQUEUE_LOG_LEVEL", "value": "debug"},
        {"name": "SSL_CERT_FILE", "value": "/ca/ca.crt"},
    ]

    made = template({"extraEnv": extra, "page": {"enabled": True}})

    for deployment in of_kind(made, "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        names = [variable["name"] for variable in container["env"]]
        assert len(names) == len(set(names))
        assert container["env"][-2:] == extra


def test_pods_run_on_linux_and_do_not_keep_their_node() -> None:
    """The cluster autoscaler never removes a node with a pod whose emptyDir is not listed."""
    made = template(
        {"page": {"enabled": True}, "nodeSelector": {"pool": "infra"}, "podAnnotations": {"a": "b"}}
    )

    for one in of_kind(made, "Deployment"):
        pod_template = one["spec"]["template"]
        volumes = {volume["name"] for volume in pod_template["spec"]["volumes"] if "emptyDir" in volume}
        annotations = pod_template["metadata"]["annotations"]
        assert {annotations["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"]} == volumes
        assert annotations["a"] == "b"
        assert pod_template["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "infra"}


def test_annotation_of_a_pod_may_replace_the_one_of_the_chart() -> None:
    own = {"kubectl.kubernetes.io/default-container": "proxy"}
    made = only(template({"podAnnotations": own}), "Deployment")
    assert own.items() <= made["spec"]["template"]["metadata"]["annotations"].items()
