"""The chart in clusters with strict rules: OpenShift, quotas, denied networks, GitOps, unusual names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from hack.generate.files import CHART
from tests.support.helm import HelmError, Object, of_kind, only, template
from workqueue_operator import names
from workqueue_operator.api import crd

ALL: Object = {
    "page": {"enabled": True, "replicaCount": 2},
    "networkPolicy": {"enabled": True, "egress": {"enabled": True}},
    "workerNetworkPolicy": {"enabled": True},
    "metrics": {"dashboard": {"enabled": True}},
    "rbac": {"aggregate": True, "readNodes": True},
    "imagePullSecrets": [{"name": "registry"}],
}


def pod_specs(objects: list[Object]) -> list[Object]:
    pods = [made["spec"] for made in of_kind(objects, "Pod")]
    return pods + [made["spec"]["template"]["spec"] for made in of_kind(objects, "Deployment")]


def worker_of_the_test(values: Object) -> Object:
    """The spec.worker of the WorkQueue that `helm test` creates."""
    (container,) = only(template(values, tests=True), "Pod")["spec"]["containers"]
    (text,) = [one["value"] for one in container["env"] if one["name"] == "WORKQUEUE_TEST_WORKER"]
    worker: Object = {**json.loads(text), "handler": {"exec": {"command": ["true"]}}}
    jsonschema.validate(worker, crd.schema()["properties"]["spec"]["properties"]["worker"])
    return worker


def test_openshift_chooses_users_and_groups() -> None:
    values = {**ALL, "podSecurity": "Platform"}

    pods = pod_specs(template(values, tests=True))

    assert len(pods) == 3
    assert not re.findall(r"runAsUser|runAsGroup|fsGroup", json.dumps(pods))
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods)
    assert worker_of_the_test(values)["podSecurity"] == "Platform"


def test_quota_finds_requests_and_limits_in_every_pod() -> None:
    resources = [
        container["resources"]
        for pod in pod_specs(template(ALL, tests=True))
        for container in pod["containers"]
    ]
    resources.append(worker_of_the_test(ALL)["resources"])

    assert len(resources) == 4
    for one in resources:
        assert {"cpu", "memory"} <= set(one["requests"])
        assert "memory" in one["limits"]


def test_quota_on_processor_limits_can_be_met() -> None:
    limits: Object = {"limits": {"cpu": "1"}}
    values = {**ALL, "resources": limits, "page": {**ALL["page"], "resources": limits}}

    for pod in pod_specs(template(values, tests=True)):
        assert all(container["resources"]["limits"]["cpu"] == "1" for container in pod["containers"])


def test_helm_test_uses_the_settings_of_the_platform() -> None:
    tolerations = [{"key": "infra", "operator": "Exists"}]
    values = {**ALL, "tolerations": tolerations, "nodeSelector": {"pool": "infra"}, "workerImage": "worker:1"}

    worker = worker_of_the_test(values)

    assert worker["image"] == "worker:1"
    assert worker["imagePullSecrets"] == [{"name": "registry"}]
    assert (worker["tolerations"], worker["nodeSelector"]) == (tolerations, {"pool": "infra"})


def test_helm_test_passes_denied_networks() -> None:
    objects = template({**ALL, "watchNamespaces": ["shop"]}, tests=True)
    pod = only(objects, "Pod")

    own, to_worker = [
        made["spec"]
        for made in of_kind(objects, "NetworkPolicy")
        if made["metadata"]["name"].startswith(pod["metadata"]["name"])
        and made["metadata"]["namespace"] == pod["metadata"]["namespace"]
    ]

    assert own["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert {8090, 6443, 5672, 53} <= {port["port"] for rule in own["egress"] for port in rule["ports"]}
    (rule,) = to_worker["ingress"]
    assert rule["from"] == [{"podSelector": own["podSelector"]}]
    assert rule["ports"] == [{"port": 8090}]


def test_helm_test_isolates_no_worker_without_network_policies() -> None:
    objects = template({"networkPolicy": {"enabled": True}}, tests=True)
    policies = of_kind(objects, "NetworkPolicy")
    assert [one["metadata"]["name"] for one in policies] == ["workqueue-operator"]


def test_dns_of_openshift_is_open_to_denied_pods() -> None:
    """Its DNS pods listen on 5353. A NetworkPolicy applies behind the Service."""
    (policy,) = of_kind(
        template({"networkPolicy": {"enabled": True, "egress": {"enabled": True}}}), "NetworkPolicy"
    )
    dns = {(port["port"], port["protocol"]) for port in policy["spec"]["egress"][0]["ports"]}
    assert dns == {(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")}


def test_denied_pods_reach_ipv6_addresses_of_the_api_server() -> None:
    (policy,) = of_kind(
        template({"networkPolicy": {"enabled": True, "egress": {"enabled": True}}}), "NetworkPolicy"
    )
    (rule,) = [one for one in policy["spec"]["egress"] if {"port": 6443} in one["ports"]]
    assert {"ipBlock": {"cidr": "::/0"}} in rule["to"]


def test_rendering_depends_on_values_and_versions_only() -> None:
    """So Argo CD and Flux see no difference when they render again."""
    templates = "\n".join(file.read_text() for file in (CHART / "templates").rglob("*") if file.is_file())
    actions = " ".join(re.findall(r"\{\{.*?\}\}", templates, re.DOTALL))
    assert not re.findall(
        r"\b(lookup|rand\w+|gen[A-Z]\w+|uuidv4|now|ago|encryptAES|bcrypt|htpasswd|getHostByName)\b", actions
    )
    assert not re.findall(r"Release\.(?:IsUpgrade|IsInstall|Revision)|APIVersions", actions)


def test_no_rendered_list_is_empty() -> None:
    """The API server drops an empty list, so `kubectl diff` would show it forever.

    A ClusterRole must have rules: Argo CD and kubectl know that an empty list of them equals none.
    """
    for made in template(ALL, tests=True):
        name = made["metadata"]["name"]
        assert [] not in list(_parts({**made, "rules": None} if name == names.CLAIM else made)), name


def _parts(value: Any) -> Iterator[Any]:
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _parts(one)


def test_release_name_of_53_characters_keeps_all_names_valid() -> None:
    for made in template(
        {**ALL, "watchNamespaces": ["n" * 63]}, release="r" * 53, namespace="s" * 63, tests=True
    ):
        limit = 63 if made["kind"] in {"Service", "Pod", "Deployment"} else 253
        assert len(made["metadata"]["name"]) <= limit
        assert all(len(value) <= 63 for value in made["metadata"]["labels"].values())


def test_helm_refuses_a_longer_release_name() -> None:
    with pytest.raises(HelmError, match="53"):
        template({}, release="r" * 63)


@pytest.mark.parametrize("release", ["1234", "1e3", "true"])
def test_names_that_look_like_numbers_stay_texts(release: str) -> None:
    values = {**ALL, "watchNamespaces": ["90"], "fullnameOverride": "null", "nameOverride": "true"}

    for made in template(values, release=release, namespace="78", tests=True):
        assert all(isinstance(text, str) for text in _texts(made))


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        pytest.param("jobs-2.1", "jobs-2-1-workqueue-operator", id="dot"),
        pytest.param("2nd", "wq-2nd-workqueue-operator", id="digit"),
    ],
)
def test_every_release_name_gives_its_services_valid_names(release: str, expected: str) -> None:
    objects = template(ALL, release=release)

    services = [one["metadata"]["name"] for one in of_kind(objects, "Service")]
    assert sorted(services) == [expected, f"{expected}-page"]
    deployments = of_kind(objects, "Deployment")
    assert {one["metadata"]["labels"]["app.kubernetes.io/instance"] for one in deployments} == {release}


def _texts(made: Object) -> list[Any]:
    metadata = made["metadata"]
    texts = [metadata["name"], metadata.get("namespace", ""), *metadata["labels"].values()]
    texts += [part for subject in made.get("subjects", []) for part in subject.values()]
    texts += made.get("roleRef", {}).values()
    for pod in pod_specs([made]):
        texts.append(pod["serviceAccountName"])
        texts += [variable.get("value", "") for one in pod["containers"] for variable in one["env"]]
    return texts


def test_two_releases_of_one_name_need_no_other_names() -> None:
    """Two teams may install the chart under the same release name in their own namespaces."""
    assert not _identities("jobs", "video") & _identities("jobs", "reports")


def test_namespace_and_release_of_two_teams_are_not_confused() -> None:
    """The same words in both, divided at another hyphen."""
    assert not _identities("a", "team") & _identities("workqueue-operator", "team-a")


def _identities(release: str, namespace: str) -> set[tuple[str, str, str]]:
    values = {
        **ALL,
        "page": {"enabled": True, "actions": {"enabled": True}},
        "rbac": {"readNodes": True},
        "watchNamespaces": [namespace],
        "crds": {"enabled": False},
    }
    return {
        (made["kind"], made["metadata"].get("namespace", ""), made["metadata"]["name"])
        for made in template(values, release=release, namespace=namespace, tests=True)
    }
