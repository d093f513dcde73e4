"""Connection Secrets: read by name, cached for a minute, and refreshed while a WorkQueue uses them.

The operator uses only `get` on Secrets, never list or watch, so that it cannot read Secrets that no WorkQueue names.
An idle WorkQueue has no passes, so a background task refreshes each Secret in use once per minute. A changed Secret
wakes its WorkQueues.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from workqueue.contract.binding import Binding, from_mapping
from workqueue.contract.errors import BindingError
from workqueue_operator.api.reasons import Reason
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import Cluster, secret_path
from workqueue_operator.kube.store import Key

logger = logging.getLogger(__name__)

MAX_AGE: Final = 60.0
"""Seconds after which a Secret is read again. A refused login reads it again immediately."""

READ_AFTER: Final = 50.0
"""Seconds after which the background task reads a Secret in use. The rest of the minute is for the read."""

LOOK_EVERY: Final = 5.0
"""Seconds between two checks for Secrets that are due."""

READS_AT_ONCE: Final = 4

MAX_AGE_OF_SUSPECT: Final = 15.0
"""`MAX_AGE` while the broker of the Secret is not available, because the Secret may be wrong."""

PROBLEM_MAX_AGE: Final = 5.0
"""`MAX_AGE` of a Secret that is missing or invalid."""

KEPT: Final = 3600.0
"""Seconds after which an unused Secret is removed from memory."""


@dataclass(frozen=True, slots=True)
class _Entry:
    at: float
    result: Binding | ReconcileError

    def max_age(self, *, suspect: bool, proven: bool) -> float:
        if isinstance(self.result, ReconcileError):
            return PROBLEM_MAX_AGE
        if suspect:
            return MAX_AGE_OF_SUSPECT
        return math.inf if proven else MAX_AGE


def _seen_from_elsewhere(binding: Binding, namespace: str) -> Binding:
    """Resolve a short host name as the workers do: as a Service in the namespace of the Secret."""
    addresses: list[tuple[str, int]] = []
    for host, port in binding.addresses:
        if "." not in host and ":" not in host and host != "localhost":
            addresses.append((f"{host}.{namespace}.svc", port))
        addresses.append((host, port))
    return binding._replace(addresses=tuple(addresses))


class Secrets:
    """A cache of connection Secrets, by (namespace, name)."""

    def __init__(self, cluster: Cluster, wake: Callable[[Key], None] = lambda _: None) -> None:
        self._cluster = cluster
        self._wake = wake
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._reading: dict[tuple[str, str], asyncio.Task[_Entry]] = {}
        self._used_by: dict[Key, tuple[str, str]] = {}
        self._users: defaultdict[tuple[str, str], set[Key]] = defaultdict(set)

    def use(self, key: Key, name: str) -> None:
        """Register a WorkQueue as user of the Secret `name` in its namespace. A change then wakes it."""
        where = key[0], name
        if self._used_by.get(key) != where:
            self.leave(key)
            self._used_by[key] = where
            self._users[where].add(key)

    def leave(self, key: Key) -> None:
        """Undo `use`."""
        where = self._used_by.pop(key, None)
        if where is not None:
            self._users[where].discard(key)
            if not self._users[where]:
                del self._users[where]

    async def run(self) -> None:
        """Refresh each Secret in use before it is a minute old, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.read_due(time.monotonic())
            except Exception:
                # An unexpected error must not stop this loop, because idle WorkQueues would keep their old
                # credentials.
                logger.exception("Refreshing the connection Secrets failed.")

    async def read_due(self, now: float) -> None:
        """Refresh a share of the Secrets that are due, the oldest first, to spread the load. Forget unused ones."""
        for where in self._entries.keys() - self._users.keys():
            if now - self._entries[where].at >= KEPT:
                del self._entries[where]
        used = self._entries.keys() & self._users.keys()
        due = [
            where for where in self._users if where in used and now - self._entries[where].at >= READ_AFTER
        ]
        if not due:
            return
        due.sort(key=lambda where: self._entries[where].at)
        share = math.ceil(2 * len(used) * LOOK_EVERY / READ_AFTER)
        places = asyncio.Semaphore(READS_AT_ONCE)

        async def read(where: tuple[str, str]) -> None:
            async with places:
                await self._current(where)

        await asyncio.gather(*map(read, due[:share]))

    async def binding(
        self, namespace: str, name: str, *, suspect: bool = False, proven: bool = False
    ) -> Binding:
        """Return the connection data in a Secret.

        Args:
            suspect: whether a connection with this data has failed.
            proven: whether a connection with this data was open a moment ago, so that its age does not matter. Not if
                it has failed since, or the Secret had a problem when it was last read.

        Raises:
            ReconcileError: the Secret is missing, forbidden or invalid. The message says what to do.
            ClusterError: the API server did not answer, and the Secret is not cached.
        """
        where = namespace, name
        entry = self._entries.get(where)
        if entry is None or time.monotonic() - entry.at > entry.max_age(suspect=suspect, proven=proven):
            entry = await self._current(where)
        if isinstance(entry.result, ReconcileError):
            raise entry.result.with_traceback(None)
        return entry.result

    async def _current(self, where: tuple[str, str]) -> _Entry:
        """Read a Secret. Concurrent callers share one read, because 1,000 WorkQueues may use the same Secret."""
        if where not in self._reading:
            reading = self._reading[where] = asyncio.create_task(self._read_again(where))
            reading.add_done_callback(lambda done: self._on_read(where, done))
        return await asyncio.shield(self._reading[where])

    def _on_read(self, where: tuple[str, str], done: asyncio.Task[_Entry]) -> None:
        self._reading.pop(where, None)
        if not done.cancelled():
            # Otherwise asyncio would log the error of a read whose callers were cancelled. Seed 211 found that.
            done.exception()

    def forget(self, namespace: str, name: str) -> None:
        """Expire the Secret, so that the next use reads it again."""
        where = namespace, name
        if where in self._entries:
            self._entries[where] = replace(self._entries[where], at=-math.inf)

    async def _read_again(self, where: tuple[str, str]) -> _Entry:
        at = time.monotonic()
        known = self._entries.get(where)
        try:
            result = await self._read(*where)
        except ClusterError:
            if known is None:
                raise
            # Keep the cached data, and retry the read soon.
            result, at = known.result, at - READ_AFTER + PROBLEM_MAX_AGE
        entry = self._entries[where] = _Entry(at, result)
        if known is not None and not _same(known.result, result):
            for key in self._users.get(where, ()):
                self._wake(key)
        return entry

    async def _read(self, namespace: str, name: str) -> Binding | ReconcileError:
        try:
            secret = await self._cluster.get(secret_path(namespace, name))
        except ClusterError as error:
            if error.not_found:
                return ReconcileError(
                    Reason.SECRET_NOT_FOUND,
                    f'The Secret "{name}" does not exist in namespace "{namespace}". Create it with the key uri, '
                    "or with host, username and password.",
                )
            if error.forbidden:
                return ReconcileError(
                    Reason.SECRET_FORBIDDEN,
                    f'The operator has no permission to read the Secret "{name}" in namespace "{namespace}": '
                    f"{error.message}. Compare its roles with those of the chart.",
                )
            raise
        try:
            keys = _decoded(secret.get("data") or {})
            return _seen_from_elsewhere(from_mapping(keys, f'Secret "{name}"'), namespace)
        except BindingError as error:
            return ReconcileError(Reason.SECRET_INVALID, str(error))


def _same(one: Binding | ReconcileError, other: Binding | ReconcileError) -> bool:
    if isinstance(one, ReconcileError) and isinstance(other, ReconcileError):
        return (one.reason, one.message) == (other.reason, other.message)
    return one == other


def _decoded(data: Mapping[str, str]) -> dict[str, str]:
    """Return the keys with text. A Secret may also have binary keys, such as a key store."""
    keys = {}
    for key, value in data.items():
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            keys[key] = base64.b64decode(value).decode()
    return keys
