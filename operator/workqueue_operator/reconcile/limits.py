"""Which limits apply to a WorkQueue, and whether its tokens are there. Pure."""

from __future__ import annotations

from typing import NamedTuple

from workqueue.contract.topology import Limit, RateLimit
from workqueue_operator.api.workqueue import Limits, WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QueueMissing
from workqueue_operator.broker.limits import has_enough
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.store import Key, Store, key_of


class Agreed(NamedTuple):
    """The limit on handlers that run, and what is wrong within its group."""

    limit: Limit
    conflict: str | None = None


class AgreedRate(NamedTuple):
    """The limit on handlers that start, and what is wrong within its group."""

    limit: RateLimit
    conflict: str | None = None


def agreed(workqueue: WorkQueue, store: Store) -> Agreed | None:
    """Return the limit on handlers that run: in a group that of the oldest WorkQueue; None without a limit."""
    limit = workqueue.limit
    if limit is None:
        return None
    oldest = _oldest(workqueue, store, handler_limits(workqueue, store))
    count = None if oldest is None else oldest[1].concurrency
    if oldest is None or count is None or count == limit.concurrency:
        return Agreed(limit)
    conflict = (
        f"limits.concurrency is {limit.concurrency} here and {count} in the older WorkQueue {oldest[0]!r} of the "
        f"group {oldest[1].group!r}. {count} counts. Give the same number in both."
    )
    return Agreed(limit._replace(concurrency=count), conflict)


def agreed_rate(workqueue: WorkQueue, store: Store) -> AgreedRate | None:
    """Return the limit on handlers that start: in a group that of the oldest WorkQueue; None without a limit."""
    limit = workqueue.rate_limit
    if limit is None:
        return None
    oldest = _oldest(workqueue, store, rate_limits(workqueue, store))
    rate = None if oldest is None else oldest[1].rate_per_second
    if oldest is None or rate is None:
        return AgreedRate(limit)
    theirs = limit._replace(per_second=rate, burst=oldest[1].most_at_once)
    if theirs == limit:
        return AgreedRate(limit)
    conflict = (
        f"limits.ratePerSecond is {limit.per_second:g} with a burst of {limit.burst} here, and {theirs.per_second:g} "
        f"with a burst of {theirs.burst} in the older WorkQueue {oldest[0]!r} of the group {oldest[1].group!r}. "
        "Those count. Give the same numbers in both."
    )
    return AgreedRate(theirs, conflict)


def handler_limits(workqueue: WorkQueue, store: Store) -> dict[Key, Limits]:
    """Return the limits of the other WorkQueues that share the limit on handlers that run."""
    members = _members(workqueue, store)
    return {key: limits for key, limits in members.items() if limits.concurrency is not None}


def rate_limits(workqueue: WorkQueue, store: Store) -> dict[Key, Limits]:
    """Return the limits of the other WorkQueues that share the limit on handlers that start."""
    members = _members(workqueue, store)
    return {key: limits for key, limits in members.items() if limits.rate_per_second is not None}


def _members(workqueue: WorkQueue, store: Store) -> dict[Key, Limits]:
    """Return the limits of the other WorkQueues of the same group that are not being deleted."""
    group = workqueue.spec.limits.group if workqueue.spec.limits is not None else None
    if group is None:
        return {}
    return {
        key_of(body): Limits.model_validate(body["spec"]["limits"])
        for body in store.workqueues.containing(group)
        if key_of(body)[0] == workqueue.metadata.namespace
        and key_of(body) != workqueue.key
        and not body["metadata"].get("deletionTimestamp")
        and (body["spec"].get("limits") or {}).get("group") == group
    }


def _oldest(workqueue: WorkQueue, store: Store, members: dict[Key, Limits]) -> tuple[str, Limits] | None:
    """Return the name and the limits of the oldest WorkQueue; None if it is this one."""
    older = [key for key in members if store.is_older(key, workqueue.key)]
    if not older:
        return None
    oldest = min(older, key=store.age)
    return oldest[1], members[oldest]


def lacks_tokens(limit: Limit, answer: QueueCounts | QueueMissing | ReconcileError | None) -> bool:
    """Whether the poller's last answer about the queue of a limit shows that tokens are missing."""
    if isinstance(answer, QueueCounts):
        return not has_enough(limit, answer)
    return isinstance(answer, QueueMissing)
