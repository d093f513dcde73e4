"""`helm test`: the chart's own test, as a user runs it after an installation.

Slow: it installs a release of its own, and helm waits for pods that fail.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.support import helm
from tests.support.inside import Rabbit
from tests.support.kubernetes import KUBECONFIG, kubectl, kubectl_json, temporary_namespace
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab, lab_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(crd: None, rabbit: Rabbit) -> Iterator[Lab]:
    """A namespace with a connection Secret, in which the release is as well."""
    with (
        temporary_namespace("e2e-helm-test", pod_security="restricted") as namespace,
        lab_in(namespace, rabbit) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def release(place: Lab) -> Iterator[OperatorRelease]:
    """An operator that serves its own namespace."""
    made = OperatorRelease(f"e2e-{secrets.token_hex(3)}", place.namespace, helm.run)
    made.install(watchNamespaces=[place.namespace], replicaCount=1)
    yield made
    made.uninstall()


def helm_test(release: OperatorRelease) -> str:
    """Run it and return its output, including the log of its pod.

    Raises:
        helm.HelmError: it failed.
    """
    where = f"--namespace={release.namespace}", f"--kubeconfig={KUBECONFIG}"
    return helm.run("test", release.name, *where, "--logs", "--timeout=240s")


def test_helm_test_sends_a_message_and_cleans_up(place: Lab, release: OperatorRelease) -> None:
    said = helm_test(release)
    assert "A worker has started and handled it." in said
    assert "The test passed." in said
    assert not place.queues()
    where = f"--namespace={place.namespace}"
    assert not kubectl_json("get", "wq", where)["items"]
    assert not kubectl("get", "pod,role,serviceaccount", f"{release.name}-test", where, "--ignore-not-found")


MISTAKES: dict[str, tuple[dict[str, str] | None, str, str]] = {
    "the Secret is missing": (None, "does not exist in the namespace", "test.connectionSecret"),
    "the password is wrong": ({"password": "wrong"}, "refuses the user", "Correct username and password"),
}


@pytest.mark.parametrize("title", MISTAKES)
def test_helm_test_fails_with_advice(title: str, place: Lab, release: OperatorRelease) -> None:
    secret, wrong, advice = MISTAKES[title]
    if secret is not None:
        place.secret("mistaken", **secret)
    release.install(watchNamespaces=[place.namespace], replicaCount=1, test={"connectionSecret": "mistaken"})
    with pytest.raises(helm.HelmError, match=f"{release.name}-test failed"):
        helm_test(release)
    # The failed pod stays, so that its log can be read.
    said = kubectl("logs", f"{release.name}-test", f"--namespace={place.namespace}")
    assert wrong in said
    assert advice in said
    assert place.password not in said
    where = f"--namespace={place.namespace}"
    eventually(lambda: not kubectl_json("get", "wq", where)["items"], 60, "no WorkQueue stays behind")
