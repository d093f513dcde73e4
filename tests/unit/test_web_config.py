"""The page's configuration: read once, all errors reported together."""

from __future__ import annotations

import pytest

from workqueue_operator.errors import ConfigurationError
from workqueue_web.config import Config, from_environment


def test_empty_environment_gives_default_config() -> None:
    config = from_environment({})
    assert config == Config(pod_name=config.pod_name)


def test_full_environment_gives_full_config() -> None:
    config = from_environment(
        {
            "WORKQUEUE_WATCH_NAMESPACES": "one,two",
            "WORKQUEUE_POD_NAME": "page-1",
            "WORKQUEUE_PORT": "1",
            "WORKQUEUE_PAGE_PORT": "2",
            "WORKQUEUE_PAGE_AUDIENCE": "jobs",
            "WORKQUEUE_CONNECTION_SECRETS": "rabbitmq, other.secret",
            "WORKQUEUE_ALLOWED_BROKER_HOSTS": "*.svc",
            "WORKQUEUE_PAGE_ACTIONS": "true",
            "WORKQUEUE_POD_NAMESPACE": "system",
            "WORKQUEUE_LEASE_NAME": "jobs",
            "WORKQUEUE_RUNBOOK_URL": "https://docs.example/runbooks/",
            "WORKQUEUE_RESYNC_SECONDS": "60",
            "WORKQUEUE_LOG_FORMAT": "text",
            "WORKQUEUE_LOG_LEVEL": "debug",
            "KUBECONFIG": "/home/me/.kube/config",
        }
    )
    assert config == Config(
        namespaces=("one", "two"),
        pod_name="page-1",
        port=1,
        page_port=2,
        page_audience="jobs",
        connection_secrets=("rabbitmq", "other.secret"),
        allowed_broker_hosts=("*.svc",),
        actions=True,
        pod_namespace="system",
        lease_name="jobs",
        runbook_url="https://docs.example/runbooks",
        resync_seconds=60.0,
        log_format="text",
        log_level="DEBUG",
        kubeconfig="/home/me/.kube/config",
    )


def test_all_config_errors_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_environment({"WORKQUEUE_PAGE_PORT": "x", "WORKQUEUE_CONNECTION_SECRETS": "a/b"})
    port, secret = caught.value.mistakes
    assert port.startswith("WORKQUEUE_PAGE_PORT is 'x': ")
    assert secret.startswith("WORKQUEUE_CONNECTION_SECRETS is 'a/b': 'a/b' is not a valid name of a Secret")


def test_runbook_address_must_be_one_of_the_web() -> None:
    with pytest.raises(ConfigurationError, match="it must be an address that starts with https://"):
        from_environment({"WORKQUEUE_RUNBOOK_URL": "javascript:alert(1)"})
