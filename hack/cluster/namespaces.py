"""Start process 1 of a cluster in new namespaces, enter the namespaces, and end the cluster."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hack.cluster import processes
from hack.cluster.console import say
from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance
from hack.cluster.mounts import mounts
from hack.cluster.processes import Process

MODULE: Final = "hack.cluster.node"
CHECKOUT: Final = Path(__file__).parents[2]
PREFERRED_PORT: Final = 16443
CPU_SHARES: Final = (("cpu.shares", "8192"), ("cpu.weight", "800"))
"""Of all pods together, in either version of control groups. By default, all pods would have the share of one process
of the tests beside them."""

CPUSET_FILES: Final = ("cpuset.cpus", "cpuset.mems")
CONTROLLERS: Final = frozenset({"cpu", "cpuset", "hugetlb", "io", "memory", "pids"})
# No other variables of the caller: daemons would use its Internet proxy to reach one another.
ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
REMOVAL_SECONDS: Final = 10.0


def listen() -> socket.socket:
    """Return a socket on the host's loopback, on the default port if that port is free."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", PREFERRED_PORT))
    except OSError:
        listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def start(instance: Instance, binaries: Path, listener: socket.socket) -> Process:
    """Start process 1 of a configured cluster.

    Returns:
        Process 1 with its number on the host.

    Raises:
        ClusterError: the kernel or the surrounding container does not allow the namespaces.
    """
    instance.logs.mkdir(parents=True)
    _make_cgroups(instance.cgroup)
    log = instance.logs / "node.log"
    with log.open("wb") as output:
        unshare = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
                *(sys.executable, "-m", MODULE, instance.name),
                *(str(instance.state), str(binaries), str(listener.fileno())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            cwd=CHECKOUT,
            env=ENVIRONMENT,
            start_new_session=True,
            pass_fds=[listener.fileno()],
        )
    assert unshare.stdout is not None
    with unshare.stdout:
        first_line = unshare.stdout.readline()
    node = Process.of(int(first_line)) if first_line else None
    if node is None:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise ClusterError(
            "The cluster's namespaces could not be made. Use a machine or a container that lets "
            f"root mount and make network namespaces. The last line of {log} is: {lines[-1] if lines else 'nothing'}"
        )
    return node


def enter(node: Process, *kinds: str) -> list[str]:
    """Return the start of a command that runs in namespaces of the cluster.

    Args:
        kinds: any of `net`, `mount` and `pid`.
    """
    return ["nsenter", f"--target={node.pid}", *(f"--{kind}" for kind in kinds), "--"]


def end(instance: Instance) -> bool:
    """Remove the processes, control groups and state folder of a cluster in any state.

    Returns:
        Whether there was something to remove.

    Raises:
        ClusterError: a part of the cluster could not be removed.
    """
    found = processes.with_arguments(MODULE, instance.name)
    groups = list(_cgroups(instance.cgroup))
    if not found and not groups and not instance.state.exists():
        return False
    if not processes.kill(found):
        numbers = ", ".join(str(process.pid) for process in found)
        raise ClusterError(
            f"The processes {numbers} of the cluster do not die. Look at them with ps, then run this again."
        )
    for group in groups:
        _remove_cgroup(group)
    _remove_folder(instance.state)
    return True


def _remove_folder(state: Path) -> None:
    shutil.rmtree(state, ignore_errors=True)
    if state.exists():
        shutil.rmtree(state)
    if state.parent.is_dir() and not any(state.parent.iterdir()):
        state.parent.rmdir()


def _hierarchies() -> Iterator[tuple[Path, str]]:
    """Yield the mount point and type of each control group hierarchy."""
    for mount in mounts():
        if mount.kind in {"cgroup", "cgroup2"}:
            yield mount.point, mount.kind


def _cgroups(name: str) -> Iterator[Path]:
    for point, _ in _hierarchies():
        if (point / name).is_dir():
            yield point / name


def _make_cgroups(name: str) -> None:
    """Make the group of the pods in every hierarchy. The kubelet refuses to start without it."""
    for point, kind in _hierarchies():
        if kind == "cgroup2":
            _delegate(point)
        group = point / name
        group.mkdir(exist_ok=True)
        for file in CPUSET_FILES:
            # In cgroup version 1, a new cpuset has no processors and no memory nodes until they are set.
            if kind == "cgroup" and (group / file).exists():
                (group / file).write_text((point / file).read_text())
        for file, share in CPU_SHARES:
            if (group / file).exists():
                (group / file).write_text(share)


def _delegate(point: Path) -> None:
    available = set((point / "cgroup.controllers").read_text().split())
    delegated = set((point / "cgroup.subtree_control").read_text().split())
    for controller in sorted((available - delegated) & CONTROLLERS):
        try:
            (point / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError as error:
            say(f"The control group controller {controller} is not available: {error.strerror}.")


def _remove_cgroup(group: Path) -> None:
    deadline = time.monotonic() + REMOVAL_SECONDS
    while True:
        folders = [Path(folder) for folder, _, _ in os.walk(group, topdown=False)]
        try:
            for folder in folders:
                folder.rmdir()
        except OSError as error:
            # The kernel needs a moment to remove the last process from the group.
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"The control group {group} is still in use ({error.strerror}). End the processes that "
                    "are in it, then run this again."
                ) from error
            time.sleep(0.1)
        else:
            return
