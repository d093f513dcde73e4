"""Run a handler on a message without RabbitMQ, as a worker runs it.

    from workqueue.testing import Ack, DeadLetter, run

    def test_invoice_without_lines_is_a_dead_letter():
        assert run(total, {"number": 1, "lines": []}) == DeadLetter("Rejected")

The lifespan, middleware, failure hooks and the typed payload of the handler's module are used. Answers are kept.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack

from workqueue import bodies, message
from workqueue.contract import headers as own_headers
from workqueue.contract.properties import Properties
from workqueue.hooks import name_of
from workqueue.message import Message
from workqueue.worker.handlers import calls, python
from workqueue.worker.handlers.outcome import GiveUp, RetryLater, RetryPolicy

__all__ = ["Ack", "DeadLetter", "MessageOptions", "Outcome", "Reply", "Retry", "Runner", "run", "run_async"]

DEFAULTS: Final = RetryPolicy()
TIMEOUT_SECONDS: Final = 300.0
"""For `message.remaining`. The time is not enforced."""

_FAILURES: Final = (Exception, SystemExit, asyncio.CancelledError)


@dataclass(frozen=True)
class Reply:
    """An answer of the handler.

    Attributes:
        to: the queue.
        body: as it would be sent.
    """

    to: str
    body: bytes
    content_type: str | None
    correlation_id: str | None
    headers: Mapping[str, Any]

    def json(self) -> Any:
        """Return the body parsed as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Outcome:
    """What happens to the message. Replies, error and message do not count in comparisons.

    Attributes:
        replies: the answers, in their order.
        error: the exception of the attempt; None if the handler returned.
    """

    replies: tuple[Reply, ...] = field(default=(), compare=False, kw_only=True)
    error: BaseException | None = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True)
class Ack(Outcome):
    """The message is handled."""


@dataclass(frozen=True)
class Retry(Outcome):
    """There is another attempt.

    Attributes:
        after: seconds until then.
        message: of the failure header.
    """

    after: float
    message: str = field(default="", compare=False)


@dataclass(frozen=True)
class DeadLetter(Outcome):
    """The message goes to the dead-letter queue.

    Attributes:
        reason: `Exception`, `Rejected`, `Undecodable`, `RetryRequested` and so on, as in the failure header.
        message: of the failure header.
    """

    reason: str
    message: str = field(default="", compare=False)


class MessageOptions(TypedDict, total=False):
    """What a message has besides its body.

    Attributes:
        attempt: 1 for the first attempt.
    """

    attempt: int
    redelivered: bool
    queue: str
    headers: Mapping[str, Any]
    content_type: str
    content_encoding: str
    correlation_id: str
    expiration: str
    message_id: str
    priority: int
    reply_to: str
    timestamp: int
    type: str
    app_id: str


class _Open:
    """Stands for the context of the lifespan itself."""


OPEN: Final = _Open()


class Runner:
    """Runs messages through one handler. Its lifespan is open between `with` and the end of the block.

    An async handler needs an asyncio loop: use `with` and `run` outside of one, `async with` and `run_async` inside.

    Args:
        handler: a function, or its name as for `workqueue run`.
        context: `message.context`; the lifespan is then not opened.
        max_attempts, delays_seconds: as `retry` in a WorkQueue.

    Raises:
        HandlerLoadError: it cannot be called as a handler.
        ValueError: there is a context, and no lifespan.
    """

    def __init__(
        self,
        handler: Callable[..., Any] | str,
        *,
        context: Any = OPEN,
        max_attempts: int = DEFAULTS.max_attempts,
        delays_seconds: Sequence[int] = DEFAULTS.delays_seconds,
    ) -> None:
        self._retry = RetryPolicy(max_attempts, tuple(delays_seconds))
        self._replies = _KeptReplies()
        if isinstance(handler, str):
            self._handler = python.load(handler, self._retry, self._replies)
        else:
            name = f"{getattr(handler, '__module__', None)}:{name_of(handler)}"
            self._handler = python.assemble(name, handler, self._retry, self._replies)
        self._lifespan = self._handler.lifespan
        if context is not OPEN:
            if self._lifespan is None:
                raise ValueError(f"The handler {self._handler.name} has no lifespan, so it gets no context.")
            self._lifespan.context = context
            self._lifespan = None
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        self._require_no_loop()
        try:
            if self._lifespan is not None:
                if self._handler.is_async:
                    self._loop.run(self._lifespan.open_async(_fail))
                else:
                    self._lifespan.open()
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lifespan is not None:
            if self._handler.is_async:
                self._loop.run(self._lifespan.close_async())
            else:
                self._lifespan.close()
        self._loop.close()

    async def __aenter__(self) -> Self:
        if self._lifespan is not None:
            if self._handler.is_async:
                await self._lifespan.open_async(_fail)
            else:
                self._lifespan.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lifespan is not None:
            if self._handler.is_async:
                await self._lifespan.close_async()
            else:
                self._lifespan.close()

    def run(self, body: Any = b"", **options: Unpack[MessageOptions]) -> Outcome:
        """Run the handler on one message, and return what happens to the message.

        Args:
            body: bytes, text, or what becomes JSON, as for `Publisher.publish`.
            options: see `MessageOptions`.

        Raises:
            RuntimeError: the handler is async, and an asyncio loop runs already.
        """
        self._require_no_loop()
        received = _message(body, options)
        try:
            if self._handler.is_async:
                self._loop.run(self._handler.call(received))
            else:
                self._handler.call(received)
        except _FAILURES as error:
            return self._outcome(received, error)
        return self._outcome(received, None)

    async def run_async(self, body: Any = b"", **options: Unpack[MessageOptions]) -> Outcome:
        """Run the handler as `run` does, in the asyncio loop that runs."""
        received = _message(body, options)
        try:
            if self._handler.is_async:
                await self._handler.call(received)
            else:
                self._handler.call(received)
        except _FAILURES as error:
            return self._outcome(received, error)
        return self._outcome(received, None)

    def _require_no_loop(self) -> None:
        if self._handler.is_async and asyncio._get_running_loop() is not None:  # noqa: SLF001 - as asyncio.run does
            raise RuntimeError(
                f"The handler {self._handler.name} is async, and so is the test. Use `await run_async(...)`, or"
                " `async with Runner(...)`."
            )

    def _outcome(self, received: Message, error: BaseException | None) -> Outcome:
        replies = self._replies.take()
        match calls.decide(error, received, self._retry, time.time()):
            case RetryLater(failure=failure, seconds=seconds):
                return Retry(seconds, failure.message, replies=replies, error=error)
            case GiveUp(failure=failure):
                return DeadLetter(str(failure.reason), failure.message, replies=replies, error=error)
            case _:
                return Ack(replies=replies)


def run(
    handler: Callable[..., Any] | str,
    body: Any = b"",
    *,
    context: Any = OPEN,
    max_attempts: int = DEFAULTS.max_attempts,
    delays_seconds: Sequence[int] = DEFAULTS.delays_seconds,
    **options: Unpack[MessageOptions],
) -> Outcome:
    """Open the lifespan, run the handler on one message, and return what happens to the message.

    Args:
        handler: a function, sync or async, or its name as for `workqueue run`.
        body: bytes, text, or what becomes JSON, as for `Publisher.publish`.
        context: `message.context`; the lifespan is then not opened.
        max_attempts, delays_seconds: as `retry` in a WorkQueue.
        options: of the message, see `MessageOptions`.

    Raises:
        HandlerLoadError: the worker would not start.
    """
    with Runner(handler, context=context, max_attempts=max_attempts, delays_seconds=delays_seconds) as runner:
        return runner.run(body, **options)


async def run_async(
    handler: Callable[..., Any] | str,
    body: Any = b"",
    *,
    context: Any = OPEN,
    max_attempts: int = DEFAULTS.max_attempts,
    delays_seconds: Sequence[int] = DEFAULTS.delays_seconds,
    **options: Unpack[MessageOptions],
) -> Outcome:
    """As `run`, in the asyncio loop that runs."""
    async with Runner(
        handler, context=context, max_attempts=max_attempts, delays_seconds=delays_seconds
    ) as runner:
        return await runner.run_async(body, **options)


class _KeptReplies:
    """Keeps answers instead of publishing them."""

    def __init__(self) -> None:
        self._kept: list[Reply] = []

    def reply(self, reply: message.Reply) -> Awaitable[None]:
        body, content_type = bodies.encode(reply.body)
        self._kept.append(
            Reply(
                reply.to,
                body,
                reply.content_type or content_type,
                reply.correlation_id,
                dict(reply.headers or {}),
            )
        )
        return message.DONE

    async def publish(self, reply: message.Reply) -> None:
        self.reply(reply)

    def take(self) -> tuple[Reply, ...]:
        taken, self._kept = tuple(self._kept), []
        return taken


def _message(body: Any, options: MessageOptions) -> Message:
    data, content_type = bodies.encode(body)
    given: dict[str, Any] = {"content_type": content_type, **options}
    attempt, redelivered = given.pop("attempt", 1), given.pop("redelivered", False)
    headers, queue = dict(given.pop("headers", {})), given.pop("queue", "test")
    if attempt > 1:
        headers[own_headers.ATTEMPT] = attempt - 1
    return Message(
        data,
        headers=headers,
        properties=Properties(**given),
        queue=queue,
        routing_key=queue,
        redelivered=redelivered,
        deadline=time.monotonic() + TIMEOUT_SECONDS,
    )


def _fail(reason: str) -> None:
    raise RuntimeError(reason)
