"""Changes from the web page: who may make them, what they change, and what a hostile request cannot do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from tests.support.website import EVIL, Site, logged_in, workqueue
from workqueue_operator.errors import ClusterError
from workqueue_web.server import COOKIE

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADDRESS = "/queues/shop/thumbs"


def thumbs(version: int = 1, **spec: Any) -> dict[str, Any]:
    """A WorkQueue with four dead letters."""
    made = workqueue("thumbs", version=version, deadLetters=4)
    made["spec"] |= spec
    return made


class User:
    """A browser without a screen, logged in with a cookie."""

    def __init__(self, site: Site, session: aiohttp.ClientSession) -> None:
        self.site = site
        self.session = session
        self.headers = {"Origin": site.url, "Sec-Fetch-Site": "same-origin"}

    async def form(self, action: str) -> dict[str, str]:
        """Open the form of an action; return its hidden fields."""
        async with self.session.get(f"{self.site.url}{ADDRESS}/{action}") as answer:
            assert answer.status == 200, await answer.text()
            return dict(re.findall(r'type="hidden" name="(\w+)" value="(\w[^"]*)"', await answer.text()))

    async def send(self, action: str, form: dict[str, str], **headers: str | None) -> tuple[int, str]:
        """Send a form; return the status, and the text or where the answer leads."""
        sent = {name: value for name, value in {**self.headers, **headers}.items() if value is not None}
        async with self.session.post(
            f"{self.site.url}{ADDRESS}/{action}", data=form, headers=sent, allow_redirects=False
        ) as answer:
            return answer.status, answer.headers.get("Location") or await answer.text()


@asynccontextmanager
async def user(site: Site, token: str = "admins") -> AsyncIterator[User]:
    async with aiohttp.ClientSession(cookies={COOKIE: token}) as session:
        yield User(site, session)


CHANGES = [
    pytest.param("pause", {}, {}, {"op": "add", "path": "/spec/suspend", "value": True}, "pauses it.", id="pause"),
    pytest.param(
        "resume", {"suspend": True}, {}, {"op": "add", "path": "/spec/suspend", "value": False}, "resumes it.",
        id="resume",
    ),
    pytest.param(
        "scale", {}, {"replicas": "3"}, {"op": "add", "path": "/spec/replicas", "value": 3},
        "pins the number of workers to 3.", id="scale",
    ),
    pytest.param(
        "release", {"replicas": 3}, {}, {"op": "remove", "path": "/spec/replicas"},
        "releases the number of workers.", id="release",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("action", "spec", "fields", "patch", "words"), CHANGES)
async def test_confirmed_change_is_made_and_names_its_user(
    site: Site, action: str, spec: dict[str, Any], fields: dict[str, str], patch: Any, words: str
) -> None:
    site.put(thumbs(**spec))
    async with user(site) as admin:
        status, where = await admin.send(action, await admin.form(action) | fields)

    assert (status, where.partition("&")[0]) == (303, f"{ADDRESS}?done={action}")
    assert site.patches == [("workqueue-page", patch)]
    (event,) = site.written
    assert event["note"] == f"admin, on the web page: {words}"
    assert (event["regarding"]["name"], event["regarding"]["uid"]) == ("thumbs", "uid-shop-thumbs")
    assert (event["type"], event["reportingController"]) == ("Normal", "workqueue-page")


@pytest.mark.parametrize(
    ("action", "fields", "verb"),
    [("replay", {}, "replayed"), ("purge", {"confirm": "thumbs"}, "deleted")],
    ids=["replay", "purge"],
)
async def test_confirmed_dead_letters_are_settled(
    site: Site, action: str, fields: dict[str, str], verb: str
) -> None:
    site.put(thumbs())
    async with user(site) as admin:
        assert await admin.send(action, await admin.form(action) | fields) == (
            303,
            f"{ADDRESS}?done={action}&count=4",
        )

    assert site.letters.settled == [action]
    assert [event["note"].partition(": ")[2] for event in site.written][1:] == [
        f"4 of 4 dead letters were {verb}."
    ]


FOREIGN: list[Any] = [
    pytest.param({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, {}, id="another-site"),
    pytest.param({"Origin": None, "Sec-Fetch-Site": None}, {}, id="no-origin"),
    pytest.param({"Origin": "null", "Sec-Fetch-Site": None}, {}, id="sandboxed-frame"),
    pytest.param({"Sec-Fetch-Site": "same-site"}, {}, id="sister-host"),
    pytest.param({}, {"form": "0" * 64}, id="another-login"),
    pytest.param({}, {"form": ""}, id="no-form-token"),
]


@pytest.mark.parametrize(("headers", "fields"), FOREIGN)
async def test_form_of_another_site_changes_nothing(
    site: Site, headers: dict[str, Any], fields: dict[str, str]
) -> None:
    site.put(thumbs())
    async with user(site) as admin:
        status, said = await admin.send("pause", await admin.form("pause") | fields, **headers)

    assert (status, "Nothing was changed" in said or "another site" in said) == (403, True)
    assert (site.patches, site.written) == ([], [])


async def test_viewer_without_rights_is_offered_and_granted_nothing(site: Site) -> None:
    site.put(thumbs())
    async with user(site) as admin, user(site, "shops") as viewer:
        form = await admin.form("pause")
        async with viewer.session.get(f"{site.url}{ADDRESS}") as answer:
            text = await answer.text()
        assert 'class="button' not in text
        assert "you need the right to patch workqueues thumbs and to get secrets rabbitmq" in text
        async with viewer.session.get(f"{site.url}{ADDRESS}/pause") as answer:
            assert answer.status == 403
        status, said = await viewer.send("pause", form)
        assert (status, "not from your present login" in said) == (403, True)
        own = hashlib.sha256(b"workqueue-page form\0shops").hexdigest()
        status, said = await viewer.send("pause", form | {"form": own})
        assert (status, "shop-reader may not do this" in said) == (403, True)

    assert (site.patches, site.written) == ([], [])


async def test_secrets_right_is_needed_for_dead_letters(site: Site) -> None:
    site.secret_readers.clear()
    site.put(thumbs())
    async with user(site) as admin:
        async with admin.session.get(f"{site.url}{ADDRESS}/purge") as answer:
            assert answer.status == 403
            assert "it takes the right to get secrets rabbitmq in the namespace shop" in await answer.text()
        async with admin.session.get(f"{site.url}{ADDRESS}") as answer:
            text = await answer.text()

    assert f"{ADDRESS}/pause" in text
    assert f"{ADDRESS}/purge" not in text


async def test_right_is_checked_again_when_the_form_is_sent(site: Site) -> None:
    site.put(thumbs())
    async with user(site) as admin:
        form = await admin.form("pause")
        site.changers.clear()

        status, said = await admin.send("pause", form)

    assert (status, site.patches, site.written) == (403, [], [])
    assert "admin may not do this: it takes the right to patch workqueues thumbs" in said


async def test_form_that_is_sent_again_changes_nothing(site: Site) -> None:
    site.put(thumbs())
    async with user(site) as admin:
        form = await admin.form("scale") | {"replicas": "3"}
        assert (await admin.send("scale", form))[0] == 303

        status, said = await admin.send("scale", form)

    assert (status, len(site.patches)) == (409, 1)
    assert "has changed since the form was shown" in said


async def test_form_about_a_workqueue_that_was_made_again_changes_nothing(site: Site) -> None:
    site.put(thumbs())
    async with user(site) as admin:
        form = await admin.form("pause")
        again = thumbs(version=9)
        again["metadata"]["uid"] = "another"
        site.put(again)

        assert (await admin.send("pause", form))[0] == 409
        site.store.drop("workqueues", again)
        assert (await admin.send("pause", form))[0] == 404

    assert site.patches == []


async def test_change_that_the_page_has_not_seen_yet_is_kept(site: Site) -> None:
    site.put(thumbs())
    site.cluster.answer("PATCH", "/workqueues/", ClusterError(422, "test failed"))
    async with user(site) as admin:
        status, said = await admin.send("pause", await admin.form("pause"))

    assert (status, "changed since" in said) == (409, True)
    assert [event["type"] for event in site.written] == ["Normal", "Warning"]


@pytest.mark.parametrize("action", ["replay", "purge"])
async def test_dead_letters_that_came_since_the_form_are_kept(site: Site, action: str) -> None:
    site.put(thumbs())
    async with user(site) as admin:
        form = await admin.form(action) | {"confirm": "thumbs"}
        site.letters.number = 5

        status, said = await admin.send(action, form)

    assert (status, site.letters.settled) == (409, [])
    assert "there were 4, and now there are 5" in said


async def test_purge_needs_the_name(site: Site) -> None:
    site.put(thumbs())
    async with user(site) as admin:
        status, said = await admin.send("purge", await admin.form("purge") | {"confirm": "thumb"})

    assert (status, site.letters.settled, site.written) == (400, [], [])
    assert "To confirm, write the name thumbs." in said


async def test_replay_that_stops_says_how_far_it_came(site: Site) -> None:
    site.put(thumbs())
    site.letters.errors = ("The queue is full.",)
    async with user(site) as admin:
        status, said = await admin.send("replay", await admin.form("replay"))

    assert (status, "1 of 4 dead letters were replayed. The queue is full." in said) == (502, True)
    assert site.written[-1]["type"] == "Warning"


async def test_without_its_event_nothing_is_changed(site: Site) -> None:
    site.put(thumbs())
    site.cluster.answer("POST", "/events", ClusterError(403, "events is forbidden"))
    async with user(site) as admin:
        status, said = await admin.send("pause", await admin.form("pause"))

    assert (status, site.patches) == (502, [])
    assert "Nothing was changed, because the Event that names you could not be written" in said


@pytest.mark.parametrize("replicas", ["", "-1", "1.5", "٣", "10001", "9" * 5000, EVIL])
async def test_invalid_number_of_workers_is_refused(site: Site, replicas: str) -> None:
    site.put(thumbs())
    async with user(site) as admin:
        status, said = await admin.send("scale", await admin.form("scale") | {"replicas": replicas})

    assert (status, site.patches, "<img" in said) == (400, [], False)


async def test_page_without_actions_has_none(site: Site) -> None:
    site.put(thumbs())
    address = f"http://127.0.0.1:{site.other_replica.port}{ADDRESS}"
    async with user(site) as admin:
        async with admin.session.get(address) as answer:
            assert f"{ADDRESS}/pause" not in await answer.text()
        async with admin.session.get(f"{address}/pause") as answer:
            assert answer.status == 404
        async with admin.session.post(f"{address}/pause", headers=admin.headers) as answer:
            assert answer.status in {404, 405}

    assert site.patches == []


async def test_hostile_user_name_is_only_text(site: Site) -> None:
    site.tokens["evils"] = f"{EVIL}\r\n\x1b[2J" * 40
    site.changers.add(site.tokens["evils"])
    site.rights.add((site.tokens["evils"], ""))
    site.put(thumbs())
    async with user(site, "evils") as evil:
        async with evil.session.get(f"{site.url}{ADDRESS}/pause") as answer:
            assert "<img" not in await answer.text()
        assert (await evil.send("pause", await evil.form("pause")))[0] == 303

    note = site.written[0]["note"]
    assert note.isprintable()
    assert len(note) < 300
    assert note.endswith("pauses it.")


@pytest.mark.parametrize("query", ["done=%3Cscript%3E", "done=purge&count=%3Cimg%3E", "count=5"])
async def test_address_cannot_make_the_page_say_anything(site: Site, query: str) -> None:
    site.put(thumbs())
    async with user(site) as admin, admin.session.get(f"{site.url}{ADDRESS}?{query}") as answer:
        text = await answer.text()

    assert "<script>" not in text
    assert "<img" not in text
    assert "5 dead" not in text


@pytest.mark.slow
async def test_workqueue_is_paused_and_resumed_with_the_keyboard(site: Site) -> None:
    site.put(thumbs())
    async with logged_in(site, url=f"{site.url}{ADDRESS}", width=320, height=640) as seen:
        page = seen.page
        await expect(page.locator("#state")).to_have_text("live")
        await page.get_by_role("link", name="Pause", exact=True).focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Pause")).to_be_visible()
        assert (await Axe().run(page)).violations_count == 0
        assert await page.evaluate("document.documentElement.scrollWidth") == 320
        await page.get_by_role("button", name="Pause").focus()
        await page.keyboard.press("Enter")

        await expect(page.get_by_text("Paused. Running workers continue")).to_be_visible()
        await expect(page.get_by_role("link", name="Resume")).to_be_visible()
        assert site.patches[-1][1]["value"] is True
        await page.reload()
        assert len(site.patches) == 1, "a reload repeats nothing"
        await page.get_by_role("link", name="Pin workers").click()
        await page.get_by_label("Workers").fill("3")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Pinned. The number of workers stays at 3")).to_be_visible()
    assert seen.complaints == []
