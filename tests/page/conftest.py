"""The site and its browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser

from tests.support.browser import chromium
from tests.support.website import BrowserSource, Site
from workqueue_operator.workers.client import Workers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[BrowserSource]:
    """One for all tests. Each has a context of its own, and a start costs 2 s of processor time."""
    async with AsyncExitStack() as stack:
        started: list[Browser] = []

        async def source() -> Browser:
            if not started:
                started.append(await stack.enter_async_context(chromium()))
            return started[0]

        yield source


@pytest_asyncio.fixture(loop_scope="module")
async def site(browser: BrowserSource) -> AsyncIterator[Site]:
    """Two replicas of the page, with workers that respond on the loopback."""

    async def status(_: web.Request) -> web.Response:
        return web.json_response(
            {"slots": 2, "busy": 1, "consuming": True, "recentHandlerSeconds": 0.25, "arrivalPerSecond": 3.5}
        )

    app = web.Application()
    app.router.add_get("/status", status)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    workers = Workers(runner.addresses[0][1])
    made = Site(workers, browser)
    await made.page.start()
    await made.other_replica.start()
    made.sampler.start()
    yield made
    await made.sampler.stop()
    await made.decisions.stop()
    await made.page.stop()
    await made.other_replica.stop()
    await workers.close()
    await runner.cleanup()
