"""/livez, /readyz and /metrics of a process. `__main__` starts it first and stops it last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from workqueue_operator.bounded_server import BoundedServer
from workqueue_operator.light_aiohttp import web


class Endpoint:
    """A small HTTP server.

    Args:
        port: 0 for any free port.
        problem: returns the result of the liveness check.
        registry: the metrics.
        ready: returns whether this process is ready, as leader or as standby.
        refresh: called before each scrape, to set the gauges.
    """

    def __init__(
        self,
        port: int,
        registry: CollectorRegistry,
        problem: Callable[[], str | None],
        ready: Callable[[], bool],
        refresh: Callable[[], None],
    ) -> None:
        self.port = port
        self._registry = registry
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
        """Return all metrics, or those that `?name[]=` selects, as Prometheus exporters do."""
        registry, names = self._registry, request.query.getall("name[]", [])
        # One scrape at a time: `refresh` clears gauges before it sets them.
        async with self._scraping:
            self._refresh()
            # In a thread: the series of 1,000 WorkQueues take 0.1 s, and a ring must not wait.
            text = await asyncio.to_thread(
                generate_latest, registry.restricted_registry(names) if names else registry
            )
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})
