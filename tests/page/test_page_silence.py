"""An open page whose connection is silent, or refused by a proxy, does not call its numbers live."""

from __future__ import annotations

import asyncio
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


async def test_silent_connection_is_lost_and_opened_again(site: Site) -> None:
    """As after a sleep, behind a proxy that has forgotten the connection, or while the API server answers nothing."""
    site.put(workqueue("thumbs", messages=26))
    async with looking(await site.browser()) as seen:
        await opened(site, seen.page)
        held, reviewed = asyncio.Event(), site._token_review

        async def slow(request: Request) -> dict[str, Any]:
            await held.wait()
            return reviewed(request)

        site.cluster.answer("POST", "tokenreviews", slow)
        site.now += access.KEPT_SECONDS
        await seen.page.clock.fast_forward(65_000)

        await expect(seen.page.locator("#state")).to_contain_text(
            "connection lost, reconnecting, numbers are 1 min old"
        )
        await expect(seen.page.locator("#live.stale")).to_contain_text("26")
        held.set()
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
    site.put(workqueue("thumbs", messages=26))
    async with looking(await site.browser()) as seen:
        page = seen.page
        await opened(site, page)
        await page.evaluate(
            """() => {
              Object.defineProperty(document, "visibilityState", {configurable: true, get: () => window.shown});
              window.shown = "hidden";
              document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
        await page.route("**/events", lambda _: None)  # as a network without an answer
        await page.clock.fast_forward(7_200_000)
        await page.evaluate(
            """() => { window.shown = "visible"; document.dispatchEvent(new Event("visibilitychange")); }"""
        )

        await expect(page.locator("#state")).to_have_text("reconnecting, numbers are 120 min old")
        await expect(page.locator("#live.stale")).to_contain_text("26")
