"""What is kept of the management API's answers; the questions themselves are in tests/operator/test_management.py."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from workqueue_operator.broker.management import FRESH, Management


async def test_answers_are_forgotten_when_they_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues come and go; nobody says so here."""
    made, now = Management(), 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def answer(*_: Any) -> Any:
        return {"messages_unacknowledged": 3}

    monkeypatch.setattr(made, "_get", answer)
    binding: Any = SimpleNamespace(identity="broker", management_uri="http://rabbitmq:15672")
    for number in range(50):
        now += 2 * FRESH
        assert await made.unacknowledged(binding, f"queue-{number}") == 3
    assert len(made._last) == 1
    await made.close()
