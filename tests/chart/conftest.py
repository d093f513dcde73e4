"""Fixtures of the chart's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hack.cluster import checkout
from tests.support.admission import Admission, installed


@pytest.fixture(scope="session")
def admission() -> Iterator[Admission]:
    """The API server of the local cluster."""
    if not checkout.KUBECONFIG.exists():
        pytest.fail("These tests need a cluster: run `make cluster` first.")
    with installed(checkout.KUBECONFIG) as admission:
        yield admission
