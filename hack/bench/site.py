"""Install RabbitMQ, the operator from the chart, and the probe's pod in the cluster.

All are deleted at the end of a run. The operator has one replica and serves only the namespace `bench`, so other
operators may run in the same cluster. With a flow schema of its own, the API server counts the operator's requests.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hack.bench.errors import BenchError
from hack.cluster import checkout
from hack.cluster.commands import run
from hack.cluster.console import step
from hack.cluster.instance import Instance

Object = dict[str, Any]

NAMESPACE: Final = "bench"
SYSTEM: Final = "bench-system"
RABBITMQ: Final = "bench-rabbitmq"
RELEASE: Final = "bench"
PROBE: Final = "probe"
SECRET: Final = "rabbitmq"
RABBITMQ_IMAGE: Final = "docker.io/library/rabbitmq:4-management"
CHART: Final = checkout.CHECKOUT / "charts/workqueue-operator"
CRD: Final = checkout.CHECKOUT / "manifests/crd/workqueues.yaml"
FOLDER: Final = Path(__file__).parent
USER: Final = {"username": "bench", "password": "bench"}


class Site:
    """The cluster to which this checkout has access.

    Raises:
        BenchError: the checkout has access to no cluster.
    """

    def __init__(self, image: str) -> None:
        self.image: Final = image
        folder = checkout.folder(Instance.from_environment().name)
        self._kubeconfig = folder / "kubeconfig"
        self._programs = folder / "bin"
        if not self._kubeconfig.exists():
            raise BenchError("There is no cluster yet. Start one with `make cluster`.")

    def kubectl(self, *arguments: str | Path) -> list[str]:
        """Return a kubectl command line."""
        return [
            str(self._programs / "kubectl"),
            f"--kubeconfig={self._kubeconfig}",
            *map(str, arguments),
        ]

    def run(self, *arguments: str | Path, doing: str = "Measuring") -> str:
        """Run kubectl and return its output.

        Raises:
            ClusterError: kubectl failed.
        """
        return run(self.kubectl(*arguments), doing=doing)

    @contextmanager
    def made(self) -> Iterator[None]:
        """Install all parts, and delete them at the end of the `with` block."""
        try:
            self._make()
            yield
        finally:
            with step("Deleting the benchmark's namespaces"):
                self._remove()

    def rabbitmq(self, *arguments: str) -> str:
        """Run rabbitmqctl in the broker's pod."""
        where = ("exec", f"--namespace={RABBITMQ}", "deployment/rabbitmq", "--")
        return self.run(*where, "rabbitmqctl", "--quiet", *arguments, doing="Asking RabbitMQ")

    def versions(self) -> dict[str, str]:
        """Return the versions of Kubernetes and RabbitMQ."""
        answer = json.loads(self.run("version", "--output=json", doing="Asking for the version"))
        return {
            "Kubernetes": answer["serverVersion"]["gitVersion"],
            "RabbitMQ": self.rabbitmq("version").strip(),
        }

    def operator_pod(self, pod: str, *command: str) -> str:
        """Run a command in the operator's container."""
        return self.run(
            "exec", f"--namespace={SYSTEM}", pod, "--", *command, doing="Asking the operator's pod"
        )

    # -- installation and removal --------------------------------------------------------------------

    def _make(self) -> None:
        with step("Namespaces, RabbitMQ and the probe"):
            self._remove()
            self.run(
                "apply", "--server-side", "--force-conflicts", "--filename", CRD, doing="Applying the CRD"
            )
            self._apply(*_namespaces(), doing="Making the namespaces")
            self._apply(*_rabbitmq(), *self._probe(), *_flow_schema(), doing="Making RabbitMQ and the probe")
            for namespace, name in ((RABBITMQ, "deployment/rabbitmq"), (NAMESPACE, f"deployment/{PROBE}")):
                arguments = ("rollout", "status", name, f"--namespace={namespace}", "--timeout=120s")
                self.run(*arguments, doing=f"Waiting for {name}")
            self.rabbitmq("await_startup")
        with step(f"The operator from the chart, image {self.image}"):
            self._install()

    def _install(self) -> None:
        repository, _, tag = self.image.rpartition(":")
        values = {
            "image": {"repository": repository, "tag": tag},
            "replicaCount": 1,
            "watchNamespaces": [NAMESPACE],
            "crds": {"enabled": False},
            "rbac": {"aggregate": False},
            "fullnameOverride": RELEASE,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values, file)
            file.flush()
            command = [str(self._programs / "helm"), "upgrade", "--install", RELEASE, str(CHART)]
            where = [f"--namespace={SYSTEM}", f"--kubeconfig={self._kubeconfig}", f"--values={file.name}"]
            run([*command, *where, "--wait", "--timeout=120s"], doing="Installing the operator")

    def _remove(self) -> None:
        """Delete the namespaces. The WorkQueues have no finalizer, so they need no operator."""
        options = ("--ignore-not-found", "--wait=true", "--timeout=300s")
        self.run("delete", "namespace", NAMESPACE, SYSTEM, RABBITMQ, *options, doing="Removing namespaces")
        kinds = "clusterrole,clusterrolebinding,flowschema"
        selector = "--selector=app.kubernetes.io/part-of=workqueue-bench"
        self.run("delete", kinds, selector, *options, doing="Removing roles")

    def _apply(self, *objects: Object, doing: str) -> None:
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(bundle, file)
            file.flush()
            self.run("apply", "--server-side", "--filename", file.name, doing=doing)

    def _probe(self) -> list[Object]:
        sources = {name: (FOLDER / name).read_text() for name in ("inside.py", "handlers.py")}
        container = {
            "name": PROBE,
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"],
            "volumeMounts": [{"name": "sources", "mountPath": "/bench"}],
        }
        pod = {
            "serviceAccountName": PROBE,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "sources", "configMap": {"name": "sources"}}],
        }
        subject = {"kind": "ServiceAccount", "name": PROBE, "namespace": NAMESPACE}
        rules = [
            {"apiGroups": ["workqueue.dev"], "resources": ["workqueues"], "verbs": ["*"]},
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "delete"]},
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
            {"nonResourceURLs": ["/metrics"], "verbs": ["get"]},
        ]
        rbac = "rbac.authorization.k8s.io"
        return [
            _object("v1", "ServiceAccount", PROBE, NAMESPACE),
            _object("v1", "ConfigMap", "sources", NAMESPACE, data=sources),
            _object("apps/v1", "Deployment", PROBE, NAMESPACE, spec=_one_replica(PROBE, pod)),
            _object(f"{rbac}/v1", "ClusterRole", "workqueue-bench-probe", rules=rules),
            _object(
                f"{rbac}/v1",
                "ClusterRoleBinding",
                "workqueue-bench-probe",
                roleRef={"apiGroup": rbac, "kind": "ClusterRole", "name": "workqueue-bench-probe"},
                subjects=[subject],
            ),
        ]


def amqp() -> Object:
    """Return the address and the user of RabbitMQ in the cluster."""
    return {"host": f"rabbitmq.{RABBITMQ}.svc", **USER}


def _namespaces() -> list[Object]:
    return [_object("v1", "Namespace", name) for name in (NAMESPACE, SYSTEM, RABBITMQ)]


def _rabbitmq() -> list[Object]:
    """Return the objects of a RabbitMQ without a volume."""
    container = {
        "name": "rabbitmq",
        "image": RABBITMQ_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "RABBITMQ_DEFAULT_USER", "value": USER["username"]},
            {"name": "RABBITMQ_DEFAULT_PASS", "value": USER["password"]},
        ],
        "readinessProbe": {"tcpSocket": {"port": 5672}, "periodSeconds": 1},
    }
    pod = {"enableServiceLinks": False, "terminationGracePeriodSeconds": 0, "containers": [container]}
    service = {"selector": {"app": "rabbitmq"}, "ports": [{"name": "amqp", "port": 5672}]}
    return [
        _object("apps/v1", "Deployment", "rabbitmq", RABBITMQ, spec=_one_replica("rabbitmq", pod)),
        _object("v1", "Service", "rabbitmq", RABBITMQ, spec=service),
        _object("v1", "Secret", SECRET, NAMESPACE, stringData=amqp()),
    ]


def _flow_schema() -> list[Object]:
    """Return a flow schema that gives the operator's requests a flow of their own at their usual priority."""
    rule = {
        "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": SYSTEM}}],
        "resourceRules": [
            {
                "verbs": ["*"],
                "apiGroups": ["*"],
                "resources": ["*"],
                "namespaces": ["*"],
                "clusterScope": True,
            }
        ],
    }
    spec = {
        "priorityLevelConfiguration": {"name": "workload-low"},
        "matchingPrecedence": 8000,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [rule],
    }
    return [_object("flowcontrol.apiserver.k8s.io/v1", "FlowSchema", FLOW_SCHEMA, spec=spec)]


FLOW_SCHEMA: Final = "workqueue-bench"


def _one_replica(name: str, pod: Object) -> Object:
    return {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
    }


def _object(version: str, kind: str, name: str, namespace: str | None = None, **rest: Any) -> Object:
    labels = {"app.kubernetes.io/part-of": "workqueue-bench"}
    metadata: Object = {"name": name, "labels": labels}
    if namespace is not None:
        metadata["namespace"] = namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}
