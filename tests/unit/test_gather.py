"""Which worker is asked when, and which one is named because it does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.snapshots import Deployments
from tests.support.workqueue import workqueue
from workqueue.contract.binding import from_url
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.clock import SystemClock
from workqueue_operator.kube.views import PodView
from workqueue_operator.scaling import gather
from workqueue_operator.scaling.depth import QueueReadings
from workqueue_operator.scaling.gather import Connection, Gatherer, GatherState, reading_seconds
from workqueue_operator.scaling.place import Place
from workqueue_operator.scaling.snapshot import Snapshot
from workqueue_operator.workers.client import Address, Workers, WorkerStatus

READY = PodView("jobs-1", "uid-1", "127.0.0.1", True, True, False, "h", False, None)
STARTING = PodView("jobs-0", "uid-0", "127.0.0.1", False, True, False, "h", False, None)
"""Unreachable workers: no process listens on their port."""


class Clock(SystemClock):
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class Site:
    """A queue and its workers, looked at once in a while."""

    clock: Clock
    state: GatherState = field(default_factory=GatherState)

    def ask(self, ready: int, *pods: PodView) -> QueueReadings:
        """One look at a queue with as many consumers as pods."""
        return asyncio.run(self._ask(ready, pods))

    async def _ask(self, ready: int, pods: tuple[PodView, ...]) -> QueueReadings:
        workers = Workers(port=free_port())
        watched = SimpleNamespace(last=QueueCounts(ready, len(pods), self.clock.time))
        handle: Any = SimpleNamespace(
            poller=SimpleNamespace(watch=lambda *_: watched),
            broker=SimpleNamespace(doorbell_installed_at=lambda _: None, is_busy=False),
        )
        nobody: Any = None
        place = Place(self.clock, handle.broker, lambda: None)
        connection = Connection(handle, from_url("amqp://rabbit/"), place)
        try:
            gatherer = Gatherer(Deployments(pods), workers, nobody, self.clock)
            seen, state = await gatherer.gather(workqueue(), connection, self.state, ring=False)
            seen, self.state = await gatherer.gather_rest(seen, state)
            return seen.readings
        finally:
            await workers.close()


@pytest.fixture
def site(clock: Clock) -> Site:
    return Site(clock)


@pytest.mark.parametrize("ready", [0, 50], ids=["empty-queue", "backlog"])
def test_silent_worker_is_named_within_a_minute(ready: int, site: Site, clock: Clock) -> None:
    begun, named = clock.time, None

    while named is None and clock.time < begun + 60:
        named = site.ask(ready, READY, STARTING).unreachable
        clock.time += 5

    assert named == "jobs-1"
    assert clock.time - begun > gather.SILENT_AFTER


def test_starting_worker_is_not_named(site: Site, clock: Clock) -> None:
    site.ask(0, STARTING)
    clock.time += 300

    assert site.ask(0, STARTING).unreachable is None


def test_replaced_worker_is_not_named(site: Site, clock: Clock) -> None:
    site.ask(0, READY)
    clock.time += 300
    another = PodView("jobs-2", "uid-2", "127.0.0.1", True, True, False, "h", False, None)

    assert site.ask(0, another).unreachable is None
    assert set(site.state.silent_since) == {"uid-2"}


def test_worker_that_runs_unreported_is_expected(site: Site, clock: Clock) -> None:
    now = clock.now().timestamp()
    pods = [
        replace(READY, name=name, running=False, ready=False, **changes)
        for name, changes in {
            "starting": {},
            "homeless": {"scheduled": False},
            "crashed": {"restarts_at": 0.0},
            "backing-off": {"restarts_at": now + 60},
            "terminating": {"terminating": True},
        }.items()
    ]

    assert [pod.name for pod in site.ask(0, *pods).unreported] == ["starting", "crashed"]


class Asked(Workers):
    """Workers that answer with a number of busy slots each, and count how often they are asked."""

    def __init__(
        self,
        busy: int,
        slots: int = 1,
        silent: frozenset[str] = frozenset(),
        ages: Mapping[str, float | None] | None = None,
    ) -> None:
        self.ages = ages or {}
        self.status = WorkerStatus(
            slots, busy, consuming=True, handler_seconds=5.0, deliveries_per_second=0.2
        )
        self.silent = silent
        self.others: Mapping[str, WorkerStatus] = {}
        self.times = 0

    async def statuses(self, addresses: Sequence[Address]) -> dict[str, WorkerStatus]:
        self.times += 1
        return {
            one.pod: self.others.get(one.pod) or replace(self.status, busy_seconds=self.ages.get(one.pod))
            for one in addresses
            if one.pod not in self.silent
        }

    async def stopping(self, addresses: Sequence[Address]) -> dict[str, WorkerStatus]:
        return dict.fromkeys((one.pod for one in addresses), self.status)


@dataclass
class Passes:
    """Passes over a WorkQueue with two workers."""

    clock: Clock
    workers: Asked
    spec: dict[str, Any] = field(default_factory=dict)
    ready: int = 0
    pods: tuple[PodView, ...] = (READY, replace(READY, name="jobs-9", uid="uid-9"))
    state: GatherState = field(default_factory=GatherState)
    replicas: int = 2
    seen: Snapshot | None = None
    on_wait: Callable[[], None] = lambda: None
    on_read: Callable[[], None] = lambda: None

    def run(self, seconds: float, pause: float = 1.0) -> int:
        """Run a pass after each pause; return how often the workers were asked."""
        before = self.workers.times
        for _ in range(round(seconds / pause)):
            asyncio.run(self._pass())
            self.clock.time += pause
        return self.workers.times - before

    async def _pass(self) -> None:
        slots = self.workers.status.slots
        watched = SimpleNamespace(last=QueueCounts(self.ready, len(self.pods) * slots, self.clock.time))

        def watch(*_: object) -> Any:
            self.on_read()
            return watched

        handle: Any = SimpleNamespace(
            poller=SimpleNamespace(watch=watch),
            broker=SimpleNamespace(doorbell_installed_at=lambda _: None, is_busy=False),
        )
        nobody: Any = None
        gatherer = Gatherer(Deployments(self.pods, self.replicas), self.workers, nobody, self.clock)
        made = workqueue(**self.spec)
        place = Place(self.clock, handle.broker, self.on_wait)
        connection = Connection(handle, from_url("amqp://rabbit/"), place)
        self.seen, self.state = await gatherer.gather(made, connection, self.state, ring=False)
        _, self.state = await gatherer.gather_rest(self.seen, self.state)


@pytest.mark.parametrize(
    ("delay", "seconds"), [(0, 1), (10, 1), (30, 3), (60, 6), (3600, 10)], ids=lambda value: f"{value}-s"
)
def test_workers_are_asked_ten_times_per_scale_in_delay(delay: int, seconds: int, clock: Clock) -> None:
    passes = Passes(clock, Asked(busy=1), {"scaling": {"scaleInDelaySeconds": delay}})

    assert passes.run(60) == 60 / seconds


@pytest.mark.parametrize(
    ("ages", "seconds"),
    [((5.0, 5.0), 1), ((50.0, 40.0), 4), ((3600.0, 3600.0), 10), ((3600.0, 0.0), 1), ((3600.0, None), 1)],
    ids=str,
)
def test_workers_are_asked_after_a_tenth_of_the_time_for_which_all_have_been_busy(
    ages: tuple[float, float | None], seconds: int, clock: Clock
) -> None:
    workers = Asked(busy=1, ages=dict(zip(("jobs-1", "jobs-9"), ages, strict=True)))
    passes = Passes(clock, workers, {"scaling": {"scaleInDelaySeconds": 0}})

    assert passes.run(60) == 60 / seconds
    assert passes.seen is not None
    assert reading_seconds(passes.seen.workqueue.spec, passes.seen.readings) == seconds


def test_pass_gives_its_place_back_before_it_asks(clock: Clock) -> None:
    events: list[str] = []
    passes = Passes(clock, Asked(busy=1), on_wait=lambda: events.append("place"))
    passes.on_read = lambda: events.append("counts")
    passes.run(1)

    assert events[:2] == ["place", "counts"]


@pytest.mark.parametrize(("consuming", "named"), [(False, "jobs-1"), (True, None)])
def test_worker_that_rabbitmq_does_not_answer_is_named_unless_another_one_consumes(
    clock: Clock, *, consuming: bool, named: str | None
) -> None:
    """Without a leader a queue may report its counts of before. Nothing else says that no worker gets a message."""
    workers = Asked(busy=0)
    waiting = replace(workers.status, consuming=False, queue_answers=False)
    workers.others = {"jobs-1": waiting, "jobs-9": replace(waiting, consuming=consuming)}
    passes = Passes(clock, workers, ready=9)

    passes.run(gather.SILENT_AFTER)
    assert passes.seen is not None
    assert passes.seen.readings.unanswered is None

    passes.run(20)
    assert passes.seen.readings.unanswered == named


def test_what_workers_said_before_a_time_without_passes_does_not_count(clock: Clock) -> None:
    """RabbitMQ was away, and no worker was asked. They have just connected again."""
    workers = Asked(busy=0)
    waiting = replace(workers.status, consuming=False, queue_answers=False)
    workers.others = {"jobs-1": waiting, "jobs-9": waiting}
    passes = Passes(clock, workers, ready=9)
    passes.run(1)
    clock.time += gather.SILENCE_STANDS

    passes.run(1)

    assert passes.seen is not None
    assert passes.seen.readings.unanswered is None


def test_silent_worker_may_have_become_busy_just_now(clock: Clock) -> None:
    workers = Asked(busy=1, ages={"jobs-1": 3600.0}, silent=frozenset({"jobs-9"}))
    passes = Passes(clock, workers, {"scaling": {"scaleInDelaySeconds": 0}})
    passes.run(1)

    assert passes.seen is not None
    assert reading_seconds(passes.seen.workqueue.spec, passes.seen.readings) == 1


_EACH_PASS: list[tuple[str, dict[str, Any]]] = [
    ("surplus", {"workers": {"busy": 0}}),
    ("waiting-message", {"ready": 1}),
    ("workers-with-more-slots-than-messages-per-replica", {"workers": {"busy": 1, "slots": 20}}),
    ("idle-worker-and-a-pin-below-the-count", {"workers": {"busy": 0}, "spec": {"replicas": 1}}),
    ("silent-worker", {"workers": {"busy": 1, "silent": frozenset({"jobs-9"})}}),
]


@pytest.mark.parametrize("case", [case for _, case in _EACH_PASS], ids=[name for name, _ in _EACH_PASS])
def test_workers_whose_answer_can_change_the_count_are_asked_in_each_pass(
    case: dict[str, Any], clock: Clock
) -> None:
    workers = Asked(**{"busy": 1, **case.get("workers", {})})
    passes = Passes(clock, workers, case.get("spec", {}), case.get("ready", 0))

    assert passes.run(20) == 20


def test_workers_at_the_maximum_are_asked_seldom(clock: Clock) -> None:
    """Busy slots ask for more replicas than there may be, so that no answer changes the count."""
    passes = Passes(clock, Asked(busy=4, slots=4), {"scaling": {"maxReplicas": 2}})

    assert passes.run(18) == 3


def test_new_worker_is_asked_in_the_next_pass(clock: Clock) -> None:
    passes = Passes(clock, Asked(busy=1))
    assert passes.run(2) == 1
    passes.pods = (READY, replace(READY, name="jobs-7", uid="uid-7"))

    assert passes.run(1) == 1


@pytest.mark.parametrize(
    ("replicas", "busy"), [(2, 2), (1, 1)], ids=["scale-in that was called off", "leaving"]
)
def test_marked_workers_belong_to_the_depth_unless_they_leave(replicas: int, busy: int, clock: Clock) -> None:
    """Their workers consume again. During a quota or a rollout their marks may stay for hours."""
    passes = Passes(clock, Asked(busy=1), replicas=replicas)
    passes.pods = (READY, replace(READY, name="jobs-9", uid="uid-9", marked=True))

    passes.run(1)

    assert sum(status.busy for status in passes.state.statuses.values()) == busy


def test_each_pass_asks_the_workers_without_a_scale_in_delay(clock: Clock) -> None:
    """A pass that a pod's event starts sees that a worker has become idle."""
    passes = Passes(clock, Asked(busy=1), {"scaling": {"scaleInDelaySeconds": 0}})

    assert passes.run(5, pause=0.2) == 25


WAITS = {"scaling": {"maxWaitSeconds": 30}}


def test_waiting_messages_grow_old_from_pass_to_pass(clock: Clock) -> None:
    passes = Passes(clock, Asked(busy=1), WAITS, ready=5)

    assert passes.run(10) == 10, "a message that waits may change the count in each pass"
    assert passes.state.waits is not None
    assert passes.state.waits.line.ages == [(9.0, 5)]


def test_ages_are_forgotten_with_another_target(clock: Clock) -> None:
    passes = Passes(clock, Asked(busy=1), WAITS, ready=5)
    passes.run(1)
    passes.spec = {}

    passes.run(1)

    assert passes.state.waits is None


def test_decision_gets_ages_slots_and_the_start_time_of_pods(clock: Clock) -> None:
    quick, slow = replace(READY, start_seconds=2.0), replace(READY, name="jobs-9", start_seconds=8.0)
    passes = Passes(clock, Asked(busy=1, slots=3), WAITS, ready=5, pods=(quick, slow))

    passes.run(3)

    assert passes.seen is not None
    waits = passes.seen.observation.load.waits
    assert waits is not None
    assert waits.waiting == [(2.0, 5)]
    assert (waits.slots, waits.busy_seconds, waits.start_seconds) == (2, [0.0, 0.0], 5.0)
