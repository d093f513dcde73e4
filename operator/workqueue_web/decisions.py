"""The recent decisions about a WorkQueue: the Events of the operator, and of users of this page."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster, events_path
from workqueue_operator.names import EVENT_REPORTER
from workqueue_web.lookups import Lookups

PAGE_REPORTER: Final = "workqueue-page"
REPORTERS: Final = frozenset({EVENT_REPORTER, PAGE_REPORTER})

DECISIONS: Final = 20
AGAIN_SECONDS: Final = 10.0

PAGE: Final = 500
PAGES: Final = 10
"""Most pages of Events that are read. The API server cannot sort, so the newest ones may be on any page."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision or a finding of the operator, or the action of a user.

    Attributes:
        at: time in Unix seconds.
    """

    at: float
    warning: bool
    action: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Recent:
    """The last decisions about a WorkQueue.

    Attributes:
        decisions: newest first.
        problem: why they are not known. They are then empty.
    """

    decisions: tuple[Decision, ...] = ()
    problem: str = ""


class Decisions:
    """Reads the Events of WorkQueues."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lookups: Lookups[Recent] = Lookups(AGAIN_SECONDS)

    async def recent(self, namespace: str, uid: str) -> Recent:
        """Return the last decisions about a WorkQueue."""
        found = await self._lookups.get((namespace, uid), lambda: self._read(namespace, uid))
        return found or Recent(problem="Reading the Events.")

    async def stop(self) -> None:
        """Stop reading."""
        await self._lookups.stop()

    async def _read(self, namespace: str, uid: str) -> Recent:
        query = {
            "fieldSelector": f"regarding.uid={uid}",
            "limit": str(PAGE),
        }
        found: list[Decision] = []
        try:
            for _ in range(PAGES):
                page = await self._cluster.get(events_path(namespace), **query)
                found += [
                    _decision(one) for one in page["items"] if one.get("reportingController") in REPORTERS
                ]
                query["continue"] = page["metadata"].get("continue", "")
                if not query["continue"]:
                    break
        except ClusterError as error:
            return Recent(problem=f"The API server does not list the Events: {error.message}.")
        return Recent(tuple(heapq.nlargest(DECISIONS, found, key=lambda decision: decision.at)))


def _decision(event: dict[str, Any]) -> Decision:
    return Decision(
        at=datetime.fromisoformat(event["eventTime"] or event["metadata"]["creationTimestamp"]).timestamp(),
        warning=event.get("type") == "Warning",
        action=event.get("action", ""),
        reason=event.get("reason", ""),
        message=event.get("note", ""),
    )
