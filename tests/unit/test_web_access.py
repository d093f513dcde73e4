"""The user of a token: a TokenReview for the page's own audience."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster
from workqueue_web.access import Access

USER = {"username": "ann", "uid": "1", "groups": ["people"]}


def cluster(**status: Any) -> FakeCluster:
    made = FakeCluster()
    made.answer("POST", "tokenreviews", {"status": status})
    return made


async def test_token_review_uses_audience_of_the_page() -> None:
    asked = cluster(authenticated=True, user=USER, audiences=["jobs"])
    person = await Access(asked, audience="jobs").person("token")

    assert person is not None
    assert person.name == "ann"
    (request,) = asked.asked
    assert request.body["spec"] == {"token": "token", "audiences": ["jobs"]}


@pytest.mark.parametrize(
    "audiences",
    [{}, {"audiences": []}, {"audiences": ["https://kubernetes.default.svc"]}],
    ids=["an API server that knows no audiences", "none", "another audience"],
)
async def test_token_of_another_audience_is_refused(audiences: dict[str, Any]) -> None:
    said = cluster(authenticated=True, user=USER, **audiences)
    assert await Access(said).person("token") is None
