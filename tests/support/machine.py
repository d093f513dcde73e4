"""Leftovers of a cluster on this machine, seen from outside, to compare before and after."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from hack.cluster.processes import Process

FOLDERS: Final = (
    "/etc/cni",
    "/opt/cni",
    "/opt/containerd",
    "/run/containerd",
    "/run/flannel",
    "/run/netns",
    "/usr/libexec/kubernetes",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/kubernetes",
    "/var/log/cluster",
    "/var/log/containers",
    "/var/log/pods",
)
SETTINGS: Final = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


def snapshot(cluster: str) -> frozenset[str]:
    """The current folders, cluster lock, mounts, interfaces, firewall rules and control groups."""
    control_groups = Path("/sys/fs/cgroup").glob(f"**/workqueue-cluster-{cluster}")
    return frozenset(
        [
            *(str(path) for path in _entries(FOLDERS)),
            *(str(path) for path in Path("/run").glob(f"workqueue-cluster-{cluster}.*")),
            *(str(path) for path in Path("/var/lib/workqueue-cluster").glob(cluster)),
            *(f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines()),
            *(f"interface {path.name}" for path in Path("/sys/class/net").iterdir()),
            *(f"firewall {line}" for line in _firewall() if not line.startswith(("#", ":"))),
            *(str(path) for path in control_groups),
        ]
    )


def settings() -> dict[str, str]:
    """The kernel settings that Kubernetes would change."""
    return {name: Path("/proc/sys", name).read_text().strip() for name in SETTINGS}


def processes_in(namespace: str) -> list[int]:
    """The living processes in a process namespace, given as /proc/PID/ns/pid names it."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in numbers if _is_in(Path(f"/proc/{pid}"), namespace) and Process.of(pid)]


def process_namespace(pid: int) -> str:
    """The process namespace of a process."""
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _is_in(process: Path, namespace: str) -> bool:
    try:
        return str((process / "ns/pid").readlink()) == namespace
    except OSError:
        return False


def _entries(folders: Iterable[str]) -> Iterator[Path]:
    for folder in map(Path, folders):
        if folder.is_dir():
            yield folder
            yield from folder.iterdir()


def _firewall() -> list[str]:
    done = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
