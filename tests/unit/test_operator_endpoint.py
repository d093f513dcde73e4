"""The operator's endpoint, over HTTP on loopback."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client import Metric

from tests.support.ports import free_port
from workqueue_operator.endpoint import Endpoint
from workqueue_operator.metrics import Metrics

CONDITIONS = [("Ready", "True", "AsExpected")]


@asynccontextmanager
async def served(
    metrics: Metrics, problem: str | None = None, *, ready: bool = True
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an endpoint that is in this state."""
    port = free_port()
    endpoint = Endpoint(port, metrics.registry, lambda: problem, lambda: ready, lambda: metrics.leader.set(1))
    await endpoint.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        await endpoint.stop()


async def asked(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as answer:
        return answer.status, await answer.text()


async def series(session: aiohttp.ClientSession, query: str = "") -> set[str]:
    _, text = await asked(session, f"/metrics{query}")
    return {line for line in text.splitlines() if not line.startswith("#")}


async def test_workqueue_metrics_are_exposed_until_it_is_deleted() -> None:
    metrics = Metrics()
    shown = metrics.workqueues.of("team", "jobs")
    shown.messages_ready, shown.busy, shown.conditions = 7, 2, CONDITIONS
    about = 'namespace="team",'
    async with served(metrics) as session:
        assert {line for line in await series(session) if about in line} == {
            'workqueue_messages_ready{namespace="team",workqueue="jobs"} 7.0',
            'workqueue_replicas{namespace="team",state="busy",workqueue="jobs"} 2.0',
            (
                'workqueue_condition{condition="Ready",namespace="team",reason="AsExpected",status="True",'
                'workqueue="jobs"} 1.0'
            ),
        }
        metrics.workqueues.forget("team", "jobs")
        assert not any(about in line for line in await series(session))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("workqueue_leader", "workqueue_leader 1.0"),
        ("workqueue_dead_letters", 'workqueue_dead_letters{namespace="team",workqueue="jobs"} 3.0'),
    ],
)
async def test_scrape_can_select_metrics(name: str, line: str) -> None:
    metrics = Metrics()
    metrics.workqueues.of("team", "jobs").dead_letters = 3
    async with served(metrics) as session:
        assert await series(session, f"?name[]={name}") == {line}


async def test_scrapes_are_serialized(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting changed for one of them would be missing in the other."""
    metrics, steps = Metrics(), []

    def collect() -> list[Metric]:
        steps.append("begins")
        time.sleep(0.05)  # so long that the other one would begin
        steps.append("ends")
        return []

    monkeypatch.setattr(metrics.workqueues, "collect", collect)
    async with served(metrics) as session:
        await asyncio.gather(series(session), series(session))
    assert steps == ["begins", "ends"] * 2


async def test_scrape_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    scraped, metrics = [], Metrics()
    monkeypatch.setattr(
        metrics.workqueues, "collect", lambda: scraped.append(threading.current_thread()) or iter(())
    )
    async with served(metrics) as session:
        await series(session)
    assert scraped
    assert threading.main_thread() not in scraped


@pytest.mark.parametrize(
    ("path", "problem", "ready", "answer"),
    [
        ("/livez", None, False, (200, "ok")),
        ("/livez", "the watch brings nothing", True, (503, "the watch brings nothing")),
        ("/readyz", None, True, (200, "ok")),
        ("/readyz", None, False, (503, "starting")),
    ],
)
async def test_failing_probe_names_the_cause(
    path: str, problem: str | None, ready: bool, answer: tuple[int, str]
) -> None:
    async with served(Metrics(), problem, ready=ready) as session:
        assert await asked(session, path) == answer


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer hunter2\x00\r\n\r\n", "BadHttpMessage"),
        (b"GET /metrics HTTP/hunter2\r\n\r\n", "BadStatusLine"),
        (b"GET /hunter2" + b"2" * 20_000 + b" HTTP/1.1\r\n\r\n", "LineTooLong"),
    ],
    ids=["header", "version", "address"],
)
async def test_request_that_is_no_http_is_one_line_without_its_text(
    request_: bytes, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with served(Metrics()) as session:
        reader, writer = await asyncio.open_connection("127.0.0.1", session._base_url.port)  # type: ignore[union-attr]
        writer.write(request_)
        assert (await reader.readline()).startswith(b"HTTP/1.0 400")
        writer.close()
        await writer.wait_closed()

    [record] = caplog.records
    assert (record.getMessage(), vars(record)["detail"]) == ("A request is no HTTP.", kind)
    assert record.exc_info is None
    assert "hunter2" not in caplog.text
