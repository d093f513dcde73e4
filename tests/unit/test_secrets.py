"""Connection Secrets: read once, cached for a while, and each error is a sentence without a password."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import time

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.wait import until
from workqueue_operator.api.reasons import Reason
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube import secrets as module
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Key


def secret(**keys: str | bytes) -> dict[str, object]:
    return {
        "data": {
            key.replace("_", "-"): base64.b64encode(
                value.encode() if isinstance(value, str) else value
            ).decode()
            for key, value in keys.items()
        }
    }


GOOD = secret(uri="amqp://user:secret@rabbit.example/jobs")


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def secrets(cluster: FakeCluster) -> Secrets:
    return Secrets(cluster)


async def problem(secrets: Secrets) -> ReconcileError:
    with pytest.raises(ReconcileError) as caught:
        await secrets.binding("team", "rabbitmq")
    return caught.value


async def test_secret_is_read_by_name_and_cached(cluster: FakeCluster, secrets: Secrets) -> None:
    cluster.answer("GET", "/namespaces/team/secrets/rabbitmq", GOOD)
    for _ in range(3):
        binding = await secrets.binding("team", "rabbitmq")
    assert (binding.username, binding.virtual_host) == ("user", "jobs")
    assert cluster.paths("GET") == ["/api/v1/namespaces/team/secrets/rabbitmq"]


async def test_concurrent_requests_share_one_secret_read(cluster: FakeCluster, secrets: Secrets) -> None:
    go = asyncio.Event()

    async def slowly(_: Request) -> object:
        await go.wait()
        return GOOD

    cluster.answer("GET", "rabbitmq", slowly)
    asking = [asyncio.create_task(secrets.binding("team", "rabbitmq")) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()
    go.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert len(set(map(repr, answers[1:]))) == 1
    assert len(cluster.asked) == 1


async def test_expired_or_forgotten_secret_is_reread(
    cluster: FakeCluster, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("GET", "rabbitmq", GOOD)
    await secrets.binding("team", "rabbitmq")
    secrets.forget("team", "rabbitmq")
    await secrets.binding("team", "rabbitmq")
    monkeypatch.setattr(module, "MAX_AGE", -1.0)
    cluster.answer("GET", "rabbitmq", secret(uri="amqp://user:rotated@rabbit.example/jobs"))
    assert (await secrets.binding("team", "rabbitmq")).password == "rotated"
    assert len(cluster.asked) == 3


async def test_urgent_request_uses_cached_secret(
    cluster: FakeCluster, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_AGE", -1.0)
    cluster.answer("GET", "rabbitmq", GOOD)
    for _ in range(3):
        assert (await secrets.binding("team", "rabbitmq", proven=True)).password == "secret"
    assert len(cluster.asked) == 1


async def test_cached_secret_is_used_while_api_server_is_unreachable(
    cluster: FakeCluster, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("GET", "rabbitmq", ClusterError(0, "no answer"))
    with pytest.raises(ClusterError):
        await secrets.binding("team", "rabbitmq")
    cluster.answer("GET", "rabbitmq", GOOD)
    await secrets.binding("team", "rabbitmq")
    monkeypatch.setattr(module, "MAX_AGE", -1.0)
    cluster.answer("GET", "rabbitmq", ClusterError(503, "busy"))
    assert (await secrets.binding("team", "rabbitmq")).password == "secret"


async def test_unused_secret_is_evicted(
    cluster: FakeCluster, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("GET", "secrets", GOOD)
    await secrets.binding("team", "old")
    await secrets.binding("team", "new")
    secrets.use(("team", "jobs"), "new")
    monkeypatch.setattr(module, "KEPT", -1.0)

    await secrets.read_due(time.monotonic())

    assert list(secrets._entries) == [("team", "new")]
    assert secrets._reading == {}


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (ClusterError(404, "not found"), Reason.SECRET_NOT_FOUND, ['"rabbitmq"', '"team"', "Create it"]),
        (ClusterError(403, "forbidden: no"), Reason.SECRET_FORBIDDEN, ['"rabbitmq"', "forbidden: no"]),
        ({}, Reason.SECRET_INVALID, ['Secret "rabbitmq"', "uri", "host"]),
        (secret(uri="http://user:hidden@x/"), Reason.SECRET_INVALID, ['Secret "rabbitmq"', "amqp"]),
        (
            secret(host="x", port="many", username="u", password="hidden"),
            Reason.SECRET_INVALID,
            ["port", "1 to 65535"],
        ),
    ],
    ids=["missing", "forbidden", "empty", "a URL of another kind", "a port that is no number"],
)
async def test_secret_error_names_secret_and_problem(
    cluster: FakeCluster, secrets: Secrets, answer: object, reason: Reason, words: list[str]
) -> None:
    cluster.answer("GET", "rabbitmq", answer)  # type: ignore[arg-type]
    found = await problem(secrets)
    assert found.reason is reason
    for word in words:
        assert word in found.message
    assert "hidden" not in found.message


async def test_corrected_secret_is_noticed_within_seconds(
    cluster: FakeCluster, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("GET", "rabbitmq", {})
    await problem(secrets)
    await problem(secrets)
    assert len(cluster.asked) == 1
    cluster.answer("GET", "rabbitmq", GOOD)
    monkeypatch.setattr(module, "PROBLEM_MAX_AGE", -1.0)
    assert (await secrets.binding("team", "rabbitmq")).username == "user"


@pytest.mark.parametrize("before", [{}, GOOD], ids=["invalid-before", "refused-by-its-broker"])
async def test_ring_that_waits_does_not_keep_an_old_secret(
    cluster: FakeCluster, secrets: Secrets, monkeypatch: pytest.MonkeyPatch, before: dict[str, object]
) -> None:
    cluster.answer("GET", "rabbitmq", before)
    with contextlib.suppress(ReconcileError):
        await secrets.binding("team", "rabbitmq")
    cluster.answer("GET", "rabbitmq", secret(uri="amqp://user:secret@rabbit.example/corrected"))
    monkeypatch.setattr(module, "PROBLEM_MAX_AGE", -1.0)
    monkeypatch.setattr(module, "MAX_AGE_OF_SUSPECT", -1.0)

    binding = await secrets.binding("team", "rabbitmq", suspect=bool(before), proven=True)

    assert binding.virtual_host == "corrected"


async def test_error_of_a_read_whose_callers_are_gone_is_not_logged(
    cluster: FakeCluster, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    fails = asyncio.Event()

    async def unanswered(_: Request) -> object:
        await fails.wait()
        raise ClusterError(0, "no answer")

    cluster.answer("GET", "rabbitmq", unanswered)
    caller = asyncio.create_task(secrets.binding("team", "rabbitmq"))
    await until(lambda: len(cluster.asked) == 1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    fails.set()
    await until(lambda: not secrets._reading)

    gc.collect()  # asyncio logs an error that nobody has read when its task is freed
    assert caplog.records == []


async def test_binary_secret_keys_are_ignored(cluster: FakeCluster, secrets: Secrets) -> None:
    cluster.answer(
        "GET", "rabbitmq", secret(uri="amqp://user:secret@rabbit.example/jobs", keystore=b"\xff\xfe\x00")
    )
    assert (await secrets.binding("team", "rabbitmq")).username == "user"


async def test_short_host_name_is_resolved_in_secret_namespace(
    cluster: FakeCluster, secrets: Secrets
) -> None:
    cluster.answer("GET", "rabbitmq", secret(uri="amqp://user:secret@rabbit:5673/jobs"))
    binding = await secrets.binding("team", "rabbitmq")
    assert binding.addresses == (("rabbit.team.svc", 5673), ("rabbit", 5673))


@pytest.fixture
def woken() -> list[Key]:
    return []


@pytest.fixture
def used(cluster: FakeCluster, woken: list[Key]) -> Secrets:
    return Secrets(cluster, woken.append)


async def test_changed_secret_enqueues_its_workqueues(
    cluster: FakeCluster, used: Secrets, woken: list[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_AFTER", 0.01)
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    cluster.answer("GET", "/secrets/", GOOD)
    for name, secret_name in (("jobs", "rabbitmq"), ("mail", "rabbitmq"), ("other", "elsewhere")):
        used.use(("team", name), secret_name)
        await used.binding("team", secret_name)
    watching = asyncio.create_task(used.run())

    cluster.answer("GET", "/secrets/rabbitmq", secret(uri="amqp://user:secret@rabbit.example/moved"))
    await until(lambda: len(woken) >= 2)

    assert set(woken) == {("team", "jobs"), ("team", "mail")}
    assert (await used.binding("team", "rabbitmq")).virtual_host == "moved"
    watching.cancel()


async def test_unreferenced_secret_is_not_reread(cluster: FakeCluster, used: Secrets) -> None:
    cluster.answer("GET", "/secrets/", GOOD)
    used.use(("team", "jobs"), "rabbitmq")
    await used.binding("team", "rabbitmq")
    used.leave(("team", "jobs"))
    cluster.asked.clear()

    await used.read_due(time.monotonic() + module.READ_AFTER)

    assert cluster.asked == []


async def test_secrets_are_reread_every_minute_in_small_batches(cluster: FakeCluster, used: Secrets) -> None:
    reading = most = 0

    async def slowly(_: Request) -> object:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0)
        reading -= 1
        return GOOD

    cluster.answer("GET", "/secrets/", slowly)
    for number in range(500):
        used.use(("team", f"jobs-{number}"), f"rabbitmq-{number}")
        await used.binding("team", f"rabbitmq-{number}")
    cluster.asked.clear()
    begun = time.monotonic()

    await used.read_due(begun)
    assert cluster.asked == [], "they are fresh"
    await used.read_due(begun + module.READ_AFTER + 1)

    assert len(cluster.asked) == 100, "a share that goes through all of them in 25 s"
    assert most == module.READS_AT_ONCE


async def test_failed_secret_read_is_retried_within_seconds(cluster: FakeCluster, used: Secrets) -> None:
    cluster.answer("GET", "rabbitmq", GOOD)
    used.use(("team", "jobs"), "rabbitmq")
    await used.binding("team", "rabbitmq")
    cluster.answer("GET", "rabbitmq", ClusterError(503, "busy"))
    now = time.monotonic() + module.READ_AFTER + 1
    await used.read_due(now)
    cluster.answer("GET", "rabbitmq", GOOD)
    cluster.asked.clear()

    await used.read_due(time.monotonic() + module.PROBLEM_MAX_AGE + 1)

    assert len(cluster.asked) == 1
