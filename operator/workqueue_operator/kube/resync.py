"""LISTs that correct the store every few minutes, and what is known of the health of the watch.

Place in the flow: beside kopf's watch. kopf lists again after a gap but never says what was deleted in it,
so that ghosts would stay; and with a black-holed API server kopf only reconnects: our own LIST notices.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster, deployments_path, pods_path, workqueues_path
from workqueue_operator.kube.store import Key, Store, key_of
from workqueue_operator.names import LABEL_WORKQUEUE

logger = logging.getLogger(__name__)

BLIND_AFTER: Final = 180.0
"""Seconds for which the watch may have brought nothing although a LIST showed changes."""

FIRST_AGAIN: Final = 2.0
"""Seconds between two attempts at the first LIST."""

PAGE: Final = 50
"""Objects of one answer to a LIST: what they are at once, some 70 KiB each, the process keeps for ever."""

_PATHS: Final[dict[str, Callable[[str | None], str]]] = {
    "workqueues": workqueues_path,
    "deployments": deployments_path,
    "pods": pods_path,
}


class Resync:
    """Lists all kinds again and again.

    Args:
        namespaces: those to list; empty: all at once.
        seconds: pause between two rounds.
    """

    def __init__(self, cluster: Cluster, store: Store, namespaces: Sequence[str], seconds: float) -> None:
        self._cluster = cluster
        self._store = store
        self._scopes: list[str | None] = list(namespaces) or [None]
        self._seconds = seconds
        self.last_good: float | None = None
        self.blind_since: float | None = None

    async def run(self) -> None:
        """List for ever."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.once()
            except ClusterError as error:
                logger.warning("A LIST failed.", extra={"status": error.status, "detail": error.message})
            except Exception:
                # One LIST that fails for a reason nobody thought of must not end all of them.
                logger.exception("A LIST could not be read.")

    async def first(self) -> None:
        """List everything once; retry until the API server has answered."""
        while True:
            try:
                return await self.once()
            except ClusterError as error:
                logger.warning(
                    "The first LIST failed.", extra={"status": error.status, "detail": error.message}
                )
                await asyncio.sleep(error.retry_after or FIRST_AGAIN)

    async def once(self) -> None:
        """List everything once.

        Raises:
            ClusterError: the API server refused or did not answer. What came before that is in the store; nothing
                of a kind is dropped but by a whole LIST of it.
        """
        surprises = 0
        for kind, path in _PATHS.items():
            for namespace in self._scopes:
                surprises += await self._list(kind, path(namespace), namespace)
        now = time.monotonic()
        self.last_good = now
        if surprises:
            self.blind_since = self.blind_since or now
        if self._event_since(now - self._seconds):
            self.blind_since = None

    @property
    def blind(self) -> bool:
        """Whether a LIST has shown changes and the watch has brought nothing at all for a while since."""
        since = self.blind_since
        return since is not None and not self._event_since(since) and time.monotonic() - since > BLIND_AFTER

    def _event_since(self, moment: float) -> bool:
        """Whether the watch has brought anything at or after this monotonic time."""
        return any(
            fresh.event is not None and fresh.event >= moment for fresh in self._store.freshness.values()
        )

    async def _list(self, kind: str, path: str, namespace: str | None) -> int:
        """Returns how many WorkQueues the store did not have in that version."""
        taken_at = time.monotonic()
        query = {"limit": str(PAGE)}
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
