"""Follow the pages for newcomers step by step in the cluster under test.

They install the operator for the whole cluster, so nothing else may run in it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.demo import install as demo_install
from tests.support.kubernetes import (
    CHECKOUT,
    PROGRAMS,
    kubeconfig,
    kubectl,
    kubectl_json,
    release_workqueues,
)
from tests.support.objects import Object
from tests.support.typed import Terminal, commands, with_free_ports
from tests.support.wait import eventually
from tests.support.walkthrough import walk

SECONDS = 900.0
NAMESPACES = ("shop", "billing", "orders", "rabbitmq", "workqueue-system")
CRD = "workqueues.workqueue.dev"


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """What `export KUBECONFIG=... PATH=...` of the first page gives, in an unprepared cluster."""
    programs = [str(PROGRAMS), str(Path(sys.executable).parent), os.environ["PATH"]]
    _clean()
    yield {"KUBECONFIG": str(kubeconfig()), "PATH": ":".join(programs), "WORKQUEUE": str(CHECKOUT)}
    _clean()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable folder that looks like the checkout."""
    for name in ("charts", "examples", "manifests"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    return tmp_path


STOOD_FOR = ("thumbs", "thumbnails", "invoices", "receipts", "exports")
"""Queues of the readers; `hello` stands for all of them."""

RUN_ELSEWHERE = {
    "helm install": "by the fixture of every test; shards by tests/chart/test_shards.py",
    "helm upgrade workqueue-operator charts/workqueue-operator --namespace workqueue-system "
    "--reset-then-reuse-values --set image.tag=TAG": "by tests/e2e/test_upgrade.py",
    "helm template jobs charts/workqueue-operator": "by tests/e2e/test_namespaced_install.py",
    "helm uninstall": "by the cleaning up of get-started",
    "kubectl delete workqueues --all": "by the cleaning up of get-started",
    "kubectl delete crd": "by the cleaning up of get-started",
    "kubectl label namespace shop workqueue.dev/operator=": "by tests/e2e/test_ownership.py",
    "kubectl -n shop events --types=Normal | grep ServedElsewhere": "by tests/e2e/test_ownership.py",
    "kubectl apply --server-side -k .": "by tests/chart/test_kustomize.py",
    "pip install": "by `make venv`",
}
"""Prefixes of commands that are not run here, and where they are run."""


@pytest.mark.timeout(3600)
def test_documented_commands_work(folder: Path, environment: dict[str, str]) -> None:
    """Follow the pages for newcomers step by step, then run every command of the other pages, then clean up."""
    started = (CHECKOUT / "docs/get-started.md").read_text()
    journey, end = started.split("Clean up with")
    followed = {
        name: (CHECKOUT / f"docs/{name}.md").read_text() for name in ("tutorial", "production-handler")
    }
    _walk(folder, environment, {"get-started": journey, **followed})
    _type_everything(folder, environment)
    _walk(folder, environment, {"clean-up": end})
    left = kubectl_json("get", "namespaces")["items"]
    living = {one["metadata"]["name"] for one in left if one["status"]["phase"] == "Active"}
    assert not living & {"shop", "billing", "orders", "rabbitmq"}


def test_every_documented_command_is_found_and_run() -> None:
    """The search finds every command of the pages: no fewer than when this test was written."""
    found = [command for page in _pages() for command in commands(page.read_text())]
    assert len(found) > 110
    for beginning in RUN_ELSEWHERE:
        assert any(command.startswith(beginning) for command in found), beginning


def _pages() -> list[Path]:
    """All commands that are not followed step by step."""
    pages = sorted((CHECKOUT / "docs").rglob("*.md"))
    followed = {"get-started.md", "tutorial.md", "production-handler.md"}
    return [page for page in pages if page.name not in followed]


def _walk(folder: Path, environment: dict[str, str], pages: dict[str, str]) -> None:
    for name, text in pages.items():
        page = folder / f"{name}.md"
        page.write_text(with_free_ports(text))
        walk(page, folder, environment, SECONDS)


def _type_everything(folder: Path, environment: dict[str, str]) -> None:
    """Run in `shop`, where `hello` has a worker and gets a dead letter for each command that needs one."""
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
            **dict.fromkeys(STOOD_FOR, lambda _: "hello"),
            "ID": lambda _: _dead_letter(),
        },
        {
            **dict.fromkeys(("rabbitmqctl", "rabbitmq-diagnostics", "rabbitmq-queues"), lambda: in_rabbitmq),
            "workqueue": lambda: f"kubectl exec {_pod('shop')} -c worker --",
        },
        _prepare,
    )
    (folder / "jobs.txt").write_text("one\ntwo\n")
    for user in ("hello", "uploader"):
        kubectl("-n", "rabbitmq", "exec", "deployment/rabbitmq", "--", "rabbitmqctl", "add_user", user, user)
    for page in _pages():
        typed = [
            command
            for command in commands(with_free_ports(page.read_text()))
            if not command.startswith(tuple(RUN_ELSEWHERE))
        ]
        if typed:
            _steer(replicas=None, suspend=False, scaling={"minReplicas": 1})
            terminal.type(typed)


def _prepare(command: str) -> None:
    eventually(_settled, 240, "every Deployment has the pods that it wants, all of them Ready")
    if "dead show" in command:
        _dead_letter()
    if "--trigger nightly" in command:
        _steer(recurring=[{"name": "nightly", "cron": "30 2 * * *"}])


def _settled() -> bool:
    """Wait until no pod starts or ends: `kubectl logs` and `exec` take any pod that they find."""
    found = kubectl_json("get", "deployments,pods", "--all-namespaces")["items"]
    return all(
        _has_its_pods(one) if one["kind"] == "Deployment" else _is_ready(one)
        for one in found
        if one["metadata"]["namespace"] in NAMESPACES
    )


def _has_its_pods(deployment: Object) -> bool:
    status, wanted = deployment["status"], deployment["spec"]["replicas"]
    seen = status.get("observedGeneration", 0) == deployment["metadata"]["generation"]
    counts = {status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")}
    return seen and counts == {wanted}


def _is_ready(pod: Object) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def _steer(**spec: object) -> None:
    patch = json.dumps({"spec": spec})
    kubectl("patch", "wq", "hello", "--namespace=shop", "--type=merge", f"--patch={patch}")


def _pod(namespace: str) -> str:
    """A pod that is Ready: a worker of `hello`, or one of the operator's."""
    label = {"shop": "workqueue.dev/workqueue=hello"}.get(
        namespace, "app.kubernetes.io/name=workqueue-operator"
    )

    def ready() -> str | None:
        pods = kubectl_json("get", "pods", f"--namespace={namespace}", f"--selector={label}")["items"]
        return next((str(pod["metadata"]["name"]) for pod in pods if _is_ready(pod)), None)

    return eventually(ready, 240, f"a pod in {namespace} is Ready")


def _dead_letter() -> str:
    """The id of a message that has just become a dead letter."""
    inside = ("exec", "--namespace=shop", _pod("shop"), "--container=worker", "--", "workqueue")
    kubectl(*inside, "send", "--queue", "hello", "bad")

    def dead() -> str | None:
        letters = json.loads(kubectl(*inside, "dead", "list", "--queue", "hello", "--json"))
        return letters["messages"][0]["id"] if letters["messages"] else None

    return eventually(dead, 120, "the message is a dead letter")


def _clean() -> None:
    """Remove what an interrupted run has left. The definition goes too, and with it every WorkQueue."""
    demo = kubectl("get", "namespace", demo_install.NAMESPACE, "--ignore-not-found", "--output=name")
    assert not demo, (
        "A demo is installed in this cluster, and these tests would delete it: run `make walkthrough`."
    )
    kubectl("delete", "namespace", *NAMESPACES, "--ignore-not-found", "--timeout=120s")
    release_workqueues()
    kubectl("delete", "crd", CRD, "--ignore-not-found", "--timeout=60s")
    for kind in ("clusterrole", "clusterrolebinding"):
        kubectl("delete", kind, "--selector=app.kubernetes.io/name=workqueue-operator", "--ignore-not-found")
