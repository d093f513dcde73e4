"""One trace from the publisher to every attempt: real RabbitMQ, the SDK's own exporters."""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.commands import workqueue
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import Workers
from workqueue import Message, Reject
from workqueue.amqp.errors import Returned
from workqueue.amqp.outgoing import Outgoing
from workqueue.cli import run as run_command
from workqueue.contract.binding import from_url
from workqueue.worker import tracing
from workqueue.worker.config import parse
from workqueue.worker.handlers import exec as exec_handlers
from workqueue.worker.handlers import http as http_handlers
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.runtime import Runtime
from workqueue.worker.tracing import TracedPipeline, Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Traces:
    """An SDK whose spans stay in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(self.provider)

    def named(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Wait for this number of spans of a name and return them in the order in which they ended."""

        def found() -> list[ReadableSpan] | None:
            spans = [span for span in self._exporter.get_finished_spans() if span.name == name]
            return spans if len(spans) >= count else None

        return eventually(found)


@pytest.fixture
def traces() -> Traces:
    return Traces()


@contextmanager
def running(vhost: VirtualHost, handler: Handler) -> Iterator[Runtime]:
    """A worker inside of this process."""
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    flags = [
        "x:y",
        "--queue",
        "jobs",
        "--declare",
        "--max-attempts",
        "2",
        "--delays",
        "1",
        "--url",
        vhost.url,
    ]
    config = parse(parser.parse_args(flags), {})
    runtime = Runtime(config, lambda: from_url(vhost.url))
    runtime.start(handler)
    try:
        eventually(lambda: runtime.consumer.consuming)
        yield runtime
    finally:
        runtime.stop_taking()
        runtime.wait_quiet(time.monotonic() + 5)
        runtime.close()


def send(vhost: VirtualHost, traces: Traces, *outgoings: Outgoing) -> None:
    with TracedPipeline(lambda: from_url(vhost.url), "test", tracing=traces.tracing) as publisher:
        for outgoing in outgoings:
            publisher.publish(outgoing).result()


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def below(span: ReadableSpan) -> tuple[int, int]:
    assert span.parent is not None
    return span.parent.trace_id, span.parent.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def as_sync(handle: Callable[[Message], None]) -> Handler:
    return Handler("test", handle)


def as_async(handle: Callable[[Message], None]) -> Handler:
    async def call(message: Message) -> None:
        await asyncio.sleep(0)
        handle(message)

    return Handler("test", call, is_async=True)


BOTH = pytest.mark.parametrize("kind", [as_sync, as_async], ids=["in a thread", "as a coroutine"])


@BOTH
def test_trace_spans_publisher_attempts_and_handler(
    vhost: VirtualHost, traces: Traces, kind: Callable[[Callable[[Message], None]], Handler]
) -> None:
    tracer = traces.provider.get_tracer("mine")

    def handle(message: Message) -> None:
        with tracer.start_as_current_span("mine"):
            if message.attempt == 1:
                raise ValueError("not yet")

    with running(vhost, traces.tracing.handler(kind(handle))):
        send(
            vhost,
            traces,
            Outgoing("jobs", b"1234", message_id="m1", correlation_id="c1", headers={"mine": 1}),
        )
        published = traces.named("publish jobs")[0]
        attempts = traces.named("process jobs", 2)
    assert published.kind is trace.SpanKind.PRODUCER
    assert attributes(published) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "amq.default:jobs",
        "messaging.rabbitmq.destination.routing_key": "jobs",
        "messaging.message.body.size": 4,
        "messaging.message.id": "m1",
        "messaging.message.conversation_id": "c1",
    }
    assert [below(attempt) for attempt in attempts] == [ids(published)] * 2
    assert {attempt.kind for attempt in attempts} == {trace.SpanKind.CONSUMER}
    assert attributes(attempts[0]) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "amq.default:jobs",
        "messaging.rabbitmq.destination.routing_key": "jobs",
        "messaging.message.body.size": 4,
        "messaging.message.id": "m1",
        "messaging.message.conversation_id": "c1",
        "workqueue.attempt": 1,
        "workqueue.redelivered": False,
        "error.type": "builtins.ValueError",
    }
    assert attributes(attempts[1])["workqueue.attempt"] == 2
    assert [attempt.status.status_code.name for attempt in attempts] == ["ERROR", "UNSET"]
    assert [event.name for event in attempts[0].events] == ["exception"]
    inner = traces.named("mine", 2)
    assert [below(span) for span in inner] == [ids(attempt) for attempt in attempts]


def test_dead_letter_and_replay_belong_to_the_trace(vhost: VirtualHost, traces: Traces) -> None:
    rejected = threading.Event()

    def handle(message: Message) -> None:
        if not rejected.is_set():
            rejected.set()
            raise Reject("not this one")

    with running(vhost, traces.tracing.handler(as_sync(handle))):
        headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
        send(vhost, traces, Outgoing("jobs", b"x", message_id="m1", headers=headers))
        eventually(lambda: vhost.depth("jobs.dead").ready == 1)
        dead = workqueue("dead", "show", "--queue", "jobs", "--json", url=vhost.url).json
        assert (dead["headers"]["traceparent"], dead["headers"]["tracestate"]) == (PARENT, "vendor=1")
        assert workqueue("dead", "replay", "--queue", "jobs", "--json", url=vhost.url).json["replayed"] == 1
        attempts = traces.named("process jobs", 2)
    trace_id, span_id = int(PARENT[3:35], 16), int(PARENT[36:52], 16)
    assert [below(attempt) for attempt in attempts] == [(trace_id, span_id)] * 2
    state = attempts[1].get_span_context()
    assert state is not None
    assert state.trace_state.to_header() == "vendor=1"


def test_trace_context_is_carried_without_tracing(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--max-attempts", "2").wait_consuming()
    with tracing.pipeline(None, lambda: from_url(vhost.url), "test") as publisher:
        assert type(publisher) is not TracedPipeline
        body = json.dumps({"id": 1, "do": "fail once"}).encode()
        publisher.publish(Outgoing("jobs", body, headers={"traceparent": PARENT})).result()
    eventually(lambda: worker.outcomes() == {"acked": 1, "retried": 1})
    assert [event["headers"]["traceparent"] for event in worker.events] == [PARENT] * len(worker.events)
    assert len(worker.events) >= 2


def test_unroutable_message_ends_its_span_as_error(vhost: VirtualHost, traces: Traces) -> None:
    with pytest.raises(Returned):
        send(vhost, traces, Outgoing("nowhere", b"x"))
    span = traces.named("publish nowhere")[0]
    assert span.status.status_code.name == "ERROR"
    assert attributes(span)["error.type"] == "workqueue.amqp.errors.Returned"


async def test_awaited_publishing_is_traced_too(vhost: VirtualHost, traces: Traces) -> None:
    with (
        traces.provider.get_tracer("mine").start_as_current_span("mine"),
        TracedPipeline(lambda: from_url(vhost.url), "test", tracing=traces.tracing) as publisher,
        pytest.raises(Returned),
    ):
        await publisher.publish_async(Outgoing("nowhere", b"x", exchange="amq.direct"))
    span = traces.named("publish amq.direct")[0]
    assert below(span) == ids(traces.named("mine")[0]), "what the program does now is the parent"
    assert attributes(span)["messaging.destination.name"] == "amq.direct:nowhere"


def test_message_with_invalid_trace_headers_starts_a_new_trace(
    traces: Traces,
) -> None:
    handler = traces.tracing.handler(as_sync(lambda _: None))
    for value in (7, b"\xff", "nonsense", {"a": 1}):
        handler.call(Message(b"x", headers={"traceparent": value, "other": value}, queue="jobs"))
    assert [span.parent for span in traces.named("process jobs", 4)] == [None] * 4


def test_foreign_language_handler_gets_standard_trace_context(traces: Traces) -> None:
    context = {"traceparent": PARENT, "tracestate": "a=b"}
    message = Message(b"x", headers=context, queue="jobs", deadline=time.monotonic() + 60)
    environment = exec_handlers.environment(message)
    assert (environment["TRACEPARENT"], environment["TRACESTATE"]) == (PARENT, "a=b")
    headers = http_handlers.request_headers(message)
    assert (headers["traceparent"], headers["tracestate"]) == (PARENT, "a=b")
    assert "traceparent" not in http_handlers.request_headers(Message(b"x", queue="jobs"))
    seen: list[str] = []
    handler = traces.tracing.handler(
        as_sync(lambda message: seen.append(http_handlers.request_headers(message)["traceparent"]))
    )
    handler.call(message)
    span = traces.named("process jobs")[0]
    assert seen == [f"00-{ids(span)[0]:032x}-{ids(span)[1]:016x}-01"], "what it does stands below our span"


ASKED = [
    ({}, False),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318"}, True),
    ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
    ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
]


@pytest.mark.parametrize(("environment", "asked"), ASKED, ids=[str(environment) for environment, _ in ASKED])
def test_opentelemetry_variables_enable_traces(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: bool
) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.sdk.trace")
    assert tracing.wanted(environment) is asked


def test_unconfigured_sdk_sends_nothing() -> None:
    assert tracing.wanted({}), "somebody has imported it"
    assert tracing.start("jobs", {}) is None


def test_missing_tracing_extra_only_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    assert tracing.start("jobs", {}) is None
    assert "Install workqueue-operator[otel]" in caplog.text


class Collector:
    """A stub of an OpenTelemetry collector: accepts spans over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []
        collector = self

        class Request(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource_spans in request.resource_spans:
            service = next(
                one.value.string_value
                for one in resource_spans.resource.attributes
                if one.key == "service.name"
            )
            self.spans += [
                (service, span.name) for scope in resource_spans.scope_spans for span in scope.spans
            ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_commands_flush_spans_to_collector_before_exit(
    vhost: VirtualHost, workers: Workers, collector: Collector
) -> None:
    worker = workers.start(
        vhost.url, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    ).wait_consuming()
    sent = workqueue(
        *("send", "--queue", "jobs", '{"id": 1}'),
        url=vhost.url,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_SERVICE_NAME="shop",
    )
    assert (sent.code, sent.err) == (0, "")
    assert ("shop", "publish jobs") in collector.spans
    eventually(lambda: worker.outcomes() == {"acked": 1})
    assert worker.stop() == 0
    assert ("jobs", "process jobs") in collector.spans


def test_tracing_imports_nothing_when_disabled(vhost: VirtualHost) -> None:
    code = (
        "import sys; import workqueue.cli.run, workqueue.worker.runtime, workqueue.worker.tracing;"
        " assert not workqueue.worker.tracing.wanted({});"
        " print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
