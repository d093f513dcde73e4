"""The cluster that the environment variable CLUSTER selects: local, kind, or that of the current kubectl context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hack.cluster import checkout, kind, lifecycle, plan
from hack.cluster.checkout import Choice
from hack.cluster.console import say
from hack.cluster.errors import ClusterError
from hack.cluster.images import Archive
from hack.cluster.instance import DEFAULT_NAME, Instance
from hack.cluster.kind import KindCluster
from hack.cluster.plan import Part


class Cluster(Protocol):
    """What the commands need of a cluster.

    Attributes:
        takes_images: whether images are loaded from archives. Otherwise, the cluster pulls them from a registry.
    """

    takes_images: bool

    def up(self, more: Sequence[Part] = ()) -> None:
        """Start the cluster unless it runs, make `more` at the same time, and write this checkout's .cluster."""

    def down(self) -> None:
        """Delete the cluster and this checkout's .cluster."""

    def status(self) -> bool:
        """Print the state of the cluster and return whether it is up."""

    def load(self, archive: Path, /) -> str:
        """Load an image archive and return what the import printed."""

    def load_once(self, archive: Archive, /) -> None:
        """Load an image unless the cluster has it."""

    def inside(self, command: Sequence[str], /) -> list[str]:
        """Return a command that runs `command` in the cluster's network."""


def selected() -> Cluster:
    """Return the cluster that CLUSTER and WORKQUEUE_CLUSTER_NAME select.

    Raises:
        ClusterError: one of them has an unusable value.
    """
    match checkout.choice():
        case Choice.LOCAL:
            return LocalCluster(Instance.from_environment())
        case Choice.KIND:
            return KindCluster(Instance.from_environment())
        case Choice.CURRENT:
            return CurrentCluster()


class LocalCluster:
    """The cluster of hack.cluster.lifecycle, which needs no container engine."""

    takes_images = True

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        lifecycle.require_linux_root()

    def up(self, more: Sequence[Part] = ()) -> None:
        """Start it, and say if there is a faster way for a first start."""
        if lifecycle.parts() and kind.is_available():
            say(
                f"This machine has {kind.engine()} and kind: with CLUSTER=kind the cluster starts in about 1 minute. "
                "Without it, Kubernetes is built from source."
            )
        lifecycle.up(self._instance, more)

    def down(self) -> None:
        """Delete the cluster."""
        lifecycle.down(self._instance)

    def status(self) -> bool:
        """Print the state of each daemon."""
        return lifecycle.status(self._instance)

    def load(self, archive: Path) -> str:
        """Load an image archive."""
        return lifecycle.load(self._instance, archive)

    def load_once(self, archive: Archive) -> None:
        """Load an image unless the cluster has it."""
        lifecycle.load_once(self._instance, archive)

    def inside(self, command: Sequence[str]) -> list[str]:
        """Enter the cluster's network namespace."""
        return lifecycle.inside(self._instance, command)


class CurrentCluster:
    """The cluster of the current kubectl context, which this tool neither starts nor stops."""

    takes_images = False

    def up(self, more: Sequence[Part] = ()) -> None:
        """Write this checkout's .cluster for it."""
        plan.run(more)
        context, folder = checkout.use_current_context()
        say(f"Ready: {folder / 'kubeconfig'} is for the context {context}.")

    def down(self) -> None:
        """Remove this checkout's .cluster."""
        checkout.remove(DEFAULT_NAME)
        say("Removed .cluster. The cluster of the current context is unchanged.")

    def status(self) -> bool:
        """Refuse: kubectl shows more."""
        raise _refusal("status")

    def load(self, _archive: Path) -> str:
        """Refuse: its nodes pull images from a registry."""
        raise _refusal("load")

    def load_once(self, _archive: Archive) -> None:
        """Refuse, as `load`."""
        raise _refusal("load")

    def inside(self, _command: Sequence[str]) -> list[str]:
        """Refuse: its network is elsewhere."""
        raise _refusal("exec")


def _refusal(command: str) -> ClusterError:
    return ClusterError(f"`{command}` works on clusters of this tool only. Unset CLUSTER, or use kubectl.")
