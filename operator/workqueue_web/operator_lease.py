"""Whether the page's numbers are current: does an operator renew its Lease, and does the API server answer?

Each decision compares what this process has seen on its own monotonic clock. So another clock, of the operator or of
the page's node, makes nothing stale. Only the age that is shown may be off by the difference.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from workqueue.contract import durations
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster, lease_path

ASK_SECONDS: Final = 5.0
WAIT_SECONDS: Final = 1.0
FORBIDDEN_SECONDS: Final = 300.0
STALE_SECONDS: Final = 15.0
"""An operator renews its Lease every 2 s, and a standby takes it over after at most 7 s."""

_ROUNDED_SECONDS: Final = 5
"""An age is shown in steps, so that it does not update open pages every 2 s."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stale:
    """Why the numbers may be out of date.

    Attributes:
        runbook: the alert whose runbook helps; empty for none.
    """

    sentence: str
    runbook: str = ""


class OperatorLease:
    """Reads the operator's Lease while a page is open.

    Args:
        name: empty if the operator runs without leader election. Then nothing is read, and nothing is stale.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._answered_at: float | None = None
        self._failure = ""
        self._missing = False
        self._renewed = ""
        self._renewed_at: float | None = None
        self._next_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Read the Lease again if it is time. Does not wait for a slow answer."""
        if self._name and self._reading is None and self._clock() >= self._next_at:
            self._next_at = self._clock() + ASK_SECONDS
            self._reading = asyncio.create_task(self._read())
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=WAIT_SECONDS)

    async def stop(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        try:
            lease = await self._cluster.get(lease_path(self._namespace, self._name))
        except ClusterError as error:
            self._note_failure(error)
            return
        finally:
            self._reading = None
        self._answered_at, self._failure, self._missing = self._clock(), "", False
        renewed = str((lease.get("spec") or {}).get("renewTime") or "")
        if renewed != self._renewed:
            self._renewed, self._renewed_at = renewed, self._answered_at

    def stale(self) -> Stale | None:
        """Return why the numbers may be out of date; None if they are current, or if that is unknown."""
        now = self._clock()
        if self._failure and self._answered_at is not None:
            silent = now - self._answered_at
            if silent >= STALE_SECONDS:
                return Stale(f"The API server has not answered the page for {_age(silent)}: {self._failure}.")
        if self._missing:
            return Stale(
                f"No operator has ever led: there is no Lease {self._namespace}/{self._name}.",
                "WorkQueueOperatorWithoutLeader",
            )
        if self._renewed_at is None or now - self._renewed_at < STALE_SECONDS:
            return None
        shown = max(now - self._renewed_at, _since(self._renewed))
        return Stale(
            f"No operator has run for {_age(shown)}: nothing renews the Lease {self._namespace}/{self._name}. The"
            " numbers are those that it wrote before.",
            "WorkQueueOperatorWithoutLeader",
        )

    def _note_failure(self, error: ClusterError) -> None:
        if error.status == HTTPStatus.FORBIDDEN:
            logger.warning("The page may not read the operator's Lease, so it cannot tell whether one runs.")
            self._next_at, self._renewed_at = self._clock() + FORBIDDEN_SECONDS, None
        elif error.status == HTTPStatus.NOT_FOUND:
            self._answered_at, self._failure, self._missing = self._clock(), "", True
            self._renewed_at = None
        else:
            self._answered_at = self._answered_at if self._answered_at is not None else self._clock()
            self._failure = error.message.rstrip(".")


def _since(moment: str) -> float:
    """Return the age of an RFC 3339 time by this node's clock. Only for display."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except ValueError:
        return 0.0


def _age(seconds: float) -> str:
    return durations.age(seconds // _ROUNDED_SECONDS * _ROUNDED_SECONDS)
