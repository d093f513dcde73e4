"""RabbitMQ inside the cluster under test, and access to it from the test.

`Cluster RabbitMQ` is a Deployment from the image that a real cluster would pull; the test reaches it through
`kubectl port-forward`, the workers and the operator by its Service.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import pika

from tests.support.kubernetes import PortForward, apply, kubectl
from tests.support.wait import eventually

IMAGE: Final = "docker.io/library/rabbitmq:4-management"
LARGEST: Final = 128 * 1024 * 1024
"""Bytes: the largest message, as in RabbitMQ 3.10. The default of RabbitMQ 4 is 16 MiB."""

Object = dict[str, Any]


def manifests(namespace: str, name: str = "rabbitmq") -> list[Object]:
    """A broker without persistence: it loses its data with its pod."""
    labels = {"app": name}
    container = {
        "name": "rabbitmq",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        # Without a request, any worker that starts would have 25 times its share of the processors.
        "resources": {"requests": {"cpu": "50m"}},
        "readinessProbe": {"tcpSocket": {"port": 5672}, "periodSeconds": 1},
        "env": [
            {"name": "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "value": f"-rabbit max_message_size {LARGEST}"}
        ],
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "enableServiceLinks": False,
                        "terminationGracePeriodSeconds": 1,
                        "containers": [container],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "selector": labels,
                "ports": [{"name": "amqp", "port": 5672}, {"name": "http", "port": 15672}],
            },
        },
    ]


class Rabbit:
    """The broker of the end-to-end tests."""

    def __init__(self, namespace: str, name: str = "rabbitmq") -> None:
        self.namespace = namespace
        self.name = name
        self.host = f"{name}.{namespace}.svc"
        self.port = 5672
        self._target = f"deployment/{name}"
        self._forward: PortForward | None = None
        self._connection: Any = None

    def start(self) -> None:
        """Deploy it and wait until it serves."""
        apply(*manifests(self.namespace, self.name))
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it answers."""
        kubectl(
            "rollout", "status", f"deployment/{self.name}", f"--namespace={self.namespace}", "--timeout=180s"
        )
        eventually(lambda: self._try_ctl("await_startup"), 120, "RabbitMQ has started")

    def ctl(self, *arguments: str) -> str:
        """rabbitmqctl in its pod."""
        where = f"--namespace={self.namespace}"
        return kubectl("exec", where, self._target, "--", "rabbitmqctl", "--quiet", *arguments)

    def _try_ctl(self, *arguments: str) -> bool:
        try:
            self.ctl(*arguments)
        except Exception:  # noqa: BLE001 - any error is retried
            return False
        return True

    def add_vhost(self, name: str, user: str, password: str) -> None:
        """A virtual host with a user of its own who may do everything in it."""
        self.ctl("add_vhost", name)
        self.ctl("add_user", user, password)
        self.ctl("set_permissions", "--vhost", name, user, ".*", ".*", ".*")

    def queues(self, vhost: str = "/") -> dict[str, Object]:
        """All queues of a virtual host by name, with their arguments.

        Without counts: RabbitMQ updates those of quorum queues here every 5 s only. A passive declare is exact.
        """
        listed = json.loads(
            self.ctl("list_queues", "--vhost", vhost, "--formatter=json", "name", "arguments")
        )
        return {queue["name"]: queue for queue in listed}

    # -- as a client ---------------------------------------------------------------------------------

    def channel(self, vhost: str = "/", username: str = "guest", password: str = "guest") -> Any:
        """A channel with confirmations, on a connection of its own."""
        parameters = pika.ConnectionParameters(
            "127.0.0.1",
            self._forwarded(),
            vhost,
            pika.PlainCredentials(username, password),
            heartbeat=0,
            socket_timeout=60,
            stack_timeout=90,
            blocked_connection_timeout=120,
        )
        channel = pika.BlockingConnection(parameters).channel()
        channel.confirm_delivery()
        return channel

    def url(self, vhost: str, username: str, password: str) -> str:
        """The AMQP URL of a virtual host, as the test reaches it."""
        who = f"{quote(username, safe='')}:{quote(password, safe='')}"
        return f"amqp://{who}@127.0.0.1:{self._forwarded()}/{quote(vhost, safe='')}"

    def publish(self, channel: Any, queue: str, jobs: list[Object]) -> None:
        """Publish JSON jobs, persistent, mandatory, each confirmed."""
        properties = pika.BasicProperties(delivery_mode=2, timestamp=int(time.time()))
        for job in jobs:
            channel.basic_publish("", queue, json.dumps(job).encode(), properties, mandatory=True)

    def _forwarded(self) -> int:
        if self._forward is None or not self._forward.alive:
            self.close()
            self._forward = PortForward(self.namespace, self._target, 5672)
        return self._forward.port

    def close(self) -> None:
        """End the port-forward."""
        if self._forward is not None:
            self._forward.close()


def drain(channel: Any, queue: str) -> Iterator[Object]:
    """Take all current messages of a queue."""
    while True:
        method, _, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return
        yield json.loads(body)


@contextlib.contextmanager
def rabbit_in(namespace: str) -> Iterator[Rabbit]:
    """A broker in a namespace, reachable from the test while the context lasts."""
    rabbit = Rabbit(namespace)
    try:
        rabbit.start()
        yield rabbit
    finally:
        rabbit.close()
