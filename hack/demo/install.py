"""Install RabbitMQ, the operator and the WorkQueue with kubectl and helm, as a user does."""

from __future__ import annotations

import base64
import json
import secrets
import tempfile
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from hack.cluster import checkout
from hack.cluster.checkout import CHECKOUT
from hack.cluster.commands import run
from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance
from hack.demo.errors import DemoError
from hack.image.build import copy_sources
from workqueue.contract import binding as bindings
from workqueue.contract.binding import Binding
from workqueue_operator import names
from workqueue_operator.api.workqueue import WorkQueueSpec

Object: TypeAlias = dict[str, Any]

OPERATOR_NAMESPACE: Final = "workqueue-system"
NAMESPACE: Final = "workqueue-demo"
RABBITMQ_NAMESPACE: Final = "workqueue-demo-rabbitmq"
RELEASE: Final = "workqueue-operator"
RESOURCE: Final = f"{names.PLURAL}.{names.GROUP}"
"""The full name, because another definition in the cluster may have the same short name."""

CHART: Final = CHECKOUT / "charts/workqueue-operator"
RABBITMQ: Final = CHECKOUT / "examples/rabbitmq.yaml"
EXAMPLE: Final = CHECKOUT / "examples/wordcount"
USER_SECRET: Final = "rabbitmq-user"
BINDING_SECRET: Final = "rabbitmq"
WORKQUEUE: Final = "wordcount"
ANNOTATION_SOURCES: Final = "image-sources"
POD_SECURITY: Final = {"pod-security.kubernetes.io/enforce": "restricted"}
WAIT: Final = "--timeout=180s"

_AS_APPLIED: Final = json.dumps({"spec": {"replicas": None, "suspend": False}})
_CONDITIONS: Final = '{range .status.conditions[?(@.status!="True")]}{.type}: {.message} {end}'


class Cluster:
    """The cluster to which this checkout has access.

    Raises:
        DemoError: the checkout has access to no cluster.
    """

    def __init__(self) -> None:
        folder = checkout.folder(Instance.from_environment().name)
        self.kubeconfig: Final = folder / "kubeconfig"
        self.programs: Final = folder / "bin"
        if not self.kubeconfig.exists():
            raise DemoError("There is no cluster yet. Start one with `make demo` or `make cluster`.")

    def kubectl(self, namespace: str = NAMESPACE) -> list[str | Path]:
        """Return the start of a kubectl command."""
        return [self.programs / "kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={namespace}"]

    def run(self, *arguments: str | Path, doing: str, namespace: str = NAMESPACE) -> str:
        """Run kubectl and return its output.

        Raises:
            ClusterError: kubectl failed.
        """
        return run([*self.kubectl(namespace), *arguments], doing=doing)

    def apply(self, *objects: Object, doing: str, namespace: str = NAMESPACE) -> None:
        """Apply objects with kubectl.

        Raises:
            ClusterError: kubectl failed.
        """
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        # A file without a name, because an object may be a Secret.
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(bundle).encode())
            file.seek(0)
            run([*self.kubectl(namespace), "apply", "--filename=-"], doing=doing, stdin=file)


def namespaces(cluster: Cluster) -> None:
    """Make the three namespaces. They enforce the Pod Security Standard `restricted`."""
    made = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": POD_SECURITY}}
        for name in (OPERATOR_NAMESPACE, NAMESPACE, RABBITMQ_NAMESPACE)
    ]
    cluster.apply(*made, doing="Making the namespaces")


def rabbitmq(cluster: Cluster) -> Binding:
    """Apply RabbitMQ with the user of an earlier run or a new one. Return its address in the cluster."""
    keys = {
        "type": "rabbitmq",
        "host": f"rabbitmq.{RABBITMQ_NAMESPACE}.svc",
        "port": str(bindings.AMQP_PORT),
        "virtual-host": "/",
        **_user(cluster),
    }
    doing = "Installing RabbitMQ"
    cluster.apply(_secret(BINDING_SECRET, keys, "servicebinding.io/rabbitmq"), doing=doing)
    cluster.run("apply", "--filename", RABBITMQ, doing=doing, namespace=RABBITMQ_NAMESPACE)
    return bindings.from_mapping(keys, f"Secret {BINDING_SECRET}")


def wait_for_rabbitmq(cluster: Cluster) -> None:
    """Wait until RabbitMQ is Ready.

    Raises:
        ClusterError: it is not Ready after 3 minutes.
    """
    cluster.run(
        *("rollout", "status", "deployment/rabbitmq", WAIT),
        doing="Waiting for RabbitMQ",
        namespace=RABBITMQ_NAMESPACE,
    )


def operator(cluster: Cluster, image: str) -> None:
    """Install or upgrade the operator with helm, and wait until it is Ready."""
    repository, _, tag = image.rpartition(":")
    run(
        [
            *(cluster.programs / "helm", "upgrade", "--install", RELEASE, CHART),
            *(f"--namespace={OPERATOR_NAMESPACE}", "--create-namespace"),
            *("--set-string", f"image.repository={repository}", "--set-string", f"image.tag={tag}"),
            *("--set-string", f"podAnnotations.{ANNOTATION_SOURCES}={sources()}"),
            # helm takes over a CustomResourceDefinition that kubectl applied before.
            *("--take-ownership", "--force-conflicts"),
            *("--wait", WAIT, f"--kubeconfig={cluster.kubeconfig}"),
        ],
        doing="Installing the operator",
    )


def workqueue(cluster: Cluster, image: str) -> WorkQueueSpec:
    """Apply the example with this image, wait until its WorkQueue is Ready, and return its spec.

    Raises:
        DemoError: it does not become Ready. The message contains its conditions.
    """
    doing = "Applying the WorkQueue"
    objects = list(yaml.safe_load_all(cluster.run("kustomize", EXAMPLE, doing=doing)))
    (made,) = (one for one in objects if one["kind"] == names.KIND)
    made["spec"]["worker"]["image"] = image
    made["spec"]["worker"]["podAnnotations"] = {ANNOTATION_SOURCES: sources()}
    cluster.apply(*objects, doing=doing)
    # The manifest does not set these fields, so `apply` would keep a pin or a suspend from an earlier run.
    cluster.run("patch", f"{RESOURCE}/{WORKQUEUE}", "--type=merge", f"--patch={_AS_APPLIED}", doing=doing)
    try:
        cluster.run("wait", "--for=condition=Ready", f"{RESOURCE}/{WORKQUEUE}", WAIT, doing=doing)
    except ClusterError as error:
        conditions = cluster.run("get", RESOURCE, WORKQUEUE, f"--output=jsonpath={_CONDITIONS}", doing=doing)
        raise DemoError(
            f"The WorkQueue does not become Ready: {conditions or 'it has no conditions'}"
        ) from error
    return WorkQueueSpec.model_validate(made["spec"])


def sources() -> str:
    """Return a digest of the image's sources.

    As a pod annotation, it makes Kubernetes replace the pods when the image changes but its name does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        return copy_sources(Path(folder))


def _user(cluster: Cluster) -> dict[str, str]:
    """Return the user of an earlier run, which RabbitMQ knows, or make a new one."""
    doing = "Making RabbitMQ's user"
    where = {"doing": doing, "namespace": RABBITMQ_NAMESPACE}
    found = cluster.run("get", "secret", USER_SECRET, "--ignore-not-found", "--output=json", **where)
    if found:
        data = json.loads(found)["data"]
        return {key: base64.b64decode(data[key]).decode() for key in ("username", "password")}
    keys = {"username": "workqueue", "password": secrets.token_hex(24)}
    cluster.apply(_secret(USER_SECRET, keys, "kubernetes.io/basic-auth"), **where)
    return keys


def _secret(name: str, keys: dict[str, str], kind: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": kind,
        "stringData": keys,
    }
