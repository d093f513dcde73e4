"""The operator's rights are the least it can work with: each verb, when removed, breaks something and is reported.

The operator runs as a process of the test, as a service account bound to the chart's Role without one verb, and
goes through one WorkQueue's life. Its pods never start (no node matches), since only its own requests count.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import helm, operatorprocess
from tests.support.kubernetes import CHECKOUT, KubectlError, apply, kubectl, kubectl_json, temporary_namespace
from tests.support.ports import free_port
from tests.support.rabbitmq import VirtualHost
from tests.support.stolen import kubeconfig_of, policies_for
from tests.support.wait import eventually

Object = dict[str, Any]
Right = tuple[str, str]
"""Resource and verb."""

STEP_SECONDS: Final = 40.0
"""Each step takes two or three seconds on an idle machine."""

START_SECONDS: Final = 120.0

LEASE: Final = "leases"


@dataclass(frozen=True)
class Loss:
    """What is missing without a right.

    Attributes:
        step: of the life below, the first that does not complete; None: any, since kopf gives up its watch
            after a minute, or the Lease expires.
        said: how it is reported: a log message, or the reason of a condition.
        harmless: every step completes anyway.
    """

    step: str | None
    said: str
    harmless: bool = False


LOST: Final[dict[Right, Loss]] = {
    ("workqueues", "get"): Loss("deletes", "cannot get resource"),
    ("workqueues", "list"): Loss("creates", "The namespace is left out."),
    ("workqueues", "watch"): Loss(None, "cannot watch resource"),
    ("workqueues", "patch"): Loss("creates", "cannot patch resource"),
    ("workqueues/status", "patch"): Loss("creates", "cannot patch resource"),
    ("deployments", "get"): Loss("finds a foreign workload", "cannot get resource"),
    ("deployments", "list"): Loss("creates", "The namespace is left out."),
    ("deployments", "watch"): Loss(None, "cannot watch resource"),
    ("deployments", "create"): Loss("creates", "APIForbidden"),
    ("deployments", "patch"): Loss("creates", "APIForbidden"),
    ("deployments/scale", "patch"): Loss("wakes", "APIForbidden"),
    ("replicasets", "get"): Loss("scales in", "cannot get resource"),
    ("pods", "list"): Loss("creates", "The namespace is left out."),
    ("pods", "watch"): Loss(None, "cannot watch resource"),
    ("pods", "patch"): Loss("scales in", "cannot patch resource"),
    ("horizontalpodautoscalers", "list"): Loss(
        "follows an autoscaler", "may not list HorizontalPodAutoscalers"
    ),
    ("poddisruptionbudgets", "create"): Loss("creates", "APIForbidden"),
    ("poddisruptionbudgets", "patch"): Loss("creates", "APIForbidden"),
    ("networkpolicies", "create"): Loss("creates", "APIForbidden"),
    ("networkpolicies", "patch"): Loss("creates", "APIForbidden"),
    ("secrets", "get"): Loss("creates", "SecretForbidden"),
    ("secrets", "create"): Loss("creates", "APIForbidden"),
    ("namespaces", "get"): Loss(None, "No permission to read the claims of other operators", harmless=True),
    ("events", "create"): Loss("tells", "An Event could not be sent."),
    (LEASE, "get"): Loss("starts", "Error retrieving resource lock operator as Forbidden"),
    (LEASE, "create"): Loss("starts", "Creating the Lease failed."),
    (LEASE, "update"): Loss(None, "Renewing the Lease failed."),
}
UNSEEN: Final = {("workqueues/finalizers", "update"), ("configmaps", "get")}
"""Needed only where the API server checks owner references (OwnerReferencesPermissionEnforcement), and for the bodies
of recurring messages: see test_body_comes_from_a_configmap."""


# -- the table -----------------------------------------------------------------------------------------


def rights(role: Object) -> set[Right]:
    return {(name, verb) for rule in role["rules"] for name in rule["resources"] for verb in rule["verbs"]}


def chart_roles(**values: Any) -> dict[str, Object]:
    objects = helm.template(values)
    return {
        made["metadata"]["name"]: made
        for kind in ("Role", "ClusterRole")
        for made in helm.of_kind(objects, kind)
    }


def test_every_chart_right_has_a_reason_and_a_test() -> None:
    roles = chart_roles(watchNamespaces=["shop"])
    given = rights(roles["workqueue-operator"]) | rights(roles["workqueue-operator-leader"])
    assert given == LOST.keys() | UNSEEN


def test_cluster_wide_rights_equal_namespaced_rights() -> None:
    """So results in a namespace hold for the ClusterRole too; only its scope differs."""
    everywhere, here = chart_roles(), chart_roles(watchNamespaces=["shop"])
    assert _where_workqueues_are(everywhere) == _where_workqueues_are(here)
    assert everywhere["workqueue-operator-leader"]["rules"] == here["workqueue-operator-leader"]["rules"]


def _where_workqueues_are(roles: dict[str, Object]) -> list[Object]:
    """The operator's rules, without those about which release serves a namespace."""
    claims = {"namespaces", "leases", "clusterroles"}
    return [rule for rule in roles["workqueue-operator"]["rules"] if not claims & set(rule["resources"])]


def test_security_page_lists_the_same_rights() -> None:
    page = (CHECKOUT / "docs/security.md").read_text()
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in page.partition("| Resource | Verb |")[2].partition("\n\n")[0].splitlines()[2:]
    ]
    assert {(row[0], row[1]) for row in rows} == LOST.keys() | UNSEEN


# -- a life --------------------------------------------------------------------------------------------


class MissingError(Exception):
    """A step did not complete."""


@dataclass
class Life:
    """A namespace, a service account with rights in it, an operator with this account, and one WorkQueue."""

    namespace: str
    vhost: VirtualHost
    process: subprocess.Popen[bytes]
    port: int
    log_file: Path
    done: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def where(self) -> str:
        return f"--namespace={self.namespace}"

    def said(self) -> str:
        """All that a person can look at: log, conditions, Events."""
        shown = kubectl("get", "wq,events", self.where, "--output=yaml")
        return f"{self.log}\n{shown}"

    def go(self, steps: dict[str, Callable[[Life], object]]) -> str | None:
        """Take the steps in order and return the first that did not complete."""
        for name, step in steps.items():
            try:
                step(self)
            except (TimeoutError, KubectlError, MissingError):
                return name
            self.done.append(name)
        return None

    def until(self, condition: Callable[[], object], what: str, seconds: float = STEP_SECONDS) -> Any:
        def alive() -> Any:
            if self.process.poll() is not None:
                raise MissingError(f"the operator ended with {self.process.returncode}")
            with suppress(KubectlError, KeyError):
                return condition()
            return None

        return eventually(alive, seconds, what)

    def get(self, kind: str, name: str) -> Object:
        return dict(kubectl_json("get", kind, name, self.where))

    def replicas(self) -> int:
        return int(self.get("deployment", "life-worker")["spec"]["replicas"])

    def condition(self, name: str, kind: str = "Ready") -> Object:
        found = self.get("wq", name)["status"]["conditions"]
        return next((one for one in found if one["type"] == kind), {})


def starts(life: Life) -> None:
    def ready() -> bool:
        url = f"http://127.0.0.1:{life.port}/readyz"
        with (
            suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(url, timeout=2) as answer,
        ):
            return answer.status == 200 and "This process leads." in life.log
        return False

    life.until(ready, "it leads and serves", START_SECONDS)


def creates(life: Life) -> None:
    apply(workqueue("life"), namespace=life.namespace)
    life.until(lambda: life.condition("life")["status"] == "True", "it is Ready")
    assert life.get("wq", "life")["metadata"]["finalizers"] == ["workqueue.dev/queue"]
    for kind in ("deployment", "poddisruptionbudget", "networkpolicy"):
        life.until(lambda kind=kind: life.get(kind, "life-worker"), f"the {kind}")


def binds(life: Life) -> None:
    """Bind two routing keys, and then only one: the operator records in an annotation what it may unbind."""
    noted = "workqueue.dev/bindings"
    for keys in (["a", "b"], ["a"]):
        exchange = {"name": f"{life.namespace}-jobs", "routingKeys": keys}
        patch = {"spec": {"queue": {"exchange": exchange}}}
        kubectl("patch", "wq", "life", "--type=merge", f"--patch={json.dumps(patch)}", life.where)
        wanted = [{exchange["name"]: keys}]
        life.until(
            lambda wanted=wanted: (
                [
                    one["bindings"]
                    for one in json.loads(
                        life.get("wq", "life")["metadata"].get("annotations", {}).get(noted, "[]")
                    )
                ]
                == wanted
            ),
            f"the bindings {keys} are recorded",
        )
    life.until(lambda: life.condition("life")["status"] == "True", "it is Ready")


def wakes(life: Life) -> None:
    with life.vhost.connect() as connection:
        connection.channel().basic_publish("", "life", b"x", mandatory=True)
    life.until(lambda: life.replicas() == 1, "it is woken")


def tells(life: Life) -> None:
    def told() -> bool:
        events = kubectl_json("get", "events", life.where)["items"]
        return any(event["involvedObject"]["kind"] == "WorkQueue" for event in events)

    life.until(told, "an Event tells of it")


def changes(life: Life) -> None:
    patch = {"spec": {"worker": {"image": "nothing:2"}}}
    kubectl("patch", "wq", "life", "--type=merge", f"--patch={json.dumps(patch)}", life.where)
    life.until(
        lambda: (
            life.get("deployment", "life-worker")["spec"]["template"]["spec"]["containers"][0]["image"]
            == "nothing:2"
        ),
        "the change arrives",
    )


def repairs(life: Life) -> None:
    kubectl("delete", "deployment", "life-worker", life.where, "--wait=false", "--cascade=foreground")
    life.until(
        lambda: not life.get("deployment", "life-worker")["metadata"].get("deletionTimestamp"), "it is back"
    )
    life.until(lambda: life.replicas() == 1, "with its count")


def scales_in(life: Life) -> None:
    life.until(lambda: pods(life), "its pod is there")
    with life.vhost.connect() as connection:
        connection.channel().queue_purge("life")
    life.until(lambda: life.replicas() == 0, "it is scaled in")


def pods(life: Life) -> list[Object]:
    return list(kubectl_json("get", "pods", life.where)["items"])


def finds_a_foreign_workload(life: Life) -> None:
    body = workqueue("foreign")
    del body["spec"]["worker"]
    body["spec"]["workloadRef"] = {"name": "nobody"}
    apply(body, namespace=life.namespace)
    life.until(
        lambda: (
            "WorkloadNotFound" in {one["reason"] for one in life.get("wq", "foreign")["status"]["conditions"]}
        ),
        "it reports the missing leader",
    )


def follows_an_autoscaler(life: Life) -> None:
    """A Deployment whose count was set by an autoscaler that is now gone."""
    labels = {"app": "celery"}
    container = {"name": "celery", "image": "nothing:1"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    apply(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "celery"}, "spec": spec},
        namespace=life.namespace,
    )
    kubectl(
        *("patch", "deployment", "celery", life.where, "--subresource=scale", "--type=merge"),
        *("--field-manager=kube-controller-manager", '--patch={"spec":{"replicas":1}}'),
    )
    body = workqueue("follower")
    del body["spec"]["worker"]
    body["spec"]["workloadRef"] = {"name": "celery"}
    apply(body, namespace=life.namespace)
    life.until(
        lambda: (
            life.condition("follower", "QueueDeclared")["status"] == "True"
            and not {"WorkloadContested", "APIForbidden"}
            & {one["reason"] for one in life.get("wq", "follower")["status"]["conditions"]}
        ),
        "it takes over",
    )


def deletes(life: Life) -> None:
    kubectl("delete", "wq", "life", life.where, "--wait=false")
    life.until(lambda: not kubectl("get", "wq", "life", life.where, "--ignore-not-found"), "it is gone")
    if life.vhost.exists("life"):
        raise MissingError("its queue is still there")


STEPS: Final[dict[str, Callable[[Life], object]]] = {
    "starts": starts,
    "creates": creates,
    "binds": binds,
    "wakes": wakes,
    "tells": tells,
    "changes": changes,
    "repairs": repairs,
    "scales in": scales_in,
    "finds a foreign workload": finds_a_foreign_workload,
    "follows an autoscaler": follows_an_autoscaler,
    "deletes": deletes,
}


def workqueue(name: str) -> Object:
    return {
        "apiVersion": "workqueue.dev/v1alpha1",
        "kind": "WorkQueue",
        "metadata": {"name": name},
        "spec": {
            "connectionSecretRef": {"name": "rabbitmq"},
            "queue": {"deletionPolicy": "Delete"},
            "worker": {
                "image": "nothing:1",
                "handler": {"python": "a:b"},
                "nodeSelector": {"no-node": "has-this"},
            },
            "scaling": {"scaleInDelaySeconds": 0, "maxReplicas": 1},
        },
    }


def without(role: Object, right: Right | None) -> list[Object]:
    """The rules of a role without one right."""
    return [
        {**rule, "verbs": verbs}
        for rule in role["rules"]
        if (
            verbs := [
                verb
                for verb in rule["verbs"]
                if right is None or right not in {(name, verb) for name in rule["resources"]}
            ]
        )
    ]


@contextmanager
def life_without(right: Right | None, vhost: VirtualHost, folder: Path) -> Iterator[Life]:
    """An operator with all rights but one, limited by the chart's admission policies."""
    roles = chart_roles(watchNamespaces=["here"], fullnameOverride="operator")
    with temporary_namespace("security-rbac") as namespace, ExitStack() as clean_up:
        subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
        group = {"apiVersion": "rbac.authorization.k8s.io/v1"}
        made: list[Object] = [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}}
        ]
        for name in ("operator", "operator-leader"):
            ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
            made.append(
                {**group, "kind": "Role", "metadata": {"name": name}, "rules": without(roles[name], right)}
            )
            made.append(
                {
                    **group,
                    "kind": "RoleBinding",
                    "metadata": {"name": name},
                    "roleRef": ref,
                    "subjects": [subject],
                }
            )
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "rabbitmq"}}
        apply(*made, {**secret, "stringData": {"uri": vhost.url}}, namespace=namespace)
        clean_up.enter_context(policies_for("operator", namespace))
        port = free_port()
        log = folder / "operator.log"
        process = operatorprocess.start(
            log,
            kubeconfig_of("operator", namespace, folder / "kubeconfig"),
            watch_namespaces=namespace,
            pod_namespace=namespace,
            pod_name="operator-0",
            lease_name="operator",
            worker_network_policy=True,
            port=port,
            log_format="text",
        )
        try:
            yield Life(namespace, vhost, process, port, log)
        finally:
            process.terminate()
            process.wait(20)
            print(log.read_text()[-6000:])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("crd")
def test_operator_with_all_rights_is_refused_nothing(vhost: VirtualHost, tmp_path: Path) -> None:
    with life_without(None, vhost, tmp_path) as life:
        assert life.go(STEPS) is None
        assert "forbidden" not in life.log
        assert "Traceback" not in life.log


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize("right", LOST, ids=lambda right: f"{right[1]} {right[0]}")
def test_missing_right_breaks_something_and_is_reported(
    right: Right, vhost: VirtualHost, tmp_path: Path
) -> None:
    lost = LOST[right]
    with life_without(right, vhost, tmp_path) as life:
        stopped = life.go(STEPS)
        stops = lost.step is None and not lost.harmless
        assert stopped == lost.step or (stops and stopped is not None), life.done
        eventually(lambda: lost.said in life.said(), STEP_SECONDS, f"{lost.said!r} is said")
