"""An installation for listed namespaces: no ClusterRole, and no cluster administrator after the preparation."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from hack.generate.files import CHART, ROOT
from tests.support import helm
from tests.support.helm import Object, of_kind, template

LISTED = {"watchNamespaces": ["shop"]}
EDIT_MAY_CREATE = {"Deployment", "Lease", "PodDisruptionBudget", "Service", "ServiceAccount"}
"""Of the kinds in the chart: what the ClusterRole `edit` of Kubernetes may write."""


@pytest.mark.parametrize("page", [False, True], ids=["operator", "operator-and-page"])
def test_listed_namespaces_need_no_cluster_role(page: bool) -> None:
    objects = template({**LISTED, "page": {"enabled": page}})

    assert not of_kind(objects, "ClusterRole")
    bound = {made["roleRef"]["name"] for made in of_kind(objects, "ClusterRoleBinding")}
    assert bound == ({"system:auth-delegator"} if page else set())


@pytest.mark.parametrize(
    ("values", "there"),
    [
        pytest.param({}, True, id="whole-cluster"),
        pytest.param(LISTED, False, id="listed-namespaces"),
        pytest.param({**LISTED, "rbac": {"aggregate": True}}, True, id="listed-on-request"),
        pytest.param({"rbac": {"aggregate": False}}, False, id="whole-cluster-disabled"),
    ],
)
def test_default_roles_include_workqueues(values: Object, there: bool) -> None:
    names = {made["metadata"]["name"] for made in of_kind(template(values), "ClusterRole")}
    assert ({"workqueue-operator-edit", "workqueue-operator-view"} <= names) == there


def identities(objects: list[Object]) -> set[tuple[str, str, str]]:
    return {
        (made["kind"], made["metadata"].get("namespace", ""), made["metadata"]["name"]) for made in objects
    }


@pytest.fixture(scope="module")
def commands() -> dict[str, list[Object]]:
    """What the two commands in docs/operations.md render, by the word after `helm`."""
    text = (ROOT / "docs/operations.md").read_text()
    section = text.partition("### Without a cluster administrator\n")[2].partition("\n#")[0]
    found = re.findall(r"(?m)^    helm (template|install) ((?:.+\\\n)*.+)$", section)
    rendered: dict[str, list[Object]] = {}
    for word, arguments in found:
        words = shlex.split(arguments.partition("|")[0].replace("\\\n", " "))
        made = helm.run("template", *(str(CHART) if one.startswith("charts/") else one for one in words))
        rendered[word] = [one for one in yaml.safe_load_all(made) if one]
    return rendered


def of(values: dict[str, Any]) -> set[tuple[str, str, str]]:
    return identities(template({**LISTED, **values}, release="jobs", namespace="shop"))


def test_role_edit_may_install_what_the_administrator_leaves(commands: dict[str, list[Object]]) -> None:
    made = [
        one for one in commands["install"] if "helm.sh/hook" not in one["metadata"].get("annotations", {})
    ]

    assert {one["kind"] for one in made} == EDIT_MAY_CREATE
    assert {one["metadata"]["namespace"] for one in made} == {"shop"}


def test_both_commands_together_make_a_whole_installation(commands: dict[str, list[Object]]) -> None:
    installed = {one for one in identities(commands["install"]) if not one[2].endswith("-test")}
    prepared = identities(commands["template"])

    assert not installed & prepared
    assert installed | prepared == of({"rbac": {"aggregate": True}})
