"""An installation of the chart in the cluster under test."""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from hack.cluster.locks import locked
from tests.support import helm
from tests.support.kubernetes import (
    CHECKOUT,
    FOLDER,
    KUBECONFIG,
    create_namespace,
    delete_namespace,
    kubectl,
    kubectl_json,
)
from tests.support.wait import eventually
from workqueue_operator.names import CLAIM, LABEL_OPERATOR

CHART: Final = CHECKOUT / "charts/workqueue-operator"
WIDE: Final = "e2e-wide"
"""The prefix of the namespace of an operator for the whole cluster that tests have installed."""

USERS: Final = FOLDER / "wide-operator.users"
"""Each test that uses an operator for the whole cluster has a shared lock on this file."""


class OperatorRelease:
    """One helm release.

    Args:
        helm: runs helm with arguments and returns what it prints.
    """

    def __init__(self, name: str, namespace: str, helm: Callable[..., str]) -> None:
        self.name = name
        self.namespace = namespace
        self._helm = helm

    def install(self, chart: Path = CHART, **values: Any) -> None:
        """Run helm upgrade --install and wait until the release serves."""
        settings = {
            "image": {"repository": "workqueue-operator", "tag": "dev"},
            "crds": {"enabled": False},
            "fullnameOverride": self.name,
            "rbac": {"aggregate": False},
            **values,
        }
        self._helm(
            "upgrade",
            "--install",
            self.name,
            str(chart),
            *self._where,
            "--values=-",
            "--wait",
            "--timeout=240s",
            # Some tests change the Deployment by hand; the next installation restores it.
            "--force-conflicts",
            stdin=json.dumps(settings),
        )

    def upgrade(self, option: str, chart: Path = CHART) -> None:
        """Run helm upgrade with an option that says what becomes of the stored values."""
        self._helm("upgrade", self.name, str(chart), *self._where, option, "--wait", "--timeout=240s")

    def values(self) -> dict[str, Any]:
        """The values that helm has stored."""
        stored: dict[str, Any] = json.loads(
            self._helm("get", "values", self.name, *self._where, "--output=json")
        )
        return stored

    def rollback(self) -> None:
        """Run helm rollback to the previous revision and wait until the release serves."""
        self._helm("rollback", self.name, *self._where, "--wait", "--timeout=240s")

    def uninstall(self) -> None:
        """helm uninstall."""
        self._helm("uninstall", self.name, *self._where, "--wait", "--timeout=120s")

    @property
    def _where(self) -> list[str]:
        return [f"--namespace={self.namespace}", f"--kubeconfig={KUBECONFIG}"]

    def pods(self) -> list[dict[str, Any]]:
        """The operator's pods."""
        return self._pods("operator")

    def page_pods(self) -> list[dict[str, Any]]:
        """The pods of the web page."""
        return self._pods("page")

    def _pods(self, component: str) -> list[dict[str, Any]]:
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        where = f"--namespace={self.namespace}"
        return list(kubectl_json("get", "pods", f"--selector={labels}", where)["items"])

    def leader(self) -> str:
        """The pod that holds the Lease; empty while no pod does."""
        lease = kubectl_json("get", "lease", self.name, f"--namespace={self.namespace}")
        return str(lease["spec"].get("holderIdentity") or "")

    def wait_leader(self, other_than: str = "") -> str:
        """Wait for a leader, and return its pod."""
        return eventually(
            lambda: (leader := self.leader()) and leader != other_than and leader, 120, "there is a leader"
        )

    def metrics(self) -> str:
        """What the leader shows as metrics."""
        pod = f"/api/v1/namespaces/{self.namespace}/pods/{self.wait_leader()}"
        return kubectl("get", f"--raw={pod}:8080/proxy/metrics")

    def logs(self) -> str:
        """What all its pods have logged."""
        selector = f"--selector=app.kubernetes.io/instance={self.name}"
        return kubectl("logs", selector, f"--namespace={self.namespace}", "--tail=-1", "--prefix")


@contextmanager
def operator_of_the_whole_cluster() -> Iterator[OperatorRelease]:
    """The existing one, such as a demo's, or one for the tests: a cluster has room for one.

    Tests that run at the same time share it, and the last of them uninstalls it.
    """
    with ExitStack() as stack:
        with _one_at_a_time():
            release = _installed_for_the_whole_cluster() or _install_for_the_whole_cluster()
            users = stack.enter_context(USERS.open("w"))
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield release
        finally:
            with _one_at_a_time(), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                USERS.unlink()
                if release.namespace.startswith(WIDE):
                    release.uninstall()
                    delete_namespace(release.namespace)


def _one_at_a_time() -> AbstractContextManager[None]:
    return locked(FOLDER / "wide-operator.lock", "Another test installs or removes the operator; waiting.")


def _installed_for_the_whole_cluster() -> OperatorRelease | None:
    found = kubectl("get", "clusterrole", CLAIM, "--ignore-not-found", "--output=json")
    if not found:
        return None
    namespace, _, name = json.loads(found)["metadata"]["annotations"][LABEL_OPERATOR].partition("/")
    return OperatorRelease(name, namespace, helm.run)


def _install_for_the_whole_cluster() -> OperatorRelease:
    system = create_namespace(WIDE, "restricted")
    release = OperatorRelease(f"wide-{secrets.token_hex(3)}", system, helm.run)
    release.install(replicaCount=1)
    return release
