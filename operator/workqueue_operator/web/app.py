"""The page as `__main__` sees it: made and started early, filled with what there is to show once this process leads.

Place in the flow: imported only when the page is asked for, since it brings three megabytes.
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
from workqueue_operator.web.sampler import Watch
from workqueue_operator.web.server import Page, PageDependencies
from workqueue_operator.workers.client import Workers


class WebPage:
    """The page with all its parts.

    Args:
        port: to listen on.
        leader: where the leader's page is, for a standby.
        audience: of the tokens that people log in with.
    """

    def __init__(self, port: int, leader: Callable[[], Awaitable[str | None]], audience: str) -> None:
        self._audience = audience
        self._server = Page(port, Relay(leader))
        self._watch: Watch | None = None

    async def start(self) -> None:
        """Listen; browsers are sent on to the leader.

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
        """From now on browsers are answered here.

        Returns:
            What is to be told of each decision, as `report.Reporter` does.
        """
        self._watch = watch = Watch(store, workers)
        watch.start()
        access = Access(cluster, audience=self._audience)
        self._server.lead(PageDependencies(store, watch, access, DeadLetters(secrets, destinations)))
        return watch.decided

    async def stop_looking(self) -> None:
        """Ask nobody any more."""
        if self._watch is not None:
            await self._watch.stop()

    async def stop(self) -> None:
        """Stop listening."""
        await self._server.stop()
