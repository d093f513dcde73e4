"""The page's configuration, read from the environment at start."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from workqueue_operator.environment import (
    Environment,
    hosts,
    level,
    names,
    one_of,
    port,
    seconds,
    secret_names,
    switch,
)
from workqueue_web.access import AUDIENCE


@dataclass(frozen=True, slots=True)
class Config:
    """The page's configuration.

    Attributes:
        namespaces: namespaces to show; empty for all.
        pod_name: name of this process.
        port: port of /metrics, /livez and /readyz.
        page_port: port of the web page.
        page_audience: audience of the tokens that users log in with.
        connection_secrets: names of the connection Secrets that the page may read, to sample dead letters.
        allowed_broker_hosts: as in the operator's configuration.
        actions: whether users may change WorkQueues and dead letters from the page, as far as they may with kubectl.
        pod_namespace: the namespace of the operator's Lease.
        lease_name: the operator's Lease; empty if it runs without leader election.
        runbook_url: address of the runbooks; the alert's name is appended.
        resync_seconds: pause between two resyncs of the store.
    """

    namespaces: tuple[str, ...] = ()
    pod_name: str = field(default_factory=socket.gethostname)
    port: int = 8080
    page_port: int = 8081
    page_audience: str = AUDIENCE
    connection_secrets: tuple[str, ...] = ()
    allowed_broker_hosts: tuple[str, ...] = ()
    actions: bool = False
    pod_namespace: str = "default"
    lease_name: str = ""
    runbook_url: str = "https://workqueue.dev/runbooks"
    resync_seconds: float = 300.0
    log_format: str = "json"
    log_level: str = "INFO"
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
        pod_name=read("WORKQUEUE_POD_NAME", str, default.pod_name),
        port=read("WORKQUEUE_PORT", port, default.port),
        page_port=read("WORKQUEUE_PAGE_PORT", port, default.page_port),
        page_audience=read("WORKQUEUE_PAGE_AUDIENCE", str, default.page_audience),
        connection_secrets=read("WORKQUEUE_CONNECTION_SECRETS", secret_names, ()),
        allowed_broker_hosts=read("WORKQUEUE_ALLOWED_BROKER_HOSTS", hosts, ()),
        actions=read("WORKQUEUE_PAGE_ACTIONS", switch, default.actions),
        pod_namespace=read("WORKQUEUE_POD_NAMESPACE", str, default.pod_namespace),
        lease_name=read("WORKQUEUE_LEASE_NAME", str, default.lease_name),
        runbook_url=read("WORKQUEUE_RUNBOOK_URL", _web_address, default.runbook_url),
        resync_seconds=read("WORKQUEUE_RESYNC_SECONDS", seconds, default.resync_seconds),
        log_format=read("WORKQUEUE_LOG_FORMAT", one_of("json", "text"), default.log_format),
        log_level=read("WORKQUEUE_LOG_LEVEL", level, default.log_level),
        kubeconfig=environment.get("KUBECONFIG") or None,
    )
    variables.check()
    return config


def _web_address(text: str) -> str:
    if not text.startswith(("https://", "http://")):
        raise ValueError("it must be an address that starts with https:// or http://")
    return text.rstrip("/")
