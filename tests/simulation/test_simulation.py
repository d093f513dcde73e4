"""The properties hold for the first seeds, and each known defect is found when its fix is taken out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.mutants import MUTANTS
from tests.support.kubernetes import CHECKOUT

SECONDS = 25
"""Seconds of processor time for the first seeds."""


def _simulation(*arguments: str) -> str:
    """Run a process of its own: a killed operator leaves coroutines behind, which must not end in another test."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.nightly
def test_same_seed_gives_the_same_story() -> None:
    one, other = (_simulation("--seed=7").splitlines() for _ in range(2))

    # The last line names the processor time.
    assert one[:-1] == other[:-1]


@pytest.mark.nightly
def test_every_property_holds_for_the_first_seeds() -> None:
    _simulation("--seeds=0:300", f"--seconds={SECONDS}", "--jobs=1")


@pytest.mark.nightly
@pytest.mark.timeout(6 * 3600)
def test_every_property_holds_for_many_seeds() -> None:
    _simulation("--seeds=0:10000")


@pytest.mark.nightly
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_known_defect_is_found(name: str) -> None:
    _simulation("--mutants", "--mutant", name, "--seeds=0:1000")
