"""LISTs that correct the store, after each LIST of kopf and every few minutes, and the health of the watch.

kopf lists when it begins to watch and after a gap in its watch, but does not report what was deleted before. And when
packets to the API server are lost, kopf only reconnects; the LIST detects it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from workqueue_operator.backoff import delay
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster, deployments_path, pods_path, workqueues_path
from workqueue_operator.kube.store import Key, Store, key_of
from workqueue_operator.names import LABEL_WORKQUEUE

logger = logging.getLogger(__name__)

BLIND_AFTER: Final = 180.0
"""Seconds for which the watch may deliver no event although a LIST has shown changes."""

FIRST_AGAIN: Final = 2.0
"""Seconds between two attempts of the first LIST."""

AGAIN: Final = (2.0, 60.0)
"""Seconds: the first and the longest pause after a round that failed. When the watch has had a gap, the API server is
often overloaded, and what was deleted in the gap must not stay until the next round."""

AFTER_WATCH_LISTS: Final = 2.0
"""Seconds from the last response to a LIST of kopf until the LIST that drops what was deleted before it."""

FIRST_PAGE: Final = 100
PAGE: Final = 50
"""Objects per response to the first LIST, and to later ones. Each takes about 20 KiB, and Python rarely returns
memory to the OS. While a page is read, rings wait; before the first passes there are none."""

PATHS: Final[dict[str, Callable[[str | None], str]]] = {
    "workqueues": workqueues_path,
    "deployments": deployments_path,
    "pods": pods_path,
}
"""The kinds of the store, and the path of a LIST of each."""


class Resync:
    """Lists some kinds periodically.

    Args:
        namespaces: the namespaces to list; empty for the whole cluster.
        seconds: pause between two rounds.
        kinds: keys of `PATHS`.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        namespaces: Sequence[str],
        seconds: float,
        kinds: Iterable[str] = PATHS,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._scopes: list[str | None] = list(namespaces) or [None]
        self._seconds = seconds
        self._kinds = tuple(kinds)
        self.last_good: float | None = None
        self.blind_since: float | None = None

    async def run(self) -> None:
        """List when due, and soon again after a failure, until cancelled."""
        failures = 0
        await self._until_due()
        while True:
            try:
                await self.once()
            except Exception as error:
                failures += 1
                pause = min(max(_retry_after(error), delay(failures, *AGAIN)), self._seconds)
                if isinstance(error, ClusterError):
                    logger.warning("A LIST failed.", extra={"status": error.status, "detail": error.message})
                else:
                    # An unexpected error in one LIST must not stop the resync.
                    logger.exception("A LIST failed unexpectedly.")
                # kopf's LISTs go on while the API server is busy.
                await asyncio.sleep(pause)
            else:
                failures = 0
                await self._until_due()

    async def _until_due(self) -> None:
        """Wait until kopf has listed, or until the next round."""
        watch_lists = self._store.watch_lists
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await watch_lists.wait()
                while watch_lists.is_set():
                    watch_lists.clear()
                    await asyncio.sleep(AFTER_WATCH_LISTS)

    async def first(self) -> None:
        """List everything once, all kinds at the same time. Retries until the API server has answered."""
        while True:
            lists = [self._list_kind(kind, FIRST_PAGE) for kind in self._kinds]
            found = await asyncio.gather(*lists, return_exceptions=True)
            try:
                return self._note([_number(one) for one in found])
            except ClusterError as error:
                logger.warning(
                    "The first LIST failed.", extra={"status": error.status, "detail": error.message}
                )
                await asyncio.sleep(error.retry_after or FIRST_AGAIN)

    async def once(self) -> None:
        """List everything once.

        Raises:
            ClusterError: the API server refused or did not answer. Objects received before are in the store. Only
                a complete LIST of a kind drops objects of that kind.
        """
        self._note([await self._list_kind(kind, PAGE) for kind in self._kinds])

    def _note(self, surprises: Sequence[int]) -> None:
        """Note that everything was listed.

        Args:
            surprises: of each kind, how many WorkQueues were newer than in the store.
        """
        now = time.monotonic()
        self.last_good = now
        if any(surprises):
            self.blind_since = self.blind_since or now
        if self._event_since(now - self._seconds):
            self.blind_since = None

    @property
    def blind(self) -> bool:
        """Whether the watch has delivered no event for `BLIND_AFTER` although a LIST has shown changes."""
        since = self.blind_since
        return since is not None and not self._event_since(since) and time.monotonic() - since > BLIND_AFTER

    def _event_since(self, moment: float) -> bool:
        """Return whether the watch has delivered an event at or after this monotonic time."""
        return any(
            fresh.event is not None and fresh.event >= moment for fresh in self._store.freshness.values()
        )

    async def _list_kind(self, kind: str, page_size: int) -> int:
        """List one kind in all namespaces; return how many WorkQueues were newer than in the store.

        Args:
            page_size: objects per response.
        """
        return sum([await self._list(kind, namespace, page_size) for namespace in self._scopes])

    async def _list(self, kind: str, namespace: str | None, page_size: int) -> int:
        """The same for one namespace, or for the whole cluster."""
        taken_at, path = time.monotonic(), PATHS[kind](namespace)
        query = {"limit": str(page_size)}
        if kind == "pods":
            query["labelSelector"] = LABEL_WORKQUEUE
        listed: set[Key] = set()
        surprises = 0
        while True:
            page = await self._cluster.get(path, **query)
            for body in page["items"]:
                news = self._store.put(kind, body)
                surprises += kind == "workqueues" and news
                listed.add(key_of(body))
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                break
        self._store.correct(kind, listed, namespace, taken_at)
        return surprises


def _retry_after(error: Exception) -> float:
    return error.retry_after or 0.0 if isinstance(error, ClusterError) else 0.0


def _number(result: int | BaseException) -> int:
    if isinstance(result, BaseException):
        raise result
    return result
