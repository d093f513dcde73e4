"""The election: who may take the Lease when, and that no process writes after its Lease has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.wait import until
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError, LeadershipLostError
from workqueue_operator.kube import leader as module
from workqueue_operator.kube.leader import LEASE_SECONDS, LOOK_SECONDS, RENEW_SECONDS, Leadership


class Clock(SystemClock):
    """Time that passes only when a process waits for it, and then immediately."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


class ApiServer(FakeCluster):
    """One Lease, with the API server's rules for versions."""

    def __init__(self) -> None:
        super().__init__()
        self.lease: dict[str, Any] | None = None
        self.down = False
        self.lose_next_answer = False
        self._versions = iter(range(1, 10_000))
        for method in ("GET", "POST", "PUT"):
            self.answer(method, "/leases", self._serve)

    @property
    def holder(self) -> str:
        assert self.lease is not None
        return str(self.lease["spec"]["holderIdentity"])

    def write(self, **spec: Any) -> None:
        """Write the Lease as another process."""
        before = self.lease["spec"] if self.lease else {"leaseDurationSeconds": LEASE_SECONDS}
        self._store({"metadata": {"name": "lease"}, "spec": {**before, **spec}})

    def _serve(self, request: Request) -> Any:
        refusal = self._refusal(request)
        if refusal is not None or request.method == "GET":
            return refusal or self.lease
        self._store(request.body)
        if self.lose_next_answer:
            self.lose_next_answer = False
            return ClusterError(0, "the answer was lost")
        return self.lease

    def _refusal(self, request: Request) -> ClusterError | None:
        if self.down:
            return ClusterError(0, "no answer")
        if request.method == "POST":
            return ClusterError(409, "it exists") if self.lease is not None else None
        if self.lease is None:
            return ClusterError(404, "no Lease")
        version = self.lease["metadata"]["resourceVersion"]
        stale = request.method == "PUT" and request.body["metadata"]["resourceVersion"] != version
        return ClusterError(409, "it has changed") if stale else None

    def _store(self, body: Any) -> None:
        metadata = {**body["metadata"], "resourceVersion": str(next(self._versions))}
        self.lease = {**body, "metadata": metadata}


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def candidate(server: ApiServer, clock: Clock, name: str = "me") -> AsyncIterator[Leadership]:
    made = Leadership(server, "lease", "system", name, clock)
    try:
        yield made
    finally:
        await made.release()


async def test_first_candidate_leads_and_renews(server: ApiServer, clock: Clock) -> None:
    async with candidate(server, clock) as me:
        await me.win()
        begun = clock.time

        await until(lambda: clock.time > begun + 10 * LEASE_SECONDS)

        assert server.holder == "me"
        assert not me.lost.is_set()
        me.require()


@pytest.mark.parametrize("seconds", [3, 12], ids=["shorter-than-ours", "longer-than-ours"])
async def test_lease_of_killed_leader_is_taken_when_its_own_duration_has_passed(
    seconds: int, server: ApiServer, clock: Clock
) -> None:
    server.write(holderIdentity="killed", leaseDurationSeconds=seconds)
    begun = clock.time

    async with candidate(server, clock) as me:
        await me.win()

        assert begun + seconds <= clock.time <= begun + seconds + LOOK_SECONDS


async def test_lease_that_is_renewed_is_not_taken(server: ApiServer, clock: Clock) -> None:
    server.write(holderIdentity="alive")
    looks: list[float] = []

    def renewed_before_each_look(_: Request) -> Any:
        looks.append(clock.time)
        server.write(holderIdentity="alive", renewTime=str(clock.time))
        return server.lease

    server.answer("GET", "/leases", renewed_before_each_look)
    async with candidate(server, clock) as me:
        waiting = asyncio.create_task(me.win())

        await until(lambda: looks and looks[-1] > looks[0] + 3 * LEASE_SECONDS)

        assert not waiting.done()
        with pytest.raises(LeadershipLostError):
            me.require()
        waiting.cancel()
    assert server.holder == "alive"


@pytest.mark.parametrize("holder", ["", "me"], ids=["released", "of-the-process-before-in-this-pod"])
async def test_free_lease_is_taken_immediately(holder: str, server: ApiServer, clock: Clock) -> None:
    server.write(holderIdentity=holder)
    begun = clock.time

    async with candidate(server, clock) as me:
        await me.win()

        assert clock.time == begun
        assert server.holder == "me"


async def test_released_lease_names_no_holder(server: ApiServer, clock: Clock) -> None:
    async with candidate(server, clock) as me:
        await me.win()

        await me.release()

        assert server.holder == ""
        with pytest.raises(LeadershipLostError):
            me.require()


async def test_frozen_leader_neither_writes_nor_releases_after_the_handover(
    server: ApiServer, clock: Clock
) -> None:
    async with candidate(server, clock, "frozen") as frozen, candidate(server, clock) as me:
        await frozen.win()
        # Nothing of the frozen process runs while the other one takes the Lease.
        server.write(holderIdentity="me")
        clock.time += LEASE_SECONDS

        with pytest.raises(LeadershipLostError):
            frozen.require()
        await asyncio.wait_for(frozen.lost.wait(), 60)
        await frozen.release()
        assert server.holder == "me"
        await me.win()


async def test_frozen_leader_is_lost_although_its_lease_is_free(server: ApiServer, clock: Clock) -> None:
    """Parts that were refused a write during the freeze write nothing more."""
    async with candidate(server, clock) as me:
        await me.win()

        clock.time += LEASE_SECONDS + 1
        await asyncio.wait_for(me.lost.wait(), 60)

        assert not me.leads
        assert server.holder == "me"


async def test_leader_is_lost_when_a_renewal_is_answered_after_the_end_of_its_lease(
    server: ApiServer, clock: Clock
) -> None:
    """Between the end of the Lease and the answer, a write may have been refused."""
    async with candidate(server, clock) as me:
        await me.win()

        answers = iter([(1.0, ClusterError(0, "no answer")), (3.0, None)])

        def late(request: Request) -> Any:
            seconds, error = next(answers, (0.0, None))
            clock.time += seconds
            return error or server._serve(request)

        server.answer("PUT", "/leases", late)
        await asyncio.wait_for(me.lost.wait(), 60)

        assert server.holder == "me"


async def test_leader_is_lost_when_another_process_writes_the_lease(server: ApiServer, clock: Clock) -> None:
    async with candidate(server, clock) as me:
        await me.win()
        server.write(holderIdentity="other")

        await asyncio.wait_for(me.lost.wait(), 60)

        assert server.holder == "other"


async def test_leader_is_lost_when_the_api_server_does_not_answer(server: ApiServer, clock: Clock) -> None:
    async with candidate(server, clock) as me:
        await me.win()
        server.down = True
        begun = clock.time

        await asyncio.wait_for(me.lost.wait(), 60)

        assert clock.time - begun >= LEASE_SECONDS - RENEW_SECONDS


async def test_hanging_request_ends_before_the_lease(
    server: ApiServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.01)
    async with candidate(server, clock) as me:
        await me.win()
        server.answer("PUT", "/leases", lambda _: asyncio.Event().wait())

        await asyncio.wait_for(me.lost.wait(), 60)


@pytest.mark.parametrize("disturbance", ["annotated", "deleted", "answer-lost"])
async def test_disturbed_leader_keeps_its_lease(disturbance: str, server: ApiServer, clock: Clock) -> None:
    async with candidate(server, clock) as me:
        await me.win()
        if disturbance == "annotated":
            server.write(holderIdentity="me")
        elif disturbance == "deleted":
            server.lease = None
        else:
            server.lose_next_answer = True
        begun = clock.time

        await until(lambda: clock.time > begun + 3 * LEASE_SECONDS)

        assert not me.lost.is_set()
        assert server.holder == "me"


async def test_successor_counts_the_transition(server: ApiServer, clock: Clock) -> None:
    server.write(holderIdentity="", leaseTransitions=4)
    async with candidate(server, clock) as me:
        await me.win()

        assert server.lease is not None
        assert server.lease["spec"]["leaseTransitions"] == 5
