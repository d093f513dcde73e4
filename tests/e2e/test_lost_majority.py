"""Three RabbitMQ nodes, of which two go down: one queue has lost its majority, and the idle others still wake."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.support.inside import Rabbit, manifests
from tests.support.kubernetes import apply, kubectl, temporary_namespace
from tests.support.wait import eventually
from tests.support.workqueues import Lab

pytestmark = pytest.mark.nightly

NODES: Final = 3
OTHERS: Final = 5


class RabbitNodes(Rabbit):
    """A RabbitMQ cluster as a StatefulSet. Clients use its first node."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.host = f"{self.name}-0.{self.name}.{namespace}.svc"
        self._target = f"pod/{self.name}-0"

    def start(self) -> None:
        """Start the nodes and wait until each is a member."""
        apply(*self._manifests())
        where = f"--namespace={self.namespace}"
        kubectl("rollout", "status", f"statefulset/{self.name}", where, "--timeout=200s")
        eventually(lambda: len(self.running_nodes()) == NODES, 120, "all nodes are members")

    def running_nodes(self) -> list[str]:
        """The members that run, as the first node sees them."""
        code = 'io:format("~s~n", [lists:join(",", [atom_to_list(N) || N <- rabbit_nodes:list_running()])]).'
        return self.ctl("eval", code).splitlines()[0].split(",")

    def stop_all_but_first(self) -> None:
        """Lose the majority of the nodes."""
        kubectl("scale", f"statefulset/{self.name}", "--replicas=1", f"--namespace={self.namespace}")
        eventually(lambda: len(self.running_nodes()) == 1, 120, "one node is left")

    def _manifests(self) -> list[dict[str, Any]]:
        deployment, service = manifests(self.namespace, self.name)
        template = deployment["spec"]["template"]
        members = [f"rabbit@{self.name}-{one}.{self.name}.{self.namespace}.svc" for one in range(NODES)]
        discovery = ["cluster_formation.peer_discovery_backend = classic_config"] + [
            f"cluster_formation.classic_config.nodes.{number} = {node}"
            for number, node in enumerate(members, 1)
        ]
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "nodes", "namespace": self.namespace},
            "data": {"20-nodes.conf": "\n".join([*discovery, "loopback_users.guest = false"])},
        }
        cookie = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "cookie", "namespace": self.namespace},
            "stringData": {"cookie": secrets.token_hex(16)},
        }
        (container,) = template["spec"]["containers"]
        name = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
        container["env"] += [
            name,
            {"name": "RABBITMQ_USE_LONGNAME", "value": "true"},
            {"name": "RABBITMQ_NODENAME", "value": f"rabbit@$(POD).{self.name}.{self.namespace}.svc"},
            {
                "name": "RABBITMQ_ERLANG_COOKIE",
                "valueFrom": {"secretKeyRef": {"name": "cookie", "key": "cookie"}},
            },
        ]
        container["volumeMounts"] = [
            {"name": "nodes", "mountPath": "/etc/rabbitmq/conf.d/20-nodes.conf", "subPath": "20-nodes.conf"}
        ]
        template["spec"]["volumes"] = [{"name": "nodes", "configMap": {"name": "nodes"}}]
        del deployment["spec"]["strategy"]
        deployment["kind"] = "StatefulSet"
        deployment["spec"] |= {
            "serviceName": self.name,
            "replicas": NODES,
            "podManagementPolicy": "Parallel",
        }
        service["spec"] |= {"clusterIP": "None", "publishNotReadyAddresses": True}
        return [config, cookie, deployment, service]


@pytest.fixture
def nodes() -> Iterator[RabbitNodes]:
    with temporary_namespace("e2e-nodes") as namespace:
        made = RabbitNodes(namespace)
        try:
            made.start()
            yield made
        finally:
            made.close()


def test_queue_without_majority_does_not_silence_idle_others(lab: Lab, nodes: RabbitNodes) -> None:
    """Nightly: three more RabbitMQ nodes take half a minute to start."""
    nodes.add_vhost(lab.vhost, lab.vhost, lab.password)
    lab.secret("nodes", host=nodes.host)
    channel = nodes.channel(lab.vhost, lab.vhost, lab.password)
    idle = {"connectionSecretRef": {"name": "nodes"}, "scaling": {"minReplicas": 0, "wake": "Push"}}
    stuck = lab.workqueue("stuck", **idle, queue={"type": "Quorum"})
    # A classic queue is on the node to which its client is connected.
    others = [lab.workqueue(f"idle-{one}", **idle, queue={"type": "Classic"}) for one in range(OTHERS)]
    for workqueue in (stuck, *others):
        channel.queue_declare(f"{workqueue.name}.results", durable=True)
        workqueue.apply()
    for workqueue in (stuck, *others):
        workqueue.wait_ready()

    nodes.stop_all_but_first()
    for workqueue in others:
        nodes.publish(channel, workqueue.name, [{"id": workqueue.name}])
    for workqueue in others:
        results = f"{workqueue.name}.results"
        eventually(
            lambda queue=results: channel.queue_declare(queue, passive=True).method.message_count == 1,
            120,
            f"a worker of {workqueue.name} has handled its message",
        )
    channel.connection.close()
    for workqueue in (stuck, *others):
        workqueue.delete(wait=False)
