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
from workqueue_operator.broker.depth_poller import Sweep
from workqueue_operator.destinations import ANYWHERE, Destinations
from workqueue_operator.kube.store import Key

SAME_KEPT: Final = 1000
"""Pairs of connections for which it is remembered whether they lead to the same broker."""


@dataclass(eq=False)
class Link:
    """A broker, its sweep and who uses it."""

    broker: Broker
    sweep: Sweep
    users: set[Key] = field(default_factory=set)


class Brokers:
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
        self._links: dict[str, Link] = {}
        self._link_of: dict[Key, Link] = {}
        self._same: dict[frozenset[tuple[str, int]], bool] = {}

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    async def link(self, key: Key, binding: Binding) -> Link:
        """The link for these connection data; a WorkQueue whose data changed leaves its old one."""
        known = self._link_of.get(key)
        if known is not None and known is not self._links.get(binding.identity):
            await self.leave(key)
        # Looked up only now: while the old link was closing, another WorkQueue may have made the new one.
        link = self._links.get(binding.identity)
        if link is None:
            link = self._links[binding.identity] = self._make(binding)
        link.users.add(key)
        self._link_of[key] = link
        return link

    def known(self, key: Key) -> Link | None:
        """The link that a WorkQueue has used last, while it is open."""
        return self._link_of.get(key)

    async def claimants(self, queue: str, link: Link) -> list[Key]:
        """The WorkQueues that have declared a queue of this virtual host, whatever user or address each has."""
        found = link.sweep.claims_on(queue)
        for other in self:
            claims = other.sweep.claims_on(queue) if other is not link else []
            if claims and await self.are_same(link, other, queue):
                found += claims
        return found

    async def are_same(self, link: Link, other: Link, queue: str) -> bool | None:
        """Whether two links lead to the same broker and virtual host (see Broker.is_same_as)."""
        pair = frozenset((one.broker.binding.identity, one.broker.generation) for one in (link, other))
        if (known := self._same.get(pair)) is not None:
            return known
        same = await link.broker.is_same_as(other.broker, queue)
        if same is not None:
            self._same = dict([*self._same.items()][-SAME_KEPT:]) | {pair: same}
        return same

    async def leave(self, key: Key) -> None:
        """A WorkQueue needs its broker no more: bell down, no more sweeps; the last one closes the link."""
        link = self._link_of.pop(key, None)
        if link is None:
            return
        for queue in link.sweep.queues_of(key):
            if link.sweep.keys_of(queue) == (key,):
                link.broker.take_down_bell(queue)
        link.sweep.forget(key)
        link.users.discard(key)
        if not link.users:
            self._links.pop(link.broker.binding.identity, None)
            await self._close(link)

    async def close(self) -> None:
        """Close every connection."""
        links, self._links, self._link_of = list(self._links.values()), {}, {}
        for link in links:
            await self._close(link)

    @staticmethod
    async def _close(link: Link) -> None:
        await link.sweep.close()
        await link.broker.close()

    def _make(self, binding: Binding) -> Link:
        def on_ring(queue: str) -> None:
            for key in link.sweep.keys_of(queue):
                self._rang(key)

        def on_fall(queue: str, refusal: tuple[int, str] | None) -> None:
            link.sweep.bell_fell(queue, refusal)
            for key in link.sweep.keys_of(queue):
                self._wake(key)

        def on_state() -> None:
            for key in list(link.users):
                self._wake(key)

        # The broker calls none of them before this function has returned.
        broker = Broker(binding, on_ring, on_fall, on_state, self._destinations)
        sweep = Sweep(broker, self._wake, self._sweep_seconds, self._idle_sweep_seconds)
        link = Link(broker, sweep)
        return link
