"""The operator's configuration, read from the environment at start. All mistakes are reported together."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from workqueue_operator.errors import ConfigurationError
from workqueue_operator.names import PAGE_AUDIENCE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Config:
    """The operator's configuration.

    Attributes:
        namespaces: namespaces to serve; empty for all.
        worker_image: default image of workers with an http handler.
        pod_name: name of this process in Leases and Events.
        pod_namespace: namespace of the Lease.
        release: name of this installation, as in the label `workqueue.dev/operator` of a namespace.
        port: port of /metrics, /livez and /readyz.
        sweep_seconds: pause between two polls of a queue with workers.
        idle_sweep_seconds: pause between two polls of an idle queue or a dead-letter queue.
        relist_seconds: pause between two resyncs of the store.
        page_port: port of the web page; None to disable it.
        page_audience: audience of the tokens for the web page.
        allowed_broker_hosts: host names, addresses or patterns that Secrets may contain; empty for all hosts except
            loopback, link-local and metadata addresses.
    """

    namespaces: tuple[str, ...] = ()
    worker_image: str = ""
    pod_name: str = field(default_factory=socket.gethostname)
    pod_namespace: str = "default"
    release: str = "workqueue-operator"
    leader_election: bool = True
    lease_name: str = "workqueue-operator"
    port: int = 8080
    sweep_seconds: float = 0.5
    idle_sweep_seconds: float = 30.0
    relist_seconds: float = 300.0
    page_port: int | None = None
    page_audience: str = PAGE_AUDIENCE
    allowed_broker_hosts: tuple[str, ...] = ()
    log_format: str = "json"
    log_level: str = "INFO"
    worker_network_policy: bool = False
    metrics_from: tuple[dict[str, Any], ...] = ()
    kubeconfig: str | None = None


def from_environment(environment: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration from the `WORKQUEUE_*` variables.

    Raises:
        ConfigurationError: at least one value is invalid; has one sentence for each mistake.
    """
    mistakes: list[str] = []

    def read(name: str, parse: Callable[[str], T], default: T) -> T:
        text = environment.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            mistakes.append(f"{name} is {text!r}: {error}.")
            return default

    default = Config()
    config = Config(
        namespaces=read("WORKQUEUE_WATCH_NAMESPACES", _names, ()),
        worker_image=read("WORKQUEUE_WORKER_IMAGE", str, default.worker_image),
        pod_name=read("WORKQUEUE_POD_NAME", str, default.pod_name),
        pod_namespace=read("WORKQUEUE_POD_NAMESPACE", str, default.pod_namespace),
        release=read("WORKQUEUE_RELEASE", str, default.release),
        leader_election=read("WORKQUEUE_LEADER_ELECTION", _switch, default.leader_election),
        lease_name=read("WORKQUEUE_LEASE_NAME", str, default.lease_name),
        port=read("WORKQUEUE_PORT", _port, default.port),
        sweep_seconds=read("WORKQUEUE_SWEEP_SECONDS", _seconds, default.sweep_seconds),
        idle_sweep_seconds=read("WORKQUEUE_IDLE_SWEEP_SECONDS", _seconds, default.idle_sweep_seconds),
        relist_seconds=read("WORKQUEUE_RELIST_SECONDS", _seconds, default.relist_seconds),
        page_port=read("WORKQUEUE_PAGE_PORT", _port, None),
        page_audience=read("WORKQUEUE_PAGE_AUDIENCE", str, default.page_audience),
        allowed_broker_hosts=read("WORKQUEUE_ALLOWED_BROKER_HOSTS", _hosts, ()),
        log_format=read("WORKQUEUE_LOG_FORMAT", _one_of("json", "text"), default.log_format),
        log_level=read("WORKQUEUE_LOG_LEVEL", _level, default.log_level),
        worker_network_policy=read("WORKQUEUE_WORKER_NETWORK_POLICY", _switch, default.worker_network_policy),
        metrics_from=read("WORKQUEUE_METRICS_FROM", _peers, ()),
        kubeconfig=environment.get("KUBECONFIG") or None,
    )
    if mistakes:
        raise ConfigurationError(mistakes)
    return config


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if wrong := [name for name in names if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)]:
        raise ValueError(f"{wrong[0]!r} is not a valid namespace name; separate names by commas")
    return names


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(host.strip() for host in text.split(",") if host.strip()))
    if wrong := [host for host in hosts if not re.fullmatch(r"[A-Za-z0-9._:*-]+", host)]:
        raise ValueError(
            f"{wrong[0]!r} is not a host name, an IP address or a pattern such as *.svc; separate hosts by commas"
        )
    return hosts


def _switch(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("it must be true or false")
    return text.lower() == "true"


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:  # noqa: PLR2004 - the range of TCP ports
        raise ValueError("it must be a number from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError("it must be a number of seconds") from None
    if not 0 < seconds < float("inf"):
        raise ValueError("it must be a number of seconds above 0")
    return seconds


def _level(text: str) -> str:
    return _one_of("DEBUG", "INFO", "WARNING", "ERROR")(text.upper())


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"it must be one of {', '.join(choices)}")
        return text

    return parse


def _peers(text: str) -> tuple[dict[str, Any], ...]:
    try:
        peers = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it must be a JSON list of NetworkPolicy peers ({error})") from None
    if not isinstance(peers, list) or not all(isinstance(peer, dict) for peer in peers):
        raise ValueError("it must be a JSON list of NetworkPolicy peers")
    return tuple(peers)
