"""Users who may write a Secret or run a pod choose the server behind an address: the operator distrusts it."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from workqueue.contract.binding import Binding
from workqueue.contract.signing import HEADER, Purpose, sign
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.broker import management as managing
from workqueue_operator.broker.management import (
    LARGEST_PAGE,
    LARGEST_QUEUE,
    MOST_PAGES,
    PARSED_AT_ONCE,
    Management,
)
from workqueue_operator.destinations import Destinations
from workqueue_operator.workers.client import Address, Answer, SigningKeys, Workers

PASSWORD = "p-Hx7!secret"
BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
MOST_MEMORY = 64 * 1024 * 1024

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(answer: Answering) -> AsyncIterator[tuple[int, list[str]]]:
    """An HTTP server; yields its port and the requested paths."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


def binding(management_uri: str) -> Binding:
    return Binding((("rabbitmq", 5672),), "user", PASSWORD, management_uri=management_uri)


def fixed(status: int, body: bytes = b"", **headers: str) -> Answering:
    async def answer(_: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers={"Content-Type": "application/json"} | named)

    return answer


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        while True:
            await response.write(b" " * 1024 * 1024)
    except ConnectionError:
        return response


ANSWERS: dict[str, Answering] = {
    "401": fixed(401),
    "404 with our own header sent back": fixed(404, BASIC.encode()),
    "500": fixed(500, b"[" * 1000),
    "a redirect to another server": fixed(302, Location="http://169.254.169.254/latest/meta-data"),
    "a redirect within": fixed(307, Location="/elsewhere"),
    "an answer without end": endless,
    "a compressed gigabyte": fixed(200, gzip.compress(b" " * 64_000_000), Content_Encoding="gzip"),
    "JSON 100,000 deep": fixed(200, b"[" * 100_000),
    "a list": fixed(200, b"[]"),
    "text": fixed(200, b"no json"),
    "numbers that are none": fixed(200, b'{"messages_unacknowledged": "7", "slots": 1e999, "busy": -1}'),
}
answers = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)


@answers
async def test_hostile_management_api_gets_no_password_and_no_redirect(
    answer: Answering,
) -> None:
    management = Management()
    try:
        async with server(answer) as (port, asked):
            tracemalloc.start()
            said = await management.unacknowledged(binding(f"http://127.0.0.1:{port}"), "jobs")
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        await management.close()
    assert isinstance(said, Unknown)
    assert said.reason is Reason.UNACKNOWLEDGED_UNKNOWN
    assert PASSWORD not in said.message
    assert BASIC not in said.message
    assert "Authorization" not in said.message
    assert len(said.message) < 600
    assert len(asked) == 1
    assert peak < MOST_MEMORY


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{PASSWORD}/x@127.0.0.1:1",
        f"http://[user:{PASSWORD}@127.0.0.1:1",
        f"http://user:{PASSWORD}@127.0.0.1:{PASSWORD}",
        f"http://127.0.0.1:1{PASSWORD}",
        f"user:{PASSWORD}@127.0.0.1",
        PASSWORD,
        f"http://user:{PASSWORD}@127.0.0.1:1",
        f"http://127.0.0.1:1/?{PASSWORD}",
        f"http://127.0.0.1:1/#{PASSWORD}",
        f"file:///{PASSWORD}",
    ],
)
async def test_unreadable_management_address_is_not_quoted(address: str) -> None:
    management = Management()
    try:
        said = await management.unacknowledged(binding(address), "jobs")
        also = await management.delay_queues(binding(address), "jobs")
    finally:
        await management.close()
    for one in (said, also):
        assert isinstance(one, Unknown)
        assert PASSWORD not in one.message


@pytest.mark.parametrize("rest", ["?x=1", "/?", "#x", "/#"])
async def test_management_address_with_query_or_fragment_is_not_called(rest: str) -> None:
    management = Management()
    try:
        async with server(fixed(200, b'{"messages_unacknowledged": 7}')) as (port, asked):
            said = await management.unacknowledged(binding(f"http://127.0.0.1:{port}{rest}"), "jobs")
    finally:
        await management.close()
    assert isinstance(said, Unknown)
    assert "without credentials, query and fragment" in said.message
    assert asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Destinations(), "must not connect to"),
        (Destinations(("*",)), "must not connect to"),
        (Destinations(("rabbitmq.shop.svc",)), "does not list the host"),
    ],
    ids=["no-list", "everything", "another-host"],
)
async def test_management_address_of_operator_itself_is_not_called(
    host: str, rule: Destinations, sentence: str
) -> None:
    management = Management(rule)
    try:
        async with server(fixed(200, b'{"messages_unacknowledged": 7}')) as (port, asked):
            said = await management.unacknowledged(binding(f"http://{host}:{port}"), "jobs")
    finally:
        await management.close()
    assert isinstance(said, Unknown)
    assert sentence in said.message
    assert asked == []


async def test_explicitly_allowed_management_host_is_called() -> None:
    management = Management(Destinations(("localhost",)))
    try:
        async with server(fixed(200, b'{"messages_unacknowledged": 7}')) as (port, asked):
            said = await management.unacknowledged(binding(f"http://localhost:{port}"), "jobs")
    finally:
        await management.close()
    assert said == 7
    assert len(asked) == 1


async def test_large_answer_about_one_queue_is_refused() -> None:
    management = Management()
    body = b'{"messages_unacknowledged": 7, "x": "' + b"x" * LARGEST_QUEUE + b'"}'
    try:
        async with server(fixed(200, body)) as (port, _):
            said = await management.unacknowledged(binding(f"http://127.0.0.1:{port}"), "jobs")
    finally:
        await management.close()
    assert isinstance(said, Unknown)
    assert f"larger than {LARGEST_QUEUE} bytes" in said.message


async def test_large_page_is_parsed_in_a_thread_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed_in: list[bool] = []
    loads = json.loads

    def noted(text: bytes) -> Any:
        parsed_in.append(threading.current_thread() is threading.main_thread())
        return loads(text)

    monkeypatch.setattr(managing.json, "loads", noted)
    small = b'{"items": [{"name": "jobs.retry.1s"}], "page_count": 1}'
    management = Management()
    try:
        for size in (len(small), PARSED_AT_ONCE + 1):
            async with server(fixed(200, small.ljust(size))) as (port, _):
                found = await management.delay_queues(binding(f"http://127.0.0.1:{port}"), "jobs")
            assert found == ["jobs.retry.1s"]
        async with server(fixed(200, small.ljust(LARGEST_PAGE + 1))) as (port, _):
            found = await management.delay_queues(binding(f"http://127.0.0.1:{port}"), "jobs")
        assert isinstance(found, Unknown)
        async with server(fixed(200, b'{"items": [], "page_count": 1000000}')) as (port, asked):
            found = await management.delay_queues(binding(f"http://127.0.0.1:{port}"), "jobs")
        assert isinstance(found, Unknown)
        assert len(asked) == MOST_PAGES
    finally:
        await management.close()
    assert parsed_in[:2] == [True, False]


@answers
async def test_hostile_worker_response_counts_as_no_response(answer: Answering) -> None:
    async with server(answer) as (port, asked):
        workers = Workers(port)
        try:
            address = Address("pod", "uid", "127.0.0.1")
            tracemalloc.start()
            assert await workers.statuses([address]) == {}
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            await workers.close()
    assert asked == ["/status"]
    assert peak < MOST_MEMORY


async def test_endless_worker_response_is_no_consent() -> None:
    async with server(endless) as (port, _):
        workers = Workers(port)
        try:
            said = await workers.retire(
                [Address("pod", "uid", "127.0.0.1")], SigningKeys(b"key", b"password")
            )
        finally:
            await workers.close()
    assert said == {"pod": Answer.UNREACHABLE}


async def test_calls_to_worker_do_not_expose_password_to_guessing() -> None:
    """A process at the address of a pod gets a signature with the retirement key, which is random."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers[HEADER])
        return web.json_response({"error": "Wrong", "retirementKey": True}, status=401)

    async with server(answer) as (port, _):
        workers = Workers(port)
        try:
            await workers.retire([Address("pod", "uid", "127.0.0.1")], SigningKeys(b"key", PASSWORD.encode()))
        finally:
            await workers.close()
    (header,) = seen
    stamp = float(header.partition(":")[0])
    assert header == sign(Purpose.RETIRE, "uid", b"key", stamp)
    assert header != sign(Purpose.RETIRE, "uid", PASSWORD.encode(), stamp)
