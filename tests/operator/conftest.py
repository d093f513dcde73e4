"""The operator's patience with RabbitMQ in these tests."""

from __future__ import annotations

import pytest

from tests.support.brokers import PATIENCE
from workqueue_operator.broker import connection, doorbell


@pytest.fixture(autouse=True)
def _patient_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise its time limits: a busy machine is no silent broker. Tests of a silent broker set their own."""
    for name in ("CONNECT_TIMEOUT", "CALL_TIMEOUT", "DECLARE_TIMEOUT"):
        monkeypatch.setattr(connection, name, PATIENCE)
    monkeypatch.setattr(doorbell, "ANSWER_SECONDS", PATIENCE)
