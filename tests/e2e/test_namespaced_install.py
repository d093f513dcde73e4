"""A team without rights in the cluster installs the operator for its namespace: docs/operations.md."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

import pytest

from tests.support import helm
from tests.support.inside import Rabbit
from tests.support.kubernetes import KubectlError, apply, kubectl, temporary_namespace
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import lab_in

PREPARED = {
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
"""What the administrator applies, beside the CustomResourceDefinition."""


@pytest.mark.slow
@pytest.mark.usefixtures("crd")
def test_role_edit_is_enough_after_the_preparation(rabbit: Rabbit) -> None:
    name = f"e2e-{secrets.token_hex(3)}"
    with (
        temporary_namespace("e2e-team", pod_security="restricted") as namespace,
        lab_in(namespace, rabbit) as lab,
    ):
        where = f"--namespace={namespace}"
        team = f"system:serviceaccount:{namespace}:team"
        kubectl("create", "serviceaccount", "team", where)
        kubectl(
            "create", "rolebinding", "team", where, "--clusterrole=edit", f"--serviceaccount={namespace}:team"
        )
        listed: dict[str, Any] = {"watchNamespaces": [namespace], "fullnameOverride": name}
        objects = helm.template({**listed, "rbac": {"aggregate": True}}, release=name, namespace=namespace)
        prepared = [made for made in objects if made["kind"] in PREPARED]
        release = OperatorRelease(name, namespace, partial(helm.run, f"--kube-as-user={team}"))
        try:
            apply(*prepared)
            eventually(lambda: _may_create_workqueues(team, where), 60, "the role edit includes WorkQueues")
            release.install(**listed, rbac={"create": False}, admissionPolicy={"enabled": False})
            workqueue = lab.workqueue("own").apply().wait_ready()
            workqueue.publish([{"id": 1, "seconds": 0}])
            assert [result["event"] for result in workqueue.results(1)] == ["done"]
            workqueue.delete()
            release.uninstall()
        finally:
            for made in prepared:
                if "namespace" not in made["metadata"]:
                    kubectl("delete", made["kind"], made["metadata"]["name"], "--ignore-not-found")


def _may_create_workqueues(user: str, where: str) -> bool:
    try:
        return (
            kubectl("auth", "can-i", "create", "workqueues.workqueue.dev", where, f"--as={user}").strip()
            == "yes"
        )
    except KubectlError:
        return False  # kubectl fails if the answer is no
