"""An upgrade from the chart of the release before, with the values that helm has stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hack.cluster import toolchain
from hack.generate.files import CHART
from tests.support import previouschart
from tests.support.helm import Object, of_kind, template

RUNBOOKS: Object = {"runbookUrl": "https://wiki.example"}
"""The default of this value may change."""

LISTED: Object = {
    "watchNamespaces": ["shop"],
    "page": {"enabled": True, "replicaCount": 2},
    "metrics": {"prometheusRule": RUNBOOKS},
}
STORED: dict[str, Object] = {
    "nothing": {},
    "listed-namespaces-and-page": LISTED,
    "network-policies": {
        **LISTED,
        "networkPolicy": {"enabled": True, "egress": {"enabled": True}},
        "workerNetworkPolicy": {"enabled": True},
    },
    "monitors": {
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "podMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True, **RUNBOOKS},
            "dashboard": {"enabled": True},
        }
    },
    "everything-explicit": previouschart.values(),
}
"""Values that a user gave to the previous chart."""


@pytest.fixture(scope="module")
def reusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This chart with the defaults of the previous one: `helm upgrade --reuse-values` renders that."""
    folder = tmp_path_factory.mktemp("reusing") / CHART.name
    shutil.copytree(CHART, folder)
    (folder / "values.yaml").write_text(previouschart.values_text())
    return folder


def without_default_roles(objects: list[Object]) -> list[Object]:
    """Without the roles of users: a previous chart had them for listed namespaces, too."""
    return [one for one in objects if not one["metadata"]["name"].endswith(("-edit", "-view"))]


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_reused_defaults_render_the_same_objects(stored: Object, reusing: Path) -> None:
    assert without_default_roles(template(stored, chart=reusing)) == without_default_roles(template(stored))


@pytest.mark.parametrize("program", [toolchain.helm, toolchain.helm_3], ids=["helm-4", "helm-3"])
def test_reused_defaults_render_the_helm_test(reusing: Path, program: object) -> None:
    assert callable(program)
    assert of_kind(template(LISTED, chart=reusing, tests=True, program=program()), "Pod")


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_upgrade_changes_no_immutable_field(stored: Object) -> None:
    before = _immutable(template(stored, chart=previouschart.PACKAGE))
    after = _immutable(template(stored))

    assert before
    assert {key: after[key] for key in before.keys() & after.keys()} == {
        key: before[key] for key in before.keys() & after.keys()
    }


def _immutable(objects: list[Object]) -> dict[tuple[str, str, str], object]:
    """What Kubernetes refuses to change, by object."""
    return {
        (made["kind"], made["metadata"].get("namespace", ""), made["metadata"]["name"]): made["roleRef"]
        if "roleRef" in made
        else made["spec"]["selector"]
        for made in objects
        if "roleRef" in made or made["kind"] == "Deployment"
    }


def test_upgrade_keeps_deployments_and_services() -> None:
    def names(chart: Path) -> set[str]:
        objects = template(LISTED, chart=chart)
        return {
            f"{kind}/{one['metadata']['name']}"
            for kind in ("Deployment", "Service", "ServiceAccount", "Lease", "CustomResourceDefinition")
            for one in of_kind(objects, kind)
        }

    assert names(previouschart.PACKAGE) == names(CHART)
