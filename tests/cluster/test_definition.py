"""What the tests leave behind in a cluster: every CRD but those they created.

A copy of the CRD under another group stands for it, since a demo may be using the real one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.definition import BROUGHT_BY_TESTS, HELM_RELEASE, SESSION, remove_if_only_tests_need_it
from tests.support.kubernetes import apply, kubectl, kubectl_json, temporary_namespace
from workqueue_operator import names
from workqueue_operator.api import crd

SPEC = {
    "connectionSecretRef": {"name": "none"},
    "worker": {"image": "none:1", "handler": {"python": "a:b"}},
}


@pytest.fixture
def definition() -> Iterator[str]:
    """The name of a CRD that is served."""
    made = crd.crd()
    group = f"t{uuid.uuid4().hex[:8]}.test.{names.GROUP}"
    made["spec"]["names"] |= {"plural": "tested", "singular": "tested", "shortNames": []}
    made["spec"]["group"] = group
    name = made["metadata"]["name"] = f"tested.{group}"
    apply(made)
    kubectl("wait", "crd", name, "--for=condition=Established", "--timeout=120s")
    yield name
    kubectl("delete", "crd", name, "--ignore-not-found")


def test_crd_of_tests_is_removed_unless_in_use(definition: str) -> None:
    kubectl("annotate", "crd", definition, f"{BROUGHT_BY_TESTS}={SESSION}")
    group = definition.partition(".")[2]
    with temporary_namespace("definition") as namespace:
        needed = {"apiVersion": f"{group}/v1alpha1", "kind": "WorkQueue", "metadata": {"name": "needed"}}
        apply({**needed, "spec": SPEC}, namespace=namespace)
        assert not remove_if_only_tests_need_it(definition), "an object needs it"
        kubectl("delete", definition, "needed", f"--namespace={namespace}")

    kubectl("annotate", "crd", definition, f"{HELM_RELEASE}=demo")
    assert not remove_if_only_tests_need_it(definition), "it belongs to a helm release"
    kubectl("annotate", "crd", definition, f"{HELM_RELEASE}-")

    assert remove_if_only_tests_need_it(definition)
    names_left = [one["metadata"]["name"] for one in kubectl_json("get", "crd")["items"]]
    assert definition not in names_left


def test_preexisting_crd_is_kept(definition: str) -> None:
    assert not remove_if_only_tests_need_it(definition)


def test_crd_of_parallel_session_is_kept(definition: str) -> None:
    kubectl("annotate", "crd", definition, f"{BROUGHT_BY_TESTS}=another")
    assert not remove_if_only_tests_need_it(definition)
