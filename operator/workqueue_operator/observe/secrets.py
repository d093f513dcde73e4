"""Connection Secrets: read by name, kept for a minute.

Place in the flow: `brokers` asks here for the binding of a WorkQueue. Only `get` on Secrets is used, never
list or watch, so that the operator's role need not see Secrets that nobody named.
"""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass, replace
from typing import Final

from workqueue_worker.binding import Binding, from_mapping
from workqueue_worker.errors import BindingError

from ..cluster import Cluster, secret_path
from ..errors import ClusterError, Trouble
from ..reasons import Reason

MAX_AGE: Final = 60.0
"""Seconds after which a Secret is read again. A refused login reads it again at once."""

MAX_AGE_OF_TROUBLE: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Entry:
    at: float
    result: Binding | Trouble


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

    async def binding(self, namespace: str, name: str) -> Binding:
        """The connection data in a Secret.

        Raises:
            Trouble: it is missing, forbidden or unusable; the message says what to do.
            ClusterError: the API server did not answer and nothing is known from before.
        """
        entry = self._entries.get((namespace, name))
        now = time.monotonic()
        limit = MAX_AGE_OF_TROUBLE if entry is not None and isinstance(entry.result, Trouble) else MAX_AGE
        if entry is None or now - entry.at > limit:
            try:
                result = await self._read(namespace, name)
            except ClusterError:
                if entry is None:
                    raise
                result = entry.result
            entry = self._entries[namespace, name] = _Entry(now, result)
        if isinstance(entry.result, Trouble):
            raise entry.result
        return entry.result

    def forget(self, namespace: str, name: str) -> None:
        """Read the Secret again the next time it is needed."""
        self._entries.pop((namespace, name), None)

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
            if error.status == 403:  # noqa: PLR2004 - HTTP
                return Trouble(
                    Reason.SECRET_FORBIDDEN,
                    f'The operator may not read the Secret "{name}" in namespace "{namespace}": {error.message}',
                )
            raise
        try:
            keys = {key: base64.b64decode(text).decode() for key, text in (secret.get("data") or {}).items()}
            return _seen_from_elsewhere(from_mapping(keys, f'Secret "{name}"'), namespace)
        except (BindingError, binascii.Error, UnicodeDecodeError) as error:
            return Trouble(Reason.SECRET_INVALID, str(error))
