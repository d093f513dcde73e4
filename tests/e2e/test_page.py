"""The web page on the real cluster: its own pods, tokens and rights from the API server, and no operator needed."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import re
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import pytest
import yaml
from playwright.async_api import Page, expect

from tests.support import helm
from tests.support.browser import chromium, looking
from tests.support.inside import Rabbit
from tests.support.kubernetes import PortForward, kubeconfig, kubectl, temporary_namespace
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab, lab_in


@pytest.fixture(scope="module")
def page_lab(crd: None, rabbit: Rabbit) -> Iterator[Lab]:
    """A namespace that only the operator of this module serves."""
    with (
        temporary_namespace("e2e-page", pod_security="restricted") as namespace,
        lab_in(namespace, rabbit) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def release(page_lab: Lab) -> Iterator[OperatorRelease]:
    """An operator, and two replicas of the page."""
    with temporary_namespace("e2e-page-system", pod_security="restricted") as system:
        made = OperatorRelease(f"page-{secrets.token_hex(3)}", system, helm.run)
        page = {"enabled": True, "replicaCount": 2, "actions": {"enabled": True}}
        made.install(watchNamespaces=[page_lab.namespace], page=page)
        yield made
        made.uninstall()


@contextmanager
def forwarded(namespace: str, pod: str) -> Iterator[str]:
    """One replica of the page, through a port-forward."""
    forward = PortForward(namespace, f"pod/{pod}", 8081)
    try:
        yield f"http://127.0.0.1:{forward.port}"
    finally:
        forward.close()


@pytest.fixture(scope="module")
def pages(release: OperatorRelease) -> Iterator[tuple[str, str]]:
    """The addresses of both replicas of the page."""
    first, second = (pod["metadata"]["name"] for pod in release.page_pods())
    with forwarded(release.namespace, first) as one, forwarded(release.namespace, second) as other:
        yield one, other


@pytest.fixture(scope="module")
def tokens(page_lab: Lab, release: OperatorRelease) -> dict[str, str]:
    """Tokens of a user who may list the WorkQueues of the namespace, of one who may not, and of one who may patch."""
    where = f"--namespace={page_lab.namespace}"
    for name in ("looker", "stranger", "changer"):
        kubectl("create", "serviceaccount", name, where)
    rights = [
        ("looker", "list", "workqueues.workqueue.dev"),
        ("changer", "list,patch", "workqueues.workqueue.dev"),
    ]
    for name, verbs, resource in (*rights, ("changer", "get", "secrets")):
        role, account = f"{name}-of-{resource}", f"--serviceaccount={page_lab.namespace}:{name}"
        kubectl("create", "role", role, f"--verb={verbs}", f"--resource={resource}", where)
        kubectl("create", "rolebinding", role, f"--role={role}", account, where)
    make = "create", "token", where, "--audience=workqueue-page"
    return {name: kubectl(*make, name).strip() for name in ("looker", "stranger", "changer")}


def text_of(url: str, token: str) -> tuple[int, str]:
    """Return status and text of a page for the user of this token."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.slow
def test_page_and_api_server_refuse_tokens_of_each_other(
    page_lab: Lab, pages: tuple[str, str], tokens: dict[str, str]
) -> None:
    for_the_api_server = kubectl("create", "token", "looker", f"--namespace={page_lab.namespace}").strip()
    code, said = text_of(pages[0], for_the_api_server)
    assert "Log in" in said, code
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
    asked = json.dumps({**review, "spec": {"token": tokens["looker"]}})
    answer = json.loads(kubectl("create", "--filename=-", "--output=json", input=asked))
    assert not answer["status"].get("authenticated"), "the page's token at the API server"


@pytest.mark.slow
async def test_page_shows_main_job_only_to_users_who_may_list_workqueues(
    page_lab: Lab, pages: tuple[str, str], tokens: dict[str, str]
) -> None:
    workqueue = page_lab.workqueue(
        "watched", worker={"handler": {"python": "jobs:moody"}}, scaling={"scaleInDelaySeconds": 600}
    )
    await asyncio.to_thread(lambda: workqueue.apply().wait_ready())
    code, said = await asyncio.to_thread(text_of, pages[0], tokens["stranger"])
    assert (code, "may not list WorkQueues" in said) == (403, True)
    async with chromium() as browser, looking(browser) as seen:
        page = seen.page
        await page.goto(pages[0])
        await page.get_by_label("Token").fill(tokens["stranger"] + "x")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.get_by_label("Token").fill(tokens["looker"])
        await page.get_by_role("button", name="Log in").click()
        row = page.get_by_role("row", name=f"{page_lab.namespace}/watched")
        await expect(row).to_contain_text("Yes")
        jobs: list[dict[str, Any]] = [{"id": number, "reject": True} for number in range(3)]
        await asyncio.to_thread(workqueue.publish, [*jobs, {"id": "good"}])
        await page.get_by_role("link", name=f"{page_lab.namespace}/watched").click()
        await expect(page.locator(".decisions")).to_contain_text("Scaled out from 0")
        await expect(page.get_by_role("row", name="watched-worker").first).to_contain_text("idle")
        await expect(page.locator(".reasons")).to_contain_text("Rejected")
        await expect(page.get_by_text("From the first 3 of 3.")).to_be_visible()
    assert [text for text in seen.complaints if "401" not in text] == []
    assert await asyncio.to_thread(page_lab.consumers, "watched.dead") == 0
    all_back = lambda: page_lab.ready("watched.dead") == 3  # noqa: E731
    await asyncio.to_thread(eventually, all_back, 60, "what was looked at was put back")


@pytest.mark.slow
async def test_every_replica_accepts_login_of_any_other(
    page_lab: Lab, pages: tuple[str, str], tokens: dict[str, str]
) -> None:
    await asyncio.to_thread(lambda: page_lab.workqueue("shown").apply().wait_ready())
    async with chromium() as browser, looking(browser) as seen:
        await seen.page.goto(pages[0])
        await seen.page.get_by_label("Token").fill(tokens["looker"])
        await seen.page.get_by_role("button", name="Log in").click()
        for url in pages:
            await seen.page.goto(url)
            row = seen.page.get_by_role("row", name=f"{page_lab.namespace}/shown")
            await expect(row).to_contain_text("Yes")
            await expect(seen.page.locator("#state")).to_have_text("live")
    assert seen.complaints == []


@asynccontextmanager
async def on_page_of(url: str, token: str) -> AsyncIterator[Page]:
    """A browser that is logged in and shows a page."""
    async with chromium() as browser, looking(browser) as seen:
        await seen.page.goto(url)
        await seen.page.get_by_label("Token").fill(token)
        await seen.page.get_by_role("button", name="Log in").click()
        yield seen.page
    assert [text for text in seen.complaints if "401" not in text] == []


@pytest.mark.slow
async def test_user_pauses_and_deletes_dead_letters_on_the_page_and_viewer_cannot(
    page_lab: Lab, pages: tuple[str, str], tokens: dict[str, str]
) -> None:
    workqueue = page_lab.workqueue("changed", worker={"handler": {"python": "jobs:moody"}})
    await asyncio.to_thread(lambda: workqueue.apply().wait_ready())
    await asyncio.to_thread(workqueue.publish, [{"id": "bad", "reject": True}])
    detail = f"{pages[0]}/queues/{page_lab.namespace}/changed"
    user = f"system:serviceaccount:{page_lab.namespace}:changer"
    async with on_page_of(detail, tokens["changer"]) as page:
        await expect(page.get_by_role("link", name="Delete dead letters")).to_be_visible()
        await page.get_by_role("link", name="Pause", exact=True).click()
        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_text("Paused. Running workers continue")).to_be_visible()
        await expect(page.get_by_role("link", name="Resume")).to_be_visible()
        await asyncio.to_thread(workqueue.wait_condition, "Ready", "False", "Suspended")
        await page.get_by_role("link", name="Delete dead letters").click()
        await page.get_by_label("To confirm, write the name").fill("changed")
        await page.get_by_role("button", name="Delete dead letters").click()
        await expect(page.get_by_text("1 dead letter was deleted.")).to_be_visible()
        await expect(page.locator(".decisions")).to_contain_text(f"{user}, on the web page: pauses it.")
    assert await asyncio.to_thread(page_lab.ready, "changed.dead") == 0
    spec = (await asyncio.to_thread(workqueue.get))["spec"]
    assert spec["suspend"] is True

    code, said = await asyncio.to_thread(text_of, f"{detail}/resume", tokens["looker"])
    assert (code, "it takes the right to patch workqueues changed" in said) == (403, True)
    async with on_page_of(detail, tokens["looker"]) as page:
        await expect(page.get_by_text("you need the right to patch workqueues changed")).to_be_visible()
        await expect(page.get_by_role("link", name="Resume")).to_have_count(0)


def patch_as_the_page(page_lab: Lab, release: OperatorRelease, name: str, body: dict[str, Any]) -> str:
    """Patch a WorkQueue with the page's own token; return the API server's refusal. (kubectl would read it first.)"""
    cluster = yaml.safe_load(kubeconfig().read_text())["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    token = kubectl("create", "token", f"{release.name}-page", f"--namespace={release.namespace}").strip()
    request = urllib.request.Request(
        f"{cluster['server']}/apis/workqueue.dev/v1alpha1/namespaces/{page_lab.namespace}/workqueues/{name}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
        method="PATCH",
    )
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cadata=authority)):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return str(json.load(error)["message"])


@pytest.mark.slow
def test_policy_keeps_the_page_from_changing_an_image(page_lab: Lab, release: OperatorRelease) -> None:
    page_lab.workqueue("kept").apply().wait_ready()

    def refusal(**body: Any) -> str:
        return patch_as_the_page(page_lab, release, "kept", body)

    for spec in ({"worker": {"image": "evil:1"}}, {"suspend": True, "scaling": {"maxReplicas": 9}}):
        assert "The page changes only spec.suspend and spec.replicas" in refusal(spec=spec)
    assert "The page changes no metadata" in refusal(metadata={"labels": {"a": "b"}})
    assert refusal(spec={"suspend": True, "replicas": 2}) == ""
    assert refusal(spec={"suspend": False, "replicas": None}) == ""


@contextmanager
def no_operator(release: OperatorRelease) -> Iterator[None]:
    """Scale the operator to zero while the context lasts."""
    scale = "scale", "deployment", release.name, f"--namespace={release.namespace}"
    kubectl(*scale, "--replicas=0")
    eventually(lambda: not release.pods(), 120, "the operator's pods are gone")
    try:
        yield
    finally:
        kubectl(*scale, "--replicas=2")
        kubectl("rollout", "status", f"deployment/{release.name}", f"--namespace={release.namespace}")


@pytest.mark.slow
def test_page_works_while_no_operator_runs(
    page_lab: Lab, release: OperatorRelease, pages: tuple[str, str], tokens: dict[str, str]
) -> None:
    def shows(path: str, *texts: str) -> bool:
        code, said = text_of(f"{pages[0]}{path}", tokens["looker"])
        return code == 200 and all(text in said for text in texts)

    left_alone = page_lab.workqueue("left-alone", worker={"handler": {"python": "jobs:moody"}})
    left_alone.apply().wait_ready()
    left_alone.publish([{"id": "bad", "reject": True}])
    detail = f"/queues/{page_lab.namespace}/left-alone"
    eventually(lambda: shows(detail, "From the first 1 of 1."), 240, "the status has the dead letter")

    with no_operator(release):
        page_lab.workqueue("waits-for-operator").apply()

        eventually(lambda: shows("/", "waits-for-operator", "AwaitingOperator"), 120, "the watch shows it")
        eventually(lambda: shows("/", "No operator has run for"), 120, "its numbers are marked")
        eventually(lambda: shows(detail, "Scaled out from 0", "From the first 1 of 1."), 120, "all is read")


@pytest.mark.slow
async def test_50_viewers_open_no_connection_to_the_operator(
    page_lab: Lab, release: OperatorRelease, pages: tuple[str, str], tokens: dict[str, str]
) -> None:
    workqueue = page_lab.workqueue("viewed", worker={"handler": {"python": "jobs:moody"}})
    await asyncio.to_thread(lambda: workqueue.apply().wait_ready())
    headers = {"Authorization": f"Bearer {tokens['looker']}"}
    async with (
        aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session,
        AsyncExitStack() as viewers,
    ):
        urls = [f"{pages[0]}/events", f"{pages[0]}/queues/{page_lab.namespace}/viewed/events"]
        streams = [await viewers.enter_async_context(session.get(url)) for url in urls * 25]
        assert {stream.status for stream in streams} == {200}

        await asyncio.to_thread(workqueue.publish, [{"id": number, "reject": True} for number in range(2)])
        async with asyncio.timeout(240):
            await asyncio.gather(*(_until_dead_letters(stream) for stream in streams))

        page_ips = {pod["status"]["podIP"] for pod in release.page_pods()}
        for pod in await asyncio.to_thread(release.pods):
            peers = await asyncio.to_thread(peers_of, release.namespace, pod["metadata"]["name"])
            assert peers, "the operator is connected to the API server"
            assert not peers & page_ips


async def _until_dead_letters(stream: aiohttp.ClientResponse) -> None:
    """Read a live page until it shows two dead letters of the WorkQueue."""
    text = ""
    async for line in stream.content:
        text = "" if line.startswith(b"event:") else text + line.decode()
        if re.search(
            r'viewed.*class="number warn"><span class="n">2<|<dt>Dead letters</dt><dd><span class="n">2<',
            text,
            re.DOTALL,
        ):
            return
    raise AssertionError("the stream ended")


def peers_of(namespace: str, pod: str) -> set[str]:
    """The addresses that a pod has connections with."""
    table = kubectl("exec", f"--namespace={namespace}", pod, "--", "cat", "/proc/net/tcp", "/proc/net/tcp6")
    remote = [
        fields[2].partition(":")[0] for fields in map(str.split, table.splitlines()) if ":" in fields[2]
    ]
    # The last eight digits are the IPv4 address, also of one that is mapped to IPv6.
    return {str(ipaddress.ip_address(bytes.fromhex(one[-8:])[::-1])) for one in remote} - {"0.0.0.0"}


@pytest.mark.slow
def test_revoked_right_ends_access_within_a_minute(
    page_lab: Lab, pages: tuple[str, str], tokens: dict[str, str]
) -> None:
    def status() -> int:
        return text_of(pages[0], tokens["looker"])[0]

    eventually(lambda: status() == 200, 100, "the right is in force")
    kubectl(
        "delete", "rolebinding", "looker-of-workqueues.workqueue.dev", f"--namespace={page_lab.namespace}"
    )
    eventually(lambda: status() == 403, 100, "the page asks again")
