"""The page's rights are the least it can work with: each verb, when removed, breaks something and is reported.

The page runs as a process of the test, as a service account bound to the chart's roles without one verb. No operator
runs.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.security.test_rbac import Right, chart_roles, rights, without
from tests.support import operatorprocess
from tests.support.kubernetes import CHECKOUT, apply, kubectl, kubectl_json, temporary_namespace
from tests.support.ports import free_port
from tests.support.rabbitmq import VirtualHost
from tests.support.stolen import kubeconfig_of
from tests.support.wait import eventually

Object = dict[str, Any]

LOST: Final[dict[Right, str]] = {
    ("workqueues", "list"): "The namespace is left out.",
    ("workqueues", "watch"): "cannot watch resource",
    ("pods", "list"): "The namespace is left out.",
    ("pods", "watch"): "cannot watch resource",
    ("events", "list"): "The API server does not list the Events",
    ("leases", "get"): "may not read the operator's Lease",
    ("secrets", "get"): "no permission to read the Secret",
    ("tokenreviews", "create"): "The API server could not check your permissions",
    ("subjectaccessreviews", "create"): "The API server could not check your permissions",
}
"""What the log or the page says without a right."""

REVIEWER: Final[Object] = {
    "rules": [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]
}
"""The ClusterRole `system:auth-delegator` of Kubernetes, to which the chart binds the page."""

COMMAND: Final = (
    sys.executable,
    "-c",
    operatorprocess.RUN.replace("workqueue_operator.__main__", "workqueue_web.__main__"),
)
WORKQUEUE: Final = {
    "apiVersion": "workqueue.dev/v1alpha1",
    "kind": "WorkQueue",
    "metadata": {"name": "jobs"},
    "spec": {
        "connectionSecretRef": {"name": "rabbitmq"},
        "worker": {"image": "nothing:1", "handler": {"python": "a:b"}},
    },
}


@dataclass
class Viewed:
    """A running page, a user's token for it, and its log."""

    url: str
    token: str
    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """The page of the WorkQueue; empty while the page does not answer."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url, headers=headers), timeout=20
            ) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return str(error.read().decode())
        except OSError:
            return ""

    def said(self) -> str:
        """All that an administrator can look at."""
        return f"{self.log.read_text()}\n{self.text()}".replace("&#34;", '"')


@contextmanager
def page_without(right: Right | None, vhost: VirtualHost, folder: Path) -> Iterator[Viewed]:
    """A page with all rights but one, and a WorkQueue with two dead letters."""
    roles = chart_roles(page={"enabled": True})
    names = ("workqueue-operator-page", "workqueue-operator-page-lease")
    reads = {"rules": [rule for one in names for rule in roles[one]["rules"]]}
    name = f"page-{secrets.token_hex(3)}"
    with temporary_namespace("security-page") as namespace:
        account = f"--serviceaccount={namespace}:page"
        where = f"--namespace={namespace}"
        for user in ("page", "looker"):
            kubectl("create", "serviceaccount", user, where)
        group = {"apiVersion": "rbac.authorization.k8s.io/v1"}
        apply(
            {
                **group,
                "kind": "Role",
                "metadata": {"name": name},
                "rules": without(reads, right),
            },
            WORKQUEUE,
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "rabbitmq"},
                "stringData": {"uri": vhost.url},
            },
            namespace=namespace,
        )
        apply({**group, "kind": "ClusterRole", "metadata": {"name": name}, "rules": without(REVIEWER, right)})
        status = json.dumps({"status": {"deadLetters": 2}})
        kubectl("patch", "wq", "jobs", where, "--subresource=status", "--type=merge", f"--patch={status}")
        kubectl("create", "rolebinding", "page", where, f"--role={name}", account)
        kubectl("create", "role", "looker", where, "--verb=list", "--resource=workqueues.workqueue.dev")
        kubectl(
            "create", "rolebinding", "looker", where, "--role=looker", f"--serviceaccount={namespace}:looker"
        )
        with vhost.connect() as connection:
            channel = connection.channel()
            channel.queue_declare("jobs.dead", durable=True)
            for _ in range(2):
                channel.basic_publish("", "jobs.dead", b"x")
        port, log = free_port(), folder / "page.log"
        try:
            kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", account)
            process = operatorprocess.start(
                log,
                kubeconfig_of("page", namespace, folder / "kubeconfig"),
                COMMAND,
                watch_namespaces=namespace,
                port=free_port(),
                page_port=port,
                connection_secrets="rabbitmq",
                pod_namespace=namespace,
                lease_name="workqueue-operator",
                log_format="text",
            )
            token = kubectl("create", "token", "looker", where, "--audience=workqueue-page").strip()
            try:
                yield Viewed(f"http://127.0.0.1:{port}/queues/{namespace}/jobs", token, process, log)
            finally:
                process.terminate()
                process.wait(20)
                print(log.read_text()[-6000:])
        finally:
            for kind in ("clusterrolebinding", "clusterrole"):
                kubectl("delete", kind, name, "--ignore-not-found")


def test_every_right_of_the_page_has_a_reason_and_a_test() -> None:
    roles = chart_roles(page={"enabled": True})
    given = rights(roles["workqueue-operator-page"]) | rights(roles["workqueue-operator-page-lease"])
    assert given | rights(REVIEWER) == LOST.keys()


def test_security_page_lists_the_rights_of_the_page() -> None:
    text = (CHECKOUT / "docs/security.md").read_text()
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in text.partition("| The page's resource | Verb |")[2].partition("\n\n")[0].splitlines()[2:]
    ]
    assert {(row[0], row[1]) for row in rows} == LOST.keys()


def test_kubernetes_has_the_role_that_the_chart_binds() -> None:
    found = kubectl_json("get", "clusterrole", "system:auth-delegator")
    assert rights(found) == rights(REVIEWER)


@pytest.mark.usefixtures("crd")
def test_page_with_all_rights_works_without_an_operator(vhost: VirtualHost, tmp_path: Path) -> None:
    with page_without(None, vhost, tmp_path) as viewed:
        eventually(lambda: "From the first 2 of 2." in viewed.text(), 90, "the dead letters are read")
        assert "The cluster has no recent Event about it." in viewed.text()
        assert "forbidden" not in viewed.log.read_text()
        assert "Traceback" not in viewed.log.read_text()
        viewed.process.terminate()
        assert viewed.process.wait(20) == 0


@pytest.mark.nightly
@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize("right", LOST, ids=lambda right: f"{right[1]} {right[0]}")
def test_missing_right_of_the_page_is_reported(right: Right, vhost: VirtualHost, tmp_path: Path) -> None:
    with page_without(right, vhost, tmp_path) as viewed:
        eventually(lambda: LOST[right] in viewed.said(), 90, f"{LOST[right]!r} is said")
