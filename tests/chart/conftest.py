"""Fixtures of the chart's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import kubernetes
from tests.support.admission import Admission, installed


@pytest.fixture(scope="session")
def admission() -> Iterator[Admission]:
    """The API server of the cluster under test."""
    with installed(kubernetes.kubeconfig()) as admission:
        yield admission
