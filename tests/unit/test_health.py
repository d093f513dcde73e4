"""The liveness check: a restart must help."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from workqueue_operator.health import Health


def health(
    *, longest: float = 0.0, passes_wait: bool = False, is_full: bool = False, poller: float = 0.0
) -> Health:
    """The check of an operator with one broker.

    Args:
        longest: seconds for which a pass has been running.
        passes_wait: whether calls wait for a channel of the broker.
        is_full: whether requests wait for a connection to the API server.
        poller: seconds since its poller made progress.
    """
    handle: Any = SimpleNamespace(
        broker=SimpleNamespace(binding=SimpleNamespace(display="rabbit"), passes_wait=passes_wait),
        poller=SimpleNamespace(seconds=0.5, alive_at=asyncio.get_running_loop().time() - poller),
    )
    resync: Any = SimpleNamespace(blind=False)
    queue: Any = SimpleNamespace(longest=longest)
    brokers: Any = [handle]
    cluster: Any = SimpleNamespace(is_full=is_full)
    return Health(cluster, resync, queue, brokers)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"longest": 299.0},
        {"longest": 400.0, "passes_wait": True},
        {"longest": 400.0, "is_full": True},
        {"poller": 59.0},
    ],
    ids=["idle", "slow-pass", "slow-broker", "slow-api-server", "slow-round"],
)
async def test_operator_that_works_is_not_restarted(state: dict[str, Any]) -> None:
    """Thousands of passes that wait for each other at a slow server take longer than one that is stuck."""
    assert health(**state).problem() is None


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"longest": 301.0}, "a pass has been running for 301 s"),
        ({"poller": 61.0}, "the depth poller of rabbit has stopped"),
    ],
    ids=["pass", "poller"],
)
async def test_operator_that_is_stuck_is_restarted(state: dict[str, Any], problem: str) -> None:
    assert health(**state).problem() == problem
