"""What a kopf event leaves in memory: its object in the store, and nothing large in the event itself."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from tests.support.apiproxy import write_kubeconfig
from tests.support.wait import until
from workqueue_operator.kube import watch
from workqueue_operator.kube.store import Store
from workqueue_operator.names import LABEL_WORKQUEUE


def pod() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "team",
            "name": "jobs-worker-1",
            "uid": "u",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "resourceVersion": "7",
            "labels": {LABEL_WORKQUEUE: "jobs"},
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "worker"}]},
        "status": {"phase": "Running"},
    }


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """Disable the garbage collector: only reference counts free memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


DISCOVERY = {
    "versions": ["v1"],
    "groups": [],
    "resources": [
        {"name": name, "singularName": "", "kind": kind, "namespaced": namespaced, "verbs": ["list", "watch"]}
        for name, kind, namespaced in (("pods", "Pod", True), ("namespaces", "Namespace", False))
    ],
}
"""The answer to each question of kopf about the API."""


class Part(dict[str, Any]):
    """A dict that can be watched."""


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("kind", ["MODIFIED", "DELETED"])
def test_kopf_event_releases_its_object_without_garbage_collector(kind: str) -> None:
    store = Store(lambda _: None)
    raw = pod()
    raw["status"] = Part(raw["status"])
    watched = weakref.ref(raw["status"])
    body = kopf.Body(raw)  # type: ignore[arg-type]
    assert body.status["phase"] == "Running"
    watch._feed(store, "pods", {"type": kind, "object": raw})
    del raw, body
    assert watched() is None


async def test_kopf_remembers_no_object() -> None:
    memories = watch.NoMemories()
    body: Any = pod()

    one = await memories.recall(body, memobase=None, noticed_by_listing=True)
    other = await memories.recall(body)
    await memories.forget(body)

    assert one is not other
    assert not list(memories.iter_all_memories())


def test_store_keeps_its_own_copy_of_an_event() -> None:
    store = Store(lambda _: None)
    event = {"type": None, "object": pod()}
    watch._feed(store, "pods", event)
    kept = store.pods["team", "jobs-worker-1"]
    assert (kept.scheduled, kept.started) == (True, True)
    assert event["object"]["metadata"]["resourceVersion"] == "7", "kopf goes on with it"


async def test_repeated_login_with_same_token_is_a_new_login() -> None:
    """kopf exits when it gets refused credentials again; an API server may refuse them only for a moment."""
    login = kopf.ConnectionInfo(server="https://kubernetes", token="same")
    one, other = (watch._session(login, lambda: None) for _ in range(2))
    assert one != other
    for made in (one, other):
        await made.aiohttp_session.close()


@pytest.mark.parametrize(
    ("path", "status", "heard"),
    [
        pytest.param("/apis/workqueue.dev/v1alpha1/workqueues?limit=20", 200, 1, id="list"),
        pytest.param("/apis/workqueue.dev/v1alpha1/workqueues?limit=20", 500, 0, id="list-that-failed"),
        pytest.param(
            "/apis/workqueue.dev/v1alpha1/workqueues?watch=true&resourceVersion=1", 200, 0, id="watch"
        ),
        pytest.param("/apis/workqueue.dev/v1alpha1", 200, 0, id="discovery"),
    ],
)
async def test_session_of_kopf_reports_each_list_also_without_objects(
    path: str, status: int, heard: int
) -> None:
    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}}, status=status)

    lists: list[None] = []
    async with RawTestServer(answer) as server:
        login = kopf.ConnectionInfo(server=str(server.make_url("")))
        session = watch._session(login, lambda: lists.append(None)).aiohttp_session
        async with session, session.get(server.make_url(path)) as response:
            await response.read()
    assert len(lists) == heard


async def test_kopf_lists_again_when_a_list_expires_between_two_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow API server forgets the version of a LIST after some minutes, and answers 410."""
    monkeypatch.setattr(watch, "EXPIRED_AGAIN", (0.01, 0.01))
    lists: list[str] = []
    logins: list[kopf.AiohttpSession] = []
    real = watch._session
    monkeypatch.setattr(watch, "_session", lambda *about: logins.append(real(*about)) or logins[-1])

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if "watch" in request.query:
            stream = web.StreamResponse()
            await stream.prepare(request)
            await asyncio.Event().wait()
        if not request.path.endswith("/pods"):
            return web.json_response(DISCOVERY)
        token = request.query.get("continue", "")
        lists.append(token)
        if token == "old":
            return web.json_response({"kind": "Status", "code": 410, "reason": "Expired"}, status=410)
        found = {"metadata": {"resourceVersion": "9", "continue": "old" if len(lists) == 1 else ""}}
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": [pod()], **found})

    store = Store(lambda _: None)
    async with RawTestServer(answer) as server:
        credentials = write_kubeconfig(tmp_path / "kubeconfig", str(server.make_url("")))
        monkeypatch.setenv("KUBECONFIG", str(credentials))
        running = asyncio.create_task(
            watch.run(store, ["team"], identity="test", started=lambda: None, kinds=["pods"])
        )
        await until(lambda: len(lists) == 3 or running.done())
        assert not running.done(), running.exception()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert lists == ["", "old", ""]
    assert "The API server forgets the version of a LIST before kopf has read all of it." in caplog.messages
    assert [login.aiohttp_session.closed for login in logins] == [True]
