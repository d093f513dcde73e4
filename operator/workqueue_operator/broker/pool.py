"""The brokers in use: WorkQueues with the same addresses, virtual host and user share one connection.

The connection closes when its last WorkQueue leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from workqueue.contract.binding import Binding
from workqueue_operator.broker.connection import Broker
from workqueue_operator.broker.depth_poller import DepthPoller
from workqueue_operator.destinations import ANYWHERE, Destinations
from workqueue_operator.kube.store import Key

SAME_KEPT: Final = 1000
"""Pairs of connections for which the result of `are_same` is cached."""

COMPARE_SECONDS: Final = 0.25
"""Seconds for which a pass waits for the comparison of two connections."""

COMPARE_AGAIN: Final = 10.0
"""Seconds after which a comparison without a result is made again."""


@dataclass(eq=False)
class BrokerHandle:
    """A broker, its depth poller and the WorkQueues that use it."""

    broker: Broker
    poller: DepthPoller
    users: set[Key] = field(default_factory=set)


class BrokerPool:
    """All broker connections of this operator.

    Args:
        wake: called with the key of a WorkQueue whose queue has changed.
        ring: called with the key of a WorkQueue when its doorbell rings.
        poll_seconds: pause between two polls of an active queue.
        idle_poll_seconds: pause between two polls of an idle queue or a dead-letter queue.
        destinations: the hosts that the operator may connect to.
    """

    def __init__(
        self,
        wake: Callable[[Key], None],
        ring: Callable[[Key], None],
        poll_seconds: float,
        idle_poll_seconds: float,
        destinations: Destinations = ANYWHERE,
    ) -> None:
        self._destinations = destinations
        self._wake = wake
        self._ring = ring
        self._poll_seconds = poll_seconds
        self._idle_poll_seconds = idle_poll_seconds
        self._handles: dict[str, BrokerHandle] = {}
        self._handle_of: dict[Key, BrokerHandle] = {}
        self._same: dict[frozenset[tuple[str, int]], bool] = {}
        self._comparing: dict[frozenset[str], asyncio.Task[bool | None]] = {}

    def __iter__(self) -> Iterator[BrokerHandle]:
        return iter(list(self._handles.values()))

    async def handle(self, key: Key, binding: Binding) -> BrokerHandle:
        """Return the handle for the binding. A WorkQueue with a changed binding leaves its old handle."""
        known = self._handle_of.get(key)
        if known is not None and known is not self._handles.get(binding.identity):
            await self.leave(key)
        # Look up after the await: another WorkQueue may have created the new handle while the old one closed.
        handle = self._handles.get(binding.identity)
        if handle is None:
            handle = self._handles[binding.identity] = self._make(binding)
        handle.users.add(key)
        self._handle_of[key] = handle
        return handle

    def known(self, key: Key) -> BrokerHandle | None:
        """Return the current handle of a WorkQueue, if any."""
        return self._handle_of.get(key)

    async def claimants(self, queue: str, handle: BrokerHandle) -> list[Key]:
        """Return the WorkQueues that have declared a queue of this virtual host, with any user or address.

        A connection that does not answer soon is left out. If it turns out to lead to the same broker, its
        WorkQueues and those of this one are enqueued.
        """
        others = [other for other in self if other is not handle and other.poller.claims_on(queue)]
        if not others:
            return handle.poller.claims_on(queue)
        same = await asyncio.gather(*(self._are_same_soon(handle, other, queue) for other in others))
        found = handle.poller.claims_on(queue)
        for other, is_same in zip(others, same, strict=True):
            if is_same:
                found += other.poller.claims_on(queue)
        return found

    async def _are_same_soon(self, handle: BrokerHandle, other: BrokerHandle, queue: str) -> bool | None:
        pair = frozenset(one.broker.binding.identity for one in (handle, other))
        comparison = self._comparing.get(pair)
        if comparison is not None:
            # It has been slow before. No pass waits for it again.
            return None
        comparison = asyncio.create_task(self.are_same(handle.broker, other.broker, queue))
        done, _ = await asyncio.wait({comparison}, timeout=COMPARE_SECONDS)
        if done:
            return comparison.result()
        self._comparing[pair] = comparison
        comparison.add_done_callback(lambda ended: self._on_compared(pair, ended, handle, other, queue))
        return None

    def _on_compared(
        self,
        pair: frozenset[str],
        comparison: asyncio.Task[bool | None],
        handle: BrokerHandle,
        other: BrokerHandle,
        queue: str,
    ) -> None:
        if comparison.cancelled() or comparison.exception() is not None or comparison.result() is None:
            asyncio.get_running_loop().call_later(COMPARE_AGAIN, self._comparing.pop, pair, None)
            return
        self._comparing.pop(pair, None)
        if comparison.result():
            for key in (*handle.poller.claims_on(queue), *other.poller.claims_on(queue)):
                self._wake(key)

    async def are_same(self, broker: Broker, other: Broker, queue: str) -> bool | None:
        """Return whether two connections lead to the same broker and virtual host (see Broker.is_same_as)."""
        pair = frozenset((one.binding.identity, one.generation) for one in (broker, other))
        if (known := self._same.get(pair)) is not None:
            return known
        same = await broker.is_same_as(other, queue)
        if same is not None:
            self._same = dict([*self._same.items()][-SAME_KEPT:]) | {pair: same}
        return same

    async def leave(self, key: Key) -> None:
        """Remove the doorbell and the polls of a WorkQueue. The last WorkQueue closes the connection."""
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
        """Close every connection, all at the same time: a broker that does not answer takes a second."""
        for comparison in list(self._comparing.values()):
            comparison.cancel()
        handles, self._handles, self._handle_of = list(self._handles.values()), {}, {}
        async with asyncio.TaskGroup() as closing:
            for handle in handles:
                closing.create_task(self._close(handle))

    @staticmethod
    async def _close(handle: BrokerHandle) -> None:
        await handle.poller.close()
        await handle.broker.close()

    def _make(self, binding: Binding) -> BrokerHandle:
        def on_ring(queue: str) -> None:
            for key in handle.poller.keys_of(queue):
                self._ring(key)

        def on_removed(queue: str, refusal: tuple[int, str] | None) -> None:
            handle.poller.doorbell_removed(queue, refusal)
            for key in handle.poller.keys_of(queue):
                self._wake(key)

        def on_state() -> None:
            for key in list(handle.users):
                self._wake(key)

        # The broker does not call these functions before this method has returned.
        broker = Broker(binding, on_ring, on_removed, on_state, self._destinations)
        poller = DepthPoller(broker, self._wake, self._poll_seconds, self._idle_poll_seconds)
        handle = BrokerHandle(broker, poller)
        return handle
