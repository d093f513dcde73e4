"""The properties hold for many seeds, and known defects are found when their fixes are taken out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.kubernetes import CHECKOUT

BY_DAY, BY_NIGHT = "3:6", "0:600"

FOUND = {
    "nack before cancel": 0,
    "ack before the confirm": 1,
    "leak of pass states": 2,
    "marks cleared early": 4,
    "busy not asked": 3,
    "retired worker consumes": 5,
    "stale ReplicaSet": 10,
    "Secret read once": 11,
    "dead letters late": 17,
    "crashed is dead": 19,
    "rank": 30,
    "empty broker": 45,
    "store is not corrected": 50,
    "replicas applied away": 61,
    "unreachable is busy": 67,
    "refused template": 93,
    "refused workers run": 111,
    "deletion during a job": 120,
    "slot never reopens": 200,
}
"""Mutants that have been found, and a seed that fails with each."""


def _simulation(*arguments: str) -> str:
    """Run a process of its own: a killed operator leaves coroutines behind, which must not end in another test."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    return done.stdout


def test_same_seed_gives_the_same_story() -> None:
    one, other = (_simulation("--seed=8").splitlines() for _ in range(2))

    # The last line names the processor time.
    assert one[:-1] == other[:-1]


def test_every_property_holds_for_a_few_seeds() -> None:
    _simulation(f"--seeds={BY_DAY}", "--jobs=1")


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_property_holds_for_many_seeds() -> None:
    _simulation(f"--seeds={BY_NIGHT}")


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "seed"), FOUND.items(), ids=FOUND)
def test_known_defect_is_found(name: str, seed: int) -> None:
    _simulation("--mutants", "--mutant", name, f"--seeds={seed}:{seed + 1}")
