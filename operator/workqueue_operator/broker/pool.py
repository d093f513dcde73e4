"""The brokers in use: one connection for each distinct address, virtual host and identity.

Place in the flow: a pass asks for the broker of its WorkQueue; two WorkQueues with the same connection data
share one. A broker that nobody used for a while is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from workqueue.contract.binding import Binding
from workqueue_operator.broker.connection import Broker
from workqueue_operator.broker.depth_poller import DepthPoller
from workqueue_operator.destinations import ANYWHERE, Destinations
from workqueue_operator.kube.store import Key

SAME_KEPT: Final = 1000
"""Pairs of connections for which it is remembered whether they lead to the same broker."""


@dataclass(eq=False)
class BrokerHandle:
    """A broker, its sweep and who uses it."""

    broker: Broker
    poller: DepthPoller
    users: set[Key] = field(default_factory=set)


class BrokerPool:
    """All links of this operator.

    Args:
        wake: called with the key of a WorkQueue whose queue has news.
        rang: called with the key of a WorkQueue whose bell rang.
        sweep_seconds: pause between two questions about an active queue.
        idle_sweep_seconds: the same for idle queues and dead-letter queues.
        destinations: which hosts may be connected to.
    """

    def __init__(
        self,
        wake: Callable[[Key], None],
        rang: Callable[[Key], None],
        sweep_seconds: float,
        idle_sweep_seconds: float,
        destinations: Destinations = ANYWHERE,
    ) -> None:
        self._destinations = destinations
        self._wake = wake
        self._rang = rang
        self._sweep_seconds = sweep_seconds
        self._idle_sweep_seconds = idle_sweep_seconds
        self._handles: dict[str, BrokerHandle] = {}
        self._handle_of: dict[Key, BrokerHandle] = {}
        self._same: dict[frozenset[tuple[str, int]], bool] = {}

    def __iter__(self) -> Iterator[BrokerHandle]:
        return iter(list(self._handles.values()))

    async def handle(self, key: Key, binding: Binding) -> BrokerHandle:
        """The link for these connection data; a WorkQueue whose data changed leaves its old one."""
        known = self._handle_of.get(key)
        if known is not None and known is not self._handles.get(binding.identity):
            await self.leave(key)
        # Looked up only now: while the old link was closing, another WorkQueue may have made the new one.
        handle = self._handles.get(binding.identity)
        if handle is None:
            handle = self._handles[binding.identity] = self._make(binding)
        handle.users.add(key)
        self._handle_of[key] = handle
        return handle

    def known(self, key: Key) -> BrokerHandle | None:
        """The link that a WorkQueue has used last, while it is open."""
        return self._handle_of.get(key)

    async def claimants(self, queue: str, handle: BrokerHandle) -> list[Key]:
        """The WorkQueues that have declared a queue of this virtual host, whatever user or address each has."""
        found = handle.poller.claims_on(queue)
        for other in self:
            claims = other.poller.claims_on(queue) if other is not handle else []
            if claims and await self.are_same(handle, other, queue):
                found += claims
        return found

    async def are_same(self, handle: BrokerHandle, other: BrokerHandle, queue: str) -> bool | None:
        """Whether two links lead to the same broker and virtual host (see Broker.is_same_as)."""
        pair = frozenset((one.broker.binding.identity, one.broker.generation) for one in (handle, other))
        if (known := self._same.get(pair)) is not None:
            return known
        same = await handle.broker.is_same_as(other.broker, queue)
        if same is not None:
            self._same = dict([*self._same.items()][-SAME_KEPT:]) | {pair: same}
        return same

    async def leave(self, key: Key) -> None:
        """A WorkQueue needs its broker no more: bell down, no more sweeps; the last one closes the link."""
        handle = self._handle_of.pop(key, None)
        if handle is None:
            return
        for queue in handle.poller.queues_of(key):
            if handle.poller.keys_of(queue) == (key,):
                handle.broker.remove_doorbell(queue)
        handle.poller.forget(key)
        handle.users.discard(key)
        if not handle.users:
            self._handles.pop(handle.broker.binding.identity, None)
            await self._close(handle)

    async def close(self) -> None:
        """Close every connection."""
        handles, self._handles, self._handle_of = list(self._handles.values()), {}, {}
        for handle in handles:
            await self._close(handle)

    @staticmethod
    async def _close(handle: BrokerHandle) -> None:
        await handle.poller.close()
        await handle.broker.close()

    def _make(self, binding: Binding) -> BrokerHandle:
        def on_ring(queue: str) -> None:
            for key in handle.poller.keys_of(queue):
                self._rang(key)

        def on_removed(queue: str, refusal: tuple[int, str] | None) -> None:
            handle.poller.doorbell_removed(queue, refusal)
            for key in handle.poller.keys_of(queue):
                self._wake(key)

        def on_state() -> None:
            for key in list(handle.users):
                self._wake(key)

        # The broker calls none of them before this function has returned.
        broker = Broker(binding, on_ring, on_removed, on_state, self._destinations)
        poller = DepthPoller(broker, self._wake, self._sweep_seconds, self._idle_sweep_seconds)
        handle = BrokerHandle(broker, poller)
        return handle
