"""Publishing from your own program: each call returns when RabbitMQ has stored the message, or says why not.

    with Publisher("amqp://user:password@rabbitmq:5672/jobs") as publisher:
        publisher.publish({"picture": 7}, queue="thumbnails", delay=30)

`AsyncPublisher` has the same methods as coroutines.
"""

from __future__ import annotations

import asyncio
import numbers
import os
import threading
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypedDict, Unpack

from workqueue import bodies
from workqueue.amqp import cancelling
from workqueue.amqp.declaration import SAFE_AFTER_SECONDS
from workqueue.amqp.errors import BrokerError, PublishError, Returned
from workqueue.amqp.outgoing import Outgoing, milliseconds
from workqueue.amqp.publish_pipeline import DEFAULT_TIMEOUT_SECONDS, DEFAULT_WINDOW, PublishPipeline
from workqueue.contract import topology
from workqueue.contract.binding import Binding, folder_source, from_environment, from_url
from workqueue.contract.headers import HIGHEST_PRIORITY
from workqueue.worker import tracing

LONGEST_EXPIRY_SECONDS: Final = 4_294_967
"""RabbitMQ's limit for the expiration of a message: 32 bits of milliseconds."""

LONGEST_TIMEOUT_SECONDS: Final = 86_400
CLOSE_SECONDS: Final = 3.0


class Options(TypedDict, total=False):
    """Where a message goes, and its properties. Give a queue or an exchange.

    Attributes:
        queue: a work queue that exists.
        exchange: an exchange that exists. With `routing_key`.
        delay: seconds until the message is in the queue, at most 30 days, rounded up to half a second.
        priority: 0 to 255. Quorum queues order by it, as their RabbitMQ does: strictly from 4.3.
        expires: seconds after which RabbitMQ drops the message if no worker has taken it.
        message_id: to recognise a message that was published twice. The publisher makes one if it is missing.
        headers: values may be None, bool, int, float, str, bytes, datetime, Decimal, lists and mappings.
        content_type: instead of the one of the body.
        reply_to, correlation_id: for a handler that replies.
    """

    queue: str
    exchange: str
    routing_key: str
    delay: float
    priority: int
    expires: float
    message_id: str
    headers: Mapping[str, Any]
    content_type: str
    reply_to: str
    correlation_id: str


OPTIONS: Final = frozenset(Options.__annotations__)
_DESTINATION: Final = ("queue", "exchange", "routing_key")
_TEXTS: Final = ("message_id", "content_type", "reply_to", "correlation_id")
PROPERTIES: Final = (OPTIONS & set(Outgoing._fields)) - {"routing_key"}
"""Options that are fields of the message under the same name, besides its destination."""


class PublishManyError(BrokerError):
    """`publish_many` has stopped, because a message was not published. Every message before it has a result.

    Attributes:
        errors: by the position of the body, from 0.
        read: how many bodies were read. Bodies from this position on were not published.
    """

    def __init__(self, errors: Mapping[int, PublishError], read: int) -> None:
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {read} messages were not published. The first is number {first}: {errors[first]} "
            f"Publish the bodies in `errors` and those from number {read} on again."
        )
        self.errors = dict(errors)
        self.read = read


class _Prepared(NamedTuple):
    """A message, and the delay queues that it needs."""

    outgoing: Outgoing
    route: topology.DelayRoute | None


class _Base:
    """What both publishers have in common: the connection, and how a body becomes a message."""

    def __init__(
        self,
        url: str | None = None,
        *,
        binding: str | Path | None = None,
        name: str = "python",
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        if url is not None and binding is not None:
            raise ValueError("Give a URL or a binding, not both.")
        _require_number("timeout_seconds", timeout_seconds)
        if not 0 < timeout_seconds <= LONGEST_TIMEOUT_SECONDS:
            raise ValueError(
                f"timeout_seconds is {timeout_seconds}; it must be above 0, up to {LONGEST_TIMEOUT_SECONDS} (a day)."
            )
        self._source: Callable[[], Binding]
        if url is not None:
            self._source = partial(from_url, url)
        elif binding is not None:
            self._source = folder_source(binding)
        else:
            self._source = from_environment(os.environ)
        self._source()
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._current: PublishPipeline | None = None
        self._closed = False
        self._declared: set[str] = set()
        self._declaring: dict[str, Future[None]] = {}
        self._safe_from: dict[str, float] = {}
        """By work queue: from when on RabbitMQ cannot lose its delay queues, on the monotonic clock."""
        self._id_prefix = uuid.uuid4().hex
        self._id_numbers = count(1)

    def _enter_process(self) -> None:
        """Keep nothing of the process from which this one was forked: neither its connection nor its ids."""
        if self._process == os.getpid():
            return
        with self._lock:
            if self._process != os.getpid():
                self._current = None
                self._id_prefix = uuid.uuid4().hex
                self._declared = set()
                self._declaring = {}
                self._process = os.getpid()

    def _pipeline(self) -> PublishPipeline:
        """The connection of this process, which `_prepare` has entered."""
        if self._current is not None:
            return self._current
        with self._lock:
            if self._closed:
                raise BrokerError("The publisher is closed.")
            if self._current is None:
                traces = tracing.start(self._name, os.environ) if tracing.wanted(os.environ) else None
                self._current = tracing.pipeline(
                    traces, self._source, self._name, timeout_seconds=self._timeout_seconds
                ).start()
            return self._current

    def _end(self) -> PublishPipeline | None:
        with self._lock:
            self._closed = True
            ended, self._current = self._current, None
        return ended if self._process == os.getpid() else None

    def _prepare(self, body: Any, options: Options) -> _Prepared:
        """Make a message of a body.

        Args:
            options: checked.

        Raises:
            TypeError, ValueError: the body cannot be encoded.
        """
        self._enter_process()
        data, content_type = bodies.encode(body)
        fields: dict[str, Any] = {name: value for name, value in options.items() if name in PROPERTIES}
        fields.setdefault("content_type", content_type)
        if not fields.get("message_id"):
            fields["message_id"] = f"{self._id_prefix}-{next(self._id_numbers)}"
        if "expires" in options:
            fields["expiration"] = milliseconds(options["expires"])
        outgoing = Outgoing(options.get("queue") or options.get("routing_key", ""), data, **fields)
        if not options.get("delay"):
            return _Prepared(outgoing, None)
        route = topology.delay_route(options["queue"], options["delay"], outgoing.priority)
        return _Prepared(outgoing.delayed(route, time.time() + options["delay"]), route)

    def _has_declared(self, route: topology.DelayRoute) -> bool:
        return self._declared.issuperset(route.queues)

    @contextmanager
    def _turn_to_declare(self, queue: str) -> Iterator[Future[None] | None]:
        """Yield None to the only caller that declares delay queues of a work queue now, and its future to the others.

        Of two declarations at the same time, one would find queues that the other has just created, and that
        RabbitMQ can still lose.
        """
        with self._lock:
            running = self._declaring.get(queue)
            turn = self._declaring.setdefault(queue, Future())
        if running is not None:
            yield running
            return
        failure: BrokerError | None = None
        try:
            yield None
        except BrokerError as error:
            failure = error
            raise
        finally:
            with self._lock:
                self._declaring.pop(queue, None)
            if failure is None:
                turn.set_result(None)
            else:
                turn.set_exception(failure)

    def _seconds_until_safe(self, queue: str, *, is_new: bool) -> float:
        now = time.monotonic()
        if is_new:
            self._safe_from[queue] = now + SAFE_AFTER_SECONDS
        return max(self._safe_from.get(queue, now) - now, 0.0)

    def _forget_delay_queues(self, route: topology.DelayRoute | None) -> bool:
        """Declare delay queues again before the next delayed message: one may have been deleted.

        Returns:
            Whether this may help a message that was returned.
        """
        was_declared = route is not None and self._has_declared(route)
        self._declared.clear()
        return was_declared


class Publisher(_Base):
    """Publishes over one connection that is opened at the first message and reconnects. For any number of threads.

    Args:
        url: `amqp[s]://user:password@host[:port]/virtual-host`.
        binding: a folder with the keys of a connection Secret, instead of a URL. Without both, the environment
            decides, as for `workqueue send`: WORKQUEUE_URL, WORKQUEUE_BINDING, SERVICE_BINDING_ROOT, or RabbitMQ on
            this machine.
        name: the connection's name in RabbitMQ's lists.
        timeout_seconds: for the confirm of one message, connecting included.

    Raises:
        BindingError: the connection data are incomplete or invalid.
    """

    def publish(self, body: Any, **options: Unpack[Options]) -> str:
        """Publish one message, and return its id when RabbitMQ has stored it.

        Args:
            body: bytes, text, or what becomes JSON: a dict, a dataclass, a pydantic model.
            options: see `Options`.

        Raises:
            Returned: no queue took it.
            Refused: RabbitMQ refused it, such as for a full queue.
            Unconfirmed: RabbitMQ may or may not have stored it. Publish it again with the id in `error.message_id`.
            NotSent: it never left this process, for example because RabbitMQ cannot be reached.
            DeclareError: RabbitMQ refused a delay queue.
            BrokerError: the publisher is closed. All errors above are subclasses.
            TypeError, ValueError: the body cannot be encoded, or an option is wrong.
        """
        _check(options)
        prepared = self._prepare(body, options)
        self._await_delay_queues(prepared.route)
        try:
            self._pipeline().publish_and_wait(prepared.outgoing)
        except PublishError as error:
            if not self._forget_delay_queues(prepared.route) or not isinstance(error, Returned):
                raise
            self._await_delay_queues(prepared.route)
            self._pipeline().publish_and_wait(prepared.outgoing)
        return str(prepared.outgoing.message_id)

    def publish_many(self, bodies: Iterable[Any], **options: Unpack[Options]) -> list[str]:
        """Publish many messages without waiting for each, and return their ids when RabbitMQ has stored all.

        It stops reading bodies once a message has failed.

        Args:
            bodies: see `publish`.
            options: of every message. `message_id` is not possible.

        Raises:
            PublishManyError: at least one message was not published.
            TypeError, ValueError: a body cannot be encoded, or an option is wrong. Earlier messages are published.
        """
        _check_bodies(bodies)
        _check_many(options)
        results = _Results()
        try:
            for body in bodies:
                prepared = self._prepare(body, options)
                self._await_delay_queues(prepared.route)
                results.publish(self._pipeline(), prepared.outgoing)
                if results.errors:
                    break
        finally:
            results.wait()
            if results.errors:
                self._declared.clear()
        return results.ids()

    def cancel(self, *message_ids: str, queue: str, discard: bool = False) -> None:
        """Cancel messages by their ids, and return when RabbitMQ has stored that.

        A handler that runs is told within a second. A message that waits, or is delayed, is dropped when a worker
        takes it. A message with the same id that is published at least a second later is not concerned.

        Args:
            message_ids: as `publish` has returned them. An id that is unknown is accepted, for 31 days.
            queue: the work queue of the messages.
            discard: whether to drop the messages. Otherwise they go to the dead-letter queue, with the reason
                Cancelled.

        Raises:
            DeclareError: RabbitMQ refused the stream of the cancels. It needs streams, from 3.9.
            BrokerError: the queue does not exist, or RabbitMQ may or may not have stored all of it: cancel again.
            TypeError, ValueError: a message cannot have this id.
        """
        cancelling.check(message_ids, queue)
        self._enter_process()
        cancelling.cancel(self._pipeline(), message_ids, queue, discard=discard)

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Disconnect. Messages of other threads get at most `timeout` seconds for their confirm."""
        ended = self._end()
        if ended is not None:
            ended.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await_delay_queues(self, route: topology.DelayRoute | None) -> None:
        while route is not None and not self._has_declared(route):
            with self._turn_to_declare(route.queue) as running:
                if running is not None:
                    running.result()
                    continue
                is_new = self._pipeline().declare_plan(route.plan).result()
                time.sleep(self._seconds_until_safe(route.queue, is_new=is_new))
                self._declared.update(route.queues)


class AsyncPublisher(_Base):
    """`Publisher` for asyncio. Its connection has a thread of its own, so a busy event loop does not lose it.

    Args:
        url, binding, name, timeout_seconds: as for `Publisher`.
    """

    async def publish(self, body: Any, **options: Unpack[Options]) -> str:
        """Publish one message, and return its id when RabbitMQ has stored it. See `Publisher.publish`.

        Cancelling the task does not withdraw the message.
        """
        _check(options)
        prepared = self._prepare(body, options)
        if prepared.route is not None:
            await self._await_delay_queues(prepared.route)
        try:
            await self._pipeline().publish_async(prepared.outgoing)
        except PublishError as error:
            if not self._forget_delay_queues(prepared.route) or not isinstance(error, Returned):
                raise
            await self._await_delay_queues(prepared.route)
            await self._pipeline().publish_async(prepared.outgoing)
        return str(prepared.outgoing.message_id)

    async def publish_many(
        self, bodies: Iterable[Any] | AsyncIterable[Any], **options: Unpack[Options]
    ) -> list[str]:
        """Publish many messages without waiting for each. See `Publisher.publish_many`."""
        _check_bodies(bodies)
        _check_many(options)
        ids: list[str] = []
        errors: dict[int, PublishError] = {}
        places = asyncio.Semaphore(DEFAULT_WINDOW)

        def settled(position: int, future: asyncio.Future[None]) -> None:
            places.release()
            error = future.exception()
            if isinstance(error, PublishError):
                errors[position] = error

        try:
            async for body in _each(bodies):
                prepared = self._prepare(body, options)
                await self._await_delay_queues(prepared.route)
                await places.acquire()
                if errors:
                    places.release()
                    break
                try:
                    future = await self._pipeline().send_async(prepared.outgoing)
                except BaseException:
                    places.release()
                    raise
                future.add_done_callback(partial(settled, len(ids)))
                ids.append(str(prepared.outgoing.message_id))
        finally:
            for _ in range(DEFAULT_WINDOW):  # each message has a result when all places are free
                await places.acquire()
        if errors:
            self._declared.clear()
            raise PublishManyError(errors, len(ids))
        return ids

    async def cancel(self, *message_ids: str, queue: str, discard: bool = False) -> None:
        """Cancel messages by their ids. See `Publisher.cancel`."""
        cancelling.check(message_ids, queue)
        self._enter_process()
        pipeline = self._pipeline()
        await asyncio.wrap_future(cancelling.declare(pipeline, queue))
        messages = cancelling.messages(message_ids, queue, discard=discard)
        for stored in [await pipeline.send_async(message) for message in messages]:
            await stored

    async def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Disconnect. Messages of other tasks get at most `timeout` seconds for their confirm."""
        ended = self._end()
        if ended is not None:
            await asyncio.to_thread(ended.close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _await_delay_queues(self, route: topology.DelayRoute | None) -> None:
        while route is not None and not self._has_declared(route):
            with self._turn_to_declare(route.queue) as running:
                if running is not None:
                    await asyncio.shield(asyncio.wrap_future(running))
                    continue
                is_new = await asyncio.wrap_future(self._pipeline().declare_plan(route.plan))
                await asyncio.sleep(self._seconds_until_safe(route.queue, is_new=is_new))
                self._declared.update(route.queues)


class _Results:
    """The results of many messages. Successes are dropped early, so that only ids take memory."""

    def __init__(self) -> None:
        self.errors: dict[int, PublishError] = {}
        self._ids: list[str] = []
        self._open = 0
        self._lock = threading.Lock()
        self._is_complete = threading.Event()

    def publish(self, pipeline: PublishPipeline, outgoing: Outgoing) -> None:
        """Publish a message and keep its error.

        Raises:
            BrokerError: the publisher is closed.
        """
        position = len(self._ids)
        with self._lock:
            self._open += 1
        try:
            pipeline.publish_then(outgoing, partial(self._settled, position))
        except PublishError as error:
            self._settled(position, error)
        except BaseException:
            self._settled(position, None)
            raise
        self._ids.append(str(outgoing.message_id))

    def _settled(self, position: int, error: PublishError | None) -> None:
        with self._lock:
            if error is not None:
                self.errors[position] = error
            self._open -= 1
            if not self._open:
                self._is_complete.set()

    def wait(self) -> None:
        """Wait until each message has a result. Each has one after its timeout at the latest."""
        with self._lock:
            if not self._open:
                return
            self._is_complete.clear()
        self._is_complete.wait()

    def ids(self) -> list[str]:
        """Return the ids.

        Raises:
            PublishManyError: a message failed.
        """
        if self.errors:
            raise PublishManyError(self.errors, len(self._ids))
        return self._ids


async def _each(bodies: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(bodies, AsyncIterable):
        async for body in bodies:
            yield body
    else:
        for body in bodies:
            yield body


def _check_bodies(bodies: object) -> None:
    if isinstance(bodies, str | bytes | bytearray | memoryview | Mapping):
        raise TypeError(
            f"publish_many takes a list or another iterable of bodies, not a {type(bodies).__name__}. Use publish for"
            " one body."
        )


def _check_many(options: Options) -> None:
    if "message_id" in options:
        raise ValueError(
            "message_id would be the same for all messages. Use publish for each, or leave it out."
        )
    _check(options)


def _check(options: Options) -> None:
    queue = options.get("queue")
    if queue and isinstance(queue, str) and len(options) == 1:  # the most common form
        return
    if not options.keys() <= OPTIONS:
        unknown = ", ".join(sorted(options.keys() - OPTIONS))
        raise TypeError(f"Unknown options: {unknown}. The options are {', '.join(Options.__annotations__)}.")
    _check_types(options)
    exchange = options.get("exchange")
    if (not queue) == (not exchange):
        raise ValueError("Give a queue or an exchange.")
    if queue and options.get("routing_key"):
        raise ValueError("routing_key goes with exchange. A message to a queue has none.")
    delay, priority = options.get("delay"), options.get("priority")
    if delay is not None:
        _require_number("delay", delay)
        if not queue:
            raise ValueError("delay goes with queue.")
        if "expires" in options:
            raise ValueError("delay and expires cannot be combined.")
        if not 0 <= delay <= topology.LONGEST_DELAY_SECONDS:
            raise ValueError(
                f"delay is {delay}; it must be from 0 to {topology.LONGEST_DELAY_SECONDS} seconds (30 days)."
            )
        topology.check_queue_name(queue)
    if priority is not None and not 0 <= priority <= HIGHEST_PRIORITY:
        raise ValueError(f"priority is {priority}; it must be from 0 to {HIGHEST_PRIORITY}.")
    if "expires" in options:
        _require_number("expires", options["expires"])
        if not 0 < options["expires"] <= LONGEST_EXPIRY_SECONDS:
            raise ValueError(
                f"expires is {options['expires']}; it must be above 0, up to {LONGEST_EXPIRY_SECONDS} seconds."
            )


def _check_types(options: Mapping[str, Any]) -> None:
    for names, kinds, what in (
        (_DESTINATION, str, "text"),
        (_TEXTS, (str, bytes), "text"),
        (("headers",), Mapping, "a mapping, such as a dict"),
        (("priority",), numbers.Integral, "a whole number"),
    ):
        for name in names:
            value = options.get(name)
            if value is not None and not isinstance(value, kinds):
                raise TypeError(f"{name} is of the type {type(value).__qualname__}; it must be {what}.")


def _require_number(name: str, value: object) -> None:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is of the type {type(value).__qualname__}; it must be a number of seconds.")
