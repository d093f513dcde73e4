"""The web page, for the row of its viewers: in the operator's process, or in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from hack.bench.neighbours.lab import PAGE_PORT, Lab
from tests.support.controlplane import ENDS_WITH_US, OPERATOR, answers
from tests.support.wait import eventually

AUDIENCE: Final = "workqueue-page"
SETTINGS: Final[dict[str, Any]] = {"page_port": PAGE_PORT}
ENDPOINT_PORT: Final = 8082
START_SECONDS: Final = 60.0


@contextmanager
def page(lab: Lab) -> Iterator[int]:
    """The page while the context lasts. Yields its port."""
    folder = lab.checkout / "operator"
    if not (folder / "workqueue_web").exists():
        yield PAGE_PORT
        return
    environment = os.environ | {
        "KUBECONFIG": str(lab.plane.kubeconfig(OPERATOR)),
        "PYTHONPATH": os.pathsep.join([str(folder), str(lab.checkout / "worker")]),
        "WORKQUEUE_PORT": str(ENDPOINT_PORT),
        "WORKQUEUE_PAGE_PORT": str(PAGE_PORT),
        "WORKQUEUE_ALLOWED_BROKER_HOSTS": "127.0.0.1,localhost,*",
    }
    with (lab.folder / "page.log").open("ab") as log:
        process = subprocess.Popen(
            [*ENDS_WITH_US, sys.executable, "-m", "workqueue_web"], env=environment, stdout=log, stderr=log
        )
    try:
        eventually(
            lambda: answers(f"http://127.0.0.1:{ENDPOINT_PORT}/readyz", 5), START_SECONDS, "the page serves"
        )
        yield PAGE_PORT
    finally:
        process.terminate()
        process.wait(20)


def token(lab: Lab, namespace: str) -> str:
    """Return a token of a user who may see all WorkQueues."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "viewer"}}
    lab.api.apply(f"{accounts}/viewer", account)
    rbac = "rbac.authorization.k8s.io"
    name = f"viewer-of-{namespace}"
    lab.api.apply(
        f"/apis/{rbac}/v1/clusterrolebindings/{name}",
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": namespace}],
        },
    )
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [AUDIENCE]},
    }
    return str(lab.api.call("POST", f"{accounts}/viewer/token", request)["status"]["token"])
