"""The operator's configuration, read from the environment at start. All mistakes are reported together."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workqueue_operator.environment import (
    Environment,
    hosts,
    level,
    names,
    one_of,
    peers,
    port,
    seconds,
    secret_names,
    switch,
)


@dataclass(frozen=True, slots=True)
class Config:
    """The operator's configuration.

    Attributes:
        namespaces: namespaces to serve; empty for all.
        worker_image: default image of workers with an http handler.
        worker_pull_secrets: names of the Secrets with registry credentials for that image, in the namespace of the
            WorkQueue.
        pod_name: name of this process in Leases and Events.
        pod_namespace: namespace of the Lease.
        release: name of this installation, as in the label `workqueue.dev/operator` of a namespace.
        port: port of /metrics, /livez and /readyz.
        poll_seconds: pause between two polls of a queue with workers.
        idle_poll_seconds: pause between two polls of an idle queue or a dead-letter queue.
        resync_seconds: pause between two resyncs of the store.
        allowed_broker_hosts: host names, addresses or patterns that Secrets may contain; empty for all hosts except
            loopback, link-local and metadata addresses.
        read_nodes: whether to read which nodes are cordoned.
        worker_other_ports: whether the NetworkPolicies of workers leave all ports but the endpoint's open.
    """

    namespaces: tuple[str, ...] = ()
    worker_image: str = ""
    worker_pull_secrets: tuple[str, ...] = ()
    pod_name: str = field(default_factory=socket.gethostname)
    pod_namespace: str = "default"
    release: str = "workqueue-operator"
    leader_election: bool = True
    lease_name: str = "workqueue-operator"
    port: int = 8080
    poll_seconds: float = 0.5
    idle_poll_seconds: float = 30.0
    resync_seconds: float = 300.0
    allowed_broker_hosts: tuple[str, ...] = ()
    read_nodes: bool = False
    log_format: str = "json"
    log_level: str = "INFO"
    worker_network_policy: bool = False
    worker_other_ports: bool = True
    metrics_from: tuple[dict[str, Any], ...] = ()
    kubeconfig: str | None = None


def from_environment(environment: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration from the `WORKQUEUE_*` variables.

    Raises:
        ConfigurationError: at least one value is invalid; has one sentence for each mistake.
    """
    variables = Environment(environment)
    read, default = variables.read, Config()
    config = Config(
        namespaces=read("WORKQUEUE_WATCH_NAMESPACES", names, ()),
        worker_image=read("WORKQUEUE_WORKER_IMAGE", str, default.worker_image),
        worker_pull_secrets=read("WORKQUEUE_WORKER_PULL_SECRETS", secret_names, ()),
        pod_name=read("WORKQUEUE_POD_NAME", str, default.pod_name),
        pod_namespace=read("WORKQUEUE_POD_NAMESPACE", str, default.pod_namespace),
        release=read("WORKQUEUE_RELEASE", str, default.release),
        leader_election=read("WORKQUEUE_LEADER_ELECTION", switch, default.leader_election),
        lease_name=read("WORKQUEUE_LEASE_NAME", str, default.lease_name),
        port=read("WORKQUEUE_PORT", port, default.port),
        poll_seconds=read("WORKQUEUE_POLL_SECONDS", seconds, default.poll_seconds),
        idle_poll_seconds=read("WORKQUEUE_IDLE_POLL_SECONDS", seconds, default.idle_poll_seconds),
        resync_seconds=read("WORKQUEUE_RESYNC_SECONDS", seconds, default.resync_seconds),
        allowed_broker_hosts=read("WORKQUEUE_ALLOWED_BROKER_HOSTS", hosts, ()),
        read_nodes=read("WORKQUEUE_READ_NODES", switch, default.read_nodes),
        log_format=read("WORKQUEUE_LOG_FORMAT", one_of("json", "text"), default.log_format),
        log_level=read("WORKQUEUE_LOG_LEVEL", level, default.log_level),
        worker_network_policy=read("WORKQUEUE_WORKER_NETWORK_POLICY", switch, default.worker_network_policy),
        worker_other_ports=read("WORKQUEUE_WORKER_OTHER_PORTS", switch, default.worker_other_ports),
        metrics_from=read("WORKQUEUE_METRICS_FROM", peers, ()),
        kubeconfig=environment.get("KUBECONFIG") or None,
    )
    variables.check()
    return config
