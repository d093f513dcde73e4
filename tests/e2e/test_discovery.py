"""A partly broken cluster does not stop the operator.

Slow: each starts an operator of its own and waits for a broken or forbidden API.
"""

from __future__ import annotations

import json

import pytest

from tests.support.kubernetes import kubectl
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab

pytestmark = pytest.mark.slow

BROKEN = {
    "apiVersion": "apiregistration.k8s.io/v1",
    "kind": "APIService",
    "metadata": {"name": "v1.broken.example.com"},
    "spec": {
        "group": "broken.example.com",
        "version": "v1",
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,
        "service": {"name": "nobody", "namespace": "default"},
    },
}


def restart(operator: OperatorRelease) -> None:
    where = f"--namespace={operator.namespace}"
    kubectl("rollout", "restart", f"deployment/{operator.name}", where)
    kubectl("rollout", "status", f"deployment/{operator.name}", where, "--timeout=200s")


def assert_it_works(lab: Lab, name: str) -> None:
    workqueue = lab.workqueue(name).apply().wait_ready()
    workqueue.publish([{"id": name}])
    assert [result["id"] for result in workqueue.results(1)] == [name]
    workqueue.delete()


def test_broken_aggregated_api_does_not_stop_operator(lab: Lab, operator: OperatorRelease) -> None:
    kubectl("create", "--filename=-", input=json.dumps(BROKEN))
    try:
        restart(operator)
        assert_it_works(lab, "beside-broken")
    finally:
        kubectl("delete", "apiservice", "v1.broken.example.com")


def test_forbidden_listed_namespace_is_skipped_and_reported(lab: Lab, operator: OperatorRelease) -> None:
    where = f"--namespace={operator.namespace}"
    listed = f"WORKQUEUE_WATCH_NAMESPACES={lab.namespace},no-such-namespace"
    kubectl("set", "env", f"deployment/{operator.name}", listed, where)
    try:
        kubectl("rollout", "status", f"deployment/{operator.name}", where, "--timeout=200s")
        assert_it_works(lab, "beside-forbidden")
        eventually(lambda: "The namespace is left out." in operator.logs(), 60, "the log says so")
    finally:
        operator.install(watchNamespaces=[lab.namespace])
