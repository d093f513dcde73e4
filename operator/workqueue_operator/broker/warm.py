"""Keeps the broker connections of a standby open, so that its first passes as leader need not connect.

A standby reads the Secrets and connects as the leader does. It opens no channel, so it declares and consumes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Set as AbstractSet
from typing import Final

from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import Object
from workqueue_operator.kube.ownership import Ownership
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Key, Store, key_of

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
"""Seconds between two rounds over the WorkQueues."""


class WarmBrokers:
    """The broker connections that the WorkQueues in the store need."""

    def __init__(self, store: Store, ownership: Ownership, secrets: Secrets, brokers: BrokerPool) -> None:
        self._store = store
        self._ownership = ownership
        self._secrets = secrets
        self._brokers = brokers
        self._warm: set[Key] = set()

    async def run(self) -> None:
        """Open and close connections as WorkQueues and Secrets change, until cancelled."""
        while True:
            try:
                await self.once()
            except Exception:
                # An unexpected error must not stop the rounds. The next leader would only connect later.
                logger.exception("Keeping the broker connections open failed.")
            await asyncio.sleep(LOOK_SECONDS)

    async def once(self) -> None:
        """Make one round."""
        wanted: set[Key] = set()
        async for body in self._store.each_workqueue():
            try:
                if await self._connect(body):
                    wanted.add(key_of(body))
                    self._warm.add(key_of(body))
            except (ReconcileError, ClusterError) as error:
                # The leader reports it.
                logger.debug("No connection to keep open.", extra={"detail": error.message})
        await self._leave(self._warm - wanted)
        self._warm = wanted

    async def hand_over(self) -> None:
        """Leave the connections to the passes. WorkQueues that no longer exist have no pass."""
        await self._leave({key for key in self._warm if self._store.workqueue(key) is None})

    async def _leave(self, keys: AbstractSet[Key]) -> None:
        for key in keys:
            self._secrets.leave(key)
            await asyncio.shield(self._brokers.leave(key))

    async def _connect(self, body: Object) -> bool:
        key, spec = key_of(body), body.get("spec") or {}
        secret = (spec.get("connectionSecretRef") or {}).get("name")
        if not secret or spec.get("suspend") or await self._ownership.elsewhere(key[0]) is not None:
            return False
        self._secrets.use(key, secret)
        known = self._brokers.known(key)
        binding = await self._secrets.binding(
            key[0], secret, suspect=known is not None and known.broker.problem is not None
        )
        # Shielded, because the leader's first pass must not find a connection that is half closed.
        await asyncio.shield(self._brokers.handle(key, binding))
        return True
