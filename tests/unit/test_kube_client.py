"""Answers that do not come from the API server itself, but from something before it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster


class Proxy:
    """The client of a server that answers each request in the same way."""

    def __init__(self, status: int, text: bytes, **headers: str) -> None:
        self._answer = SimpleNamespace(status=status, headers=headers, read=self._read)
        self._text = text

    async def _read(self) -> bytes:
        return self._text

    async def param_serialize(self, *_: Any, **__: Any) -> tuple[()]:
        return ()

    async def call_api(self, **_: Any) -> Any:
        return self._answer


async def refusal(proxy: Any) -> ClusterError:
    with pytest.raises(ClusterError) as caught:
        await Cluster(proxy).get("/api/v1/pods")
    return caught.value


async def test_page_instead_of_an_answer_is_no_answer_of_the_api_server() -> None:
    error = await refusal(Proxy(200, b"<html>Sign in</html>"))

    assert error.status == 0, "the request may have happened"
    assert "no JSON" in error.message


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("1", 1.0), ("86400", 60.0), ("9" * 400, 60.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)],
    ids=["second", "day", "number-beyond-floats", "date", "empty"],
)
async def test_pause_that_is_asked_for_has_a_bound(asked: str, expected: float | None) -> None:
    error = await refusal(Proxy(503, b"<html>Maintenance</html>", **{"Retry-After": asked}))

    assert (error.status, error.message, error.retry_after) == (503, "HTTP 503", expected)
