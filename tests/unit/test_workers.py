"""What the workers' endpoints are asked, and what each answer, or none, means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support.wait import until
from workqueue.contract import signing
from workqueue.contract.signing import Purpose, SignatureCheck
from workqueue_operator.workers import client as module
from workqueue_operator.workers.client import Address, Answer, SigningKeys, Workers, WorkerStatus

KEY = b"retirement key"
PASSWORD = b"password"
KEYS = SigningKeys(KEY, PASSWORD)
STATUS = {
    "slots": 4,
    "busy": 1,
    "consuming": True,
    "retired": False,
    "handled": 10,
    "meanHandlerSeconds": 2.0,
    "recentHandlerSeconds": 1.5,
    "arrivalPerSecond": 0.5,
    "connected": True,
    "lastError": None,
    "uptimeSeconds": 60.0,
    "version": "1",
}


class Endpoint:
    """The worker's side of the contract, for a pod with the uid `uid-a`."""

    def __init__(self) -> None:
        self.status: Any = STATUS
        self.retire_status = 200
        self.key = KEY
        self.says_it_knows_the_key = True
        self.verdicts: list[SignatureCheck] = []
        self.port = 0
        self.install = asyncio.Event()
        self.install.set()

    async def on_status(self, _: web.Request) -> web.Response:
        await self.install.wait()
        if isinstance(self.status, int):
            return web.Response(status=self.status, headers={"Location": "/retire"})
        return web.json_response(self.status)

    async def on_retire(self, request: web.Request) -> web.Response:
        purpose = Purpose.RETIRE if request.method == "POST" else Purpose.RESUME
        header = request.headers.get(signing.HEADER)
        verdict = signing.verify(header, purpose, "uid-a", self.key, time.time())
        self.verdicts.append(verdict)
        if verdict is SignatureCheck.GOOD:
            return web.json_response({}, status=self.retire_status)
        knows = {"retirementKey": True} if self.says_it_knows_the_key else {}
        return web.json_response({"error": str(verdict), **knows}, status=401)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    app = web.Application()
    app.router.add_get("/status", made.on_status)
    app.router.add_post("/retire", made.on_retire)
    app.router.add_delete("/retire", made.on_retire)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    made.install.set()
    await runner.cleanup()


@pytest.fixture
async def workers(endpoint: Endpoint) -> AsyncIterator[Workers]:
    made = Workers(endpoint.port)
    yield made
    await made.close()


A = Address("a", "uid-a", "127.0.0.1")
NOBODY = Address("nobody", "uid-n", "127.0.0.2")


async def test_worker_state_is_read(workers: Workers) -> None:
    assert await workers.statuses([A]) == {"a": WorkerStatus(4, 1, True, 1.5, 0.5)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"recentHandlerSeconds": None}, WorkerStatus(4, 1, True, 2.0, 0.5)),
        (
            {"recentHandlerSeconds": None, "meanHandlerSeconds": None, "arrivalPerSecond": None},
            WorkerStatus(4, 1, True, None, 0.0),
        ),
        ({"recentHandlerSeconds": 0.0}, WorkerStatus(4, 1, True, 0.0, 0.5)),
        ({"retryDelaysSeconds": [1, 60]}, WorkerStatus(4, 1, True, 1.5, 0.5, frozenset({1, 60}))),
        (
            {"delayQueues": ["jobs.retry.high.1s"]},
            WorkerStatus(4, 1, True, 1.5, 0.5, delay_queues=frozenset({"jobs.retry.high.1s"})),
        ),
        ({"busySeconds": 31.5}, WorkerStatus(4, 1, True, 1.5, 0.5, busy_seconds=31.5)),
        (
            {"received": 9, "handlerTimes": {"-4": 1, "8": 7}},
            WorkerStatus(4, 1, True, 1.5, 0.5, received=9, handler_times={-4: 1, 8: 7}),
        ),
    ],
    ids=[
        "nothing lately: the mean of all",
        "nothing at all yet",
        "a handler that takes no time",
        "delay queues",
        "delay queues for priorities",
        "a handler that runs for long",
        "the distribution of handler times",
    ],
)
async def test_missing_worker_figures_are_unknown(
    endpoint: Endpoint, workers: Workers, changes: dict[str, Any], expected: WorkerStatus
) -> None:
    endpoint.status = {**STATUS, **changes}
    assert await workers.statuses([A]) == {"a": expected}


@pytest.mark.parametrize(
    "status",
    [
        503,
        302,
        [],
        "busy",
        {},
        {**STATUS, "busy": None},
        {**STATUS, "busy": -1},
        {**STATUS, "arrivalPerSecond": float("inf")},
        {**STATUS, "arrivalPerSecond": 10**400},
        {**STATUS, "recentHandlerSeconds": float("nan")},
        {**STATUS, "recentHandlerSeconds": "long"},
        {**STATUS, "retryDelaysSeconds": [0]},
        {**STATUS, "retryDelaysSeconds": [2_592_001]},
        {**STATUS, "retryDelaysSeconds": list(range(1, 1000))},
        {**STATUS, "retryDelaysSeconds": 5},
        {**STATUS, "delayQueues": 5},
        {**STATUS, "busySeconds": -1},
        {**STATUS, "received": "many"},
        {**STATUS, "handlerTimes": [1]},
        {**STATUS, "handlerTimes": {"100": 1}},
    ],
    ids=[
        "an error",
        "a redirect, which is not followed",
        "a list",
        "a string",
        "an empty object",
        "a number that is none",
        "a number below zero",
        "a number without end",
        "a number of 400 digits",
        "a number that is not one",
        "a time that is none",
        "no delay",
        "a delay of more than 30 days",
        "too many delays",
        "no list of delays",
        "no list of queues",
        "a duration below zero",
        "a count that is none",
        "no times by bucket",
        "a bucket that no worker has",
    ],
)
async def test_unreadable_worker_response_is_none(endpoint: Endpoint, workers: Workers, status: Any) -> None:
    endpoint.status = status
    assert await workers.statuses([A]) == {}


async def test_silent_worker_is_omitted_and_delays_others_only_briefly(
    endpoint: Endpoint, workers: Workers
) -> None:
    no_address = Address("new", "uid-new", "")
    assert list(await workers.statuses([A, NOBODY, no_address])) == ["a"]


async def test_hanging_worker_request_times_out(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    monkeypatch.setattr(module, "ANSWER_SECONDS", 3600.0)
    made = Workers(endpoint.port)
    endpoint.install.clear()
    assert await made.statuses([A]) == {}
    await made.close()


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, Answer.RETIRED),
        (409, Answer.BUSY),
        (401, Answer.REFUSED),
        (404, Answer.REFUSED),
        (500, Answer.REFUSED),
    ],
)
async def test_only_explicit_consent_means_retired(
    endpoint: Endpoint, workers: Workers, status: int, answer: Answer
) -> None:
    endpoint.retire_status = status
    assert await workers.retire([A], KEYS) == {"a": answer}
    assert endpoint.verdicts == [SignatureCheck.GOOD]


async def test_signature_for_other_pod_or_key_is_refused(endpoint: Endpoint, workers: Workers) -> None:
    """As when a pod's address has been given to another one meanwhile, or a password is being rotated."""
    assert await workers.retire([Address("a", "uid-b", "127.0.0.1")], KEYS) == {"a": Answer.REFUSED}
    assert await workers.retire([A], SigningKeys(b"other", PASSWORD)) == {"a": Answer.REFUSED}
    assert endpoint.verdicts == [SignatureCheck.WRONG, SignatureCheck.WRONG]


async def test_worker_of_previous_release_is_asked_with_the_password(
    endpoint: Endpoint, workers: Workers
) -> None:
    endpoint.key, endpoint.says_it_knows_the_key = PASSWORD, False
    assert await workers.retire([A], KEYS) == {"a": Answer.RETIRED}
    await workers.resume([A], KEYS)
    assert endpoint.verdicts == [SignatureCheck.WRONG, SignatureCheck.GOOD] * 2


async def test_worker_with_retirement_key_is_never_asked_with_the_password(
    endpoint: Endpoint, workers: Workers
) -> None:
    """As while a new key has not reached its pod yet."""
    endpoint.key = b"the key before"
    assert await workers.retire([A], KEYS) == {"a": Answer.REFUSED}
    assert endpoint.verdicts == [SignatureCheck.WRONG]


async def test_unanswered_worker_is_unreachable(workers: Workers) -> None:
    assert await workers.retire([A, NOBODY], KEYS) == {"a": Answer.RETIRED, "nobody": Answer.UNREACHABLE}


async def test_resume_is_signed_for_its_purpose_and_never_fails(endpoint: Endpoint, workers: Workers) -> None:
    await workers.resume([A, NOBODY], KEYS)
    assert endpoint.verdicts == [SignatureCheck.GOOD]


async def test_ipv6_address_is_supported() -> None:
    made = Workers(8090)
    assert made._url(Address("a", "u", "fd00::1"), "/status") == "http://[fd00::1]:8090/status"
    await made.close()


class Silent:
    """An endpoint that takes requests and never answers."""

    def __init__(self) -> None:
        self.requests = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0, host: str = "127.0.0.3") -> None:
        self._server = await asyncio.start_server(self._on_request, host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _on_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        while await reader.read(65_536):
            pass
        writer.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@pytest.fixture
async def silent(endpoint: Endpoint) -> AsyncIterator[Silent]:
    made = Silent()
    await made.start(endpoint.port)
    yield made
    made.close()


def silent_pods(count: int) -> list[Address]:
    return [Address(f"silent-{number}", f"uid-{number}", "127.0.0.3") for number in range(count)]


async def test_silent_workers_of_one_workqueue_delay_no_other_workqueue(
    workers: Workers, silent: Silent
) -> None:
    others = asyncio.create_task(workers.statuses(silent_pods(100)))
    await until(lambda: silent.requests)

    assert list(await workers.statuses([A])) == ["a"]
    assert await workers.retire([A], KEYS) == {"a": Answer.RETIRED}

    assert not others.done()
    assert await others == {}


async def test_silent_workers_hide_no_other_worker_of_their_workqueue(
    workers: Workers, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(workers._session, "_timeout", aiohttp.ClientTimeout(total=0.1))

    await until(lambda: answers_a(workers, [*silent_pods(10), A]), seconds=60)

    assert silent.requests


async def answers_a(workers: Workers, pods: list[Address]) -> bool:
    return list(await workers.statuses(pods)) == ["a"]


async def test_silent_worker_is_left_alone_for_a_pause(
    workers: Workers, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_PAUSE", (60.0, 60.0))
    pods = silent_pods(1)
    assert await workers.statuses(pods) == {}
    asked = silent.requests

    assert await workers.statuses(pods) == {}
    assert await workers.retire(pods, KEYS) == {"silent-0": Answer.UNREACHABLE}

    assert silent.requests == asked == 1


async def test_silent_worker_that_answers_again_is_asked_each_time(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    monkeypatch.setattr(module, "SILENT_PAUSE", (0.01, 0.01))
    made = Workers(endpoint.port)
    endpoint.install.clear()
    assert await made.statuses([A]) == {}
    endpoint.install.set()

    await until(lambda: answers_a(made, [A]))

    assert await answers_a(made, [A])
    await made.close()


async def test_worker_that_refuses_connections_is_not_left_alone(workers: Workers) -> None:
    """It may be starting. A pass that begins for another reason asks it."""
    assert await workers.statuses([NOBODY]) == {}
    assert workers.pause([NOBODY]) > 0

    assert await workers.stopping([NOBODY]) == {"nobody": module.ENDED}
    assert workers.pause([NOBODY]) == 0


async def test_pause_of_workers_without_answers_grows_to_its_limit(workers: Workers) -> None:
    pauses = []
    for _ in range(6):
        await workers.statuses([NOBODY])
        pauses.append(workers.pause([NOBODY]))

    assert pauses == [pytest.approx(seconds * 1.125, rel=0.13) for seconds in (1, 2, 4, 8, 15, 15)]


async def test_no_pause_beside_a_worker_that_answers(workers: Workers) -> None:
    await workers.statuses([NOBODY, A])

    assert workers.pause([NOBODY, A]) == 0
    assert workers.pause([]) == 0


async def test_garbled_answer_is_no_answer(workers: Workers, endpoint: Endpoint) -> None:
    endpoint.status = "garbled"
    assert await workers.statuses([A]) == {}

    assert workers.pause([A]) > 0


async def test_forgotten_silences_are_dropped(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCES_KEPT", 2)
    monkeypatch.setattr(module, "SILENT_PAUSE", (-100.0, 1.0))
    for address in silent_pods(5):
        workers._note(address, TimeoutError())

    assert len(workers._silences) == 1


async def test_many_workers_are_asked_over_few_connections(workers: Workers, endpoint: Endpoint) -> None:
    addresses = [Address(f"w{number}", "uid-a", "127.0.0.1") for number in range(100)]
    assert len(await workers.statuses(addresses)) == 100
