"""Requests to the API server: credentials, content types, and the errors of its answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.ports import free_port
from workqueue_operator.errors import ClusterError, ConfigurationError
from workqueue_operator.kube import client, login
from workqueue_operator.kube.client import Cluster, connect

PATH = "/apis/apps/v1/namespaces/team/deployments/jobs"


class Server:
    """An API server that notes each request and answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.bodies: list[str] = []
        self.answer: Callable[[], web.StreamResponse] = lambda: web.json_response({"kind": "Deployment"})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.bodies.append(await request.text())
        return self.answer()


def kubeconfig(server: str, **user: str) -> str:
    named = [{"name": "one", "cluster": {"server": server}}]
    return json.dumps(
        {
            "current-context": "one",
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
            "clusters": named,
            "users": [{"name": "one", "user": user}],
        }
    )


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    made = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.handle)
    async with TestServer(application) as running:
        file = tmp_path / "kubeconfig"
        file.write_text(kubeconfig(str(running.make_url("")), token="secret"))
        monkeypatch.setenv("KUBECONFIG", str(file))
        yield made


@pytest.fixture
async def cluster(server: Server) -> AsyncIterator[Cluster]:
    made = await connect()
    yield made
    await made.close()


async def test_request_carries_token_and_query(server: Server, cluster: Cluster) -> None:
    await cluster.get(PATH, limit="50", **{"continue": "a+b/c="})

    (asked,) = server.asked
    assert asked.headers["Authorization"] == "Bearer secret"
    assert asked.headers["Accept"] == "application/json"
    assert (asked.path, dict(asked.query)) == (PATH, {"limit": "50", "continue": "a+b/c="})


async def test_apply_sends_yaml_that_is_json(server: Server, cluster: Cluster) -> None:
    await cluster.apply(PATH, {"metadata": {"name": "jobs", "annotations": {"note": "\N{PARTY POPPER}"}}})

    (asked,) = server.asked
    assert asked.method == "PATCH"
    assert asked.content_type == "application/apply-patch+yaml"
    assert asked.query["force"] == "true"
    assert "\\U0001f389" in server.bodies[0]


async def test_json_patch_sends_its_operations(server: Server, cluster: Cluster) -> None:
    operations: list[dict[str, Any]] = [{"op": "replace", "path": "/spec/replicas", "value": 1}]

    await cluster.json_patch(PATH, operations)

    assert server.asked[0].content_type == "application/json-patch+json"
    assert json.loads(server.bodies[0]) == operations


async def test_refusal_has_message_and_pause_of_the_server(server: Server, cluster: Cluster) -> None:
    server.answer = lambda: web.json_response(
        {"message": "too many requests"}, status=429, headers={"Retry-After": "7"}
    )

    with pytest.raises(ClusterError, match="too many requests") as found:
        await cluster.get(PATH)

    assert (found.value.status, found.value.retry_after) == (429, 7.0)


async def test_server_that_does_not_answer_is_an_error(
    server: Server, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster._session, "_login", login.Login(server=f"http://127.0.0.1:{free_port()}"))

    with pytest.raises(ClusterError) as found:
        await cluster.get(PATH)

    assert found.value.status == 0


async def test_renewed_token_of_a_service_account_is_used(
    server: Server, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = cluster._session._login.server
    monkeypatch.setattr(client, "LOGIN_SECONDS", 0.0)
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setattr(
        "kopf.login_with_service_account", lambda **_: login.Login(server=place, token="renewed")
    )

    await cluster.get(PATH)

    assert server.asked[0].headers["Authorization"] == "Bearer renewed"


@pytest.mark.parametrize(
    ("host", "server"),
    [
        pytest.param("10.96.0.1", "https://10.96.0.1:443", id="ipv4"),
        pytest.param("fd00::1", "https://[fd00::1]:443", id="ipv6"),
        pytest.param("", "https://kubernetes.default.svc", id="no-environment"),
    ],
)
def test_pod_needs_no_dns_to_reach_the_api_server(
    host: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    of_kopf = login.Login(server="https://kubernetes.default.svc", token="secret")
    monkeypatch.setattr("kopf.login_with_service_account", lambda **_: of_kopf)

    assert login.log_in().server == server


def test_process_without_credentials_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(ConfigurationError, match="set KUBECONFIG"):
        login.log_in()
