"""An open page whose connection is silent, or refused by a proxy, does not call its numbers live."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from playwright.async_api import Route, expect

from tests.support.browser import looking
from tests.support.fakecluster import Request
from tests.support.website import Site, workqueue
from workqueue_web import access

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def opened(site: Site, page: Any) -> None:
    await page.clock.install()
    await page.goto(site.url)
    await page.get_by_label("Token").fill("admins")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.locator("#state")).to_have_text("live")


@contextmanager
def held(site: Site) -> Iterator[None]:
    """The page does not learn whether its users may see anything, so that it sends nothing."""
    ended, reviewed = asyncio.Event(), site._token_review

    async def slow(request: Request) -> dict[str, Any]:
        await ended.wait()
        return reviewed(request)

    site.cluster.answer("POST", "tokenreviews", slow)
    site.now += access.KEPT_SECONDS
    try:
        yield
    finally:
        ended.set()


async def show(page: Any, state: str) -> None:
    """Hide a page, or show it, as if by another tab of the browser."""
    await page.evaluate(
        """(state) => {
          Object.defineProperty(document, "visibilityState", {configurable: true, get: () => state});
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        state,
    )


@asynccontextmanager
async def hidden(site: Site) -> AsyncIterator[Any]:
    """A page with one WorkQueue, which another tab hides, and whose network has stopped answering."""
    site.put(workqueue("thumbs", messages=26))
    async with looking(await site.browser()) as seen:
        await opened(site, seen.page)
        await show(seen.page, "hidden")
        await seen.page.route("**/events", lambda _: None)
        yield seen.page


async def test_silent_connection_is_lost_and_opened_again(site: Site) -> None:
    """As after a sleep, behind a proxy that has forgotten the connection, or while the API server answers nothing."""
    site.put(workqueue("thumbs", messages=26))
    async with looking(await site.browser()) as seen:
        await opened(site, seen.page)
        with held(site):
            await seen.page.clock.fast_forward(65_000)

            await expect(seen.page.locator("#state")).to_contain_text(
                "connection lost, reconnecting, numbers are 1 min old"
            )
            await expect(seen.page.locator("#live.stale")).to_contain_text("26")
        await expect(seen.page.locator("#state")).to_have_text("live")
        await expect(seen.page.locator("#live.stale")).to_have_count(0)


async def test_page_recovers_after_a_proxy_has_answered_for_its_server(site: Site) -> None:
    """A browser does not repeat a request for a stream that was answered with 503."""
    site.put(workqueue("thumbs"))
    async with looking(await site.browser()) as seen:
        page = seen.page
        answers = iter([503, 502])

        async def proxy(route: Route) -> None:
            status = next(answers, None)
            await (route.continue_() if status is None else route.fulfill(status=status, body="no endpoint"))

        await page.route("**/events", proxy)
        await page.clock.install()
        await page.goto(site.url)
        await page.get_by_label("Token").fill("admins")
        await page.get_by_role("button", name="Log in").click()
        for _ in range(2):
            await expect(page.locator("#state")).to_contain_text("connection lost, reconnecting")
            await page.clock.fast_forward(10_000)

        await expect(page.locator("#state")).to_have_text("live")


async def test_page_that_was_hidden_for_long_marks_its_numbers_until_they_are_new(site: Site) -> None:
    async with hidden(site) as page:
        await page.clock.fast_forward(7_200_000)
        await show(page, "visible")

        await expect(page.locator("#state")).to_have_text("reconnecting, numbers are 120 min old")
        await expect(page.locator("#live.stale")).to_contain_text("26")


async def test_page_marks_its_numbers_when_the_computer_wakes_up(site: Site) -> None:
    """Timers have not gone on while it slept, but the time of day has."""
    site.put(workqueue("thumbs", messages=26))
    async with looking(await site.browser()) as seen:
        page = seen.page
        await opened(site, page)
        with held(site):
            await page.clock.set_system_time(await page.evaluate("Date.now() / 1000") + 7200)
            await page.clock.run_for(1000)

            # Sooner than a timer of 40 s that began before it slept.
            await expect(page.locator("#state")).to_have_text(
                "connection lost, reconnecting, numbers are 120 min old", timeout=30_000
            )
        await expect(page.locator("#state")).to_have_text("live")


async def test_numbers_from_before_a_page_was_hidden_are_live_for_40_s_in_all(site: Site) -> None:
    async with hidden(site) as page:
        await page.clock.run_for(25_000)
        await show(page, "visible")
        await expect(page.locator("#state")).to_have_text("live")
        await page.clock.run_for(20_000)

        await expect(page.locator("#state")).to_have_text(
            re.compile(r"connection lost, reconnecting, numbers are \d+ s old")
        )
