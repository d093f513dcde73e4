"""Debian packages: what the machine has is used, what it lacks is installed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from hack.cluster.commands import run
from hack.cluster.console import step
from hack.cluster.daemons import CNI_PLUGINS
from hack.cluster.errors import ClusterError

PROGRAMS: Final = {
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "ctr": "containerd",
    "hostname": "hostname",
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "runc": "runc",
    "tar": "tar",
    "unshare": "util-linux",
}
CNI_PACKAGE: Final = "containernetworking-plugins"


def missing() -> list[str]:
    """The packages of which the machine lacks a program."""
    packages = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if not any((folder / "bridge").exists() for folder in CNI_PLUGINS):
        packages.add(CNI_PACKAGE)
    return sorted(packages)


def install() -> None:
    """Install what is missing; the package lists are renewed only when they do not know a package.

    Raises:
        ClusterError: there is no apt-get, or it failed.
    """
    packages = missing()
    if not packages:
        return
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"Programs are missing and there is no apt-get: install what Debian has in {names}."
        )
    with step(f"installing the Debian packages {names}", "about 1 minute, once"):
        try:
            _apt_get("install", "--no-install-recommends", *packages)
        except ClusterError:
            _apt_get("update")
            _apt_get("install", "--no-install-recommends", *packages)


def _apt_get(*arguments: str) -> None:
    run(
        ["apt-get", "--quiet", "--yes", *arguments],
        doing="Installing Debian packages",
        environment={"DEBIAN_FRONTEND": "noninteractive"},
        folder=Path("/"),
    )
