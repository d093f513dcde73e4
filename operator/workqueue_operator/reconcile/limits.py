"""Which limit applies to a WorkQueue, and whether its tokens are there. Pure."""

from __future__ import annotations

from typing import NamedTuple

from workqueue.contract.topology import Limit
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import QueueMissing
from workqueue_operator.broker.limits import has_enough
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube.store import Key, Store, key_of


class Agreed(NamedTuple):
    """The limit that applies, and what is wrong within its group."""

    limit: Limit
    conflict: str | None = None


def agreed(workqueue: WorkQueue, store: Store) -> Agreed | None:
    """Return the limit that applies: in a group that of the oldest WorkQueue; None without a limit."""
    limit, limits = workqueue.limit, workqueue.spec.limits
    if limit is None or limits is None:
        return None
    others = members(workqueue, store)
    older = [key for key in others if store.is_older(key, workqueue.key)]
    if not older:
        return Agreed(limit)
    oldest = min(older, key=store.age)
    count = others[oldest]
    if count == limit.concurrency:
        return Agreed(limit)
    conflict = (
        f"limits.concurrency is {limit.concurrency} here and {count} in the older WorkQueue {oldest[1]!r} of the "
        f"group {limits.group!r}. {count} counts. Give the same number in both."
    )
    return Agreed(limit._replace(concurrency=count), conflict)


def members(workqueue: WorkQueue, store: Store) -> dict[Key, int]:
    """Return the other WorkQueues of the same group that are not being deleted, and their concurrency."""
    group = workqueue.spec.limits.group if workqueue.spec.limits is not None else None
    if group is None:
        return {}
    return {
        key_of(body): body["spec"]["limits"]["concurrency"]
        for body in store.workqueues.containing(group)
        if key_of(body)[0] == workqueue.metadata.namespace
        and key_of(body) != workqueue.key
        and not body["metadata"].get("deletionTimestamp")
        and (body["spec"].get("limits") or {}).get("group") == group
    }


def lacks_tokens(limit: Limit, answer: QueueCounts | QueueMissing | ReconcileError | None) -> bool:
    """Whether the poller's last answer about the queue of a limit shows that tokens are missing."""
    if isinstance(answer, QueueCounts):
        return not has_enough(limit, answer)
    return isinstance(answer, QueueMissing)
