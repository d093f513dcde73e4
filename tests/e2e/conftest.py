"""The operator from the chart, a RabbitMQ, and a namespace with a virtual host, in the cluster under test.

The operator of these tests serves their namespaces alone, so that they can run while a demo is up.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support import helm
from tests.support.inside import Rabbit, rabbit_in
from tests.support.kubernetes import KubectlError, kubeconfig, temporary_namespace
from tests.support.operators import OperatorRelease
from tests.support.workqueues import Lab, lab_in

RELEASE = pytest.StashKey[OperatorRelease]()


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """A RabbitMQ of the session."""
    kubeconfig()
    with temporary_namespace("e2e-rabbitmq") as namespace, rabbit_in(namespace) as broker:
        yield broker


@pytest.fixture(scope="session")
def session_namespace() -> Iterator[str]:
    """Where most WorkQueues of the session live, under the restricted Pod Security standard."""
    with temporary_namespace("e2e", pod_security="restricted") as namespace:
        yield namespace


@pytest.fixture(scope="session")
def operator(request: pytest.FixtureRequest, crd: None, session_namespace: str) -> Iterator[OperatorRelease]:
    """The operator, installed by helm, two replicas, under the restricted Pod Security standard."""
    with temporary_namespace("e2e-system", pod_security="restricted") as system:
        release = OperatorRelease(f"e2e-{secrets.token_hex(3)}", system, helm.run)
        request.session.stash[RELEASE] = release
        release.install(watchNamespaces=[session_namespace], rbac={"aggregate": False, "readNodes": True})
        yield release
        release.uninstall()


@pytest.fixture(scope="session")
def lab(session_namespace: str, rabbit: Rabbit, operator: OperatorRelease) -> Iterator[Lab]:
    """The session's namespace with its connection Secret and handlers."""
    with lab_in(session_namespace, rabbit) as made:
        yield made


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show recent log lines of the operator when a test failed."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    release = item.session.stash.get(RELEASE, None)
    if report.failed and release is not None:
        with suppress(KubectlError):  # a pod has no log yet, or the operator is uninstalled
            report.sections.append(("operator's log", "\n".join(release.logs().splitlines()[-25:])))
