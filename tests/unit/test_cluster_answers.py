"""Answers of the API server are parsed without the field ownership that nothing reads."""

from __future__ import annotations

import json
from typing import Any

from workqueue_operator.kube.client import Cluster


class Server:
    """Answers each request with the same body, in the place of an ApiClient."""

    status = 200

    def __init__(self, body: dict[str, Any]) -> None:
        self._text = json.dumps(body)

    async def param_serialize(self, *_: Any, **__: Any) -> tuple[()]:
        return ()

    async def call_api(self, **_: Any) -> Server:
        return self

    async def read(self) -> str:
        return self._text


async def test_answers_have_no_managed_fields() -> None:
    def thing(**metadata: Any) -> dict[str, Any]:
        return {"metadata": {"name": "jobs", **metadata}, "spec": {"nested": [{"number": 1}]}}

    owned = thing(managedFields=[{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}])
    server: Any = Server({"metadata": {}, "items": [owned, owned]})

    assert await Cluster(server).get("/api") == {"metadata": {}, "items": [thing(), thing()]}


async def test_key_of_a_config_map_may_be_named_like_them() -> None:
    body = {"data": {"managedFields": "a text"}}
    server: Any = Server(body)

    assert await Cluster(server).get("/api") == body
