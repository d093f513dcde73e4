"""Publish the tokens of rate limits: the leader keeps the queue of each limit filled at its rate.

RabbitMQ refuses a token when the queue is full, which says that tokens are not used. Then the operator publishes only
one now and then, and none while the WorkQueue has neither messages nor workers. So a limit at rest costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from workqueue.contract.topology import RateLimit
from workqueue_operator.api.reasons import UNANSWERED, Reason
from workqueue_operator.broker.connection import Broker, QueueMissingError
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.store import Key

BUSY_SECONDS: Final = 5.0
"""For so long after a token was used, a full queue is looked at as often as one that is not full."""

REST_SECONDS: Final = 1.0
"""Seconds between two looks at a full queue whose tokens are not used, while there are workers."""

TICK_SECONDS: Final = (0.01, 0.25)
"""The shortest and the longest time between two publishes while tokens are used."""

AGAIN_SECONDS: Final = 1.0
"""Seconds until the next attempt after tokens could not be published."""

REFUSED_SECONDS: Final = 15.0
"""The same after RabbitMQ has refused them, such as without permission."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How far the tokens of a limit were published. PURE: times are seconds on a monotonic clock.

    Attributes:
        until: the time until which all starts have their tokens. No start of an earlier time gets one.
        used_at: when a token was last used, as far as that is known.
        is_full: whether the queue has refused the last token. At first that is not known.
    """

    until: float
    used_at: float
    is_full: bool = True

    def due(self, limit: RateLimit, now: float) -> int:
        """Return how many tokens to publish now. A full queue gets one, which tells whether it is still full.

        After a pause, such as of this process, no more than the burst is due. One more is in progress.
        """
        return min(self._owed(limit, now), 1 if self.is_full else limit.most_tokens + 1)

    def published(self, limit: RateLimit, now: float, tokens: int, taken: int) -> Pace:
        """Return the pace after tokens were published, of which the queue has taken some.

        Args:
            now: when RabbitMQ had confirmed them. After a late confirm, such as over a connection that was cut, they
                are a part of the burst that follows a pause.
        """
        if taken < tokens:
            return Pace(now, now if taken else self.used_at)
        missed = max(self._owed(limit, now) - (limit.most_tokens + 1), 0)
        return Pace(self.until + (missed + tokens) * _seconds_per_token(limit), now, is_full=False)

    def _owed(self, limit: RateLimit, now: float) -> int:
        return max(int((now - self.until) / _seconds_per_token(limit) + 1e-9), 0)

    def pause(self, limit: RateLimit, now: float, *, is_wanted: bool) -> float | None:
        """Return the seconds until the next look; None if only a change of `is_wanted` needs one.

        Args:
            is_wanted: whether there are messages or workers.
        """
        next_token = self.until + _seconds_per_token(limit) - now
        if not self.is_full or now - self.used_at < BUSY_SECONDS:
            shortest, longest = TICK_SECONDS
            return max(next_token, min(max(limit.burst / limit.per_second / 4, shortest), longest))
        return max(next_token, REST_SECONDS) if is_wanted else None


def _seconds_per_token(limit: RateLimit) -> float:
    return limit.starts_per_token / limit.per_second


class Publishing(Protocol):
    """The part of a broker that this module uses."""

    async def publish_tokens(self, queue: str, body: bytes, count: int) -> int:
        """Publish tokens, and return how many were taken. Raises QueueMissingError or ReconcileError."""
        ...


@dataclass(eq=False, slots=True)
class _Feed:
    """A limit whose tokens are published.

    Attributes:
        members: the WorkQueues that use the limit, and whether they have messages or workers.
        problem: why RabbitMQ takes no tokens; None while it does.
    """

    limit: RateLimit
    broker: Publishing
    members: dict[Key, bool] = field(default_factory=dict)
    problem: ReconcileError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class RateFeeder:
    """Publishes the tokens of all rate limits.

    Args:
        leads: whether this process still leads. Two leaders would publish twice the rate.
        enqueue: asks for a pass over a WorkQueue, when the queue of its tokens was deleted, or RabbitMQ refuses them.
        are_same: whether two connections lead to the same RabbitMQ, where a queue is.
    """

    def __init__(
        self,
        leads: Callable[[], bool],
        enqueue: Callable[[Key], object],
        are_same: Callable[[Broker, Broker, str], Awaitable[bool | None]] = Broker.is_same_as,
    ) -> None:
        self._leads = leads
        self._enqueue = enqueue
        self._are_same = are_same
        self._feeds: dict[tuple[int, str], _Feed] = {}
        self._feed_of: dict[Key, tuple[int, str]] = {}

    @property
    def fed(self) -> int:
        """The number of limits whose tokens are published."""
        return len(self._feeds)

    async def ensure(self, key: Key, limit: RateLimit, broker: Broker, *, is_wanted: bool) -> None:
        """Publish tokens for a WorkQueue from now on. A queue that exists keeps its tokens.

        Args:
            is_wanted: whether the WorkQueue has messages or workers.

        Raises:
            ReconcileError: the queue could not be declared, or RabbitMQ refuses the tokens.
        """
        broker = await self._connection(key, limit, broker)
        feed = self._feeds.get(_identity(limit, broker))
        if feed is None or feed.limit != limit:
            await declare(limit, broker)
        self.feed(key, limit, broker, is_wanted=is_wanted)
        if feed is not None and feed.problem is not None:
            raise feed.problem.with_traceback(None)

    async def _connection(self, key: Key, limit: RateLimit, broker: Broker) -> Broker:
        """Return the connection over which the group publishes already, if it leads to the same RabbitMQ.

        WorkQueues of a group may have different users, or spell the address differently. Each of their connections
        would publish at the whole rate.
        """
        for identity, feed in list(self._feeds.items()):
            other = feed.broker
            if other is broker or feed.limit.name != limit.name or not isinstance(other, Broker):
                continue
            is_group = any(member[0] == key[0] for member in feed.members)
            if not (is_group and other.connected and feed.problem is None):
                continue
            if await self._are_same(broker, other, limit.name) and self._feeds.get(identity) is feed:
                return other
        return broker

    def feed(self, key: Key, limit: RateLimit, broker: Publishing, *, is_wanted: bool) -> None:
        """Do the same for a queue that exists."""
        identity = _identity(limit, broker)
        if self._feed_of.get(key) != identity:
            self.leave(key)
        feed = self._feeds.get(identity)
        if feed is None or feed.limit != limit:
            members = {} if feed is None else feed.members
            if feed is not None and feed.task is not None:
                feed.task.cancel()
            feed = self._feeds[identity] = _Feed(limit, broker, members)
            feed.task = asyncio.create_task(self._run(identity, feed), name=f"tokens {limit.name}")
        if is_wanted and not any(feed.members.values()):
            feed.changed.set()
        feed.members[key] = is_wanted
        self._feed_of[key] = identity

    def leave(self, key: Key) -> None:
        """Publish no more tokens for a WorkQueue."""
        identity = self._feed_of.pop(key, None)
        feed = None if identity is None else self._feeds.get(identity)
        if identity is None or feed is None:
            return
        feed.members.pop(key, None)
        if not feed.members:
            self._stop(identity)

    async def stop(self) -> None:
        """Stop."""
        tasks = [feed.task for feed in self._feeds.values() if feed.task is not None]
        for identity in list(self._feeds):
            self._stop(identity)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop(self, identity: tuple[int, str]) -> None:
        feed = self._feeds.pop(identity)
        for key in feed.members:
            self._feed_of.pop(key, None)
        if feed.task is not None:
            feed.task.cancel()

    async def _run(self, identity: tuple[int, str], feed: _Feed) -> None:
        time = asyncio.get_running_loop().time
        limit, body = feed.limit, b"%d" % feed.limit.starts_per_token
        pace = Pace(time(), time())
        while self._leads():
            now = time()
            try:
                while tokens := pace.due(limit, now):
                    taken = await feed.broker.publish_tokens(limit.name, body, tokens)
                    pace = pace.published(limit, time(), tokens, taken)
                    self._note(feed, None)
            except QueueMissingError:
                members = list(feed.members)
                self._stop(identity)
                for key in members:
                    self._enqueue(key)
                return
            except Exception as error:
                # The WorkQueue's own connection reports these, if they last.
                is_passing = isinstance(error, ReconcileError) and error.reason in UNANSWERED
                if isinstance(error, ReconcileError):
                    self._note(feed, None if is_passing else error)
                else:
                    # An unexpected error must not stop the tokens.
                    logger.exception("Publishing tokens failed.", extra={"queue": limit.name})
                await asyncio.sleep(AGAIN_SECONDS if is_passing else REFUSED_SECONDS)
                pace = Pace(time(), pace.used_at)  # nothing is due for this time
            pause = pace.pause(limit, time(), is_wanted=any(feed.members.values()))
            if pause is not None:
                await asyncio.sleep(pause)
                continue
            feed.changed.clear()
            await feed.changed.wait()
            pace = Pace(time(), time())

    def _note(self, feed: _Feed, problem: ReconcileError | None) -> None:
        changed = (feed.problem is None) != (problem is None)
        feed.problem = problem
        if changed:
            for key in feed.members:
                self._enqueue(key)


def _identity(limit: RateLimit, broker: Publishing) -> tuple[int, str]:
    return id(broker), limit.name


async def declare(limit: RateLimit, broker: Broker) -> None:
    """Declare the queue of a rate limit. One of another burst is replaced by an empty one.

    Raises:
        ReconcileError: refused, or no answer.
    """
    try:
        await broker.declare_queue(limit.queue)
    except ReconcileError as problem:
        if problem.reason is not Reason.QUEUE_CONFLICT:
            raise
        await broker.delete_queue(limit.name)
        await broker.declare_queue(limit.queue)
    except QueueMissingError as error:
        raise ReconcileError(
            Reason.QUEUE_REFUSED, f"{error} was deleted during its declaration, or its node is down."
        ) from None
