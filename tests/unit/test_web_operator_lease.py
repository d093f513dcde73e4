"""Whether the page's numbers are current, whatever the clocks say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster
from workqueue_operator.errors import ClusterError
from workqueue_web.operator_lease import ASK_SECONDS, OperatorLease


class Watched:
    """A Lease, the page's reader of it, and its clock."""

    def __init__(self, renewed: datetime | None = None, name: str = "jobs") -> None:
        self.now = 1000.0
        self.renewed = renewed or datetime.now(UTC)
        self.cluster = FakeCluster()
        self.cluster.answer(
            "GET", "/leases/jobs", lambda _: {"spec": {"renewTime": self.renewed.isoformat()}}
        )
        self.lease = OperatorLease(self.cluster, "system", name, lambda: self.now)

    async def after(self, seconds: float) -> str:
        """Look again after some time; return what the page says."""
        self.now += seconds
        await self.lease.look()
        found = self.lease.stale()
        return "" if found is None else found.sentence


async def test_renewed_lease_is_current() -> None:
    watched = Watched()
    assert await watched.after(0) == ""
    for _ in range(10):
        watched.renewed += timedelta(seconds=6)
        assert await watched.after(6) == ""


async def test_lease_that_nothing_renews_is_stale_with_its_age() -> None:
    watched = Watched()
    await watched.after(0)
    assert await watched.after(10) == ""
    assert (await watched.after(70)).startswith(
        "No operator has run for 1m20s: nothing renews the Lease system/jobs."
    )


@pytest.mark.parametrize(
    "skew", [timedelta(hours=-3), timedelta(hours=3)], ids=["clock-behind", "clock-ahead"]
)
async def test_skewed_clock_makes_nothing_stale(skew: timedelta) -> None:
    watched = Watched(datetime.now(UTC) + skew)
    assert await watched.after(0) == ""
    watched.renewed += timedelta(seconds=6)
    assert await watched.after(6) == ""


async def test_lease_that_was_old_at_the_start_is_shown_with_its_own_age() -> None:
    watched = Watched(datetime.now(UTC) - timedelta(hours=3, seconds=2))
    await watched.after(0)
    assert "for 3h:" in await watched.after(20)


async def test_silent_api_server_is_named_after_a_while() -> None:
    watched = Watched()
    await watched.after(0)
    watched.cluster.answer("GET", "/leases/", ClusterError(0, "the API server did not answer."))
    assert await watched.after(6) == ""
    assert await watched.after(34) == (
        "The API server has not answered the page for 40s: the API server did not answer."
    )


async def test_operator_that_never_led_is_named() -> None:
    watched = Watched()
    watched.cluster.answer("GET", "/leases/", ClusterError(404, "not found"))
    assert await watched.after(0) == "No operator has ever led: there is no Lease system/jobs."


@pytest.mark.parametrize("status", [403, None], ids=["forbidden", "no-leader-election"])
async def test_unknown_is_not_stale(status: int | None) -> None:
    watched = Watched(name="jobs" if status else "")
    error: Any = ClusterError(status or 0, "forbidden")
    watched.cluster.answer("GET", "/leases/", error)
    assert [await watched.after(60) for _ in range(3)] == ["", "", ""]
    assert len(watched.cluster.asked) == (1 if status else 0)


async def test_many_viewers_share_one_read() -> None:
    watched = Watched()
    for _ in range(20):
        await watched.after(0)
    assert len(watched.cluster.asked) == 1
    await watched.after(ASK_SECONDS)
    assert len(watched.cluster.asked) == 2
