"""A plugin of pytest that takes a fix out before the tests: `pytest -p tests.simulation.mutated --mutant NAME`."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--mutant", choices=list(MUTANTS), required=True, help="a name of mutants.py")


def pytest_configure(config: pytest.Config) -> None:
    """Take the fix out, for the whole process."""
    MUTANTS[config.getoption("--mutant")].patch(pytest.MonkeyPatch())
