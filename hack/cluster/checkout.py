"""The folder .cluster of the checkout: access for plain kubectl and helm, and these programs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from hack.cluster import toolchain
from hack.cluster.commands import run
from hack.cluster.errors import ClusterError

CHECKOUT: Final = Path(__file__).parents[2]
FOLDER: Final = CHECKOUT / ".cluster"
KUBECONFIG: Final = FOLDER / "kubeconfig"
CHOICE_VARIABLE: Final = "CLUSTER"


def wants_current_context() -> bool:
    """Whether the user asked for the cluster of the current kubectl context instead of a local one.

    Raises:
        ClusterError: CLUSTER has another value than `current`.
    """
    choice = os.environ.get(CHOICE_VARIABLE, "")
    if choice not in {"", "current"}:
        raise ClusterError(
            f"{CHOICE_VARIABLE} is {choice!r}: set it to 'current' for the cluster of your current kubectl "
            "context, or leave it unset for a local one."
        )
    return choice == "current"


def write(kubeconfig: str) -> None:
    """Write the kubeconfig, and links to kubectl and helm in .cluster/bin."""
    (FOLDER / "bin").mkdir(parents=True, exist_ok=True)
    KUBECONFIG.touch(mode=0o600)
    KUBECONFIG.write_text(kubeconfig)
    for program, path in (("kubectl", toolchain.kubectl()), ("helm", toolchain.helm())):
        link = FOLDER / "bin" / program
        link.unlink(missing_ok=True)
        link.symlink_to(path)


def remove() -> None:
    """Remove .cluster."""
    shutil.rmtree(FOLDER, ignore_errors=True)


def use_current_context() -> str:
    """Write .cluster for the cluster of the current kubectl context, once that answers; its name.

    Raises:
        ClusterError: there is no current context, or its cluster does not answer.
    """
    doing = "Using the current kubectl context"
    kubectl = toolchain.kubectl()
    context = run([kubectl, "config", "current-context"], doing=doing).strip()
    run([kubectl, "get", "--raw", "/readyz", "--request-timeout=10s"], doing=doing)
    write(run([kubectl, "config", "view", "--minify", "--flatten", "--raw"], doing=doing))
    return context
