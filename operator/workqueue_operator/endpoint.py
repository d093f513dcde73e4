"""/livez, /readyz and /metrics of the operator.

Place in the flow: started first and stopped last by `__main__`; reads what `health` and `metrics` say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from workqueue_operator.bounded_server import BoundedServer
from workqueue_operator.metrics import Metrics


class Endpoint:
    """A small HTTP server.

    Args:
        port: 0 for any free one.
        problem: what is wrong with this process, or None (deep liveness).
        ready: whether this process does its part, be it as a standby.
        refresh: called before each scrape, to set the gauges that are only worth reading then.
    """

    def __init__(
        self,
        port: int,
        metrics: Metrics,
        problem: Callable[[], str | None],
        ready: Callable[[], bool],
        refresh: Callable[[], None],
    ) -> None:
        self.port = port
        self._metrics = metrics
        self._problem = problem
        self._ready = ready
        self._refresh = refresh
        self._scraping = asyncio.Lock()
        self._server: BoundedServer | None = None

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._serve_metrics)
        self._server = BoundedServer(app, self.port)
        self.port = await self._server.start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.stop()

    async def _livez(self, _: web.Request) -> web.Response:
        problem = self._problem()
        return web.Response(text=problem or "ok", status=503 if problem else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(text="ok" if ready else "starting", status=200 if ready else 503)

    async def _serve_metrics(self, request: web.Request) -> web.Response:
        """All metrics, or those that `?name[]=` picks, as exporters have it."""
        registry, names = self._metrics.registry, request.query.getall("name[]", [])
        # One after the other: `refresh` sets gauges anew that another scrape would meet half-way.
        async with self._scraping:
            self._refresh()
            # The series of 1,000 WorkQueues take 0.1 s, in which a bell may ring.
            text = await asyncio.to_thread(
                generate_latest, registry.restricted_registry(names) if names else registry
            )
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})
