"""The default cluster of this machine, which others may use: started if necessary, never stopped."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hack.cluster.instance import DEFAULT_NAME, Instance
from tests.support.kubernetes import apply, kubectl, kubectl_json, temporary_namespace
from tests.support.localcluster import CHECKOUT, cluster, environment
from tests.support.wait import eventually


@pytest.fixture(scope="module", autouse=True)
def running() -> None:
    """The cluster is up."""
    cluster("up")


def test_second_up_changes_nothing() -> None:
    before = Instance(DEFAULT_NAME).record()
    done = cluster("up")
    assert "already up" in done.stderr
    assert Instance(DEFAULT_NAME).record() == before


def test_cluster_is_found_from_another_checkout(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "hack", tmp_path / "hack")
    cluster("up", checkout=tmp_path)
    assert (tmp_path / ".cluster/kubeconfig").read_text() == (CHECKOUT / ".cluster/kubeconfig").read_text()


def test_status_lists_every_daemon_as_running() -> None:
    lines = cluster("status").stdout.splitlines()
    assert lines[0].startswith("workqueue: up")
    assert not [line for line in lines if "not running" in line]


def test_cluster_runs_requested_kubernetes_version() -> None:
    assert kubectl_json("version")["serverVersion"]["gitVersion"] == "v1.35.4"


def test_aggregated_api_servers_can_authenticate_callers() -> None:
    name = ("get", "configmap", "--namespace=kube-system", "extension-apiserver-authentication")
    data = kubectl_json(*name)["data"]
    assert {"client-ca-file", "requestheader-client-ca-file"} <= set(data)


def test_kubectl_and_helm_are_beside_the_kubeconfig() -> None:
    assert all((CHECKOUT / ".cluster/bin" / program).exists() for program in ("kubectl", "helm"))


def test_command_runs_in_cluster_network() -> None:
    done = cluster("exec", "--", "bash", "-c", "exec 3<>/dev/tcp/10.96.0.1/443 && echo reached")
    assert done.stdout == "reached\n"


def test_exec_returns_exit_code_of_command() -> None:
    cluster("exec", "--", "sh", "-c", "exit 7", codes=[7])


def test_load_of_non_archive_fails_with_one_sentence(tmp_path: Path) -> None:
    done = cluster("load", str(tmp_path / "nothing.tar"), codes=[1])
    assert "cannot be read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(600)
def test_image_with_handlers_is_built_and_loaded(tmp_path: Path) -> None:
    """As in the tutorial: two lines of Dockerfile, and no engine."""
    (tmp_path / "Dockerfile").write_text("FROM workqueue-operator:dev\nCOPY thumbs.py /app/\n")
    for size in ("small", "large"):
        (tmp_path / "thumbs.py").write_text(f"SIZE = {size!r}\n")
        done = subprocess.run(
            [sys.executable, "-m", "hack.image.load", "thumbs:test", str(tmp_path)],
            cwd=CHECKOUT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "write it into `worker.image`" in done.stderr
        script = "from thumbs import SIZE; import workqueue; print(SIZE)"
        with temporary_namespace(pod_security="restricted") as namespace:
            apply(pod_of("thumbs:test", ["python", "-c", script]), namespace=namespace)
            assert output_of_client(namespace).split() == [size]


def test_restricted_pod_runs_and_finds_services_by_name() -> None:
    with temporary_namespace(pod_security="restricted") as namespace:
        script = "getent hosts kubernetes.default.svc && id --user"
        apply(pod_of("rabbitmq:4-management", ["sh", "-c", script]), namespace=namespace)
        address, user = output_of_client(namespace).split("\n")[:2]
    assert address.split() == ["10.96.0.1", "kubernetes.default.svc.cluster.local"]
    assert user == "999"


def output_of_client(namespace: str) -> str:
    """What the pod `client` printed until its end."""
    pod = ("pod/client", f"--namespace={namespace}")
    eventually(
        lambda: kubectl_json("get", *pod)["status"]["phase"] == "Succeeded", 240, "the pod ran to its end"
    )
    return kubectl("logs", *pod)


def pod_of(image: str, command: list[str]) -> dict[str, Any]:
    """A pod that runs a command, within the restricted standard."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "client",
        "image": image,
        "command": command,
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
