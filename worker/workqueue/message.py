"""What a handler receives, and what it may raise.

A handler that returns has handled the message. `Retry` and `Reject` ask for something else. Any other exception means
a retry.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from workqueue.contract import headers as own_headers
from workqueue.contract.errors import UndecodableError
from workqueue.contract.properties import Headers, Properties

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Retry(Exception):  # noqa: N818 - it is a request, not an error
    """Raised by a handler that asks for another attempt later.

    Args:
        after: seconds to wait, at most 30 days, rounded up to half a second; None for the queue's own delays.
        reason: for the failure header.
        counts: whether this attempt counts. False is for rate limits and services that are down: the message
            keeps its attempt number. It becomes a dead letter when it is older than `retry.maxAgeSeconds`.

    Raises:
        TypeError: `after` is not a number.
    """

    # For a subclass that does not call `super().__init__`.
    after: float | None = None
    counts: bool = True

    def __init__(self, after: float | None = None, reason: str = "", *, counts: bool = True) -> None:
        if after is not None and not isinstance(after, (int, float)):
            raise TypeError(f"Retry(after=...) is a number of seconds, not a {type(after).__name__}.")
        super().__init__(reason or "the handler asked for a retry")
        self.after = after
        self.counts = counts


class Reject(Exception):  # noqa: N818
    """Raised by a handler to send the message to the dead-letter queue without another attempt.

    Args:
        reason: for the failure header.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the handler rejected the message")


class Cancellation:
    """Tells a handler that its result no longer counts: it timed out, or the delivery was lost.

    Works like a `threading.Event`. A coroutine can `await message.cancelled`, but is also cancelled as a
    task. There is one per message, so locks and events are made only for handlers that use them.
    """

    __slots__ = ("_callbacks", "_set")
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._set = False
        self._callbacks: list[Callable[[], None]] | None = None

    def is_set(self) -> bool:
        """Whether the handler should stop."""
        return self._set

    __bool__ = is_set

    def set(self) -> None:
        """Tell the handler to stop. Only the worker calls this."""
        with self._lock:
            self._set = True
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback()
            except BaseException:
                # Also SystemExit: this is the thread that runs the I/O loop.
                logger.exception("A callback of the message's cancellation failed.")

    def on_set(self, callback: Callable[[], None]) -> None:
        """Call `callback` when this is set, or immediately if it is set. It must be short and must not raise."""
        with self._lock:
            if not self._set:
                self._callbacks = [*(self._callbacks or ()), callback]
                return
        callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait in a thread, at most `timeout` seconds, and return whether it is set."""
        if not self._set:
            event = threading.Event()
            self.on_set(event.set)
            try:
                event.wait(timeout)
            finally:
                self._forget(event.set)
        return self._set

    def __await__(self) -> Generator[Any, None, None]:
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(None))

        self.on_set(wake)
        try:
            yield from future.__await__()
        finally:
            self._forget(wake)

    def _forget(self, callback: Callable[[], None]) -> None:
        """Do not call a callback any more: a handler may wait many times in a loop."""
        with self._lock:
            if self._callbacks and callback in self._callbacks:
                self._callbacks.remove(callback)


class Reply(NamedTuple):
    """An answer to a message."""

    to: str
    body: Any
    correlation_id: str | None
    headers: Mapping[str, Any] | None
    content_type: str | None


class _Done:
    """An awaitable of something that is done."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


DONE: Final = _Done()


class Replier(Protocol):
    """Publishes replies."""

    def reply(self, reply: Reply) -> Awaitable[None]:
        """Publish a reply. In a sync handler this returns when RabbitMQ has stored it."""


class Message:
    """A message in one attempt to handle it.

    Attributes:
        body: as published.
        headers: as published; on a retry also those of the worker (`x-workqueue-...`).
        attempt: 1 for the first attempt.
        redelivered: whether RabbitMQ delivered it before, such as to a worker that died.
        queue: the work queue.
        exchange, routing_key: from the last publishing. After a retry, they are those of the delay queue.
        cancelled: set when the result no longer counts.
        deadline: when the handler times out, on the clock of `time.monotonic()`.
        context: what the lifespan of the handler's module yields; None without one.
    """

    __slots__ = (
        "_properties",
        "_raw",
        "_replier",
        "attempt",
        "body",
        "cancelled",
        "context",
        "deadline",
        "exchange",
        "headers",
        "queue",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        body: bytes,
        *,
        headers: Headers | None = None,
        properties: object = None,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        redelivered: bool = False,
        deadline: float = float("inf"),
    ) -> None:
        self.body = body
        self.queue = queue
        self.exchange = exchange
        self.routing_key = routing_key
        self.redelivered = redelivered
        self.deadline = deadline
        self.cancelled = Cancellation()
        self.context: Any = None
        self._replier: Replier | None = None
        self._raw = properties
        self._properties: Properties | None = None
        self.headers: Headers = headers or {}
        self.attempt = own_headers.attempts_made(self.headers) + 1 if headers else 1
        if headers and own_headers.has_preserved(headers):
            self._properties, self.headers = _restored(Properties.of(properties).readable(), headers)

    @property
    def properties(self) -> Properties:
        """The properties except headers, as published, also on a retry."""
        if self._properties is None:
            self._properties = Properties.of(self._raw).readable()
        return self._properties

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def text(self) -> str:
        """Return the body as UTF-8 text.

        Raises:
            UndecodableError: it is not. A handler that does not catch this sends the message to the
            dead-letter queue.
        """
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise UndecodableError(f"The body is not UTF-8 text: {error}.") from error

    def json(self) -> Any:
        """Return the body parsed as JSON.

        Raises:
            UndecodableError: it is not. A handler that does not catch this sends the message to the
            dead-letter queue.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UndecodableError(f"The body is not JSON: {error}.") from error

    def parse(self, kind: type[T]) -> T:
        """Return the body, which is JSON, as a value of this type.

        Args:
            kind: a pydantic model, a dataclass, a TypedDict, or another type that pydantic validates.

        Raises:
            UndecodableError: the body is not valid. A handler that does not catch this sends the message to the
                dead-letter queue.
            ImportError: pydantic 2 is not installed.
        """
        from workqueue import payloads

        value: T = payloads.parser(kind)(self.body)  # type: ignore[arg-type]  # to mypy no type is Hashable
        return value

    def reply(
        self, body: Any, *, headers: Mapping[str, Any] | None = None, content_type: str | None = None
    ) -> Awaitable[None]:
        """Publish an answer to the queue that the message names in `reply_to`.

        It has the message's `correlation_id`, or its `message_id` if it has none. RabbitMQ has stored the answer
        before the message is acknowledged. In a sync handler, this returns when RabbitMQ has stored it. In an async
        handler, await it; the worker awaits what the handler does not.

        Args:
            body: bytes, text, or what becomes JSON, as for `Publisher.publish`.
            headers: of the answer.
            content_type: instead of the one of the body.

        Raises:
            ValueError: the message has no `reply_to`.
            PublishError: RabbitMQ has not stored the answer, as for `Publisher.publish`. `Returned` means that the
                queue no longer exists: usually the program that asked has ended.
        """
        properties = self.properties
        if not properties.reply_to:
            raise ValueError(
                "The message has no reply_to, so no queue waits for an answer."
                " Check message.properties.reply_to before you reply."
            )
        if self._replier is None:
            raise RuntimeError("Only a message that a handler received can be answered.")
        to, correlation_id = properties.reply_to, properties.correlation_id or properties.message_id
        return self._replier.reply(Reply(to, body, correlation_id, headers, content_type))

    def replies_in_progress(self) -> Iterable[Awaitable[None]]:
        """Return the answers that an async handler has not awaited. Only the worker calls this."""
        in_progress = getattr(self._replier, "in_progress", None)
        return () if in_progress is None else in_progress()

    def attach(self, context: Any, replier: Replier | None) -> None:
        """Give the message what a handler uses. Only the worker calls this."""
        self.context = context
        self._replier = replier

    def __repr__(self) -> str:
        return f"<Message from {self.queue}, attempt {self.attempt}, {len(self.body)} bytes>"


def _restored(properties: Properties, headers: Headers) -> tuple[Properties, Headers]:
    original, clean = own_headers.restore(properties, headers)
    ours = {key: value for key, value in headers.items() if key in own_headers.OURS}
    return original, {**clean, **ours}
