"""A form that is sent twice: with a double click, by a reload, or through another replica."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import pytest

from tests.support.website import Site, workqueue
from workqueue_web.server import COOKIE

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADDRESS = "/queues/shop/thumbs"


async def test_replay_sent_twice_replays_once_although_its_messages_came_back(site: Site) -> None:
    """They fail again immediately, so that there are as many dead letters as the form has shown."""
    site.put(workqueue("thumbs", deadLetters=4))
    headers = {"Origin": site.url, "Sec-Fetch-Site": "same-origin"}
    async with aiohttp.ClientSession(cookies={COOKIE: "admins"}, headers=headers) as session:
        async with session.get(f"{site.url}{ADDRESS}/replay") as answer:
            form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', await answer.text()))

        async def send() -> int:
            async with session.post(
                f"{site.url}{ADDRESS}/replay", data=form, allow_redirects=False
            ) as answer:
                site.letters.number = 4
                return answer.status

        assert sorted(await asyncio.gather(send(), send())) == [303, 409]
        assert await send() == 409
        async with session.post(f"{site.url}{ADDRESS}/replay", data=form | {"once": "x"}) as answer:
            assert answer.status == 400

        old = f"{int(form['once'][:8], 16) - 1801:08x}" + form["once"][8:]
        async with session.post(f"{site.url}{ADDRESS}/replay", data=form | {"once": old}) as answer:
            assert answer.status == 409
            assert "older than 30 minutes" in await answer.text()

    assert site.letters.settled == ["replay"]
    assert [event["note"].partition(": ")[2] for event in site.written] == [
        "replays 4 dead letters.",
        "4 of 4 dead letters were replayed.",
    ]
