"""Install the Debian packages that the machine lacks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hack.cluster.commands import run
from hack.cluster.console import step
from hack.cluster.daemons import CNI_PLUGINS
from hack.cluster.errors import ClusterError
from hack.cluster.locks import locked
from hack.cluster.plan import Part
from hack.cluster.rootfs import cache_folder

PART: Final = "Debian packages"
PROGRAMS: Final = {
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "ctr": "containerd",
    "debootstrap": "debootstrap",
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
    """Return the packages with a program that is not on PATH."""
    packages = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if not any((folder / "bridge").exists() for folder in CNI_PLUGINS):
        packages.add(CNI_PACKAGE)
    return sorted(packages)


def parts() -> list[Part]:
    """Return a part if packages are missing."""
    return [Part(PART, 60.0, install)] if missing() else []


def install() -> None:
    """Install the packages that the cluster lacks.

    Raises:
        ClusterError: apt-get is missing or failed.
    """
    install_packages(missing())


def install_programs(programs: Mapping[str, str]) -> None:
    """Install the packages of those programs that are not on PATH.

    Args:
        programs: the package of each program.

    Raises:
        ClusterError: apt-get is missing or failed.
    """
    install_packages(
        sorted({package for program, package in programs.items() if shutil.which(program) is None})
    )


def install_packages(packages: Sequence[str]) -> None:
    """Install packages, one process at a time. The package lists are updated only if they do not know a package.

    Raises:
        ClusterError: apt-get is missing or failed.
    """
    if not packages:
        return
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"Programs are missing and there is no apt-get. Install the programs of the Debian packages {names}."
        )
    lock = locked(
        cache_folder() / ".packages.lock", "Another process installs Debian packages; waiting for it."
    )
    with lock, step(f"installing the Debian packages {names}", "about 1 minute, once"):
        try:
            _apt_get("install", "--no-install-recommends", *packages)
        except ClusterError:
            _apt_get("update")
            _apt_get("install", "--no-install-recommends", *packages)


def _apt_get(*arguments: str) -> None:
    run(
        # Another program may install packages, too, such as the updates of a machine that has just started.
        ["apt-get", "--quiet", "--yes", "--option=DPkg::Lock::Timeout=300", *arguments],
        doing="Installing Debian packages",
        environment={"DEBIAN_FRONTEND": "noninteractive"},
        folder=Path("/"),
    )
