"""The definition of the resource in the cluster under test, for every test that applies a WorkQueue there."""

from __future__ import annotations

from typing import Final

import pytest

from tests.support.kubernetes import CHECKOUT, kubectl

CRD: Final = CHECKOUT / "manifests/crd/workqueues.yaml"


@pytest.fixture(scope="session")
def crd() -> None:
    """It stays, since a demo may be using it."""
    kubectl("apply", "--server-side", "--force-conflicts", f"--filename={CRD}")
