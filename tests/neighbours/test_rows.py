"""One healthy WorkQueue beside broken neighbours: the cheapest form of each row of the neighbour matrix.

docs/benchmarks/neighbours.md measures the same rows in full.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hack.bench.neighbours.lab import Lab, lab
from hack.bench.neighbours.rows import ROWS, beside
from tests.support.tiers import some_slow


@pytest.fixture(scope="module")
def place() -> Iterator[Lab]:
    """A control plane without nodes, a RabbitMQ, and an operator that serves both the healthy and the broken."""
    # On a busy machine the API server may answer too late for a Lease.
    with lab(leader_election=False) as made:
        yield made


BY_DAY = {"alone", "frozen-broker", "leaderless", "silent-pods"}
BY_NAME = {row.name: row for row in ROWS}


@pytest.mark.parametrize("name", some_slow(BY_NAME, BY_NAME.keys() - BY_DAY))
def test_healthy_workqueue_is_woken_and_scaled_in(name: str, place: Lab) -> None:
    row = BY_NAME[name]
    with beside(place, row, row.small, fresh=False):
        operator = place.operator
        assert operator is not None
        restarts = operator.restarts

        (cycle,) = place.probe(cycles=1, seconds=60)

        assert cycle.complete, operator.log_tail()
        assert operator.restarts == restarts
