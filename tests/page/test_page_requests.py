"""Requests to the page that no form of it sends, and names that look like its addresses."""

from __future__ import annotations

import asyncio
import logging
import re

import aiohttp
import pytest
from yarl import URL

from tests.support.website import Site, workqueue
from workqueue_web.server import COOKIE

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM = {"Accept": "text/event-stream"}


async def sent(site: Site, head: bytes, body: bytes = b"") -> tuple[int, str]:
    """Send raw bytes; return the status and the rest of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(site.url).port)
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    writer.write(head + b"\r\nHost: page\r\n" + length + b"Connection: close\r\n\r\n" + body)
    answer = (await reader.read()).decode(errors="replace")
    writer.close()
    await writer.wait_closed()
    found = re.match(r"HTTP/1.1 (\d+)", answer)
    assert found is not None, answer
    return int(found[1]), answer


FORM = b"POST /login HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded"
ACTION = b"POST /queues/shop/thumbs/pause HTTP/1.1\r\nAuthorization: Bearer admins\r\nOrigin: http://page\r\n"
ENCODED = (
    b"--x\r\nContent-Disposition: form-data; name=form\r\nContent-Type: text/plain; charset=utf-7\r\n\r\n"
    b"+2AA-\r\n--x--\r\n"
)
"""Half of a character. No other encoding has it."""

REFUSED = {
    "bearer": (b"GET / HTTP/1.1\r\nAuthorization: Bearer \xff\xfe", b"", 303),
    "cookie": (b"GET / HTTP/1.1\r\nCookie: " + COOKIE.encode() + b"=\xff", b"", 303),
    "address": (b"GET /queues/%FF/%ED%A0%80?q=%FF HTTP/1.1\r\nAuthorization: Bearer admins", b"", 404),
    "address-without-login": (b"GET /queues/%FF/%ED%A0%80?q=%FF HTTP/1.1", b"", 303),
    "origin": (FORM + b"\r\nOrigin: http://[", b"token=admins", 403),
    "form-bytes": (FORM, b"token=\xff", 400),
    "form-encoding": (FORM + b"; charset=none", b"token=admins", 400),
    "form-without-boundary": (b"POST /login HTTP/1.1\r\nContent-Type: multipart/form-data", b"x", 400),
    "action-encoding": (
        ACTION + b"Content-Type: application/x-www-form-urlencoded; charset=utf-7",
        b"form=%2B2AA-",
        400,
    ),
    "action-part-encoding": (ACTION + b"Content-Type: multipart/form-data; boundary=x", ENCODED, 400),
    "token": (FORM, b"token=%C3%A9", 401),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_malformed_request_is_refused_without_a_traceback(
    site: Site, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    head, body, status = REFUSED[case]
    site.put(workqueue("thumbs"))

    with caplog.at_level(logging.WARNING):
        answered, text = await sent(site, head, body)

    assert (answered, caplog.records) == (status, [])
    assert "Content-Security-Policy" in text


async def test_namespace_and_workqueue_may_be_called_events(site: Site) -> None:
    site.put(workqueue("events", "events", messages=7))
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer admins"}) as session:
        for path in ("/namespaces/events", "/queues/events/events"):
            async with session.get(f"{site.url}{path}") as answer:
                assert (answer.content_type, answer.status) == ("text/html", 200)
                assert '<span class="n">7</span>' in await answer.text()
    async with aiohttp.ClientSession() as session:
        for path in ("/namespaces/events", "/queues/events/events"):
            async with session.get(f"{site.url}{path}", allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (303, f"/login?next={path}")


@pytest.mark.parametrize(
    ("forwarded", "secure"),
    [("https", True), ("https, http", True), ("HTTPS", True), ("http", False), ("http, https", False)],
)
async def test_cookie_is_secure_behind_proxies_that_terminate_tls(
    site: Site, forwarded: str, secure: bool
) -> None:
    async with (
        aiohttp.ClientSession(headers={"X-Forwarded-Proto": forwarded}) as session,
        session.post(f"{site.url}/login", data={"token": "admins"}, allow_redirects=False) as answer,
    ):
        assert ("Secure" in answer.headers["Set-Cookie"]) is secure


async def test_another_site_cannot_log_a_user_out(site: Site) -> None:
    async with aiohttp.ClientSession() as session:
        for origin, status in (("https://evil.example", 403), (site.url, 303)):
            async with session.post(
                f"{site.url}/logout", headers={"Origin": origin}, allow_redirects=False
            ) as answer:
                assert (answer.status, "Set-Cookie" in answer.headers) == (status, status == 303)


@pytest.mark.parametrize(
    ("path", "token", "words"),
    [
        ("/events", "", "Your login has ended. Reload the page."),
        ("/events/namespaces", "nobodys", "nobody may not list WorkQueues"),
        ("/queues/shop/none/events", "admins", "There is no WorkQueue shop/none"),
        ("/namespaces/none/events", "admins", "The namespace none has no WorkQueue"),
    ],
)
async def test_stream_that_cannot_begin_tells_the_browser_why(
    site: Site, path: str, token: str, words: str
) -> None:
    """A browser tells its script no status, so that it could not know whether to try again."""
    site.put(workqueue("thumbs"))
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.get(f"{site.url}{path}", headers=STREAM) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        text = await answer.text()
        assert text.startswith("event: end\ndata: ")
        assert words in text


async def test_proxies_do_not_hold_updates_back(site: Site) -> None:
    site.put(workqueue("thumbs"))
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer admins"}) as session,
        session.get(f"{site.url}/events", headers=STREAM) as answer,
    ):
        assert answer.headers["X-Accel-Buffering"] == "no"


async def test_head_request_opens_no_stream(site: Site) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer admins"}) as session,
        session.head(f"{site.url}/events") as answer,
    ):
        assert (answer.status, site.page.live) == (405, 0)
