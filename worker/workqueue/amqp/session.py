"""Synchronous requests to RabbitMQ, for commands that people run: look, take, give back.

Each call waits for its answer. Unlike a worker's connection, a session does not reconnect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import pika.exceptions

from workqueue.amqp.connection import Connection
from workqueue.amqp.errors import BrokerError, UnreachableError, describe
from workqueue.contract.binding import Binding
from workqueue.contract.properties import Properties
from workqueue.contract.topology import BrokerVersion

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 10.0
NOT_FOUND: Final = 404

T = TypeVar("T")


class QueueDepth(NamedTuple):
    """The live counts of a queue, from a passive declaration."""

    ready: int
    consumers: int


class Received(NamedTuple):
    """A message to acknowledge or give back."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: Properties
    headers: Mapping[str, Any]
    body: bytes


class Session:
    """One connection, and one channel for messages. `with` opens it. Leaving it gives back unsettled messages.

    Args:
        binding_source: returns the connection data.
        name: the connection's name in RabbitMQ's lists.
        keeps_bodies: if False, messages arrive with empty bodies, and a large one costs no memory.

    Raises:
        BrokerError: from every call, if RabbitMQ cannot be reached or refuses.
    """

    def __init__(
        self,
        binding_source: Callable[[], Binding],
        name: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        keeps_bodies: bool = True,
    ) -> None:
        self._binding_source = binding_source
        self._timeout_seconds = timeout_seconds
        self._connection = Connection(binding_source, name, on_lost=self._on_lost, keeps_bodies=keeps_bodies)
        self._channel: Any = None
        self._lost = ""
        self._asked: set[Future[Any]] = set()
        self._got: Future[Received | None] = Future()

    def __enter__(self) -> Self:
        self._connection.start()
        try:
            wait_until_open(self._connection, self._binding_source)
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # RabbitMQ requeues unsettled messages when the connection closes.
        self._connection.close()

    @property
    def version(self) -> BrokerVersion:
        """The broker's version."""
        assert self._connection.version is not None  # noqa: S101 - open, so that it is known
        return self._connection.version

    def depth(self, queue: str) -> QueueDepth | None:
        """Return ready messages and consumers of a queue, or None if it does not exist."""

        def declare(channel: Any, answer: Future[QueueDepth | None]) -> None:
            def answered(frame: Any) -> None:
                channel.close()
                _tell(answer, QueueDepth(frame.method.message_count, frame.method.consumer_count))

            channel.queue_declare(queue, passive=True, callback=answered)

        return self._ask(declare, if_missing=None)

    def get(self, queue: str) -> Received | None:
        """Take the first message of a queue, or return None if no message is ready."""

        def get(channel: Any, answer: Future[Received | None]) -> None:
            self._got = answer
            channel.basic_get(queue, self._on_message)

        return self._ask(get, keep_channel=True)

    def ack(self, received: Received) -> None:
        """Acknowledge a message. Thread-safe; does not wait."""
        self._connection.call(lambda: self._settle(lambda channel: channel.basic_ack(received.tag)))

    def give_back(self, received: Received) -> None:
        """Requeue a message at its old place. Thread-safe; does not wait."""
        self._connection.call(
            lambda: self._settle(lambda channel: channel.basic_nack(received.tag, requeue=True))
        )

    def give_back_all(self) -> None:
        """Requeue every unsettled message, and wait until RabbitMQ has done so."""

        def give_back(channel: Any, answer: Future[None]) -> None:
            # RabbitMQ handles the frames of a channel in order, so this answer comes after everything else is done.
            channel.basic_nack(0, multiple=True, requeue=True)
            channel.basic_qos(prefetch_count=0, callback=lambda _: _tell(answer, None))

        if self._lost:
            raise BrokerError(self._lost)
        if self._channel is not None:
            self._ask(give_back, keep_channel=True)

    def _settle(self, settle: Callable[[Any], None]) -> None:
        if self._channel is not None and self._channel.is_open:
            settle(self._channel)

    def _ask(self, ask: Callable[[Any, Future[T]], None], *, keep_channel: bool = False, **missing: T) -> T:
        """Send a request on the session's channel or on a new one, and wait for the answer."""
        answer: Future[T] = Future()
        self._asked.add(answer)

        def on_open(channel: Any) -> None:
            channel.add_on_close_callback(on_closed)
            if keep_channel:
                self._channel = channel
                channel.add_callback(
                    lambda _: _tell(self._got, None), [pika.spec.Basic.GetEmpty], one_shot=False
                )
            _send(ask, channel, answer)

        def on_closed(channel: Any, error: BaseException) -> None:
            code = getattr(error, "reply_code", 0)
            if code == NOT_FOUND and missing:
                _tell(answer, missing["if_missing"])
            refused = isinstance(error, pika.exceptions.ChannelClosedByBroker)
            what = "RabbitMQ refused" if refused else "The connection to RabbitMQ was lost"
            sentence = f"{what}: {describe(error)}."
            if channel is self._channel:
                self._lose(sentence)
            _fail(answer, sentence)

        def begin() -> None:
            # Never on a new channel: RabbitMQ has requeued the messages of the old one.
            if self._lost:
                _fail(answer, self._lost)
                return
            try:
                if keep_channel and self._channel is not None:
                    _send(ask, self._channel, answer)
                else:
                    self._connection.channel(on_open)
            except BrokerError as error:
                _fail(answer, str(error))

        self._connection.call(begin)
        try:
            return answer.result(self._timeout_seconds)
        except TimeoutError as error:
            raise BrokerError(f"RabbitMQ has not answered for {self._timeout_seconds:g} s.") from error
        finally:
            self._asked.discard(answer)

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        received = Received(
            method.delivery_tag,
            method.redelivered,
            method.exchange,
            method.routing_key,
            Properties.of(properties),
            properties.headers or {},
            body,
        )
        _tell(self._got, received)

    def _on_lost(self, reason: str) -> None:
        self._lose(f"The connection to RabbitMQ was lost: {reason}.")

    def _lose(self, sentence: str) -> None:
        """Fail all open requests. RabbitMQ requeues the unsettled messages."""
        self._channel = None
        self._lost = sentence
        for answer in list(self._asked):
            _fail(answer, sentence)


def wait_until_open(
    connection: Connection, binding_source: Callable[[], Binding], timeout: float = CONNECT_SECONDS
) -> None:
    """Wait until a started connection is open.

    Raises:
        BindingError: the connection data cannot be used.
        UnreachableError: the only address failed, or none of several could be reached within `timeout` seconds.
    """
    binding = binding_source()
    deadline = time.monotonic() + timeout
    while not connection.is_open:
        failed = connection.last_error
        if failed and (len(binding.addresses) == 1 or time.monotonic() > deadline):
            raise UnreachableError(f"RabbitMQ at {binding.display} cannot be used: {failed.rstrip('.')}.")
        if time.monotonic() > deadline:
            raise UnreachableError(f"RabbitMQ at {binding.display} has not answered for {timeout:g} s.")
        time.sleep(0.005)


def _send(ask: Callable[[Any, Future[T]], None], channel: Any, answer: Future[T]) -> None:
    try:
        ask(channel, answer)
    except (pika.exceptions.AMQPError, UnicodeError) as error:  # such as a name that is too long
        _fail(answer, f"RabbitMQ cannot be asked: {describe(error)}.")


def _tell(answer: Future[T], value: T) -> None:
    with suppress(InvalidStateError):
        answer.set_result(value)


def _fail(answer: Future[T], sentence: str) -> None:
    with suppress(InvalidStateError):
        answer.set_exception(BrokerError(sentence))
