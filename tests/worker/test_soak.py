"""The short form of the soak (hack/bench/soak.py): faults at random, and a ledger that balances."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.bench.soak import Soak
from tests.support.rabbitmq import Broker


@pytest.mark.slow
def test_ledger_balances_whatever_process_dies(rabbitmq: Broker, tmp_path: Path) -> None:
    with rabbitmq.new_vhost() as vhost:
        soak = Soak(rabbitmq, vhost, tmp_path, seed=7, rate=60, restarts=False)
        try:
            ledger = soak.run(12)
        finally:
            soak.close()
    assert ledger.problems() == [], str(ledger)
    assert len(ledger.confirmed) > 100
    assert sum(ledger.faults.values()) >= 4
