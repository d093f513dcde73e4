"""Write the folder .cluster of the checkout: a kubeconfig, kubectl and helm."""

from __future__ import annotations

import os
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Final

from hack.cluster import toolchain
from hack.cluster.commands import run
from hack.cluster.errors import ClusterError
from hack.cluster.instance import DEFAULT_NAME

CHECKOUT: Final = Path(__file__).parents[2]
FOLDER: Final = CHECKOUT / ".cluster"
CHOICE_VARIABLE: Final = "CLUSTER"


class Choice(StrEnum):
    """The values of the variable CLUSTER."""

    LOCAL = ""
    KIND = "kind"
    CURRENT = "current"


def choice() -> Choice:
    """Return which cluster the user asked for, by default a local one that needs no container engine.

    Raises:
        ClusterError: CLUSTER has another value.
    """
    value = os.environ.get(CHOICE_VARIABLE, "")
    try:
        return Choice(value)
    except ValueError as error:
        raise ClusterError(
            f"{CHOICE_VARIABLE} is {value!r}: set it to 'kind' for a cluster in docker or podman, to 'current' for "
            "the cluster of your current kubectl context, or leave it unset for a local one."
        ) from error


def folder(cluster: str) -> Path:
    """Return the folder with the access to a cluster: .cluster, or a folder below it for a non-default name."""
    return FOLDER if cluster == DEFAULT_NAME else FOLDER / cluster


def write(cluster: str, kubeconfig: str) -> Path:
    """Write the kubeconfig, and links to kubectl and helm in a folder bin beside it. Return the folder of both."""
    target = folder(cluster)
    programs = target / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    file = target / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(kubeconfig)
    for program, path in (("kubectl", toolchain.kubectl()), ("helm", toolchain.helm())):
        link = programs / program
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    # Under sudo, these files are for the user who called sudo.
    for path in (FOLDER, target, file, programs):
        os.chown(path, int(os.environ.get("SUDO_UID", "-1")), int(os.environ.get("SUDO_GID", "-1")))
    return target


def remove(cluster: str) -> None:
    """Remove the files of `write`."""
    target = folder(cluster)
    (target / "kubeconfig").unlink(missing_ok=True)
    shutil.rmtree(target / "bin", ignore_errors=True)
    for emptied in (target, FOLDER):
        if emptied.is_dir() and not any(emptied.iterdir()):
            emptied.rmdir()


def use_current_context() -> tuple[str, Path]:
    """Write .cluster for the cluster of the current kubectl context, if that cluster answers.

    Returns:
        The name of the context, and the folder.

    Raises:
        ClusterError: there is no current context, or its cluster does not answer.
    """
    doing = "Using the current kubectl context"
    kubectl = toolchain.kubectl()
    context = run([kubectl, "config", "current-context"], doing=doing).strip()
    run([kubectl, "get", "--raw", "/readyz", "--request-timeout=10s"], doing=doing)
    flattened = run([kubectl, "config", "view", "--minify", "--flatten", "--raw"], doing=doing)
    return context, write(DEFAULT_NAME, flattened)
