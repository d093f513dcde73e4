"""Consume the results, count the waiting messages, and purge queues.

Only this module of the demo imports pika. The demo publishes with the project's own publisher.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from hack.demo.errors import DemoError
from workqueue.contract.binding import Binding

POLL_SECONDS: Final = 0.2
RECONNECT_SECONDS: Final = 0.3
PREFETCH: Final = 100
NOT_FOUND: Final = 404
CLOSE_SECONDS: Final = 5.0


def empty(binding: Binding, queues: Iterable[str]) -> int:
    """Purge the queues that exist, and return the number of purged messages.

    Raises:
        DemoError: RabbitMQ is not reachable or refused.
    """
    removed = 0
    try:
        with _connected(binding) as connection:
            for queue in queues:
                channel = connection.channel()
                try:
                    removed += channel.queue_purge(queue).method.message_count
                except ChannelClosedByBroker as error:
                    if error.reply_code != NOT_FOUND:
                        raise
    except AMQPError as error:
        raise DemoError(f"RabbitMQ's queues could not be purged: {error!r}.") from error
    return removed


class Inbox:
    """Consumes the results and polls queues in a thread, inside a `with` block.

    Args:
        binding: returns the address of RabbitMQ. It is called for each attempt to connect.
        results: the queue of the results.
        polled: queues whose waiting messages are counted.
        on_result: called in the thread with message id, correlation id and body. After a lost connection it may be
            called twice for one message.
    """

    def __init__(
        self,
        binding: Callable[[], Binding],
        results: str,
        polled: Iterable[str],
        on_result: Callable[[str, str | None, bytes], None],
    ) -> None:
        self._binding = binding
        self._results = results
        self._polled = tuple(polled)
        self._on_result = on_result
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)
        self.waiting: dict[str, int | None] = dict.fromkeys(self._polled)
        """The number of waiting messages of each queue, or None while it is unknown."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with _connected(self._binding()) as connection:
                    self._serve(connection)
            except (AMQPError, OSError):
                # The port-forward restarts on its own, and RabbitMQ redelivers unacknowledged results.
                self.waiting = dict.fromkeys(self._polled)
                self._ended.wait(RECONNECT_SECONDS)

    def _serve(self, connection: Any) -> None:
        incoming, polling = connection.channel(), connection.channel()
        incoming.basic_qos(prefetch_count=PREFETCH)
        incoming.basic_consume(self._results, self._take)
        while not self._ended.is_set():
            self._poll(polling)
            until = time.monotonic() + POLL_SECONDS
            while (left := until - time.monotonic()) > 0:
                connection.process_data_events(time_limit=left)

    def _take(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._on_result(properties.message_id, properties.correlation_id, body)
        channel.basic_ack(method.delivery_tag)

    def _poll(self, channel: Any) -> None:
        self.waiting = {
            queue: channel.queue_declare(queue, passive=True).method.message_count for queue in self._polled
        }


@contextmanager
def _connected(binding: Binding) -> Iterator[Any]:
    host, port = binding.addresses[0]
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=binding.virtual_host,
            credentials=pika.PlainCredentials(binding.username, binding.password),
            client_properties={"connection_name": "workqueue demo"},
            blocked_connection_timeout=60,
        )
    )
    try:
        yield connection
    finally:
        if connection.is_open:
            connection.close()
