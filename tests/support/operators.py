"""An installation of the chart in the cluster under test."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.support import helm
from tests.support.kubernetes import CHECKOUT, KUBECONFIG, kubectl, kubectl_json, temporary_namespace
from tests.support.wait import eventually
from workqueue_operator.names import CLAIM, LABEL_OPERATOR

CHART: Final = CHECKOUT / "charts/workqueue-operator"


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
            "--timeout=110s",
            # Some tests change the Deployment by hand; the next installation restores it.
            "--force-conflicts",
            stdin=json.dumps(settings),
        )

    def upgrade(self, option: str, chart: Path = CHART) -> None:
        """Run helm upgrade with an option that says what becomes of the stored values."""
        self._helm("upgrade", self.name, str(chart), *self._where, option, "--wait", "--timeout=110s")

    def values(self) -> dict[str, Any]:
        """The values that helm has stored."""
        stored: dict[str, Any] = json.loads(
            self._helm("get", "values", self.name, *self._where, "--output=json")
        )
        return stored

    def rollback(self) -> None:
        """Run helm rollback to the previous revision and wait until the release serves."""
        self._helm("rollback", self.name, *self._where, "--wait", "--timeout=110s")

    def uninstall(self) -> None:
        """helm uninstall."""
        self._helm("uninstall", self.name, *self._where, "--wait", "--timeout=60s")

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

    def wait_leader(self, other_than: str = "", seconds: float = 60) -> str:
        """Wait for a leader, and return its pod."""
        return eventually(
            lambda: (leader := self.leader()) and leader != other_than and leader,
            seconds,
            "there is a leader",
        )

    def logs(self) -> str:
        """What all its pods have logged."""
        selector = f"--selector=app.kubernetes.io/instance={self.name}"
        return kubectl("logs", selector, f"--namespace={self.namespace}", "--tail=-1", "--prefix")


@contextmanager
def operator_of_the_whole_cluster() -> Iterator[OperatorRelease]:
    """The existing one, such as a demo's, or one for the test: a cluster has room for one."""
    found = kubectl("get", "clusterrole", CLAIM, "--ignore-not-found", "--output=json")
    if found:
        namespace, _, name = json.loads(found)["metadata"]["annotations"][LABEL_OPERATOR].partition("/")
        yield OperatorRelease(name, namespace, helm.run)
        return
    with temporary_namespace("e2e-wide", pod_security="restricted") as system:
        release = OperatorRelease(f"wide-{secrets.token_hex(3)}", system, helm.run)
        release.install(replicaCount=1)
        try:
            yield release
        finally:
            release.uninstall()
