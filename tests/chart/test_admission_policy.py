"""The admission policies in the chart; tests/security/test_stolen_token.py has what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from hack.generate.files import CHART
from tests.support.helm import of_kind, run, template
from workqueue_operator import names


def made(**values: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    objects = template(values)
    return tuple(of_kind(objects, f"ValidatingAdmissionPolicy{end}") for end in ("", "Binding"))  # type: ignore[return-value]


def test_policies_deny_and_fail_closed_for_operator_only() -> None:
    policies, bindings = made(fullnameOverride="jobs")
    assert {one["metadata"]["name"] for one in policies} == {one["spec"]["policyName"] for one in bindings}
    assert all(one["spec"]["validationActions"] == ["Deny"] for one in bindings)
    for policy in policies:
        assert policy["spec"]["failurePolicy"] == "Fail"
        (condition,) = policy["spec"]["matchConditions"]
        assert '"system:serviceaccount:workqueue-system:jobs"' in condition["expression"]


def test_policies_cover_all_foreign_objects_that_operator_writes() -> None:
    policies, _ = made()
    covered = {
        resource
        for policy in policies
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for resource in rule["resources"]
    }
    (role,) = (
        one for one in of_kind(template({}), "ClusterRole") if one["metadata"]["name"] == "workqueue-operator"
    )
    written = {
        resource
        for rule in role["rules"]
        if {"create", "patch", "update"} & set(rule["verbs"])
        for resource in rule["resources"]
    }
    # The policy for Deployments admits every count, and a Scale contains nothing else.
    assert written - covered == {"deployments/scale", "workqueues/status", "workqueues/finalizers", "events"}


@pytest.mark.parametrize(
    ("policy", "metadata"),
    [
        ("workqueues", [names.FINALIZER, names.ANNOTATION_BINDINGS]),
        ("pods", [names.LABEL_RETIRING, names.ANNOTATION_DELETION_COST]),
        ("pods", [names.ANNOTATION_PROTECTED, *names.PROTECTION]),
    ],
)
def test_policies_admit_the_metadata_that_the_operator_writes(policy: str, metadata: list[str]) -> None:
    (spec,) = (one["spec"] for one in made()[0] if one["metadata"]["name"].endswith(f"-{policy}"))
    expressions = " ".join(rule["expression"] for rule in [*spec["variables"], *spec["validations"]])
    assert [name for name in metadata if f'"{name}"' not in expressions] == []


def test_releases_of_one_name_in_two_namespaces_have_policies_of_their_own() -> None:
    video, reports = (
        {
            (one["kind"], one["metadata"]["name"])
            for one in template(values, namespace=namespace)
            if "spec" in one
        }
        for namespace in ("video", "reports")
        for values in [{"watchNamespaces": [namespace]}]
    )
    assert not {name for name in video & reports if name[0].startswith("ValidatingAdmission")}


def test_policies_can_be_disabled() -> None:
    assert made(admissionPolicy={"enabled": False}) == ([], [])


@pytest.mark.parametrize(("version", "there"), [("1.29.0", False), ("1.30.0", True)])
def test_policies_are_omitted_without_their_api(version: str, there: bool) -> None:
    rendered = run("template", "jobs", CHART, "--kube-version", version)
    assert ("ValidatingAdmissionPolicy" in rendered) == there
