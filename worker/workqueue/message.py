"""What a handler is given, and what it may raise.

Place in the flow: `runtime` makes a `Message` of each delivery and calls the handler with it. Returning
means done. `Retry` and `Reject` say otherwise; any other exception is a retry too.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from workqueue.contract import headers as own_headers
from workqueue.contract.errors import UndecodableError
from workqueue.contract.properties import Headers, Properties

logger = logging.getLogger(__name__)


class Retry(Exception):  # noqa: N818 - it is a request, not an error
    """Raised by a handler: not now, try again later.

    Args:
        after: seconds to wait at least; None for the queue's own delays. Rounded up to a delay for which
            there is a queue, at most to the double, at most one day.
        reason: goes into the failure header.
    """

    def __init__(self, after: float | None = None, reason: str = "") -> None:
        super().__init__(reason or "the handler asked for a retry")
        self.after = after


class Reject(Exception):  # noqa: N818
    """Raised by a handler: never try this message again; it goes to the dead-letter queue.

    Args:
        reason: goes into the failure header.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the handler rejected the message")


class Cancellation:
    """Tells a handler that its result will not count any more: time is up, or the delivery was lost.

    Like a `threading.Event`, and `await message.cancelled` waits for it in a coroutine (which is cancelled
    anyway). Made for each message, so that what most handlers never use costs nothing.
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
        """Tell the handler to stop. Only the runtime calls this."""
        with self._lock:
            self._set = True
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback()
            except BaseException:
                # Also SystemExit: we are in the thread that does the I/O.
                logger.exception("A callback of the message's cancellation failed.")

    def on_set(self, callback: Callable[[], None]) -> None:
        """Call `callback` once it is set, at once if it is. It must be quick and must not raise."""
        with self._lock:
            if not self._set:
                self._callbacks = [*(self._callbacks or ()), callback]
                return
        callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait in a thread, at most `timeout` seconds; returns whether it is set."""
        if not self._set:
            event = threading.Event()
            self.on_set(event.set)
            event.wait(timeout)
        return self._set

    def __await__(self) -> Generator[Any, None, None]:
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(None))

        self.on_set(wake)
        yield from future.__await__()


class Message:
    """One message, for one attempt to handle it.

    Attributes:
        body: as published.
        headers: as published, with those of ours (`x-workqueue-...`) on a retry.
        attempt: 1 for the first attempt.
        redelivered: whether RabbitMQ delivered it before, for instance to a worker that died.
        queue: where it was taken from.
        exchange, routing_key: how the last publisher sent it. After a retry that is the delay queue's way.
        cancelled: set when the result will not count any more.
        deadline: when the handler's time is up, on the clock of `time.monotonic()`.
    """

    __slots__ = (
        "_properties",
        "_raw",
        "attempt",
        "body",
        "cancelled",
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
        self._raw = properties
        self._properties: Properties | None = None
        self.headers: Headers = headers or {}
        self.attempt = own_headers.attempts_made(self.headers) + 1 if headers else 1
        if headers and own_headers.has_preserved(headers):
            self._properties, self.headers = _restored(Properties.of(properties).readable(), headers)

    @property
    def properties(self) -> Properties:
        """The other properties, as published; also on a retry."""
        if self._properties is None:
            self._properties = Properties.of(self._raw).readable()
        return self._properties

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def text(self) -> str:
        """The body as UTF-8 text.

        Raises:
            UndecodableError: it is none. If the handler lets it through, the message is dead-lettered.
        """
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise UndecodableError(f"The body is no UTF-8 text: {error}.") from error

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            UndecodableError: it is none. If the handler lets it through, the message is dead-lettered.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UndecodableError(f"The body is no JSON: {error}.") from error

    def __repr__(self) -> str:
        return f"<Message from {self.queue}, attempt {self.attempt}, {len(self.body)} bytes>"


def _restored(properties: Properties, headers: Headers) -> tuple[Properties, Headers]:
    original, clean = own_headers.restore(properties, headers)
    ours = {key: value for key, value in headers.items() if key in own_headers.OURS}
    return original, {**clean, **ours}
