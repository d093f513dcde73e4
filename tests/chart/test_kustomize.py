"""The plain install is a base for kustomize: the documented overlay renders what the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from hack.cluster import toolchain
from hack.generate.files import ROOT
from tests.support.helm import of_kind, only
from workqueue_operator import names

OVERLAY = re.compile(r"(?ms)^```yaml\n# kustomization.yaml, .+?^```")


POLICY = "ValidatingAdmissionPolicy"


def documented(folder: Path, *, namespace: bool, more: str = "") -> list[dict[str, Any]]:
    """What kustomize renders from the overlay in docs/operations.md, with or without its namespace.

    Args:
        more: another object of the overlay.
    """
    (block,) = OVERLAY.findall((ROOT / "docs/operations.md").read_text())
    overlay = block.strip("`").removeprefix("yaml\n")
    overlay = overlay if namespace else overlay.replace("namespace: jobs\n", "")
    if more:
        (folder / "more.yaml").write_text(more)
        overlay = overlay.replace("resources: [manifests]", "resources: [manifests, more.yaml]")
        assert "more.yaml" in overlay
    (folder / "kustomization.yaml").write_text(overlay)
    shutil.copytree(ROOT / "manifests", folder / "manifests")
    done = subprocess.run(
        [toolchain.kubectl(), "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_overlay_changes_only_image_and_replicas(tmp_path: Path) -> None:
    before = list(yaml.safe_load_all((ROOT / "manifests/install.yaml").read_text()))
    (container,) = only(before, "Deployment")["spec"]["template"]["spec"]["containers"]
    only(before, "Deployment")["spec"]["replicas"] = 3
    container["image"] = "registry.example/jobs/operator:7"
    for variable in container["env"]:
        if variable["name"] == "WORKQUEUE_WORKER_IMAGE":
            variable["value"] = "registry.example/jobs/operator:7"

    def named(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(one["kind"], one["metadata"]["name"]): one for one in objects}

    assert named(documented(tmp_path, namespace=False)) == named(before)


def test_overlay_names_the_operator_in_its_namespace(tmp_path: Path) -> None:
    made = documented(tmp_path, namespace=True)

    claim = next(one for one in of_kind(made, "ClusterRole") if one["metadata"]["name"] == names.CLAIM)
    assert claim["metadata"]["annotations"] == {names.LABEL_OPERATOR: "jobs/workqueue-operator"}
    conditions = [one["spec"]["matchConditions"][0]["expression"] for one in of_kind(made, POLICY)]
    assert len(conditions) == 5
    assert {one.split()[-1] for one in conditions} == {'"system:serviceaccount:jobs:workqueue-operator"'}
    elsewhere = [one for one in made if "workqueue-system" in str({**one, "metadata": {}})]
    assert {one["kind"] for one in elsewhere} == {f"{POLICY}Binding"}, "they name their policy"


def test_policies_of_others_in_the_overlay_stay_as_they_are(tmp_path: Path) -> None:
    other: dict[str, Any] = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": POLICY,
        "metadata": {"name": "replicas"},
        "spec": {"validations": [{"expression": "object.spec.replicas <= 100"}]},
    }

    made = documented(tmp_path, namespace=True, more=yaml.safe_dump(other))

    found = next(one for one in of_kind(made, POLICY) if one["metadata"]["name"] == "replicas")
    assert found["spec"] == other["spec"]
