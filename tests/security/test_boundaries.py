"""What a WorkQueue can reach: only its own namespace, and in its pods only what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.admission import BASE, Admission, RefusedError, installed
from tests.support.fakecluster import FakeCluster
from tests.support.kubernetes import (
    KubectlError,
    apply,
    kubeconfig,
    kubectl,
    kubectl_json,
    temporary_namespace,
)
from tests.support.objects import merged
from tests.support.operatorprocess import operator_process
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.workqueue import workqueue
from workqueue_operator.api import crd
from workqueue_operator.api.reasons import Reason
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import deployment_path, pod_path, secret_path, workqueue_path
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.workers import render

Object = dict[str, Any]

ELSEWHERE = [
    "other/rabbitmq",
    "../rabbitmq",
    "../../other/secrets/rabbitmq",
    "..",
    ".",
    "rabbitmq?namespace=other",
    "rabbitmq#",
    "rabbitmq%2f..%2f..",
    "other\\rabbitmq",
    "rabbitmq/",
    "",
]


def properties(schema: Object, path: str = "") -> Iterator[str]:
    """Every field of the schema."""
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from properties(below, f"{path}.{name}")
    if "items" in schema:
        yield from properties(schema["items"], f"{path}[]")


def test_no_field_of_a_workqueue_names_a_namespace() -> None:
    fields = list(properties(crd.schema()["properties"]["spec"]))
    assert len(fields) > 50
    named = [field for field in fields if field.lower().endswith("namespace")]
    assert named == [".worker.template.spec.shareProcessNamespace"], "that one is about processes"


@pytest.mark.parametrize("name", ELSEWHERE)
def test_operator_refuses_names_that_are_paths(name: str) -> None:
    """The definition in the cluster may be older than the operator, or foreign."""
    for path in (secret_path, deployment_path, pod_path, workqueue_path):
        with pytest.raises(ClusterError, match="is not a valid object name"):
            path("team", name)


@pytest.fixture(scope="module")
def admission() -> Iterator[Admission]:
    with installed(kubeconfig()) as made:
        yield made


@pytest.mark.parametrize("name", ELSEWHERE)
def test_api_server_refuses_foreign_secret(admission: Admission, name: str) -> None:
    with pytest.raises(RefusedError, match="connectionSecretRef"):
        admission.create(merged(BASE, {"connectionSecretRef": {"name": name}}))


def test_api_server_drops_namespace_of_a_secret(admission: Admission) -> None:
    with pytest.raises(RefusedError, match=r'unknown field "spec.connectionSecretRef.namespace"'):
        admission.create(merged(BASE, {"connectionSecretRef": {"name": "rabbitmq", "namespace": "other"}}))


async def test_operator_reads_only_the_named_secret() -> None:
    cluster = FakeCluster()
    with pytest.raises(ReconcileError):
        await Secrets(cluster).binding("team", "rabbitmq")
    assert cluster.paths("GET") == ["/api/v1/namespaces/team/secrets/rabbitmq"]


@pytest.mark.usefixtures("crd")
def test_secret_of_another_namespace_is_not_found(vhost: VirtualHost, tmp_path: Path) -> None:
    """Although the operator also serves that namespace, and has just read the Secret for a WorkQueue there."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs"}}
    with temporary_namespace("security-theirs") as theirs, temporary_namespace("security-ours") as ours:
        apply({**secret, "stringData": {"uri": vhost.url}}, manifest("theirs"), namespace=theirs)
        with operator_process(tmp_path / "operator.log", theirs, ours):
            eventually(lambda: "Declared" in reasons("theirs", theirs), 60, "theirs works")
            apply(manifest("theirs"), namespace=ours)
            eventually(lambda: Reason.SECRET_NOT_FOUND.value in reasons("theirs", ours), 60, "ours is judged")
            assert "Declared" not in reasons("theirs", ours)


def manifest(name: str) -> Object:
    worker = {"image": "nothing:1", "handler": {"python": "a:b"}, "nodeSelector": {"no-node": "has-this"}}
    return {
        "apiVersion": "workqueue.dev/v1alpha1",
        "kind": "WorkQueue",
        "metadata": {"name": name},
        "spec": {"connectionSecretRef": {"name": "theirs"}, "worker": worker},
    }


def reasons(name: str, namespace: str) -> set[str]:
    status = kubectl_json("get", "wq", name, f"--namespace={namespace}").get("status", {})
    return {condition["reason"] for condition in status.get("conditions", ())}


HANDLERS: dict[str, Object] = {
    "python": {"python": "a:b"},
    "exec": {"exec": {"command": ["./work"]}},
    "http": {"http": {"image": "theirs:1", "port": 8080}},
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_worker_pod_has_no_token_no_foreign_secret_and_nothing_writable(handler: Object) -> None:
    made = workqueue(worker={"handler": handler})
    rendered = render.deployment(
        made, render.Defaults("operator:1", False, (), {}), broker="", proven_hash=None
    )
    pod = rendered["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "default"
    secrets = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    assert secrets == ["rabbitmq", "jobs-retirement-key"]
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert not [one for one in container.get("env", ()) if "secretKeyRef" in one.get("valueFrom", {})]


LOOK: Final = """
import glob, time
name = b"I am " + b"the worker"
while not (workers := [f for f in glob.glob("/proc/[0-9]*/cmdline") if name in open(f, "rb").read()]):
    time.sleep(0.1)
for folder in (worker.removesuffix("cmdline") for worker in workers):
    for file in ("root/bindings/rabbitmq/uri", "environ"):
        try:
            open(folder + file, "rb").read(0)
            print("readable:", file)
        except OSError as error:
            print("refused:", file)
print("done", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("isolated", [True, False], ids=["as rendered", "with one user for both"])
def test_http_handler_cannot_read_connection_of_worker(isolated: bool) -> None:
    """The containers share their processes, so that /proc shows those of the worker to the handler."""
    made = workqueue(worker={"handler": HANDLERS["http"]})
    defaults = render.Defaults("workqueue-operator:dev", False, (), {})
    rendered = render.deployment(made, defaults, broker="", proven_hash=None)
    pod = rendered["spec"]["template"]["spec"]
    (worker,), (handler,) = pod["containers"], pod["initContainers"]
    handler |= {"image": "workqueue-operator:dev", "command": ["python3", "-c", LOOK]}
    wait = ["python3", "-c", "import time; time.sleep(600)", "I am the worker"]
    worker |= {"image": "workqueue-operator:dev", "command": wait}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        del worker[probe]
    if not isolated:
        del worker["securityContext"]["runAsUser"]

    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "rabbitmq"}}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "jobs"}, "spec": pod}
    with temporary_namespace("security-handler", pod_security="restricted") as namespace:
        apply({**secret, "stringData": {"uri": "amqp://x:secret@y/"}}, body, namespace=namespace)
        log = "logs", "jobs", "--container=handler", f"--namespace={namespace}"

        def said() -> str:
            with suppress(KubectlError):  # the container has not started yet
                return text if "done" in (text := kubectl(*log)) else ""
            return ""

        found = eventually(said, 120, "the handler has looked")
    assert ("readable:" in found, "refused:" in found) == (not isolated, isolated), found
