"""How often the page asks the API server about its users."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from workqueue_operator.errors import ClusterError
from workqueue_web import access
from workqueue_web.access import AUDIENCE, Access, Person

NAMESPACES = [f"team-{number}" for number in range(300)]


class Reviews:
    """An API server that lets each user list the WorkQueues of one namespace."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.now = 0.0
        self.access = Access(self.cluster, lambda: self.now)
        self.cluster.answer("POST", "tokenreviews", self._token)
        self.cluster.answer("POST", "subjectaccessreviews", self._right)

    @property
    def asked(self) -> int:
        return len(self.cluster.asked)

    def _token(self, request: Request) -> dict[str, Any]:
        user = {"username": request.body["spec"]["token"], "groups": ["people"]}
        return {"status": {"authenticated": True, "audiences": [AUDIENCE], "user": user}}

    async def _right(self, request: Request) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {
            "status": {
                "allowed": request.body["spec"]["resourceAttributes"].get("namespace") == NAMESPACES[7]
            }
        }


def person(name: str) -> Person:
    return Person(name, "", ("people",), ())


async def test_users_of_single_namespaces_do_not_forget_each_others_rights() -> None:
    reviews = Reviews()
    users = [person(f"user-{number}") for number in range(10)]

    async def look() -> None:
        for user in users:
            assert await reviews.access.namespaces(user, NAMESPACES) == {NAMESPACES[7]}

    await look()
    asked = reviews.asked
    assert asked == len(users) * (len(NAMESPACES) + 1)

    await look()

    assert reviews.asked == asked


async def test_number_of_kept_rights_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "RIGHTS_KEPT", 1000)
    reviews = Reviews()
    for number in range(10):
        await reviews.access.namespaces(person(f"user-{number}"), NAMESPACES)

    kept = reviews.access._rights
    assert [one.name for one in kept] == ["user-7", "user-8", "user-9"]
    assert reviews.access._rights_kept == sum(map(len, kept.values()))


async def test_number_of_kept_rights_of_one_user_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "RIGHTS_KEPT", 100)
    reviews = Reviews()
    for name in NAMESPACES:
        await reviews.access.may_list(person("ann"), name)

    kept = reviews.access._rights[person("ann")]
    assert [right.namespace for right in kept] == NAMESPACES[200:]
    assert reviews.access._rights_kept == len(kept)


async def test_open_pages_of_one_user_ask_once_in_the_same_moment() -> None:
    reviews = Reviews()

    async def page() -> frozenset[str]:
        found = await reviews.access.person("ann")
        assert found is not None
        return await reviews.access.namespaces(found, NAMESPACES[:20])

    for asked in (22, 44):
        assert set(await asyncio.gather(*(page() for _ in range(96)))) == {frozenset([NAMESPACES[7]])}
        assert reviews.asked == asked
        reviews.now += access.KEPT_SECONDS


async def test_question_before_a_change_is_never_shared() -> None:
    reviews = Reviews()
    right = access.Right("patch", "workqueue.dev", "workqueues", NAMESPACES[7], "thumbs")

    await asyncio.gather(*(reviews.access.may(person("ann"), right, fresh=True) for _ in range(3)))

    assert reviews.asked == 3


async def test_failed_question_fails_for_all_and_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    reviews = Reviews()
    reviews.cluster.answer("POST", "tokenreviews", ClusterError(429, "too many requests"))

    answers = await asyncio.gather(*(reviews.access.person("ann") for _ in range(3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [ClusterError] * 3
    reviews.cluster.answer("POST", "tokenreviews", reviews._token)
    assert await reviews.access.person("ann") == person("ann")
    assert caplog.records == []


@pytest.mark.parametrize("token", ["\udcff", "é", "a\nb"])
async def test_text_that_is_no_token_is_not_asked_about(token: str) -> None:
    reviews = Reviews()
    assert (await reviews.access.person(token), reviews.asked) == (None, 0)
