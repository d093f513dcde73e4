"""Connection Secrets: read by name, kept for a minute.

Place in the flow: `brokers` asks here for the binding of a WorkQueue. Only `get` on Secrets is used, never
list or watch, so that the operator's role need not see Secrets that nobody named.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from workqueue_worker.binding import Binding, from_mapping
from workqueue_worker.errors import BindingError

from ..cluster import Cluster, secret_path
from ..errors import ClusterError, Trouble
from ..reasons import Reason

MAX_AGE: Final = 60.0
"""Seconds after which a Secret is read again. A refused login reads it again at once."""

MAX_AGE_OF_SUSPECT: Final = 15.0
"""The same while the broker that the Secret names cannot be used: perhaps it is the Secret that is wrong."""

MAX_AGE_OF_TROUBLE: Final = 5.0
KEPT: Final = 3600.0
"""Seconds after which a Secret that nobody asked for is not kept in memory any more."""


@dataclass(frozen=True, slots=True)
class _Entry:
    at: float
    result: Binding | Trouble

    def max_age(self, *, suspect: bool) -> float:
        if isinstance(self.result, Trouble):
            return MAX_AGE_OF_TROUBLE
        return MAX_AGE_OF_SUSPECT if suspect else MAX_AGE


def _seen_from_elsewhere(binding: Binding, namespace: str) -> Binding:
    """A short host name means a Service in the Secret's namespace, as the workers there resolve it."""
    addresses: list[tuple[str, int]] = []
    for host, port in binding.addresses:
        if "." not in host and ":" not in host and host != "localhost":
            addresses.append((f"{host}.{namespace}.svc", port))
        addresses.append((host, port))
    return replace(binding, addresses=tuple(addresses))


class Secrets:
    """The connection Secrets, by (namespace, name)."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._reading: dict[tuple[str, str], asyncio.Task[_Entry]] = {}

    async def binding(
        self, namespace: str, name: str, *, suspect: bool = False, proven: bool = False
    ) -> Binding:
        """The connection data in a Secret.

        Args:
            suspect: whether they have led nowhere so far.
            proven: whether they lead somewhere at this moment, so that their age does not matter.

        Raises:
            Trouble: it is missing, forbidden or unusable; the message says what to do.
            ClusterError: the API server did not answer and nothing is known from before.
        """
        where = namespace, name
        entry = self._entries.get(where)
        if entry is None or (not proven and time.monotonic() - entry.at > entry.max_age(suspect=suspect)):
            # A thousand WorkQueues may share a Secret and ask at once: it is read once.
            if where not in self._reading:
                reading = self._reading[where] = asyncio.create_task(self._read_again(where))
                reading.add_done_callback(lambda _: self._reading.pop(where, None))
            entry = await asyncio.shield(self._reading[where])
        if isinstance(entry.result, Trouble):
            raise entry.result.with_traceback(None)
        return entry.result

    def forget(self, namespace: str, name: str) -> None:
        """Read the Secret again the next time it is needed."""
        self._entries.pop((namespace, name), None)

    async def _read_again(self, where: tuple[str, str]) -> _Entry:
        now = time.monotonic()
        known = self._entries.get(where)
        try:
            result = await self._read(*where)
        except ClusterError:
            if known is None:
                raise
            result = known.result
        self._entries = {place: entry for place, entry in self._entries.items() if now - entry.at < KEPT}
        entry = self._entries[where] = _Entry(now, result)
        return entry

    async def _read(self, namespace: str, name: str) -> Binding | Trouble:
        try:
            secret = await self._cluster.get(secret_path(namespace, name))
        except ClusterError as error:
            if error.not_found:
                return Trouble(
                    Reason.SECRET_NOT_FOUND,
                    f'The Secret "{name}" does not exist in namespace "{namespace}". Create it with the key uri, '
                    "or with host, username and password.",
                )
            if error.forbidden:
                return Trouble(
                    Reason.SECRET_FORBIDDEN,
                    f'The operator may not read the Secret "{name}" in namespace "{namespace}": {error.message}. '
                    "Compare its roles with those of the chart.",
                )
            raise
        try:
            keys = _decoded(secret.get("data") or {})
            return _seen_from_elsewhere(from_mapping(keys, f'Secret "{name}"'), namespace)
        except BindingError as error:
            return Trouble(Reason.SECRET_INVALID, str(error))


def _decoded(data: Mapping[str, str]) -> dict[str, str]:
    """The keys that are text; a Secret may hold others beside them, such as a key store."""
    keys = {}
    for key, value in data.items():
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            keys[key] = base64.b64decode(value).decode()
    return keys
