"""The pages that a newcomer follows step by step, followed step by step in the cluster under test.

They install the operator for the whole cluster, so nothing else may run in it meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubernetes import CHECKOUT, PROGRAMS, kubeconfig, kubectl, release_workqueues
from tests.support.walkthrough import walk

SECONDS = 240.0
NAMESPACES = ("shop", "billing", "rabbitmq", "workqueue-system")
CRD = "workqueues.workqueue.dev"


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """What `export KUBECONFIG=... PATH=...` of the first page gives, in a cluster that nobody has prepared."""
    programs = [str(PROGRAMS), str(Path(sys.executable).parent), os.environ["PATH"]]
    _clean()
    yield {"KUBECONFIG": str(kubeconfig()), "PATH": ":".join(programs)}
    _clean()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the checkout, and may be written to."""
    for name in ("charts", "examples", "manifests"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    return tmp_path


def test_get_started_and_the_tutorial(folder: Path, environment: dict[str, str]) -> None:
    started = (CHECKOUT / "docs/get-started.md").read_text()
    journey, end = started.split("Clean up with")
    tutorial = (CHECKOUT / "docs/tutorial.md").read_text()
    for name, text in (("get-started", journey), ("tutorial", tutorial), ("clean-up", end)):
        page = folder / f"{name}.md"
        page.write_text(text)
        walk(page, folder, environment, SECONDS)
    left = json.loads(kubectl("get", "namespaces", "--output=json"))["items"]
    living = {one["metadata"]["name"] for one in left if one["status"]["phase"] == "Active"}
    assert not living & {"shop", "billing", "rabbitmq"}


def _clean() -> None:
    """Whatever an interrupted run or a demo has left."""
    kubectl("delete", "namespace", *NAMESPACES, "--ignore-not-found", "--timeout=120s")
    release_workqueues()
    kubectl("delete", "crd", CRD, "--ignore-not-found", "--timeout=60s")
    for kind in ("clusterrole", "clusterrolebinding"):
        kubectl("delete", kind, "--selector=app.kubernetes.io/name=workqueue-operator", "--ignore-not-found")
