"""One pass per key at a time, the most urgent lane first, places for every namespace, and pauses that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.clock import FakeClock
from workqueue_operator.kube.store import Key
from workqueue_operator.reconcile.queue import (
    LOWEST_FIRST_EVERY,
    PLACE_SECONDS,
    PLACES,
    PLACES_PER_NAMESPACE,
    RING_PLACES,
    RING_PLACES_PER_NAMESPACE,
    STARTS_PER_TURN,
    Lane,
    NextPass,
    ReconcileQueue,
)

KEY: Key = ("team", "jobs")


class Passes:
    """Passes that end when the test says so."""

    def __init__(self) -> None:
        self.begun: list[Key] = []
        self.running: dict[Key, asyncio.Future[NextPass]] = {}
        self.most = 0

    async def __call__(self, key: Key) -> NextPass:
        assert key not in self.running
        self.begun.append(key)
        self.running[key] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.running))
        try:
            return await self.running[key]
        finally:
            del self.running[key]


class Site:
    """A queue on a clock that the test moves. Only keys of the namespace `new` have had no pass."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.passes = Passes()
        self.queue = ReconcileQueue(self.clock)
        self.queue.start(self.passes, lambda key: key[0] != "new")

    @property
    def begun(self) -> list[Key]:
        return self.passes.begun

    async def add(self, *keys: Key, lane: Lane = Lane.EVENT) -> None:
        for key in keys:
            self.queue.add(key, lane)
        await self.clock.settle()

    async def end(self, *keys: Key, due: NextPass | None = None) -> None:
        for key in keys:
            self.passes.running[key].set_result(due or NextPass())
        await self.clock.settle()

    async def end_all(self) -> None:
        while self.passes.running:
            await self.end(*self.passes.running)


def names(count: int, namespace: str = "team") -> list[Key]:
    return [(namespace, f"jobs-{number}") for number in range(count)]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    await made.queue.stop(0)


# -- one pass per key


async def test_key_added_during_its_pass_runs_exactly_once_more(site: Site) -> None:
    await site.add(KEY)
    await site.add(KEY, KEY, KEY)
    await site.end(KEY)
    await site.end(KEY)

    assert site.begun == [KEY, KEY]


async def test_different_keys_run_concurrently(site: Site) -> None:
    await site.add(*names(3))

    assert len(site.passes.running) == 3


async def test_key_that_is_added_before_the_start_begins_no_pass() -> None:
    clock, passes = FakeClock(), Passes()
    queue = ReconcileQueue(clock)
    queue.add(KEY)
    queue.start(passes, lambda _: True)
    await clock.settle()

    assert passes.begun == []


async def test_stop_cancels_slow_passes_and_starts_no_more(site: Site) -> None:
    await site.add(*names(PLACES_PER_NAMESPACE + 1))
    await site.queue.stop(0.05)
    await site.add(KEY)

    assert len(site.begun) == PLACES_PER_NAMESPACE
    assert site.passes.running == {}


# -- pauses


async def test_pass_that_is_due_later_begins_then(site: Site) -> None:
    await site.add(KEY)
    await site.end(KEY, due=NextPass(after=5))

    await site.clock.advance(4.9)
    assert len(site.begun) == 1
    await site.clock.advance(0.2)
    assert len(site.begun) == 2


async def test_failed_pass_keeps_its_pause_after_adding_itself(site: Site) -> None:
    await site.add(KEY)
    await site.add(KEY)
    await site.end(KEY, due=NextPass(after=5, failed=True))

    await site.clock.advance(4.9)
    assert len(site.begun) == 1
    await site.clock.advance(0.2)
    assert len(site.begun) == 2


async def test_external_change_skips_the_pause(site: Site) -> None:
    await site.add(KEY)
    await site.end(KEY, due=NextPass(after=60, failed=True))

    await site.add(KEY)

    assert len(site.begun) == 2
    await site.end(KEY)
    await site.clock.advance(100)
    assert len(site.begun) == 2, "the pause is over"


async def test_external_change_waits_for_a_pause_that_holds_every_lane_back(site: Site) -> None:
    await site.add(KEY)
    await site.end(KEY, due=NextPass(after=5, failed=True, holds=Lane.RING))

    await site.add(KEY)
    assert len(site.begun) == 1
    await site.clock.advance(5)
    assert len(site.begun) == 2
    await site.end(KEY)
    await site.add(KEY)
    assert len(site.begun) == 3


@pytest.mark.parametrize("during", [True, False], ids=["during the pass", "after the pass"])
async def test_events_wait_for_a_pause_that_holds_them_back(site: Site, during: bool) -> None:
    await site.add(KEY)
    if during:
        await site.add(KEY)
    await site.end(KEY, due=NextPass(after=5, holds=Lane.EVENT))
    await site.add(KEY)
    assert len(site.begun) == 1

    await site.clock.advance(5)
    assert len(site.begun) == 2


@pytest.mark.parametrize("lane", [Lane.RING, Lane.DEPTH])
async def test_ring_or_depth_ends_a_pause_that_holds_events_back(site: Site, lane: Lane) -> None:
    await site.add(KEY)
    await site.end(KEY, due=NextPass(after=5, holds=Lane.EVENT))

    await site.add(KEY, lane=lane)
    assert len(site.begun) == 2
    await site.end(KEY)
    await site.add(KEY)
    assert len(site.begun) == 3, "nothing is held back after that pass"


# -- lanes


async def test_ring_begins_while_every_place_is_taken_and_thousands_wait(site: Site) -> None:
    for namespace in ("a", "b", "team"):
        await site.add(*names(2000, namespace))
    assert len(site.passes.running) == PLACES

    site.queue.ring(KEY)
    await asyncio.sleep(0)

    assert site.begun[-1] == KEY


async def test_ring_waits_for_a_few_passes_of_the_same_turn_only(site: Site) -> None:
    """All are added in one turn of the event loop."""
    for key in names(PLACES):
        site.queue.add(key)
    site.queue.ring(KEY)
    await site.clock.settle()

    assert site.begun.index(KEY) <= STARTS_PER_TURN


async def test_many_rings_begin_a_few_per_turn(site: Site) -> None:
    """So that the counts of the first ones are written while the last ones begin."""
    keys = names(5 * STARTS_PER_TURN)
    for key in keys:
        site.queue.ring(key)
    await asyncio.sleep(0)
    assert len(site.begun) == STARTS_PER_TURN

    await site.clock.settle()
    assert site.begun == keys


async def test_lanes_begin_in_the_order_of_their_urgency(site: Site) -> None:
    await site.add(*names(PLACES_PER_NAMESPACE))
    for lane in reversed(Lane):
        await site.add(("team", lane.name), lane=lane)

    await site.end_all()

    expected = [lane.name for lane in Lane]
    assert [name for _, name in site.begun if name in expected] == expected


async def test_waiting_key_moves_to_the_more_urgent_lane(site: Site) -> None:
    busy = names(PLACES_PER_NAMESPACE)
    await site.add(*busy)
    await site.add(KEY, lane=Lane.TIMER)
    await site.add(("team", "other"), lane=Lane.EVENT)
    await site.add(KEY, lane=Lane.DEPTH)
    await site.add(KEY, lane=Lane.RESYNC)

    await site.end(busy[0])

    assert site.begun[-1] == KEY


async def test_urgent_key_during_a_pass_keeps_its_lane(site: Site) -> None:
    busy = names(PLACES_PER_NAMESPACE)
    await site.add(*busy)
    await site.add(busy[0], lane=Lane.DEPTH)
    await site.add(busy[0], lane=Lane.TIMER)
    await site.add(("team", "other"), lane=Lane.EVENT)

    await site.end(busy[0])

    assert site.begun[-1] == busy[0]


async def test_least_urgent_lane_does_not_starve(site: Site) -> None:
    busy = names(PLACES_PER_NAMESPACE)
    await site.add(*busy)
    await site.add(KEY, lane=Lane.RESYNC)
    await site.add(*names(100, "team")[PLACES_PER_NAMESPACE:], lane=Lane.DEPTH)

    for _ in range(LOWEST_FIRST_EVERY):
        await site.end(next(iter(site.passes.running)))

    assert KEY in site.begun


@pytest.mark.parametrize("lane", [Lane.EVENT, Lane.TIMER], ids=["event", "timer"])
async def test_no_lane_starves_between_two_full_ones(site: Site, lane: Lane) -> None:
    full = names(500)
    await site.add(*full[:250], lane=Lane.DEPTH)
    await site.add(*full[250:], lane=Lane.RESYNC)
    await site.add(KEY, lane=lane)

    for _ in range(3 * LOWEST_FIRST_EVERY):
        await site.end(next(iter(site.passes.running)))

    assert KEY in site.begun


async def test_first_passes_do_not_delay_later_ones(site: Site) -> None:
    for namespace in ("new", "team"):
        await site.add(*names(PLACES_PER_NAMESPACE, namespace))
    await site.add(*[("new", f"more-{number}") for number in range(100)])
    await site.add(KEY)

    await site.end(next(key for key in site.passes.running if key[0] == "team"))

    assert site.begun[-1] == KEY


# -- places


async def test_namespace_with_thousands_of_keys_leaves_room_for_others(site: Site) -> None:
    await site.add(*names(5000, "large"))
    await site.add(KEY)

    assert len(site.passes.running) == PLACES_PER_NAMESPACE + 1
    assert site.begun[-1] == KEY


async def test_namespaces_take_turns(site: Site) -> None:
    first, second = names(PLACES_PER_NAMESPACE, "a"), names(PLACES_PER_NAMESPACE, "b")
    await site.add(*first, *second)
    await site.add(*[("c", f"more-{number}") for number in range(100)], ("d", "one"))

    await site.end(first[0])
    await site.end(first[1])

    assert [namespace for namespace, _ in site.begun[-2:]] == ["c", "d"]


async def test_queue_limits_concurrent_passes_and_serves_every_key(site: Site) -> None:
    keys = [key for namespace in "abc" for key in names(30, namespace)]
    await site.add(*keys)
    await site.end_all()

    assert sorted(site.begun) == sorted(keys)
    assert site.passes.most == PLACES


async def test_pass_that_waits_for_a_broker_gives_its_place_back_once(site: Site) -> None:
    keys = names(PLACES_PER_NAMESPACE + 5)
    await site.add(*keys)

    site.queue.release_place(keys[0])
    site.queue.release_place(keys[0])
    await site.clock.settle()

    assert len(site.begun) == PLACES_PER_NAMESPACE + 1, "one place, one successor"


async def test_slow_pass_gives_its_place_back(site: Site) -> None:
    keys = names(PLACES_PER_NAMESPACE + 1)
    await site.add(*keys)
    await site.clock.advance(PLACE_SECONDS)

    assert site.begun == keys


async def test_rings_of_one_namespace_leave_room_for_others(site: Site) -> None:
    for key in names(RING_PLACES, "large"):
        site.queue.ring(key)
    site.queue.ring(KEY)
    for _ in range(RING_PLACES_PER_NAMESPACE // STARTS_PER_TURN + 1):
        await site.clock.settle()

    assert len(site.passes.running) == RING_PLACES_PER_NAMESPACE + 1
    assert KEY in site.begun[: 2 * STARTS_PER_TURN], "the namespaces take turns"


async def test_queue_has_caught_up_after_the_passes_of_the_start() -> None:
    site = Site()
    caught_up = asyncio.create_task(site.queue.caught_up())
    await site.add(KEY, ("team", "other"))
    await site.end(KEY)
    assert not caught_up.done()

    await site.end(("team", "other"))

    assert caught_up.done()


async def test_pass_in_the_lane_of_the_start_comes_after_the_first_passes() -> None:
    site, first = Site(), names(PLACES_PER_NAMESPACE + 2)
    await site.add(*first, lane=Lane.RESYNC)
    assert site.queue.catches_up
    await site.end(first[0], due=NextPass(0.0, lane=Lane.RESYNC))
    await site.clock.advance(0.0)
    await site.end_all()

    assert site.begun == [*first, first[0]]
    assert not site.queue.catches_up
    await site.queue.stop(0)


async def test_queue_without_keys_has_caught_up_at_once(site: Site) -> None:
    async with asyncio.timeout(60):
        await site.queue.caught_up()


# -- rings


async def test_first_ring_counts_until_a_pass_takes_it(site: Site) -> None:
    assert site.queue.rang_at(KEY) is None
    site.queue.ring(KEY)
    first = site.queue.rang_at(KEY)
    await site.clock.advance(1)

    site.queue.ring(KEY)

    assert first == site.clock.monotonic() - 1
    assert site.queue.take_ring(KEY) == first
    assert site.queue.take_ring(KEY) is None


async def test_longest_is_the_age_of_the_oldest_pass(site: Site) -> None:
    assert site.queue.longest == 0
    await site.add(KEY)
    await site.clock.advance(7)
    await site.add(("team", "other"))

    assert site.queue.longest == 7
