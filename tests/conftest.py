"""Fixtures for all tests, and their order."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

# No property is about time: any example may be slow on a busy machine. The timeout of the test bounds all of them.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

pytest_plugins = [
    "tests.support.databases",
    "tests.support.definition",
    "tests.support.rabbitmq",
    "tests.support.worker",
]

TESTS: Final = Path(__file__).parent
SLOW: Final = ("e2e", "faults", "neighbours", "operator", "security", "worker", "observability", "page")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow folders first, so that no parallel process ends with a slow file."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    folder = item.path.relative_to(TESTS).parts[0]
    return SLOW.index(folder) if folder in SLOW else len(SLOW)
