"""The operator's patience with RabbitMQ in these tests."""

from __future__ import annotations

from typing import Final

import pytest

from workqueue_operator.broker import connection, doorbell

PATIENCE: Final = 60.0


@pytest.fixture(autouse=True)
def _patient_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise its time limits: a busy machine is no silent broker. Tests of a silent broker set their own."""
    for name in ("CONNECT_TIMEOUT", "CALL_TIMEOUT", "DECLARE_TIMEOUT"):
        monkeypatch.setattr(connection, name, PATIENCE)
    monkeypatch.setattr(doorbell, "ANSWER_SECONDS", PATIENCE)
