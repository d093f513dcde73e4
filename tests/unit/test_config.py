"""The operator's configuration: read once, all errors reported together."""

from __future__ import annotations

import pytest

from workqueue_operator.config import Config, from_environment
from workqueue_operator.errors import ConfigurationError


def test_empty_environment_gives_default_config() -> None:
    config = from_environment({})
    assert config == Config(pod_name=config.pod_name)
    assert config.namespaces == ()


def test_full_environment_gives_full_config() -> None:
    config = from_environment(
        {
            "WORKQUEUE_WATCH_NAMESPACES": " one, two ,one,",
            "WORKQUEUE_WORKER_IMAGE": "worker:1",
            "WORKQUEUE_WORKER_PULL_SECRETS": "registry,mirror",
            "WORKQUEUE_POD_NAME": "operator-1",
            "WORKQUEUE_POD_NAMESPACE": "system",
            "WORKQUEUE_LEADER_ELECTION": "FALSE",
            "WORKQUEUE_LEASE_NAME": "lease",
            "WORKQUEUE_PORT": "0",
            "WORKQUEUE_POLL_SECONDS": "0.25",
            "WORKQUEUE_ALLOWED_BROKER_HOSTS": "*.svc, 10.0.0.1,*.svc",
            "WORKQUEUE_IDLE_POLL_SECONDS": "10",
            "WORKQUEUE_RESYNC_SECONDS": "60",
            "WORKQUEUE_LOG_FORMAT": "text",
            "WORKQUEUE_LOG_LEVEL": "debug",
            "WORKQUEUE_WORKER_NETWORK_POLICY": "true",
            "WORKQUEUE_METRICS_FROM": '[{"podSelector": {}}]',
            "WORKQUEUE_WORKER_OTHER_PORTS": "false",
            "KUBECONFIG": "/home/me/.kube/config",
        }
    )
    assert config == Config(
        namespaces=("one", "two"),
        worker_image="worker:1",
        worker_pull_secrets=("registry", "mirror"),
        pod_name="operator-1",
        pod_namespace="system",
        leader_election=False,
        lease_name="lease",
        port=0,
        poll_seconds=0.25,
        idle_poll_seconds=10.0,
        resync_seconds=60.0,
        allowed_broker_hosts=("*.svc", "10.0.0.1"),
        log_format="text",
        log_level="DEBUG",
        worker_network_policy=True,
        worker_other_ports=False,
        metrics_from=({"podSelector": {}},),
        kubeconfig="/home/me/.kube/config",
    )


def test_empty_variable_counts_as_unset() -> None:
    assert from_environment({"WORKQUEUE_PORT": " ", "KUBECONFIG": ""}).port == Config().port


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WORKQUEUE_WORKER_PULL_SECRETS", "Registry"),
        ("WORKQUEUE_PORT", "http"),
        ("WORKQUEUE_PORT", "-1"),
        ("WORKQUEUE_PORT", "65536"),
        ("WORKQUEUE_LEADER_ELECTION", "yes"),
        ("WORKQUEUE_POLL_SECONDS", "0"),
        ("WORKQUEUE_ALLOWED_BROKER_HOSTS", "*.svc,a b"),
        ("WORKQUEUE_POLL_SECONDS", "nan"),
        ("WORKQUEUE_POLL_SECONDS", "inf"),
        ("WORKQUEUE_RESYNC_SECONDS", "5m"),
        ("WORKQUEUE_LOG_FORMAT", "xml"),
        ("WORKQUEUE_LOG_LEVEL", "loud"),
        ("WORKQUEUE_METRICS_FROM", "{}"),
        ("WORKQUEUE_METRICS_FROM", "[1]"),
        ("WORKQUEUE_METRICS_FROM", "["),
        ("WORKQUEUE_WATCH_NAMESPACES", "one two"),
        ("WORKQUEUE_WATCH_NAMESPACES", "one,../two"),
        ("WORKQUEUE_WATCH_NAMESPACES", "One"),
    ],
)
def test_config_error_names_variable_and_value(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_environment({name: text})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{name} is {text!r}: ")


def test_all_config_errors_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_environment(
            {"WORKQUEUE_PORT": "x", "WORKQUEUE_LEADER_ELECTION": "x", "WORKQUEUE_LOG_LEVEL": "x"}
        )
    assert len(caught.value.mistakes) == 3
    assert str(caught.value).count("\n") == 2
