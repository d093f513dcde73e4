"""When the operator publishes the tokens of a rate limit, without RabbitMQ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.workqueue import workqueue
from tests.unit.test_limits import member, store_of
from workqueue.contract.topology import RateLimit
from workqueue_operator.broker.connection import Broker
from workqueue_operator.broker.rates import BUSY_SECONDS, REST_SECONDS, TICK_SECONDS, Pace, RateFeeder
from workqueue_operator.kube.store import Store
from workqueue_operator.reconcile.limits import agreed_rate

HUNDRED = RateLimit("jobs.limit.starts", 100, 20)
LIMITS = st.builds(
    lambda rate, share: RateLimit("limit", rate, max(math.ceil(rate / 100), math.ceil(rate * share), 1)),
    st.floats(0.01, 10_000),
    st.floats(0, 2),
)


@dataclass
class Tokens:
    """A queue of tokens in which the operator publishes, as RabbitMQ would have it.

    Attributes:
        waiting: whether slots always wait for a token.
    """

    limit: RateLimit
    pace: Pace
    waiting: bool = True
    ready: int = 0
    used: int = 0

    def publish(self, now: float) -> int:
        tokens = self.pace.due(self.limit, now)
        if not tokens:
            return 0
        taken = tokens if self.waiting else min(tokens, self.limit.most_tokens - self.ready)
        if self.waiting:
            self.used += taken
        else:
            self.ready += taken
        self.pace = self.pace.published(self.limit, now, tokens, taken)
        return tokens


@given(LIMITS, st.lists(st.floats(0.001, 30), min_size=1, max_size=50))
def test_no_more_starts_are_published_than_the_rate_allows(limit: RateLimit, pauses: list[float]) -> None:
    tokens, now = Tokens(limit, Pace(0, 0)), 0.0

    for pause in pauses:
        now += pause
        while tokens.publish(now):
            pass

    assert tokens.used * limit.starts_per_token <= limit.per_second * now + 1e-6


@given(LIMITS, st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_all_starts_are_published_while_each_look_comes_in_time(
    limit: RateLimit, lateness: list[float]
) -> None:
    tokens, now = Tokens(limit, Pace(0, 0)), 0.0
    longest = limit.burst / limit.per_second / 2

    for late in lateness:
        pause = tokens.pace.pause(limit, now, is_wanted=True)
        assert pause is not None
        now += pause + late * min(longest, TICK_SECONDS[1])
        while tokens.publish(now):
            pass

    assert tokens.used * limit.starts_per_token >= limit.per_second * now - limit.starts_per_token - 1e-6


def test_no_token_is_due_when_a_leader_begins() -> None:
    assert Pace(1000.0, 1000.0).due(HUNDRED, 1000.0) == 0


def test_pause_of_the_operator_is_followed_by_no_more_than_the_burst() -> None:
    pace = Pace(0, 0, is_full=False)

    assert pace.due(HUNDRED, 60) == HUNDRED.burst + 1
    assert pace.published(HUNDRED, 60, HUNDRED.burst + 1, HUNDRED.burst + 1).due(HUNDRED, 60) == 0


def test_tokens_that_are_confirmed_late_belong_to_the_burst() -> None:
    pace = Pace(0, 0, is_full=False)
    assert pace.due(HUNDRED, 0.05) == 5

    pace = pace.published(HUNDRED, 60, 5, 5)

    assert pace.due(HUNDRED, 0.05) == 0
    assert pace.due(HUNDRED, 60) == HUNDRED.burst + 1 - 5


def test_full_queue_gets_one_token_at_a_time_until_it_takes_one() -> None:
    tokens = Tokens(HUNDRED, Pace(0, 0), waiting=False, ready=20)

    assert tokens.publish(1.0) == 1
    assert tokens.publish(2.0) == 1
    tokens.ready = 0
    assert tokens.publish(3.0) == 1
    assert tokens.publish(3.0) == 20
    assert tokens.ready == 20


@pytest.mark.parametrize(
    ("pace", "is_wanted", "pause"),
    [
        (Pace(100, 100, is_full=False), True, 0.05),
        (Pace(100, 100 - BUSY_SECONDS + 1), True, 0.05),
        (Pace(100, 100 - BUSY_SECONDS), True, REST_SECONDS),
        (Pace(100, 100 - BUSY_SECONDS), False, None),
        (Pace(100, 100, is_full=False), False, 0.05),
    ],
    ids=["used", "full for a moment", "full", "full at rest", "not full at rest"],
)
def test_pause_until_the_next_look(pace: Pace, is_wanted: bool, pause: float | None) -> None:
    assert pace.pause(HUNDRED, 100, is_wanted=is_wanted) == pause


@pytest.mark.parametrize(
    ("rate", "burst", "starts", "tokens"),
    [(0.1, 1, 1, 1), (100, 20, 1, 20), (199, 40, 1, 40), (1000, 200, 10, 20), (10_000, 100, 100, 1)],
    ids=["slow", "hundred", "below two hundred", "thousand", "fast with the least burst"],
)
def test_token_of_a_high_rate_allows_several_starts(
    rate: float, burst: int, starts: int, tokens: int
) -> None:
    limit = RateLimit("limit", rate, burst)

    assert (limit.starts_per_token, limit.most_tokens) == (starts, tokens)


@pytest.mark.parametrize(
    ("limits", "burst"),
    [
        ({"ratePerSecond": 100}, 20),
        ({"ratePerSecond": 0.1}, 1),
        ({"ratePerSecond": 100, "burst": 5}, 5),
        ({"ratePerSecond": 100, "concurrency": 5}, 20),
    ],
    ids=["default", "slow", "given", "with a concurrency"],
)
def test_burst_defaults_to_the_starts_of_a_fifth_of_a_second(limits: dict[str, Any], burst: int) -> None:
    found = workqueue(limits=limits).rate_limit

    assert found == RateLimit("jobs.limit.starts", limits["ratePerSecond"], burst)


@pytest.mark.parametrize(
    ("limits", "mistake"),
    [
        ({}, "give concurrency, ratePerSecond, or both"),
        ({"group": "shop"}, "give concurrency, ratePerSecond, or both"),
        ({"concurrency": 5, "burst": 5}, "burst belongs to ratePerSecond"),
        ({"ratePerSecond": 1000, "burst": 9}, "burst must be at least a hundredth"),
        ({"ratePerSecond": 0}, "ratePerSecond"),
        ({"ratePerSecond": 10_001}, "ratePerSecond"),
    ],
    ids=["nothing", "only a group", "burst alone", "small burst", "zero", "too high"],
)
def test_invalid_limits_are_refused(limits: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValidationError, match=mistake):
        workqueue(limits=limits)


def rated(name: str, created: int, **limits: Any) -> Any:
    made = member(name, created).model_dump(mode="json", by_alias=True, exclude_none=True)
    made["spec"]["limits"] = {"group": "shared", **limits}
    return type(member(name, created)).model_validate(made)


def rate_beside(one: Any, *others: Any) -> tuple[float, int, bool]:
    """The rate and the burst that apply to a WorkQueue, and whether they are not its own."""
    found = agreed_rate(one, store_of(one, *others))
    assert found is not None
    assert found.limit.name == "limit.team.shared.starts"
    return found.limit.per_second, found.limit.burst, found.conflict is not None


def test_oldest_workqueue_of_a_group_that_gives_a_rate_decides() -> None:
    young = rated("young", 2, ratePerSecond=100)

    assert rate_beside(young, rated("old", 1, ratePerSecond=100)) == (100, 20, False)
    assert rate_beside(young, rated("old", 1, ratePerSecond=50)) == (50, 10, True)
    assert rate_beside(young, rated("old", 1, ratePerSecond=100, burst=50)) == (100, 50, True)
    assert rate_beside(young, rated("younger", 3, ratePerSecond=50)) == (100, 20, False)
    assert rate_beside(young, rated("old", 1, concurrency=5)) == (100, 20, False)
    assert agreed_rate(rated("young", 2, concurrency=5), Store(lambda _: None)) is None


class OneUser(Broker):
    """The connection of one user of the same RabbitMQ."""

    generation = 1
    is_up = True

    def __init__(self) -> None:
        self.binding: Any = SimpleNamespace(display="rabbitmq:5672/shop")

    @property
    def connected(self) -> bool:
        return self.is_up

    async def declare_queue(self, queue: Any) -> Any: ...

    async def publish_tokens(self, queue: str, body: bytes, count: int) -> int:
        return count


async def test_group_with_two_users_gets_the_rate_once() -> None:
    feeder, mine, theirs = RateFeeder(lambda: True, lambda _: None), OneUser(), OneUser()
    await feeder.ensure(("team", "one"), HUNDRED, mine, is_wanted=True)
    await feeder.ensure(("team", "two"), HUNDRED, theirs, is_wanted=True)
    assert feeder.fed == 1

    mine.is_up = False
    await feeder.ensure(("team", "two"), HUNDRED, theirs, is_wanted=True)
    mine.is_up = True
    assert feeder.fed == 2
    await feeder.ensure(("team", "one"), HUNDRED, mine, is_wanted=True)
    await feeder.ensure(("team", "two"), HUNDRED, theirs, is_wanted=True)

    assert feeder.fed == 1
    await feeder.stop()


async def test_limits_of_two_namespaces_are_no_group() -> None:
    feeder = RateFeeder(lambda: True, lambda _: None)
    await feeder.ensure(("team", "one"), HUNDRED, OneUser(), is_wanted=True)

    await feeder.ensure(("other", "one"), HUNDRED, OneUser(), is_wanted=True)

    assert feeder.fed == 2
    await feeder.stop()
