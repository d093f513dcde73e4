"""The default cluster of this machine, which others may use: started if necessary, never stopped."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from hack.cluster.instance import DEFAULT_NAME, Instance
from tests.support.kubernetes import apply, kubectl, kubectl_json, temporary_namespace
from tests.support.localcluster import CHECKOUT, cluster
from tests.support.wait import eventually

UP_AGAIN_SECONDS = 30


@pytest.fixture(scope="module", autouse=True)
def running() -> None:
    """The cluster is up."""
    cluster("up")


def test_second_up_is_quick_and_changes_nothing() -> None:
    before = Instance(DEFAULT_NAME).record()
    started = time.monotonic()
    done = cluster("up")
    assert time.monotonic() - started < UP_AGAIN_SECONDS
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


def test_restricted_pod_runs_and_finds_services_by_name() -> None:
    with temporary_namespace(pod_security="restricted") as namespace:
        apply(rabbitmq_pod("getent hosts kubernetes.default.svc && id --user"), namespace=namespace)
        pod = ("pod/client", f"--namespace={namespace}")
        eventually(
            lambda: kubectl_json("get", *pod)["status"]["phase"] == "Succeeded", 60, "the pod ran to its end"
        )
        address, user = kubectl("logs", *pod).split("\n")[:2]
    assert address.split() == ["10.96.0.1", "kubernetes.default.svc.cluster.local"]
    assert user == "999"


def rabbitmq_pod(script: str) -> dict[str, Any]:
    """A pod of RabbitMQ's image that runs a script, within the restricted standard."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "client",
        "image": "rabbitmq:4-management",
        "command": ["sh", "-c", script],
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
