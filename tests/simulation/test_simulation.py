"""The properties hold for many seeds, and known defects are found when their fixes are taken out."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.simulation.mutants import MUTANTS
from tests.support.kubernetes import CHECKOUT

BY_DAY, BY_NIGHT = "0:200", "0:10000"

FOUND = {
    "no token": 0,
    "tokens added": 0,
    "cancel not looked up": 0,
    "dead letters late": 0,
    "refused workers run": 1,
    "same broker by name": 1,
    "nack before cancel": 2,
    "no doorbell before zero": 3,
    "start without a token": 4,
    "marks cleared early": 7,
    "lost delivery settled": 9,
    "slot not recorded": 11,
    "slots of a gap": 11,
    "cancel of another message": 13,
    "quota": 13,
    "refusal is a conflict": 15,
    "busy not asked": 15,
    "Secret read once": 17,
    "unknown is zero": 19,
    "refused template": 20,
    "rank": 24,
    "lease of a worker never ends": 25,
    "no backoff": 28,
    "burst of a new leader": 32,
    "leak of pass states": 35,
    "old event wins": 35,
    "first LIST": 37,
    "count not tested": 60,
    "ack before the confirm": 61,
    "retired worker consumes": 66,
    "no watchdog": 76,
    "empty broker": 77,
    "frozen leader goes on": 93,
    "gap not corrected": 94,
    "store is not corrected": 94,
    "pause made up for": 119,
    "ring forgotten": 137,
    "unreachable is busy": 161,
    "slot never reopens": 178,
    "stale ReplicaSet": 186,
    "deletion during a job": 194,
    "lease outlasted": 225,
    "leases not renewed": 244,
    "earlier cancels not read": 259,
    "crashed is dead": 264,
    "replicas applied away": 379,
    "unscheduled is dead": 384,
    "status forgotten": 421,
    "zero is zero": 445,
    "suspended leases lapse": 776,
    "trim not seen": 891,
}
"""The mutants, and a seed that fails with each."""


def _simulation(*arguments: str) -> str:
    """Run a process of its own: a killed operator leaves coroutines behind, which must not end in another test."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    return done.stdout


def test_same_seed_gives_the_same_story() -> None:
    one, other = (_simulation("--seed=9").splitlines() for _ in range(2))

    # The last line names the processor time.
    assert one[:-1] == other[:-1]


def test_every_property_holds_for_a_few_seeds() -> None:
    _simulation(f"--seeds={BY_DAY}", "--jobs=1")


def test_every_known_defect_has_a_seed_that_finds_it() -> None:
    assert sorted(FOUND) == sorted(MUTANTS)


def test_table_of_found_defects_names_each_mutant_with_its_seed() -> None:
    readme = (CHECKOUT / "tests/simulation/README.md").read_text()

    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (\d+) \| .* \|$", readme, re.MULTILINE)

    assert rows == [(name, MUTANTS[name].defect, str(seed)) for name, seed in FOUND.items()]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_property_holds_for_many_seeds() -> None:
    _simulation(f"--seeds={BY_NIGHT}")


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "seed"), FOUND.items(), ids=FOUND)
def test_known_defect_is_found(name: str, seed: int) -> None:
    _simulation("--mutants", "--mutant", name, f"--seeds={seed}:{seed + 1}")
