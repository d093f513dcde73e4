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


def documented(folder: Path, *, namespace: bool) -> list[dict[str, Any]]:
    """What kustomize renders from the overlay in docs/operations.md, with or without its namespace."""
    (block,) = OVERLAY.findall((ROOT / "docs/operations.md").read_text())
    overlay = block.strip("`").removeprefix("yaml\n")
    (folder / "kustomization.yaml").write_text(
        overlay if namespace else overlay.replace("namespace: jobs\n", "")
    )
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
