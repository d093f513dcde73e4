"""Refusals by an admission policy or a quota: the operator reports them and applies what is admitted."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.kubernetes import KubectlError, apply, kubectl
from tests.support.wait import eventually
from tests.support.workqueues import Lab

JOBS = [{"id": number, "seconds": 2} for number in range(40)]


@contextmanager
def policy(
    lab: Lab, expression: str, message: str, reason: str, resources: str = "deployments"
) -> Iterator[None]:
    """A ValidatingAdmissionPolicy for the Deployments of the lab's namespace, in force."""
    name = f"e2e-{secrets.token_hex(3)}"
    group = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    here = {"matchLabels": {"kubernetes.io/metadata.name": lab.namespace}}
    rule = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": [resources],
    }
    validation = {"expression": expression, "message": message, "reason": reason}
    policy_spec = {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]}
    binding_spec = {
        "policyName": name,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": here},
    }
    apply(
        {**group, "kind": "ValidatingAdmissionPolicy", "spec": policy_spec},
        {**group, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding_spec},
    )
    try:
        yield
    finally:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            kubectl("delete", kind, name, "--ignore-not-found")


def in_force(lab: Lab, sentence: str, *command: str) -> None:
    """Wait until the API server refuses a command; a new policy or quota takes some moments."""

    def refused() -> bool:
        try:
            kubectl(*command, "--dry-run=server", f"--namespace={lab.namespace}")
        except KubectlError as error:
            return sentence in str(error)
        return False

    eventually(refused, 120, f"{sentence!r} is in force")


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["Invalid", "Forbidden"], ids=["answer-422", "answer-403"])
def test_admission_policy_limit_is_obeyed_and_named(lab: Lab, reason: str) -> None:
    workqueue = lab.workqueue(
        f"limited-{reason.lower()}", scaling={"messagesPerReplica": 1, "maxReplicas": 9}
    )
    workqueue.apply().wait_ready()
    workqueue.publish([{"id": "canary"}])
    workqueue.results(1)
    sentence = "no more than two replicas here"
    at_most_two = "object.spec.?replicas.orValue(0) <= 2"
    with policy(lab, at_most_two, sentence, reason, "deployments/scale"):
        nine = '--patch={"spec":{"replicas":9}}'
        in_force(
            lab, sentence, "patch", "deployment", f"{workqueue.name}-worker", "--subresource=scale", nine
        )
        workqueue.publish(JOBS)
        eventually(lambda: workqueue.replicas() == 2, 60, "the highest admitted count is written")
        ready = workqueue.wait_condition("Ready", "False", "CountRefused")
        assert sentence in ready["message"]
        assert workqueue.condition("ScalingActive")["reason"] == "CountRefused"
        eventually(lambda: "CountRefused" in workqueue.event_reasons(), 60, "an Event says so")
        results = workqueue.results(len(JOBS))
        assert sorted(result["id"] for result in results) == [job["id"] for job in JOBS]
    workqueue.wait_condition("Ready", "True")
    workqueue.delete()


@pytest.mark.slow
def test_refused_template_keeps_working_deployment_scaled(lab: Lab) -> None:
    workqueue = lab.workqueue("unsigned").apply().wait_ready()
    workqueue.publish([{"id": "before"}])
    workqueue.results(1)
    expression = "object.spec.template.spec.containers.all(c, !c.image.endsWith(':unsigned'))"
    sentence = "this image is not signed"
    with policy(lab, expression, sentence, "Forbidden"):
        in_force(lab, sentence, "set", "image", f"deployment/{workqueue.name}-worker", "worker=x:unsigned")
        workqueue.change(worker={"image": "workqueue-operator:unsigned"})
        applied = workqueue.wait_condition("WorkloadApplied", "False", "WorkloadRefused")
        assert sentence in applied["message"]

        eventually(lambda: workqueue.replicas() == 0, 120, "it is scaled in")
        workqueue.publish([{"id": "after"}])
        assert [result["id"] for result in workqueue.results(1)] == ["after"]
        assert workqueue.condition("Ready")["reason"] == "WorkloadRefused"
    workqueue.change(worker={"image": "workqueue-operator:dev"})
    workqueue.wait_condition("Ready", "True")
    workqueue.delete()


def test_disruption_budget_quota_does_not_stop_workers(lab: Lab) -> None:
    name = f"e2e-{secrets.token_hex(3)}"
    hard = {"count/poddisruptionbudgets.policy": "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}}
    apply(quota, namespace=lab.namespace)
    where = f"--namespace={lab.namespace}"
    try:
        in_force(lab, "exceeded quota", "create", "pdb", name, "--selector=app=none", "--max-unavailable=1")
        workqueue = lab.workqueue("unbudgeted").apply()
        applied = workqueue.wait_condition("WorkloadApplied", "False", "WorkloadRefused")
        assert "PodDisruptionBudget" in applied["message"]
        workqueue.publish([{"id": 1}])
        assert [result["id"] for result in workqueue.results(1)] == [1]
    finally:
        kubectl("delete", "resourcequota", name, where, "--ignore-not-found")
    workqueue.wait_ready()
    workqueue.delete()
