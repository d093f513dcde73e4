"""The CRD in the cluster under test, for every test that applies a WorkQueue there.

Tests remove a CRD that they created: `helm install` refuses one that helm does not own.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from typing import Any, Final

import pytest

from tests.support.kubernetes import (
    CHECKOUT,
    KUBECONFIG,
    KubectlError,
    kubectl,
    kubectl_json,
    release_workqueues,
)
from tests.support.wait import eventually

CRD: Final = CHECKOUT / "manifests/crd/workqueues.yaml"
NAME: Final = "workqueues.workqueue.dev"
BROUGHT_BY_TESTS: Final = "workqueue.dev/brought-by-tests"
SESSION: Final = os.environ.setdefault("WORKQUEUE_TEST_SESSION", uuid.uuid4().hex)
"""The same in all processes of pytest. A parallel session may need the CRD longer."""

HELM_RELEASE: Final = "meta.helm.sh/release-name"


@pytest.fixture(scope="session")
def crd() -> None:
    """The current CRD, annotated if the tests created it."""
    brought = not kubectl("get", "crd", NAME, "--ignore-not-found", "--output=name")
    kubectl("apply", "--server-side", "--force-conflicts", f"--filename={CRD}")
    if brought:
        kubectl("annotate", "crd", NAME, "--overwrite", f"{BROUGHT_BY_TESTS}={SESSION}")
    eventually(_is_served, 60, "the API server serves WorkQueues")


def _is_served() -> bool:
    """Whether kubectl finds WorkQueues. The API server announces a new CRD late."""
    try:
        kubectl("get", NAME, "--all-namespaces", "--output=name")
    except KubectlError:
        return False
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the CRD after all processes of pytest have ended."""
    if not hasattr(session.config, "workerinput") and KUBECONFIG.exists():
        with suppress(KubectlError):  # the cluster or the CRD is gone
            remove_if_only_tests_need_it()


def remove_if_only_tests_need_it(name: str = NAME) -> bool:
    """Delete a CRD that this session created, unless a helm release or an object needs it.

    Returns:
        Whether it was deleted.
    """
    annotations = kubectl_json("get", "crd", name)["metadata"].get("annotations") or {}
    if annotations.get(BROUGHT_BY_TESTS) != SESSION or HELM_RELEASE in annotations or _is_used(name):
        return False
    release_workqueues()
    kubectl("delete", "crd", name, "--timeout=60s")
    return True


def _is_used(name: str) -> bool:
    """Whether a WorkQueue is in a namespace that stays."""
    namespaces: list[dict[str, Any]] = kubectl_json("get", "namespaces")["items"]
    stay = {one["metadata"]["name"] for one in namespaces if "deletionTimestamp" not in one["metadata"]}
    workqueues = kubectl_json("get", name, "--all-namespaces")["items"]
    return any(one["metadata"]["namespace"] in stay for one in workqueues)
