"""WorkQueues in the cluster under test, as users work with them: applied, watched, deleted with kubectl."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.inside import Rabbit, drain
from tests.support.kubernetes import KubectlError, kubectl, kubectl_json, watching
from tests.support.objects import Object, merged
from tests.support.wait import eventually

IMAGE: Final = "workqueue-operator:dev"
HANDLERS: Final = Path(__file__).parents[1] / "e2e/handlers/jobs.py"
CONDITIONS: Final = 120.0


@dataclass
class Lab:
    """A namespace with a connection Secret, a virtual host of its own, and the tests' handlers."""

    namespace: str
    rabbit: Rabbit
    vhost: str = field(default_factory=lambda: f"lab-{secrets.token_hex(4)}")
    password: str = field(default_factory=lambda: "p" + secrets.token_urlsafe(9) + "@:/%#?")
    _channel: Any = None

    def prepare(self) -> None:
        """The Secret (its password has every character that a URL must escape) and the handlers."""
        self.rabbit.add_vhost(self.vhost, self.vhost, self.password)
        self.secret("rabbitmq")
        kubectl(
            "create",
            "configmap",
            "handlers",
            f"--from-file=jobs.py={HANDLERS}",
            f"--namespace={self.namespace}",
        )

    def secret(self, name: str, **changes: str) -> None:
        """Write a connection Secret; `changes` replaces keys, an empty text leaves the key out."""
        keys = {
            "host": self.rabbit.host,
            "port": str(self.rabbit.port),
            "username": self.vhost,
            "password": self.password,
            "virtual-host": self.vhost,
            **{key.replace("_", "-"): value for key, value in changes.items()},
        }
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": self.namespace},
            "stringData": {key: value for key, value in keys.items() if value},
        }
        kubectl("delete", "secret", name, "--ignore-not-found", f"--namespace={self.namespace}")
        kubectl("create", "--filename=-", input=json.dumps(body))

    @property
    def channel(self) -> Any:
        """A channel in this lab's virtual host."""
        if self._channel is not None and not self._channel.is_open:
            self.close()  # a refusal closes the channel but not the connection
            self._channel = None
        if self._channel is None:
            self._channel = self.rabbit.channel(self.vhost, self.vhost, self.password)
        return self._channel

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None and self._channel.connection.is_open:
            self._channel.connection.close()

    def reconnect(self) -> None:
        """Open a new connection, after the broker was unreachable."""
        self._channel = None

    def queues(self) -> dict[str, Object]:
        """The queues of this lab's virtual host, by rabbitmqctl: 1 to 2 s of processor time."""
        return self.rabbit.queues(self.vhost)

    def ready(self, queue: str) -> int:
        """The exact count of waiting messages."""
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def consumers(self, queue: str) -> int:
        """The exact count of consumers."""
        return int(self.channel.queue_declare(queue, passive=True).method.consumer_count)

    def workqueue(self, name: str, **changes: Any) -> WorkQueueUnderTest:
        """A WorkQueue whose workers publish to the results queue `<name>.results`, not applied yet."""
        results = f"{name}.results"
        self.channel.queue_declare(results, durable=True, arguments={"x-queue-type": "quorum"})
        body: Object = {
            "apiVersion": "workqueue.dev/v1alpha1",
            "kind": "WorkQueue",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "connectionSecretRef": {"name": "rabbitmq"},
                "retry": {"maxAttempts": 3, "delaysSeconds": [1]},
                "worker": {
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "handler": {"python": "jobs:record"},
                    "timeoutSeconds": 60,
                    "env": [
                        {"name": "PYTHONPATH", "value": "/handlers"},
                        {"name": "RESULTS_QUEUE", "value": results},
                    ],
                    "volumes": [{"name": "handlers", "configMap": {"name": "handlers"}}],
                    "volumeMounts": [{"name": "handlers", "mountPath": "/handlers", "readOnly": True}],
                },
                "scaling": {"maxReplicas": 5, "messagesPerReplica": 2, "scaleInDelaySeconds": 2},
            },
        }
        return WorkQueueUnderTest(self, name, merged(body, {"spec": changes}))


@dataclass
class WorkQueueUnderTest:
    """One WorkQueue."""

    lab: Lab
    name: str
    body: Object

    @property
    def _where(self) -> str:
        return f"--namespace={self.lab.namespace}"

    @property
    def queue_name(self) -> str:
        """The name of its queue."""
        return str(self.body["spec"].get("queue", {}).get("name", self.name))

    def apply(self) -> WorkQueueUnderTest:
        """kubectl apply."""
        kubectl("apply", "--filename=-", input=json.dumps(self.body))
        return self

    def change(self, **spec: Any) -> WorkQueueUnderTest:
        """Change parts of the spec and apply again."""
        self.body = merged(self.body, {"spec": spec})
        return self.apply()

    def get(self) -> Object:
        """The current WorkQueue."""
        return dict(kubectl_json("get", "wq", self.name, self._where))

    def status(self) -> Object:
        """Its status; empty before the first write."""
        return dict(self.get().get("status", {}))

    def exists(self) -> bool:
        """Whether it exists."""
        return bool(kubectl("get", "wq", self.name, self._where, "--ignore-not-found", "--output=name"))

    def condition(self, kind: str) -> Object:
        """A condition; empty while it does not exist."""
        return _condition(self.get(), kind)

    def wait_condition(
        self, kind: str, status: str, reason: str | None = None, seconds: float = CONDITIONS
    ) -> Object:
        """Wait until the operator writes a condition about the current spec, and return it."""

        def holds() -> Object | None:
            body = self.get()
            found = _condition(body, kind)
            good = found.get("status") == status and reason in {None, found.get("reason")}
            current = found.get("observedGeneration") == body["metadata"]["generation"]
            return found if good and current else None

        try:
            return eventually(holds, seconds, f"{self.name}: {kind} is {status} ({reason or 'any reason'})")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{json.dumps(self.status(), indent=1)}") from None

    def wait_ready(self) -> WorkQueueUnderTest:
        """Wait until it is Ready, as `kubectl wait` does."""
        self.wait_condition("Ready", "True")
        return self

    def event_reasons(self) -> set[str]:
        """The reasons of all Events about it."""
        selector = f"--field-selector=involvedObject.kind=WorkQueue,involvedObject.name={self.name}"
        return {event["reason"] for event in kubectl_json("get", "events", selector, self._where)["items"]}

    def deployment(self) -> Object:
        """The workers' Deployment."""
        return dict(kubectl_json("get", "deployment", f"{self.name}-worker", self._where))

    def replicas(self) -> int:
        """spec.replicas of the Deployment."""
        return int(self.deployment()["spec"]["replicas"])

    def pods(self) -> list[Object]:
        """The workers' pods."""
        return list(
            kubectl_json("get", "pods", f"--selector=workqueue.dev/workqueue={self.name}", self._where)[
                "items"
            ]
        )

    def publish(self, jobs: list[Object]) -> None:
        """Publish jobs to the queue, each confirmed."""
        self.lab.rabbit.publish(self.lab.channel, self.name, jobs)

    def results(self, count: int, seconds: float = 180) -> list[Object]:
        """Wait for this number of results, and take them."""
        taken: list[Object] = []

        def enough() -> bool:
            taken.extend(drain(self.lab.channel, f"{self.name}.results"))
            return len(taken) >= count

        try:
            eventually(enough, seconds, f"{count} results of {self.name}")
        except TimeoutError as error:
            ids = sorted(str(result["id"]) for result in taken)
            raise AssertionError(f"{error}; {len(taken)} came: {ids}") from None
        return taken

    def delete(self, *, wait: bool = True) -> None:
        """kubectl delete."""
        kubectl("delete", "wq", self.name, self._where, "--wait=false", "--ignore-not-found")
        if wait:
            eventually(lambda: not self.exists(), 120, f"{self.name} is gone")


def _condition(body: Object, kind: str) -> Object:
    """The condition of a WorkQueue; empty while it does not exist."""
    found = [one for one in body.get("status", {}).get("conditions", []) if one["type"] == kind]
    return dict(found[0]) if found else {}


@dataclass
class ReplicaWatch:
    """Every value that spec.replicas of a Deployment takes, without repetitions."""

    counts: list[int] = field(default_factory=list)

    def note(self, count: int) -> None:
        """Add a value that was seen."""
        if self.counts[-1:] != [count]:
            self.counts.append(count)


@contextlib.contextmanager
def watching_replicas(workqueue: WorkQueueUnderTest) -> Iterator[ReplicaWatch]:
    """Follow the Deployment by `kubectl get --watch` while the context lasts."""
    watch = ReplicaWatch()
    with watching(
        *("deployment", f"{workqueue.name}-worker", f"--namespace={workqueue.lab.namespace}"),
        "--output=jsonpath={.spec.replicas}{'\\n'}",
        each=lambda line: watch.note(int(line)),
    ):
        eventually(lambda: watch.counts, 60, "the Deployment is being watched")
        yield watch


@contextlib.contextmanager
def lab_in(namespace: str, rabbit: Rabbit) -> Iterator[Lab]:
    """A lab in an existing namespace."""
    made = Lab(namespace, rabbit)
    made.prepare()
    try:
        yield made
    finally:
        made.close()


def refusal(body: Object) -> str:
    """The error of kubectl apply for a resource that must be refused."""
    try:
        kubectl("apply", "--filename=-", input=json.dumps(body))
    except KubectlError as error:
        return str(error)
    raise AssertionError("kubectl apply took it")
