"""The web page in a real Chromium: rights, live updates, keyboard use, and what the browser refuses."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import aiohttp
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect
from yarl import URL

from tests.support.fakecluster import Request
from tests.support.tiers import some_slow
from tests.support.wait import until
from tests.support.website import EVIL, Site, logged_in, pod, workqueue
from workqueue_operator.errors import ClusterError
from workqueue_web import access, server
from workqueue_web.dead_letters import Reasons
from workqueue_web.decisions import DECISIONS
from workqueue_web.server import COOKIE, HEADERS

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_unknown_token_is_refused_and_valid_token_shows_workqueues(
    site: Site,
) -> None:
    site.put(
        workqueue("calm"),
        workqueue("deep", messages=1200, deadLetters=4),
        workqueue("broken", "mail", conditions={"Ready": "False"}, reason="BrokerUnreachable"),
    )
    async with logged_in(site, "wrong") as seen:
        page = seen.page
        await expect(page.get_by_role("alert")).to_contain_text("The cluster does not accept this token")
        await page.get_by_label("Token").fill("admins")
        await page.keyboard.press("Enter")
        rows = page.locator("tbody tr")
        # What needs a look comes first.
        await expect(rows.locator("th")).to_have_text(["mail/broken", "shop/deep", "shop/calm"])
        await expect(rows.nth(0)).to_contain_text("No, BrokerUnreachable")
        await expect(rows.nth(1).locator("td").nth(1)).to_have_text("1,200")
        await expect(page.locator("#state")).to_have_text("live")
        (cookie,) = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("Token")).to_be_visible()
        await page.goto(f"{site.url}/queues/shop/calm")
        await expect(page.get_by_label("Token")).to_be_visible()
    # The response to the wrong token is a 401, which a browser logs; it logged nothing else.
    assert [text for text in seen.complaints if "401" not in text] == []


async def test_unknown_counts_are_question_marks(site: Site) -> None:
    unknown = dict.fromkeys(("messages", "deadLetters", "busyReplicas", "readyReplicas", "desiredReplicas"))
    site.put(workqueue("known", messages=7, retrying=2), workqueue("away", conditions={"Ready": "False"}))
    body = workqueue("away", version=2, conditions={"Ready": "False"})
    body["status"] = {name: value for name, value in body["status"].items() if name not in unknown}
    site.put(body)
    async with logged_in(site) as seen:
        page = seen.page
        cells = page.get_by_role("row", name="shop/away").locator("td.number")
        await expect(cells).to_have_text(["?", "?", "?/?", "?", "0/s", "?"])
        sums = page.locator(".sums")
        await expect(sums.locator("div", has_text="Waiting")).to_contain_text("7 + ?")
        await expect(sums.locator("div", has_text="Retrying")).to_contain_text("2 + ?")
        await expect(sums.locator("div", has_text="Busy")).to_contain_text("1 + ?")
        await page.get_by_role("link", name="shop/away").click()
        await expect(page.get_by_text("The number of dead letters is unknown.")).to_be_visible()
    assert seen.complaints == []


async def test_changes_appear_without_reload_and_keep_keyboard_focus(site: Site) -> None:
    site.put(workqueue("calm"), workqueue("other"))
    async with logged_in(site) as seen:
        page = seen.page
        await expect(page.locator("#state")).to_have_text("live")
        await page.get_by_role("link", name="shop/other").focus()
        site.put(workqueue("calm", version=2, messages=77), workqueue("third", version=3))
        await expect(page.get_by_role("row", name="shop/calm")).to_contain_text("77")
        await expect(page.locator("tbody tr")).to_have_count(3)
        assert await page.evaluate("document.activeElement.innerText") == "shop/other"
        site.store.drop("workqueues", workqueue("third", version=4))
        await expect(page.locator("tbody tr")).to_have_count(2)
    assert seen.complaints == []


async def test_workqueue_page_shows_conditions_decisions_pods_and_dead_letters(site: Site) -> None:
    site.put(
        workqueue(
            "thumbs",
            conditions={"Ready": "False"},
            reason="AuthenticationFailed",
            message="The broker refused the login.",
            deadLetters=9,
        )
    )
    site.store.put_pod(pod("thumbs-1", "thumbs", "127.0.0.1"))
    site.store.put_pod(pod("thumbs-2", "thumbs", "127.0.0.9"))
    for number in range(DECISIONS + 5):
        site.decided("ScaleOut", "Backlog", f"Decision {number}.", warning=number % 2 == 0, second=number)
    async with logged_in(site) as seen:
        page = seen.page
        await page.get_by_role("link", name="shop/thumbs").click()
        ready = page.get_by_role("row", name="Ready", exact=False).filter(has_text="The broker refused")
        await expect(ready.first).to_contain_text("Correct username and password in the Secret")
        decisions = page.locator(".decisions li")
        await expect(decisions).to_have_count(DECISIONS)
        await expect(decisions.first).to_contain_text(f"Decision {DECISIONS + 4}.")
        first = page.get_by_role("row", name="thumbs-1")
        await expect(first).to_contain_text("busy")
        await expect(first).to_contain_text("250 ms")
        await expect(page.locator(".reasons div")).to_have_count(2)
        await expect(page.locator(".reasons")).to_contain_text("Rejected")
        await expect(page.get_by_text("From the first 4 of 9.")).to_be_visible()
    assert seen.complaints == []


async def test_foreign_text_is_shown_as_text(site: Site) -> None:
    site.put(workqueue("thumbs", message=EVIL, deadLetters=1, conditions={"Ready": "False"}))
    site.decided(EVIL, EVIL, EVIL, warning=True)
    site.letters.found = Reasons(((EVIL, 1),), 1, 1)
    async with logged_in(site) as seen:
        page = seen.page
        await expect(page.locator("#state")).to_have_text("live")
        await page.goto(f"{site.url}/queues/shop/thumbs")
        await expect(page.locator(".reasons")).to_contain_text(EVIL)
        await expect(page.locator(".decisions")).to_contain_text(EVIL)
        await page.get_by_role("link", name="All WorkQueues").click()
        await page.get_by_label("Namespace or name contains").fill(f'"{EVIL}')
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("No WorkQueue matches.")).to_be_visible()
        await expect(page.locator("img, main script")).to_have_count(0)
        assert await page.get_by_label("Namespace or name contains").input_value() == f'"{EVIL}'
    assert seen.complaints == []


async def test_browser_runs_no_foreign_script(site: Site) -> None:
    async with logged_in(site) as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        assert seen.complaints == []
        await seen.page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "window.ran = true";
              document.body.append(script);
              document.body.setAttribute("style", "display: none");
            }"""
        )
        assert await seen.page.evaluate("window.ran") is None
        await until(lambda: sum("Content Security Policy" in text for text in seen.complaints) == 2, 60)


@pytest.mark.parametrize("path", ["/", "/login", "/static/page.js", "/queues/a/b", "/nowhere", "/events"])
async def test_every_response_has_security_headers(site: Site, path: str) -> None:
    headers = {"Authorization": "Bearer admins"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{site.url}{path}", allow_redirects=False) as answer,
    ):
        for name, value in HEADERS.items():
            if (path, name) != ("/static/page.js", "Cache-Control"):
                assert answer.headers[name] == value, name


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("page.js", 200, "text/javascript"),
        ("page.css", 200, "text/css"),
        ("icon.svg", 200, "image/svg+xml"),
        ("none.js", 404, "text/html"),
        ("..%2Fserver.py", 404, "text/html"),
    ],
)
async def test_files_of_the_page_have_their_type(site: Site, name: str, status: int, kind: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(URL(f"{site.url}/static/{name}", encoded=True)) as answer,
    ):
        assert answer.status == status
        assert answer.content_type.replace("application/javascript", "text/javascript") == kind


async def test_browsers_that_leave_at_once_leave_no_file_open(site: Site) -> None:
    for number in range(200):
        _, writer = await asyncio.open_connection("127.0.0.1", URL(site.url).port)
        writer.write(b"GET /static/page.js HTTP/1.1\r\nHost: page\r\n\r\n")
        for _ in range(number % 10):  # until the server reads it, opens the file, or answers
            await asyncio.sleep(0)
        writer.transport.abort()
        await writer.wait_closed()
    async with aiohttp.ClientSession() as session, session.get(f"{site.url}/static/page.js") as answer:
        assert answer.status == 200
    gc.collect()  # a file that was left open is a ResourceWarning, which fails the test


async def test_user_sees_only_what_kubectl_would_show(site: Site) -> None:
    site.put(workqueue("thumbs"), workqueue("letters", "mail"))
    async with logged_in(site, "shops") as seen:
        await expect(seen.page.locator("tbody tr")).to_have_count(1)
        await expect(seen.page.locator("tbody")).to_contain_text("shop/thumbs")
        await expect(seen.page.locator(".sums div").first).to_contain_text("1")
    async with logged_in(site, "nobodys") as seen:
        await expect(seen.page.get_by_text("nobody may not list WorkQueues")).to_be_visible()
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer shops"}) as session:
        for name, status in (("shop/thumbs", 200), ("mail/letters", 404), ("mail/none", 404)):
            async with session.get(f"{site.url}/queues/{name}") as answer:
                assert answer.status == status
                text = await answer.text()
                assert status == 200 or f"There is no WorkQueue {name}, or you may not see it." in text


async def test_revoked_token_ends_open_pages_within_a_minute(site: Site) -> None:
    site.put(workqueue("thumbs"))
    async with logged_in(site) as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        asked = len(site.cluster.asked)
        site.put(workqueue("thumbs", version=2, messages=5))
        await expect(seen.page.locator("tbody")).to_contain_text("5")
        assert len(site.cluster.asked) == asked, "an answer is good for a while"
        site.tokens.clear()
        site.now += access.KEPT_SECONDS
        await expect(seen.page.locator("#state")).to_contain_text("Your login has ended. Reload the page.")
        await seen.page.reload()
        await expect(seen.page.get_by_label("Token")).to_be_visible()


async def test_page_without_scripts_shows_last_loaded_state(site: Site) -> None:
    site.put(workqueue("thumbs", messages=3))
    async with logged_in(site, scripts=False) as seen:
        await expect(seen.page.get_by_role("row", name="shop/thumbs")).to_contain_text("3")
        await expect(seen.page.locator("#state")).to_have_text("as of the last load")
        await seen.page.get_by_role("link", name="shop/thumbs").click()
        await expect(seen.page.get_by_role("heading", name="Recent decisions")).to_be_visible()


@pytest.mark.parametrize("scheme", some_slow(["light", "dark"], {"dark"}))
async def test_page_passes_accessibility_checks(site: Site, scheme: str) -> None:
    site.put(
        workqueue("thumbs", messages=7, deadLetters=4),
        workqueue("broken", conditions={"Ready": "False"}, reason="BrokerUnreachable"),
        workqueue("unsure", conditions={"Ready": "Unknown"}, reason="DepthPending", messages=None),
    )
    site.store.put_pod(pod("thumbs-1", "thumbs", "127.0.0.1"))
    site.decided("ScaleOut", "Backlog", "7 waiting ask for 1 replica.", warning=True)
    for _ in range(3):
        await site.sampler._sample()
    async with logged_in(site, scheme=scheme) as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        await expect(seen.page.locator("svg.spark").first).to_be_visible()
        ground = await seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
        for path in ("/", "/queues/shop/thumbs", "/login", "/queues/shop/none"):
            await seen.page.goto(f"{site.url}{path}")
            if path.endswith("thumbs"):
                await expect(seen.page.locator(".reasons")).to_be_visible()
            found = await Axe().run(seen.page)
            assert found.violations_count == 0, found.generate_report()


async def test_login_leads_back_to_requested_page(site: Site) -> None:
    site.put(workqueue("thumbs"), workqueue("mail"))
    async with logged_in(site, "wrong", f"{site.url}/queues/shop/thumbs") as seen:
        page = seen.page
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.get_by_label("Token").fill("admins")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="shop/thumbs")).to_be_visible()
        await page.goto(f"{site.url}/login?next=/%3Fq%3Dmail%2520box")
        await page.get_by_role("link", name="Continue to the requested page").click()
        await expect(page.get_by_label("Namespace or name contains")).to_have_value("mail box")


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "evil.example",
        "",
        "/\t/evil.example",
        "/\n",
    ],
    ids=["two-slashes", "backslash", "address", "no-slash", "nothing", "tab", "line-feed"],
)
async def test_login_never_leads_to_another_site(site: Site, wanted: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{site.url}/login", params={"next": wanted}, data={"token": "admins"}, allow_redirects=False
        ) as answer,
    ):
        assert (answer.status, answer.headers["Location"]) == (303, "/")


async def test_events_command_names_the_namespace(site: Site) -> None:
    site.put(workqueue("thumbs"))
    async with logged_in(site, url=f"{site.url}/queues/shop/thumbs") as seen:
        await expect(seen.page.get_by_text("kubectl events --for wq/thumbs --namespace shop")).to_be_visible()


async def test_condition_message_is_readable_on_narrow_screen(site: Site) -> None:
    message = "The broker amqp://rabbitmq.queues.svc:5672/jobs refuses the user 'jobs' with this password."
    site.put(
        workqueue("thumbs", message=message, reason="AuthenticationFailed", conditions={"Ready": "False"})
    )
    async with logged_in(site, url=f"{site.url}/queues/shop/thumbs", width=320, height=640) as seen:
        cells = seen.page.locator("section", has_text="Conditions").locator("td", has_text=message)
        await expect(cells).to_have_count(3)
        # In one evaluation: the page replaces its rows while it refreshes.
        edges = await cells.evaluate_all(
            "cells => cells.map(cell => cell.getBoundingClientRect()).map(box => [box.left, box.right])"
        )
        assert [left >= 0 and right <= 320 for left, right in edges] == [True] * 3, edges
        assert await seen.page.evaluate("document.documentElement.scrollWidth") == 320
        table = seen.page.locator(".scroll").first
        assert await table.evaluate("one => one.scrollWidth <= one.clientWidth"), "nothing to scroll to"


async def test_only_tables_scroll_sideways_on_narrow_screen(site: Site) -> None:
    site.put(
        workqueue(
            "a-name-that-is-as-long-as-names-of-workqueues-may-be-52", "a-namespace-with-a-long-name-too"
        )
    )
    async with logged_in(site, width=360, height=700) as seen:
        await expect(seen.page.locator("tbody tr")).to_have_count(1)
        assert await seen.page.evaluate("document.documentElement.scrollWidth") == 360


async def test_long_workqueue_list_is_cut_off_and_filterable(site: Site) -> None:
    site.put(*(workqueue(f"queue-{number:03}") for number in range(250)))
    async with logged_in(site) as seen:
        page = seen.page
        await expect(page.locator("tbody tr")).to_have_count(200)
        await expect(page.get_by_text("50 more are not shown")).to_be_visible()
        await expect(page.locator(".sums div").first).to_contain_text("250")
        await page.get_by_label("Namespace or name contains").fill("SHOP 249")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(1)


async def test_cross_site_form_cannot_log_in(site: Site) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{site.url}/login", data={"token": "admins"}, headers={"Origin": "https://evil.example"}
        ) as answer,
    ):
        assert answer.status == 403
        assert "Set-Cookie" not in answer.headers


async def test_login_is_refused_without_answer_of_api_server(site: Site) -> None:
    site.cluster.answer("POST", "tokenreviews", ClusterError(0, "the API server did not answer"))
    headers = {"Authorization": "Bearer admins"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(site.url) as answer:
        assert answer.status == 503
        assert "the API server did not answer" in await answer.text()


async def test_token_guessing_is_limited(site: Site) -> None:
    held = asyncio.Event()
    asked = 0

    async def slow(_: Request) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        await held.wait()
        return {"status": {"authenticated": False}}

    site.cluster.answer("POST", "tokenreviews", slow)

    async def guess(number: int) -> int:
        async with session.get(site.url, headers={"Authorization": f"Bearer guess{number}"}) as answer:
            return answer.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        guesses = [asyncio.create_task(guess(number)) for number in range(access.WAITING + 10)]
        done, waiting = await asyncio.wait(guesses, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 10:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert {task.result() for task in done} == {503}
        assert asked == access.AT_ONCE
        held.set()
        await asyncio.gather(*guesses)


async def test_number_of_live_browsers_is_limited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_LIVE", 1)
    headers = {"Authorization": "Bearer admins"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{site.url}/events") as first:
            assert first.status == 200
            await first.content.readline()
            async with session.get(f"{site.url}/events") as second:
                assert second.status == 503
        async with asyncio.timeout(60):
            while True:
                async with session.get(f"{site.url}/events") as next_one:
                    if next_one.status == 200:  # a closed browser makes room
                        break


async def test_every_replica_accepts_login_of_any_other(site: Site) -> None:
    site.put(workqueue("thumbs", messages=3))
    async with logged_in(site) as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        await seen.page.goto(f"http://127.0.0.1:{site.other_replica.port}/")
        await expect(seen.page.get_by_role("row", name="shop/thumbs")).to_contain_text("3")
        await expect(seen.page.locator("#state")).to_have_text("live")
    assert seen.complaints == []


async def test_logout_removes_token_from_browser(site: Site) -> None:
    site.put(workqueue("thumbs"))
    async with logged_in(site) as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        assert [cookie["value"] for cookie in await seen.page.context.cookies()] == ["admins"]
        await seen.page.get_by_role("button", name="Log out").click()
        await expect(seen.page.get_by_label("Token")).to_be_visible()
        assert await seen.page.context.cookies() == []


async def test_cookie_that_is_no_token_leads_to_login(site: Site) -> None:
    async with (
        aiohttp.ClientSession(cookies={COOKIE: "forged"}) as session,
        session.get(site.url, allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.headers["Location"]) == (303, "/login?next=/")


async def test_token_that_no_cookie_holds_is_refused_with_advice(site: Site) -> None:
    token = "x" * (server.LONGEST_TOKEN + 1)
    site.tokens[token] = "admin"
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{site.url}/login", data={"token": token}, allow_redirects=False) as answer,
    ):
        assert answer.status == 400
        assert "send it in the header Authorization" in await answer.text()


async def test_open_pages_share_one_read_of_the_events(site: Site) -> None:
    site.put(workqueue("thumbs"))
    site.decided("ScaleOut", "Backlog", "7 waiting ask for 1 replica.")
    headers = {"Authorization": "Bearer admins"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def open_page() -> str:
            async with session.get(f"{site.url}/queues/shop/thumbs") as answer:
                return await answer.text()

        pages = await asyncio.gather(*(open_page() for _ in range(20)))

    assert all("7 waiting ask for 1 replica." in page for page in pages)
    assert len([path for path in site.cluster.paths("GET") if path.endswith("/events")]) == 1


async def test_page_does_not_wait_for_unanswered_events(site: Site) -> None:
    site.put(workqueue("thumbs"))
    held = asyncio.Event()

    async def slow(_: Request) -> dict[str, Any]:
        await held.wait()
        return {"items": [], "metadata": {}}

    site.cluster.answer("GET", "/events", slow)
    async with logged_in(site, url=f"{site.url}/queues/shop/thumbs") as seen:
        await expect(seen.page.get_by_text("Reading the Events.")).to_be_visible()
        held.set()
        await expect(seen.page.get_by_text("The cluster has no recent Event about it.")).to_be_visible()


async def test_refused_events_are_reported(site: Site) -> None:
    site.put(workqueue("thumbs"))
    site.cluster.answer("GET", "/events", ClusterError(403, "events is forbidden"))
    async with logged_in(site, url=f"{site.url}/queues/shop/thumbs") as seen:
        await expect(seen.page.get_by_text("events is forbidden")).to_be_visible()


def outdated(seen: Any) -> Any:
    """The sentence that says why numbers may be out of date."""
    return seen.page.locator(".outdated")


async def expect_before(seen: Any, selector: str, content: str) -> None:
    """Wait until the style puts `content` before the first such element.

    The page replaces its rows while it refreshes, and a replaced element has no style.
    """
    await expect(seen.page.locator(selector).first).to_have_css("content", content, pseudo="before")


async def test_numbers_of_a_stopped_operator_are_marked_with_their_age(site: Site) -> None:
    site.put(workqueue("thumbs", messages=26))
    async with logged_in(site) as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        await expect_before(seen, "tbody .n", "none")
        site.now += 40

        await expect(outdated(seen)).to_contain_text("No operator has run for")
        await expect_before(seen, "tbody .n", '"~"')
        await expect(
            seen.page.get_by_role("link", name="Runbook WorkQueueOperatorWithoutLeader")
        ).to_be_visible()
        assert (await Axe().run(seen.page)).violations_count == 0
        await seen.page.get_by_role("link", name="shop/thumbs").click()
        await expect(outdated(seen)).to_contain_text("No operator has run for")
        site.renewed = "2026-11-24T00:01:00.000000Z"
        site.now += 40

        await expect(outdated(seen)).to_have_count(0)
    assert seen.complaints == []


async def test_open_page_stays_and_gets_old_while_the_api_server_is_away(site: Site) -> None:
    site.put(workqueue("thumbs", messages=26))
    async with logged_in(site) as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        reviewed = site._token_review
        site.cluster.answer("POST", "tokenreviews", ClusterError(0, "the API server did not answer"))
        site.now += access.KEPT_SECONDS

        await expect(seen.page.locator("#state")).to_contain_text(
            "The API server cannot check your permissions"
        )
        await expect(seen.page.locator("#live.stale")).to_contain_text("26")
        await expect_before(seen, "tbody .n", '"~"')
        site.cluster.answer("POST", "tokenreviews", reviewed)
        await expect(seen.page.locator("#state")).to_have_text("live")
        await expect(seen.page.locator("#live.stale")).to_have_count(0)


async def test_open_page_says_that_its_workqueue_was_deleted(site: Site) -> None:
    site.put(workqueue("thumbs"))
    async with logged_in(site, url=f"{site.url}/queues/shop/thumbs") as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        site.store.drop("workqueues", workqueue("thumbs", version=2))

        await expect(seen.page.locator("#state")).to_contain_text("There is no WorkQueue shop/thumbs")
        await expect(seen.page.locator("#live.stale")).to_have_count(1)


async def test_leaving_worker_is_not_one_of_none(site: Site) -> None:
    site.put(workqueue("thumbs", readyReplicas=1, desiredReplicas=0))
    async with logged_in(site) as seen:
        cell = seen.page.get_by_role("row", name="shop/thumbs").locator("td[data-label=Workers]")
        await expect(cell).to_have_text("0/0 ↘ 1 leaving")
        await seen.page.get_by_role("link", name="shop/thumbs").click()
        await expect(seen.page.locator(".sums div", has_text="Workers")).to_contain_text("0/0 ↘ 1 leaving")


async def test_filters_and_namespaces_are_in_the_address(site: Site) -> None:
    site.put(
        workqueue("dead-one", deadLetters=2), workqueue("calm"), workqueue("other", "mail", deadLetters=9)
    )
    async with logged_in(site) as seen:
        page = seen.page
        await page.get_by_label("Show").select_option("With dead letters")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.locator("tbody tr")).to_have_count(2)
        await page.reload()
        await expect(page.locator("#state")).to_have_text("live")
        await expect(page.locator("tbody tr")).to_have_count(2)
        await page.get_by_role("link", name="Namespaces").click()
        await expect(page.locator("tbody th")).to_have_text(["mail", "shop"])
        await page.get_by_role("link", name="shop", exact=True).click()
        await expect(page.get_by_role("heading", name="Namespace shop")).to_be_visible()
        await expect(page.locator(".sums div").first).to_contain_text("2")
        await page.get_by_label("Namespace or name contains").fill("dead")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(1)
        assert page.url == f"{site.url}/namespaces/shop?q=dead&show="
        await page.get_by_role("link", name="Clear").click()
        await expect(page.locator("tbody tr")).to_have_count(2)
    assert seen.complaints == []


async def test_namespace_view_shows_only_what_the_user_may_list(site: Site) -> None:
    site.put(workqueue("thumbs"), workqueue("letters", "mail"))
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer shops"}) as session:
        for path, status in (("shop", 200), ("mail", 404), ("none", 404)):
            async with session.get(f"{site.url}/namespaces/{path}") as answer:
                assert answer.status == status
        async with session.get(f"{site.url}/namespaces") as answer:
            text = await answer.text()
    assert "/namespaces/shop" in text
    assert "/namespaces/mail" not in text


async def test_every_cell_is_on_a_narrow_screen(site: Site) -> None:
    site.put(
        workqueue("a-name-that-is-as-long-as-names-of-workqueues-may-be-52", messages=12_345_678),
        workqueue("broken", conditions={"Ready": "False"}, reason="UnacknowledgedUnknownOrAnother"),
    )
    async with logged_in(site, width=320, height=640) as seen:
        await expect(seen.page.locator("#state")).to_have_text("live")
        for path in ("/", "/namespaces", "/namespaces/shop"):
            await seen.page.goto(f"{site.url}{path}")
            edges = await seen.page.locator("tbody th, tbody td, .filter > *").evaluate_all(
                "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])"
            )
            assert [edge for edge in edges if edge[0] < 0 or edge[1] > 320] == [], path


async def test_everything_can_be_reached_with_the_keyboard(site: Site) -> None:
    site.put(workqueue("thumbs"))
    async with logged_in(site) as seen:
        page = seen.page
        await expect(page.locator("#state")).to_have_text("live")
        await page.goto(site.url)
        reached = []
        for _ in range(11):
            await page.keyboard.press("Tab")
            reached.append(
                await page.evaluate(
                    "(document.activeElement.innerText || document.activeElement.id"
                    " || document.activeElement.className).split('\\n')[0]"
                )
            )
    assert reached[:7] == [
        "Skip to the content", "WorkQueues", "Namespaces", "Log out", "q", "All", "Filter",
    ]  # fmt: skip
    assert reached[8] == "shop/thumbs"


async def test_condition_links_to_its_runbook(site: Site) -> None:
    site.put(workqueue("thumbs", conditions={"Ready": "False"}, reason="Suspended", deadLetters=1))
    async with logged_in(site, url=f"{site.url}/queues/shop/thumbs") as seen:
        link = seen.page.get_by_role("link", name="Runbook WorkQueueSuspended").first
        await expect(link).to_have_attribute("href", "https://runbooks.example/WorkQueueSuspended")
        await expect(seen.page.get_by_role("link", name="Runbook WorkQueueDeadLetters")).to_be_visible()


async def test_numbers_older_than_the_spec_are_marked(site: Site) -> None:
    body = workqueue("thumbs", messages=5, observedGeneration=1)
    body["metadata"]["generation"] = 2
    site.put(body)
    async with logged_in(site) as seen:
        await expect(seen.page.get_by_role("row", name="shop/thumbs").locator(".behind").first).to_have_text(
            "5"
        )
        await expect_before(seen, "tbody .behind", '"~"')


async def test_hostile_text_of_every_source_is_shown_as_text(site: Site) -> None:
    hostile = workqueue(EVIL, EVIL, message=EVIL, reason=EVIL, deadLetters=1, conditions={"Ready": EVIL})
    hostile["metadata"]["uid"] = "uid-evil"
    site.put(hostile)
    crashed = pod("x", EVIL, "127.0.0.1", EVIL)
    crashed["status"]["conditions"] = []
    crashed["status"]["containerStatuses"] = [
        {"name": "worker", "state": {"terminated": {"exitCode": 3, "message": EVIL}}}
    ]
    site.store.put_pod(crashed)
    site.decided(EVIL, EVIL, EVIL)
    site.letters.found = Reasons(((EVIL, 1),), 1, 1, problem="")
    site.tokens["evils"] = EVIL
    site.rights.add((EVIL, ""))
    async with logged_in(site, "evils") as seen:
        page = seen.page
        for path in ("/", "/namespaces"):
            await page.goto(f"{site.url}{path}")
            await expect(page.locator("#state")).to_have_text("live")
            await expect(page.locator("img, main script")).to_have_count(0)
        await page.locator("tbody a").first.click()
        await expect(page.get_by_role("heading", name=f"Namespace {EVIL}")).to_be_visible()
        await page.locator("tbody a").first.click()
        await expect(page.locator("h1")).to_have_text(f"{EVIL}/{EVIL}")
        await expect(page.locator("#state")).to_have_text("live")
        await expect(page.locator("td", has_text=EVIL).first).to_be_visible()
        await expect(page.locator("img, main script")).to_have_count(0)
    assert seen.complaints == []
