"""A cluster in a container, with kind. It needs docker or podman, and starts in about one minute."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from hack.cluster import checkout, plan, toolchain
from hack.cluster.commands import run
from hack.cluster.console import say, step
from hack.cluster.errors import ClusterError
from hack.cluster.images import Archive
from hack.cluster.instance import Instance
from hack.cluster.locks import locked
from hack.cluster.plan import Part
from hack.cluster.rootfs import cache_folder

ENGINES: Final = ("docker", "podman")
ANSWER_SECONDS: Final = 10.0
READY: Final = "--wait=120s"


@cache
def engine() -> str | None:
    """Return the container engine that answers: `docker`, `podman`, or None."""
    return next((program for program in ENGINES if shutil.which(program) and _answers(program)), None)


def is_available() -> bool:
    """Return whether this machine has kind and a container engine for it."""
    return shutil.which("kind") is not None and engine() is not None


class KindCluster:
    """A kind cluster with the name of the instance."""

    takes_images = True

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    def up(self, more: Sequence[Part] = ()) -> None:
        """Start the cluster unless it runs, and write this checkout's .cluster.

        Raises:
            ClusterError: a program is missing, there is no container engine, or kind failed.
        """
        name = self._instance.name
        # In a folder of the user, because kind needs no root.
        lock = cache_folder() / f"kind-{name}.lock"
        with locked(lock, f"Another up or down of {name} is running; waiting for it."):
            missing = [program for program in ("kind", "kubectl") if shutil.which(program) is None]
            if missing:
                raise ClusterError(
                    f"CLUSTER=kind needs {' and '.join(missing)} on PATH. Install {'them' if missing[1:] else 'it'}, "
                    "or leave CLUSTER unset for a cluster without a container engine."
                )
            self._require_engine()
            parts = [*toolchain.parts(with_cluster=False), *more]
            if self._exists():
                say(f"The kind cluster {name} is already up.")
            else:
                parts.insert(0, Part(plan.CLUSTER, 60.0, self._create))
            plan.run(parts)
            kubeconfig = self._kind("get", "kubeconfig", f"--name={name}", doing="Reading the kubeconfig")
            folder = checkout.write(name, kubeconfig)
        say(f"Ready: export KUBECONFIG={folder / 'kubeconfig'} PATH={folder / 'bin'}:$PATH")

    def down(self) -> None:
        """Delete the cluster and this checkout's .cluster."""
        self._require_engine()
        self._kind("delete", "cluster", f"--name={self._instance.name}", doing="Deleting the cluster")
        checkout.remove(self._instance.name)
        say(f"The kind cluster {self._instance.name} is gone.")

    def status(self) -> bool:
        """Print the state of the cluster and return whether it is up."""
        self._require_engine()
        exists = self._exists()
        print(f"{self._instance.name}: {'up' if exists else 'down'}, kind with {engine()}")
        if exists:
            kubeconfig = checkout.folder(self._instance.name) / "kubeconfig"
            access = f"--kubeconfig={kubeconfig}"
            command: list[str | Path] = [toolchain.kubectl(), access, "get", "nodes", "--output=wide"]
            print(run(command, doing="Listing the nodes"), end="")
        return exists

    def load(self, archive: Path) -> str:
        """Load the images of a `docker save` archive into the cluster, and return what kind printed."""
        self._require_engine()
        arguments = ("load", "image-archive", archive, f"--name={self._instance.name}")
        return self._kind(*arguments, doing=f"Loading {archive}")

    def load_once(self, archive: Archive) -> None:
        """Load an image. kind itself skips an image that the node has."""
        with step(f"loading the image {archive.name}", "about 5 s"):
            self.load(archive.file)

    def inside(self, _command: Sequence[str]) -> list[str]:
        """Refuse: only the local cluster has a network namespace of its own on this machine."""
        raise ClusterError(
            "`exec` works on the local cluster only. Use `kubectl exec` or `kubectl port-forward`."
        )

    def _create(self) -> None:
        name = self._instance.name
        # kind would write into ~/.kube/config otherwise.
        own = checkout.folder(name) / "kubeconfig"
        own.parent.mkdir(parents=True, exist_ok=True)
        with step(f"starting the kind cluster {name}", "about 1 minute"):
            self._kind(
                "create", "cluster", f"--name={name}", f"--kubeconfig={own}", READY, doing="Starting kind"
            )

    def _exists(self) -> bool:
        return self._instance.name in self._kind("get", "clusters", doing="Listing kind clusters").split()

    def _kind(self, *arguments: str | Path, doing: str) -> str:
        environment = {"KIND_EXPERIMENTAL_PROVIDER": engine() or ""}
        return run(["kind", *arguments], doing=doing, environment=environment)

    def _require_engine(self) -> None:
        if engine() is None:
            raise ClusterError(
                "CLUSTER=kind needs a container engine, and neither docker nor podman answers. Start one, or leave "
                "CLUSTER unset for a cluster without a container engine."
            )


def _answers(program: str) -> bool:
    try:
        asked = subprocess.run([program, "version"], capture_output=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0
