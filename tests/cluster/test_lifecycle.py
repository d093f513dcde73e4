"""A second cluster beside the default one: interrupted, killed, renewed, and removed without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster.instance import Instance
from hack.cluster.processes import Process
from tests.support.localcluster import CHECKOUT, cluster, command, environment
from tests.support.machine import process_namespace, processes_in, settings, snapshot
from tests.support.wait import eventually

NAME = "test"
GONE_SECONDS = 60


@pytest.fixture(scope="module")
def machine_settings() -> dict[str, str]:
    """The machine's kernel settings before this module started anything."""
    return settings()


@pytest.fixture(scope="module")
def machine(machine_settings: dict[str, str]) -> frozenset[str]:
    """The machine before this module started anything."""
    cluster("down", name=NAME)
    return snapshot(NAME)


@pytest.fixture(scope="module")
def instance(machine: frozenset[str]) -> Iterator[Instance]:
    """The name of a cluster that is not up; the tests of this module depend on their order."""
    yield Instance(NAME)
    cluster("down", name=NAME)


def node(instance: Instance) -> Process:
    record = instance.record()
    assert record is not None
    return record.node


def start_up() -> subprocess.Popen[bytes]:
    return subprocess.Popen(command("up"), env=environment(NAME), cwd=CHECKOUT, stderr=subprocess.DEVNULL)


def test_killed_up_is_completed_by_next_up(instance: Instance) -> None:
    with start_up() as up:
        eventually(instance.record, 120, "process 1 was started")
        up.kill()
    half_way = node(instance)
    cluster("up", name=NAME)
    assert node(instance) == half_way
    cluster("status", name=NAME)


def test_up_after_total_kill_reports_it_and_starts_empty_cluster(instance: Instance) -> None:
    dead = node(instance)
    namespace = process_namespace(dead.pid)
    os.kill(dead.pid, signal.SIGKILL)
    eventually(lambda: not processes_in(namespace), GONE_SECONDS, "the kernel ended the daemons")
    assert "test: died" in cluster("status", name=NAME, codes=[1]).stdout

    with start_up() as first:
        said = cluster("up", name=NAME).stderr
    assert first.returncode == 0
    assert node(instance) != dead
    assert "already up" in said or "starts empty" in said


def test_cluster_leaves_kernel_settings_unchanged(
    instance: Instance, machine_settings: dict[str, str]
) -> None:
    seen_by_kubelet = Path(f"/proc/{node(instance).pid}/root/proc/sys/kernel/panic_on_oops").read_text()
    assert seen_by_kubelet == "1"
    assert settings() == machine_settings


def test_ended_daemon_is_restarted(instance: Instance) -> None:
    namespace = process_namespace(node(instance).pid)
    (before,) = schedulers(namespace)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: set(schedulers(namespace)) - {before}, 60, "another scheduler is running")
    eventually(
        lambda: cluster("status", name=NAME, codes=[0, 1]).stdout.count(" running") == 9,
        60,
        "all nine daemons are running",
    )


def test_down_leaves_nothing_behind(instance: Instance, machine: frozenset[str]) -> None:
    namespace = process_namespace(node(instance).pid)
    # A pod adds a process, an interface, mounts, control groups and firewall rules.
    spec = {"containers": [{"name": "rabbitmq", "image": "rabbitmq:4-management"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    kubectl = [str(CHECKOUT / ".cluster" / NAME / "bin/kubectl"), f"--kubeconfig={instance.kubeconfig}"]
    subprocess.run([*kubectl, "create", "--filename=-"], input=json.dumps(pod).encode(), check=True)
    subprocess.run([*kubectl, "wait", "--for=condition=Ready", "pod/pod", "--timeout=240s"], check=True)
    assert len(snapshot(NAME) - machine) > 1
    cluster("down", name=NAME)

    assert processes_in(namespace) == []
    assert snapshot(NAME) - machine == frozenset()
    assert not (CHECKOUT / ".cluster" / NAME).exists()
    assert "test: down" in cluster("status", name=NAME, codes=[1]).stdout


def schedulers(namespace: str) -> list[int]:
    return [pid for pid in processes_in(namespace) if b"kube-scheduler\0" in command_line(pid)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return b""
