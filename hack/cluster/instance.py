"""Name a cluster, its folders, and the record of its running processes.

All checkouts on a machine share one cluster. A different name is a second cluster beside it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hack.cluster.errors import ClusterError
from hack.cluster.processes import Process

NAME_VARIABLE: Final = "WORKQUEUE_CLUSTER_NAME"
DEFAULT_NAME: Final = "workqueue"
STATES: Final = Path("/var/lib/workqueue-cluster")


@dataclass(frozen=True)
class Record:
    """The record of a running cluster: process 1, the port on loopback, and its build."""

    node: Process
    port: int
    build: str


@dataclass(frozen=True)
class Instance:
    """One cluster on this machine."""

    name: str

    @classmethod
    def from_environment(cls) -> Instance:
        """Return the cluster that WORKQUEUE_CLUSTER_NAME names, `workqueue` by default.

        Raises:
            ClusterError: the name cannot be used in a path.
        """
        name = os.environ.get(NAME_VARIABLE) or DEFAULT_NAME
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise ClusterError(
                f"{NAME_VARIABLE} is {name!r}: use at most 32 lower-case letters, digits and hyphens."
            )
        return cls(name)

    @property
    def state(self) -> Path:
        """Return the folder that `down` deletes with the cluster."""
        return STATES / self.name

    @property
    def lock(self) -> Path:
        """Return the lock file that `up` and `down` hold."""
        return Path("/run") / f"workqueue-cluster-{self.name}.lock"

    @property
    def cgroup(self) -> str:
        """Return the control group of the pods, below the root of each hierarchy."""
        return f"workqueue-cluster-{self.name}"

    @property
    def configuration(self) -> Path:
        """Return the folder of certificates and configuration files, outside the cluster's mount namespace."""
        return self.state / "var/lib/kubernetes"

    @property
    def logs(self) -> Path:
        """Return the folder with one log file for each daemon."""
        return self.state / "var/log/cluster"

    @property
    def kubeconfig(self) -> Path:
        """Return the administrator's kubeconfig, which uses loopback. Checkouts copy it."""
        return self.state / "kubeconfig"

    def record(self) -> Record | None:
        """Return the record of the running cluster, or None if its process 1 is gone."""
        try:
            data = json.loads(self._record_file.read_text())
            record = Record(Process(**data["node"]), data["port"], data["build"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return record if record.node.is_alive() else None

    def remember(self, record: Record) -> None:
        """Write the record."""
        unfinished = self._record_file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(record), indent=2))
        unfinished.rename(self._record_file)

    @property
    def _record_file(self) -> Path:
        return self.state / "cluster.json"
