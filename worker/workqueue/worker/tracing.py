"""OpenTelemetry: one trace from the publishing of a message to every attempt to handle it.

`run` and `send` use it only when traces are requested. Otherwise OpenTelemetry is not imported and a message costs
nothing more. The context travels in the headers of W3C Trace Context (`traceparent`, `tracestate`). Retries, dead
letters and replays keep a message's headers, and so its trace.

Names follow OpenTelemetry's semantic conventions for messaging and RabbitMQ. The extra `otel` installs what it needs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from workqueue import __version__
from workqueue.amqp.errors import PublishError
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import OnResult, PublishPipeline
from workqueue.contract.binding import Binding
from workqueue.message import Message
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.trace_request import asked, wanted

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

TRACEPARENT: Final = "traceparent"
DEFAULT_EXCHANGE: Final = "amq.default"

__all__ = ["TracedPipeline", "Tracing", "pipeline", "start", "wanted"]

logger = logging.getLogger(__name__)


class Tracing:
    """Creates the spans.

    Args:
        provider: receives the spans; the global provider by default.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        from opentelemetry import context, propagate, trace

        self._provider = provider or trace.get_tracer_provider()
        self._tracer = self._provider.get_tracer("workqueue", __version__)
        self._trace, self._propagate, self._context = trace, propagate, context

    def close(self) -> None:
        """Send the remaining spans."""
        flush = getattr(self._provider, "force_flush", None)
        if flush is not None:
            flush()

    def handler(self, handler: Handler) -> Handler:
        """Return the handler with each call in a span that continues the message's trace."""
        call = handler.call

        async def call_async(message: Message) -> Any:
            with self._process(message):
                return await call(message)

        def call_in_thread(message: Message) -> Any:
            with self._process(message):
                return call(message)

        return handler._replace(call=call_async if handler.is_async else call_in_thread)

    def begin_publish(self, outgoing: Outgoing) -> tuple[Outgoing, Callable[[BaseException | None], None]]:
        """Return the message with its trace in the headers, and the function to call with its result.

        An existing trace is kept, as the conventions require.
        """
        span = self._tracer.start_span(
            f"publish {outgoing.exchange or outgoing.routing_key}",
            kind=self._trace.SpanKind.PRODUCER,
            attributes=_attributes(
                "publish",
                "send",
                _destination(outgoing.exchange, outgoing.routing_key),
                outgoing.routing_key,
                outgoing.body,
                outgoing.message_id,
                outgoing.correlation_id,
            ),
        )
        headers = dict(outgoing.headers or {})
        if TRACEPARENT not in headers:
            self._propagate.inject(headers, self._trace.set_span_in_context(span))

        def end(error: BaseException | None) -> None:
            if error is not None:
                self._fail(span, error)
            span.end()

        return outgoing._replace(headers=headers or None), end

    @contextmanager
    def _process(self, message: Message) -> Iterator[None]:
        carrier = {name: value for name, value in message.headers.items() if isinstance(value, str)}
        properties = message.properties
        span = self._tracer.start_span(
            f"process {message.queue}",
            context=self._propagate.extract(carrier),
            kind=self._trace.SpanKind.CONSUMER,
            attributes=_attributes(
                "process",
                "process",
                _destination(message.exchange, message.routing_key, message.queue),
                message.routing_key,
                message.body,
                properties.message_id,
                properties.correlation_id,
            )
            | {"workqueue.attempt": message.attempt, "workqueue.redelivered": message.redelivered},
        )
        here = self._trace.set_span_in_context(span)
        # Spans of services that the handler calls become children of this span.
        headers = dict(message.headers)
        self._propagate.inject(headers, here)
        message.headers = headers
        token = self._context.attach(here)
        try:
            yield
        except BaseException as error:
            self._fail(span, error)
            raise
        finally:
            self._context.detach(token)
            span.end()

    def _fail(self, span: Span, error: BaseException) -> None:
        kind = type(error)
        span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}")
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, str(error)))
        span.record_exception(error)


class TracedPipeline(PublishPipeline):
    """A publisher with a span per message, from `publish` to its confirm."""

    def __init__(
        self, binding_source: Callable[[], Binding], name: str, *, tracing: Tracing, **options: Any
    ) -> None:
        super().__init__(binding_source, name, **options)
        self._tracing = tracing

    def publish_then(self, outgoing: Outgoing, on_result: OnResult) -> None:
        """As `PublishPipeline.publish_then`, which all other sync calls use."""
        outgoing, end = self._tracing.begin_publish(outgoing)

        def ended(error: PublishError | None) -> None:
            end(error)
            on_result(error)

        try:
            super().publish_then(outgoing, ended)
        except BaseException as error:
            end(error)
            raise

    async def send_async(self, outgoing: Outgoing) -> asyncio.Future[None]:
        """As `PublishPipeline.send_async`, which `publish_async` uses."""
        outgoing, end = self._tracing.begin_publish(outgoing)

        def ended(future: asyncio.Future[None]) -> None:
            end(asyncio.CancelledError() if future.cancelled() else future.exception())

        try:
            future = await super().send_async(outgoing)
        except BaseException as error:
            end(error)
            raise
        future.add_done_callback(ended)
        return future


def pipeline(
    tracing: Tracing | None, binding_source: Callable[[], Binding], name: str, **options: Any
) -> PublishPipeline:
    """Return a pipeline, with spans if `tracing` is given."""
    if tracing is None:
        return PublishPipeline(binding_source, name, **options)
    return TracedPipeline(binding_source, name, tracing=tracing, **options)


def start(service: str, environment: Mapping[str, str]) -> Tracing | None:
    """Return tracing as configured by OpenTelemetry's environment variables, or None without configuration or extra.

    An existing provider is used, such as that of `opentelemetry-instrument` or one that the handler's module has set.

    Args:
        service: the service's name, unless the environment sets another.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if isinstance(trace.get_tracer_provider(), TracerProvider):
            return Tracing()
        if not asked(environment):
            return None  # the SDK was imported, but not configured
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        logger.warning(
            "Traces are requested, but OpenTelemetry is not installed, so there are none. Install"
            " workqueue-operator[otel].",
            extra={"missing": error.name},
        )
        return None
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    provider = TracerProvider(resource=Resource.create(None if named else {"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return Tracing(provider)


def _destination(exchange: str, routing_key: str, queue: str = "") -> str:
    """Return exchange, routing key and (for a consumer) queue, without repetitions."""
    parts = [exchange or DEFAULT_EXCHANGE, routing_key]
    if queue != routing_key:
        parts.append(queue)
    return ":".join(filter(None, parts))


def _attributes(
    name: str,
    kind: str,
    destination: str,
    routing_key: str,
    body: bytes,
    message_id: str | None,
    correlation_id: str | None,
) -> dict[str, str | int | bool]:
    given: dict[str, str | int | bool | None] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
        "messaging.rabbitmq.destination.routing_key": routing_key or None,
        "messaging.message.body.size": len(body),
        "messaging.message.id": message_id,
        "messaging.message.conversation_id": correlation_id,
    }
    return {key: value for key, value in given.items() if value is not None}
