"""The plain install is a base for kustomize: the documented overlay renders what the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster import toolchain
from hack.generate.files import ROOT
from tests.support.helm import only

OVERLAY = re.compile(r"(?ms)^```yaml\n# kustomization.yaml, .+?^```")


@pytest.fixture
def made(tmp_path: Path) -> list[dict[str, Any]]:
    """What kustomize renders from the overlay in docs/operations.md."""
    (block,) = OVERLAY.findall((ROOT / "docs/operations.md").read_text())
    (tmp_path / "kustomization.yaml").write_text(block.strip("`").removeprefix("yaml\n"))
    (tmp_path / "manifests").mkdir()
    for name in ("kustomization.yaml", "install.yaml"):
        shutil.copy(ROOT / "manifests" / name, tmp_path / "manifests")
    done = subprocess.run(
        [toolchain.kubectl(), "kustomize", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_overlay_changes_only_image_and_replicas(made: list[dict[str, Any]]) -> None:
    before = list(yaml.safe_load_all((ROOT / "manifests/install.yaml").read_text()))
    (container,) = only(before, "Deployment")["spec"]["template"]["spec"]["containers"]
    only(before, "Deployment")["spec"]["replicas"] = 3
    container["image"] = "registry.example/jobs/operator:7"
    for variable in container["env"]:
        if variable["name"] == "WORKQUEUE_WORKER_IMAGE":
            variable["value"] = "registry.example/jobs/operator:7"

    def named(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(one["kind"], one["metadata"]["name"]): one for one in objects}

    assert named(made) == named(before)
