"""Fixtures of the fault matrix: the report, and what its tests stand on."""

from __future__ import annotations

import pytest

from tests.faults.report import Report, from_environment
from tests.support.kubernetes import CHECKOUT, kubectl

CRD = CHECKOUT / "manifests/crd/workqueues.yaml"


@pytest.fixture(scope="session")
def report() -> Report:
    """Where each injected fault is written down, and held to what is promised."""
    return from_environment()


@pytest.fixture(scope="session")
def crd() -> None:
    """The definition; it stays, since a demo may be using it."""
    kubectl("apply", "--server-side", "--force-conflicts", f"--filename={CRD}")
