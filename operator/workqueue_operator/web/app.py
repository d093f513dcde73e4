"""The web page for `__main__`: started early, with content after this process has become the leader.

Imported only if the page is enabled, because the import takes 3 MB.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from workqueue_operator.destinations import Destinations
from workqueue_operator.kube.client import Cluster
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Store
from workqueue_operator.web.access import Access
from workqueue_operator.web.dead_letters import DeadLetters
from workqueue_operator.web.relay import Relay
from workqueue_operator.web.sampler import Sampler
from workqueue_operator.web.server import Page, PageDependencies
from workqueue_operator.workers.client import Workers


class WebPage:
    """The web page.

    Args:
        port: the port to listen on.
        leader: returns the address of the leader's page, for a standby.
        audience: the required audience of tokens.
    """

    def __init__(self, port: int, leader: Callable[[], Awaitable[str | None]], audience: str) -> None:
        self._audience = audience
        self._server = Page(port, Relay(leader))
        self._sampler: Sampler | None = None

    async def start(self) -> None:
        """Listen. Requests are forwarded to the leader.

        Raises:
            OSError: the port is taken.
        """
        await self._server.start()

    def lead(
        self,
        cluster: Cluster,
        store: Store,
        workers: Workers,
        secrets: Secrets,
        destinations: Destinations,
    ) -> Callable[[str, bool, str, str, str], None]:
        """Answer requests here, because this process now leads.

        Returns:
            The function to call with each decision.
        """
        self._sampler = sampler = Sampler(store, workers)
        sampler.start()
        access = Access(cluster, audience=self._audience)
        self._server.lead(PageDependencies(store, sampler, access, DeadLetters(secrets, destinations)))
        return sampler.decided

    async def stop_looking(self) -> None:
        """Stop reading the store and asking the workers."""
        if self._sampler is not None:
            await self._sampler.stop()

    async def stop(self) -> None:
        """Stop listening."""
        await self._server.stop()
