"""Settings of the chart's pods and objects that platforms ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.helm import HelmError, Object, of_kind, only, template

BOTH: Object = {"page": {"enabled": True}}


def pods(values: Object) -> dict[str, Object]:
    """The specs of the pods of operator, page and test."""
    objects = template({**BOTH, **values}, tests=True)
    deployments = {
        made["metadata"]["labels"]["app.kubernetes.io/component"]: made["spec"]["template"]["spec"]
        for made in of_kind(objects, "Deployment")
    }
    return {**deployments, "test": only(objects, "Pod")["spec"]}


def test_all_pods_run_on_the_selected_nodes_with_linux() -> None:
    for chosen in ({}, {"pool": "infra"}):
        for pod in pods({"nodeSelector": chosen}).values():
            assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", **chosen}


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("hostAliases", [{"ip": "10.1.2.3", "hostnames": ["rabbitmq.example"]}]),
        ("dnsPolicy", "None"),
        ("dnsConfig", {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": "2"}]}),
        ("runtimeClassName", "gvisor"),
        ("tolerations", [{"key": "infra", "operator": "Exists"}]),
    ],
)
def test_setting_reaches_all_pods(value: str, given: Any) -> None:
    assert [pod.get(value) for pod in pods({}).values()] == [None] * 3
    assert [pod[value] for pod in pods({value: given}).values()] == [given] * 3


def test_extra_volumes_are_mounted_in_operator_and_page() -> None:
    volume = {"name": "ca", "configMap": {"name": "company-ca"}}
    mount = {"name": "ca", "mountPath": "/etc/company", "readOnly": True}

    made = pods({"extraVolumes": [volume], "extraVolumeMounts": [mount]})

    for component in ("operator", "page"):
        (container,) = made[component]["containers"]
        assert volume in made[component]["volumes"]
        assert mount in container["volumeMounts"]


def test_strategy_and_annotations_of_deployments() -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    values = {"strategy": strategy, "deploymentAnnotations": {"reloader.stakater.com/auto": "true"}}

    deployments = of_kind(template({**BOTH, **values}), "Deployment")

    assert [made["spec"]["strategy"] for made in deployments if "strategy" in made["spec"]] == [strategy]
    assert [made["metadata"]["annotations"] for made in deployments] == [values["deploymentAnnotations"]] * 2


def test_common_labels_are_on_all_objects_and_pods() -> None:
    values = {
        **BOTH,
        "commonLabels": {"team": "platform", "app.kubernetes.io/name": "other"},
        "metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}},
    }

    objects = template(values, tests=True)

    labels = [made["metadata"]["labels"] for made in objects]
    labels += [made["spec"]["template"]["metadata"]["labels"] for made in of_kind(objects, "Deployment")]
    assert {one["team"] for one in labels} == {"platform"}
    assert {one["app.kubernetes.io/name"] for one in labels} == {"workqueue-operator"}


def test_common_labels_select_nothing() -> None:
    """A selector cannot change, and labels may."""
    objects = template({**BOTH, "commonLabels": {"team": "platform"}})
    assert "team" not in json.dumps([made["spec"]["selector"] for made in of_kind(objects, "Deployment")])


def test_pod_labels_override_common_labels() -> None:
    objects = template({"commonLabels": {"team": "a"}, "podLabels": {"team": "b"}})
    assert only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]["team"] == "b"


def test_extra_objects_are_rendered_as_templates() -> None:
    def config_map(name: str) -> Object:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}

    as_object = config_map('{{ include "workqueue-operator.fullname" . }}-a')
    as_text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-b\n"

    objects = template({"extraObjects": [as_object, as_text]}, release="jobs-workqueue-operator")

    assert of_kind(objects, "ConfigMap") == [
        config_map("jobs-workqueue-operator-a"),
        config_map("jobs-workqueue-operator-b"),
    ]


def test_services_have_labels_and_ip_families() -> None:
    families = {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]}
    values = {
        "service": families,
        "metrics": {"service": {"labels": {"a": "1"}, "annotations": {"b": "2"}}},
        "page": {"enabled": True, "labels": {"a": "3"}, "annotations": {"b": "4"}},
    }

    services = {made["metadata"]["name"]: made for made in of_kind(template(values), "Service")}

    metadata = {name: made["metadata"] for name, made in services.items()}
    assert {name: (one["labels"]["a"], one["annotations"]["b"]) for name, one in metadata.items()} == {
        "workqueue-operator": ("1", "2"),
        "workqueue-operator-page": ("3", "4"),
    }
    for service in services.values():
        assert families.items() <= service["spec"].items()


def test_definition_has_the_given_annotations_and_stays() -> None:
    definition = only(template({"crds": {"annotations": {"a": "b"}}}), "CustomResourceDefinition")
    assert definition["metadata"]["annotations"] == {"a": "b", "helm.sh/resource-policy": "keep"}


def test_monitors_have_the_given_relabelings() -> None:
    settings = {
        "enabled": True,
        "scrapeTimeout": "5s",
        "relabelings": [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}],
        "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "python_gc_.*"}],
    }

    objects = template({**BOTH, "metrics": {"serviceMonitor": settings, "podMonitor": settings}})

    endpoints = [made["spec"]["endpoints"][0] for made in of_kind(objects, "ServiceMonitor")]
    endpoints += only(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert len(endpoints) == 3
    for endpoint in endpoints:
        assert endpoint["scrapeTimeout"] == "5s"
        assert endpoint["metricRelabelings"] == settings["metricRelabelings"]
        assert endpoint["relabelings"][-1:] == settings["relabelings"]
    assert endpoints[-1]["relabelings"][0]["targetLabel"] == "workqueue"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        pytest.param({"nameOveride": "x"}, "additional properties 'nameOveride' not allowed", id="typo"),
        pytest.param(
            {"page": {"ingress": {"host": "x"}}}, "additional properties 'host' not allowed", id="nested-typo"
        ),
        pytest.param(
            {"page": {"ingress": {"hosts": [{"host": "x"}]}}},
            "got object, want string",
            id="object-for-a-host",
        ),
        pytest.param({"dnsPolicy": "none"}, "value must be one of '', 'ClusterFirst'", id="dns-policy"),
        pytest.param(
            {"service": {"ipFamilies": ["IPv5"]}}, "value must be one of 'IPv4', 'IPv6'", id="ip-family"
        ),
        pytest.param({"commonLabels": {"cost": 42}}, "got number, want string", id="numeric-label"),
        pytest.param({"extraVolumes": [{}]}, "missing property 'name'", id="volume-without-name"),
        pytest.param(
            {"podSecurity": "OpenShift"}, "value must be one of 'Restricted', 'Platform'", id="platform"
        ),
        pytest.param({"fullnameOverride": "a" * 54}, "maxLength: got 54, want 53", id="long-name"),
    ],
)
def test_mistake_in_a_value_is_refused(values: Object, sentence: str) -> None:
    with pytest.raises(HelmError) as refused:
        template(values)
    assert sentence in str(refused.value)
