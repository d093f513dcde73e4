"""Find Prometheus and promtool: on PATH, or from Debian, unpacked once into the user's cache folder.

The tests of the alerts run promtool, and the tests of the dashboard run Prometheus. The package is not installed,
because it would start a service.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Final

from hack.cluster.commands import run
from hack.cluster.console import step
from hack.cluster.errors import ClusterError
from hack.cluster.locks import locked
from hack.cluster.rootfs import cache_folder

PACKAGE: Final = "prometheus"


def prometheus() -> Path:
    """Return the path of the Prometheus server.

    Raises:
        ClusterError: Prometheus is not on PATH, and apt-get is missing or failed.
    """
    return _program("prometheus")


def promtool() -> Path:
    """Return the path of the tool that checks and tests rules.

    Raises:
        ClusterError: as for `prometheus`.
    """
    return _program("promtool")


@cache
def _program(name: str) -> Path:
    on_path = shutil.which(name)
    return Path(on_path) if on_path else _unpacked() / "usr/bin" / name


def _unpacked() -> Path:
    """Return the folder with the files of the package."""
    folder = cache_folder() / "debian" / PACKAGE
    if folder.is_dir():
        return folder
    if shutil.which("apt-get") is None:
        raise ClusterError("Prometheus is not on PATH and there is no apt-get. Install Prometheus.")
    with locked(folder.with_name(f".{PACKAGE}.lock"), "Another process unpacks Prometheus; waiting for it."):
        if not folder.is_dir():
            unfinished = folder.with_name(f".{PACKAGE}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            with step("unpacking Debian's Prometheus", "about 5 s, once"):
                _unpack(unfinished)
            unfinished.rename(folder)
    return folder


def _unpack(folder: Path) -> None:
    doing = "Downloading Prometheus"
    download: list[str | Path] = ["apt-get", "--quiet", "download", PACKAGE]
    try:
        run(download, doing=doing, folder=folder)
    except ClusterError:
        run(["apt-get", "--quiet", "update"], doing="Updating the package lists")
        run(download, doing=doing, folder=folder)
    (archive,) = folder.glob("*.deb")
    run(["dpkg-deb", "--extract", archive, folder], doing="Unpacking Prometheus")
    archive.unlink()
