"""The chart as a dependency of another one, an umbrella chart: condition, global values, aliases."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster import toolchain
from hack.generate.files import CHART
from tests.support import helm
from tests.support.helm import HelmError, Object, of_kind, only, template
from workqueue_operator import names
from workqueue_operator.kube import ownership

NAME = CHART.name


def umbrella(folder: Path, *dependencies: Object) -> Path:
    """A chart that depends on this one."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    shutil.copytree(CHART, folder / "charts" / NAME)
    described = {
        "apiVersion": "v2",
        "name": "shop",
        "version": "1.0.0",
        "dependencies": [{"name": NAME, "version": version, **one} for one in dependencies],
    }
    (folder / "Chart.yaml").write_text(yaml.safe_dump(described))
    return folder


@pytest.fixture
def conditional(tmp_path: Path) -> Path:
    """A chart that depends on this one under the usual condition."""
    return umbrella(tmp_path, {"condition": f"{NAME}.enabled"})


@pytest.mark.parametrize("program", [toolchain.helm, toolchain.helm_3], ids=["helm-4", "helm-3"])
def test_condition_decides_whether_the_chart_is_installed(conditional: Path, program: Any) -> None:
    rendered = {
        enabled: template({NAME: {"enabled": enabled}}, chart=conditional, program=program())
        for enabled in (True, False)
    }

    assert only(rendered[True], "Deployment")["metadata"]["name"] == NAME
    assert rendered[False] == []


def test_disabled_chart_without_a_condition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HelmError, match=r"add `condition: .+` to the dependency"):
        template({NAME: {"enabled": False}}, chart=umbrella(tmp_path, {}))


def test_global_values_of_other_charts_are_accepted(conditional: Path) -> None:
    values = {
        "global": {"imageRegistry": "registry.example", "imagePullSecrets": ["shared", {"name": "own"}]},
        NAME: {"imagePullSecrets": [{"name": "own"}], "page": {"enabled": True}},
    }

    objects = template(values, chart=conditional, tests=True)

    pods = [made["spec"]["template"]["spec"] for made in of_kind(objects, "Deployment")]
    pods.append(only(objects, "Pod")["spec"])
    assert [pod["imagePullSecrets"] for pod in pods] == [[{"name": "own"}, {"name": "shared"}]] * 3


def test_typo_in_the_values_of_a_dependency_is_refused(conditional: Path) -> None:
    with pytest.raises(HelmError, match="additional properties 'replicas' not allowed") as refused:
        template({NAME: {"replicas": 3}}, chart=conditional)
    assert NAME in str(refused.value)


@pytest.mark.parametrize(
    ("release", "alias"),
    [
        (helm.RELEASE, ""),
        ("video-and-mail", ""),
        ("longest-name-of-a-release-" + "x" * 27, "workqueue-operator-"),
    ],
    ids=["release", "release-with-both-aliases", "longest-release"],
)
def test_two_aliases_share_no_object_and_no_pod(release: str, alias: str, tmp_path: Path) -> None:
    video, mail = f"{alias}video", f"{alias}mail"
    chart = umbrella(tmp_path, {"alias": video}, {"alias": mail})
    values = {
        video: {"watchNamespaces": ["video"], "page": {"enabled": True}},
        mail: {"watchNamespaces": ["mail"], "page": {"enabled": True}, "crds": {"enabled": False}},
    }

    objects = template(values, chart=chart, release=release)

    identities = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"], one["apiVersion"])
        for one in objects
    ]
    assert len(identities) == len(set(identities))
    selectors = [
        tuple(one["spec"]["selector"]["matchLabels"].items()) for one in of_kind(objects, "Deployment")
    ]
    assert len(set(selectors)) == 4
    assert all(len(name) <= 63 for kind, _, name, _ in identities if kind == "Service")


@pytest.mark.parametrize("release", [helm.RELEASE, "longest-name-of-a-release-" + "x" * 27])
def test_aliases_claim_namespaces_under_names_of_their_own(release: str, tmp_path: Path) -> None:
    """Otherwise the operator of the whole cluster would serve the namespace that the other one lists, too."""
    chart = umbrella(tmp_path, {"alias": "workqueue-everything"}, {"alias": "workqueue-mail"})
    values = {"workqueue-mail": {"watchNamespaces": ["mail"], "crds": {"enabled": False}}}

    objects = template(values, chart=chart, release=release)

    everywhere = next(
        one for one in of_kind(objects, "ClusterRole") if one["metadata"]["name"] == names.CLAIM
    )
    claims = ownership.Claims(
        listed={"mail": only(objects, "Lease")["spec"]["holderIdentity"]},
        everywhere=everywhere["metadata"]["annotations"][names.LABEL_OPERATOR],
    )
    assert claims.server("mail") != claims.server("shop")
    releases = {
        variable["value"]
        for one in of_kind(objects, "Deployment")
        for variable in one["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"] == "WORKQUEUE_RELEASE"
    }
    assert {f"{helm.NAMESPACE}/{release}" for release in releases} == {
        claims.server("mail"),
        claims.server("shop"),
    }


def test_name_override_names_objects_and_their_label() -> None:
    deployment = only(template({"nameOverride": "queues"}, release="shop"), "Deployment")

    assert deployment["metadata"]["name"] == "shop-queues"
    assert deployment["metadata"]["labels"]["app.kubernetes.io/name"] == "queues"


def test_workers_recognize_operator_and_page_under_any_name() -> None:
    """The operator's NetworkPolicies of workers select its own pods by these labels."""
    objects = template({"nameOverride": "queues", "page": {"enabled": True}}, release="shop")
    for made in of_kind(objects, "Deployment"):
        assert names.RELEASE_LABELS.items() <= made["spec"]["template"]["metadata"]["labels"].items()
