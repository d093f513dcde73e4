"""Which limits apply to a WorkQueue, and whether its tokens are there. Pure."""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from workqueue.contract.topology import Limit, RateLimit
from workqueue_operator.api.workqueue import Limits, WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import PollAnswer, QueueMissing
from workqueue_operator.broker.limits import has_enough
from workqueue_operator.kube.store import Key, Object, Store

_Limit = TypeVar("_Limit", Limit, RateLimit)

CONCURRENCY: Final = "concurrency"
RATE: Final = "ratePerSecond"
"""The fields of `spec.limits` that a WorkQueue may share with its group."""


class Agreed(NamedTuple, Generic[_Limit]):
    """A limit, and what is wrong within its group."""

    limit: _Limit
    conflict: str | None = None


def agreed(workqueue: WorkQueue, store: Store) -> Agreed[Limit] | None:
    """Return the limit on handlers that run: in a group that of the oldest WorkQueue; None without a limit."""
    limit = workqueue.limit
    if limit is None:
        return None
    oldest = _oldest(workqueue, store, CONCURRENCY)
    count = None if oldest is None else oldest.limits.concurrency
    if oldest is None or count is None or count == limit.concurrency:
        return Agreed(limit)
    conflict = (
        f"limits.concurrency is {limit.concurrency} here and {count} in the older WorkQueue {oldest.name!r} of the "
        f"group {oldest.limits.group!r}. {count} counts. Give the same number in both."
    )
    return Agreed(limit._replace(concurrency=count), conflict)


def agreed_rate(workqueue: WorkQueue, store: Store) -> Agreed[RateLimit] | None:
    """Return the limit on handlers that start: in a group that of the oldest WorkQueue; None without a limit."""
    limit = workqueue.rate_limit
    if limit is None:
        return None
    oldest = _oldest(workqueue, store, RATE)
    rate = None if oldest is None else oldest.limits.rate_per_second
    if oldest is None or rate is None:
        return Agreed(limit)
    theirs = limit._replace(per_second=rate, burst=oldest.limits.most_at_once)
    if theirs == limit:
        return Agreed(limit)
    conflict = (
        f"limits.ratePerSecond is {limit.per_second:g} with a burst of {limit.burst} here, and {theirs.per_second:g} "
        f"with a burst of {theirs.burst} in the older WorkQueue {oldest.name!r} of the group "
        f"{oldest.limits.group!r}. Those count. Give the same numbers in both."
    )
    return Agreed(theirs, conflict)


def is_shared(workqueue: WorkQueue, store: Store, field: str) -> bool:
    """Return whether another WorkQueue shares this limit.

    Args:
        field: CONCURRENCY or RATE.
    """
    return bool(_members(workqueue, store, field))


class _Member(NamedTuple):
    name: str
    limits: Limits


def _members(workqueue: WorkQueue, store: Store, field: str) -> dict[Key, Object]:
    """Return the `spec.limits` of the other WorkQueues of the same group that are not being deleted."""
    group = workqueue.spec.limits.group if workqueue.spec.limits is not None else None
    if group is None:
        return {}
    others = store.group(workqueue.metadata.namespace, group) - {workqueue.key}
    return {
        key: limits
        for key in others
        if not (body := store.workqueues[key])["metadata"].get("deletionTimestamp")
        and (limits := body["spec"]["limits"]).get(field) is not None
    }


def _oldest(workqueue: WorkQueue, store: Store, field: str) -> _Member | None:
    """Return the oldest WorkQueue that shares the limit; None if it is this one.

    One that this operator cannot read, such as after a downgrade, does not count. Its own pass says so.
    """
    members = _members(workqueue, store, field)
    older = {key for key in members if store.is_older(key, workqueue.key)}
    while older:
        oldest = min(older, key=store.age)
        try:
            return _Member(oldest[1], Limits.model_validate(members[oldest]))
        except ValidationError:
            older.remove(oldest)
    return None


def lacks_tokens(limit: Limit, answer: PollAnswer | None) -> bool:
    """Whether the poller's last answer about the queue of a limit shows that tokens are missing."""
    if isinstance(answer, QueueCounts):
        return not has_enough(limit, answer)
    return isinstance(answer, QueueMissing)
