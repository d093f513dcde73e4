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

from tests.support.kubernetes import (
    CHECKOUT,
    PROGRAMS,
    kubeconfig,
    kubectl,
    release_workqueues,
    wait_until,
)
from tests.support.typed import Terminal
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


STOOD_FOR = ("hello", "thumbs", "thumbnails", "invoices")
"""Queues of the pages' readers; one queue stands for all of them."""

LEFT_OUT = {
    "helm install": "the operator is installed already; shards: tests/chart/test_shards.py",
    "helm upgrade workqueue-operator charts/workqueue-operator --namespace workqueue-system --reuse-values "
    "--set image.tag=TAG": "tests/e2e/test_upgrade.py",
    "helm uninstall": "the clean-up of get-started does it",
    "kubectl delete workqueues --all": "the clean-up of get-started does it",
    "kubectl delete crd": "the clean-up of get-started does it",
    "kubectl apply --server-side -k .": "tests/chart/test_kustomize.py",
    "pip install": "the environment of the tests has it",
}


def test_the_pages(folder: Path, environment: dict[str, str]) -> None:
    """Get started and the tutorial step by step; then every command of the other pages; then the cleaning up."""
    started = (CHECKOUT / "docs/get-started.md").read_text()
    journey, end = started.split("Clean up with")
    tutorial = (CHECKOUT / "docs/tutorial.md").read_text()
    _walk(folder, environment, {"get-started": journey, "tutorial": tutorial})
    _type_everything(folder, environment)
    _walk(folder, environment, {"clean-up": end})
    left = json.loads(kubectl("get", "namespaces", "--output=json"))["items"]
    living = {one["metadata"]["name"] for one in left if one["status"]["phase"] == "Active"}
    assert not living & {"shop", "billing", "rabbitmq"}


def _walk(folder: Path, environment: dict[str, str], pages: dict[str, str]) -> None:
    for name, text in pages.items():
        page = folder / f"{name}.md"
        page.write_text(text)
        walk(page, folder, environment, SECONDS)


def _type_everything(folder: Path, environment: dict[str, str]) -> None:
    """In `shop`, where `hello` has a worker, a dead letter and more of them to come."""
    mine = folder / "kubeconfig"
    mine.write_text(kubeconfig().read_text())
    kubectl("config", "set-context", "--current", "--namespace=shop", f"--kubeconfig={mine}")
    in_rabbitmq = "kubectl -n rabbitmq exec deployment/rabbitmq --"
    terminal = Terminal(
        folder,
        {**environment, "KUBECONFIG": str(mine)},
        {
            "POD": lambda command: _pod("workqueue-system" if "workqueue-system" in command else "shop"),
            "create token NAME": lambda _: "create token default",
            "NAMESPACE": lambda _: "shop",
            "NAME": lambda _: "hello",
            "ID": lambda _: _dead_letter(),
            **dict.fromkeys(STOOD_FOR[1:], lambda _: "hello"),
        },
        {
            **dict.fromkeys(("rabbitmqctl", "rabbitmq-diagnostics", "rabbitmq-queues"), lambda: in_rabbitmq),
            "workqueue": lambda: f"kubectl exec {_pod('shop')} -c worker --",
        },
    )
    (folder / "jobs.txt").write_text("one\ntwo\n")
    for user in ("hello", "uploader"):
        kubectl("-n", "rabbitmq", "exec", "deployment/rabbitmq", "--", "rabbitmqctl", "add_user", user, user)
    typed = 0
    for page in sorted((CHECKOUT / "docs").rglob("*.md")):
        if page.name not in {"get-started.md", "tutorial.md"}:
            _steer(replicas=None, suspend=False, scaling={"minReplicas": 1})
            typed += len(terminal.type(page.read_text(), LEFT_OUT))
    assert typed > 100


def _steer(**spec: object) -> None:
    patch = json.dumps({"spec": spec})
    kubectl("patch", "wq", "hello", "--namespace=shop", "--type=merge", f"--patch={patch}")


def _pod(namespace: str) -> str:
    """A pod that is Ready: a worker of `hello`, or one of the operator's."""
    label = {"shop": "workqueue.dev/workqueue=hello"}.get(
        namespace, "app.kubernetes.io/name=workqueue-operator"
    )

    def ready() -> str | None:
        pods = json.loads(
            kubectl("get", "pods", f"--namespace={namespace}", f"--selector={label}", "--output=json")
        )
        for pod in pods["items"]:
            conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
            if conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
                return str(pod["metadata"]["name"])
        return None

    return wait_until(ready, 60, f"a pod in {namespace} is Ready")


def _dead_letter() -> str:
    """The id of a message that has just become a dead letter."""
    inside = ("exec", "--namespace=shop", _pod("shop"), "--container=worker", "--", "workqueue")
    kubectl(*inside, "send", "--queue", "hello", "bad")

    def dead() -> str | None:
        letters = json.loads(kubectl(*inside, "dead", "list", "--queue", "hello", "--json"))
        return letters["messages"][0]["id"] if letters["messages"] else None

    return wait_until(dead, 30, "the message is a dead letter")


def _clean() -> None:
    """Whatever an interrupted run or a demo has left."""
    kubectl("delete", "namespace", *NAMESPACES, "--ignore-not-found", "--timeout=120s")
    release_workqueues()
    kubectl("delete", "crd", CRD, "--ignore-not-found", "--timeout=60s")
    for kind in ("clusterrole", "clusterrolebinding"):
        kubectl("delete", kind, "--selector=app.kubernetes.io/name=workqueue-operator", "--ignore-not-found")
