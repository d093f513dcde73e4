"""The cancelled messages of the work queue, as far as this worker knows them.

Nothing of this exists before the first cancel, except an exchange. The worker binds a queue of its own to it, and so
hears of each new cancel. Earlier ones are in a stream, which the worker reads to its end before it takes a message.

Everything here happens under the lock of the connection.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from pika.exceptions import AMQPError, ChannelClosedByBroker

from workqueue.amqp.backoff import Backoff
from workqueue.amqp.errors import BrokerError, describe
from workqueue.contract import topology
from workqueue.contract.cancels import MOST, Cancel, KnownCancels
from workqueue.worker.slot import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, NOT_FOUND, SlotConnection

WAIT_SECONDS: Final = 2.0
"""How long a worker waits for the earlier cancels. Then it takes messages, and reads on."""

PREFETCH: Final = 1000
ACK_EVERY: Final = 500
"""Records of the stream between two acknowledgements. RabbitMQ requires them, although they change nothing."""

ACCESS_REFUSED: Final = 403
_ABSENT: Final = "no queue"
"""In the text of a 404 for a queue that does not exist. After a restart, a stream that exists has another 404 for a
while."""

_OFFSET: Final = "x-stream-offset"

logger = logging.getLogger(__name__)


class Cancels:
    """The cancels of one work queue.

    Args:
        queue: the work queue.
        connection: the consuming connection.

    Attributes:
        on_cancel: called with each cancel that the worker learns of.
    """

    def __init__(self, queue: str, connection: SlotConnection) -> None:
        self.on_cancel: Callable[[Cancel], None] = lambda _cancel: None
        self._queue = queue
        self._name = topology.cancels_name(queue)
        self._connection = connection
        self._known = KnownCancels(MOST, topology.CANCEL_SECONDS)
        self._on_ready: Callable[[], None] | None = None
        self._attempts = 0
        self._live: Any = None
        self._hears = False
        """Whether this worker hears of new cancels, so that it may read the earlier ones."""
        self._history: Any = None
        self._history_is_open = False
        self._reads = False
        self._end: int | None = None
        """The offset up to which the stream must be read."""
        self._has_ended = False
        self._problem: str | None = None
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)

    # Called by the worker -------------------------------------------------------------------------------

    def attach(self, on_ready: Callable[[], None]) -> None:
        """Learn of all cancels, when the connection is open.

        Args:
            on_ready: called once, when the worker may take messages.
        """
        self._attempts += 1
        attempt = self._attempts
        self._on_ready = on_ready
        self._hears = False
        self._connection.call_later(WAIT_SECONDS, lambda: self._stop_waiting(attempt))
        self._listen()
        self._read()  # now, so that both channels open at the same time

    def detach(self) -> None:
        """Drop the channels, when the connection is lost. The known cancels stay."""
        self._attempts += 1
        self._on_ready = self._live = self._history = None

    def find(self, properties: Any) -> Cancel | None:
        """Return the cancel of a message with these AMQP properties, or None."""
        return self._known.find(properties, time.time()) if self._known else None

    # New cancels ----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        channel = self._open(self._bind, self._live_closed)
        if channel is not None:
            self._live = channel

    def _bind(self, channel: Any) -> None:
        """Bind a queue of this connection to the exchange, consume from it, and then read the earlier cancels."""
        if channel is not self._live:
            return
        own = f"{self._name}.{uuid.uuid4().hex[:16]}"
        exchange = topology.cancels_exchange(self._queue)
        channel.add_on_cancel_callback(lambda _frame: channel.close())
        # RabbitMQ does one after the other, so only the last one is answered.
        channel.queue_declare(own, exclusive=True, auto_delete=True, arguments={"x-queue-type": "classic"})
        channel.exchange_declare(exchange.name, exchange.type.value.lower(), durable=True)
        channel.queue_bind(own, exchange.name, "")
        channel.basic_consume(own, self._came, auto_ack=True, callback=lambda _: self._bound(channel))

    def _bound(self, channel: Any) -> None:
        if channel is self._live:
            self._hears = True
            self._read()

    def _came(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        cancel = Cancel.decode(body)
        if cancel is not None and self._known.add(cancel):
            self.on_cancel(cancel)

    def _live_closed(self, channel: Any, error: Exception) -> None:
        if channel is self._live and not channel.connection.is_closing:  # otherwise the worker ends
            # What is cancelled until the worker hears again may come after the end of what it reads now.
            self._live, self._hears = None, False
            self._stop_reading()
            self._failed(error, self._listen)

    # Earlier cancels ------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Open a channel, and when this worker hears of new cancels, consume from the first record.

        In the other order, it would miss those in between. A second consumer tells the last record.
        """
        if self._history is None:
            self._history_is_open = self._reads = False
            self._history = self._open(self._history_opened, self._history_closed)
        elif self._history_is_open and self._hears and not self._reads:
            self._reads = True
            self._end, self._has_ended = None, False
            for place, came in (("last", self._last_came), ("first", self._record_came)):
                self._history.basic_consume(self._name, came, arguments={_OFFSET: place})

    def _stop_reading(self) -> None:
        unused, self._history = self._history, None
        if unused is not None:
            with contextlib.suppress(AMQPError):  # it is closing already
                unused.close()

    def _history_opened(self, channel: Any) -> None:
        if channel is self._history:
            self._history_is_open = True
            channel.basic_qos(prefetch_count=PREFETCH)
            self._read()

    def _last_came(self, channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        if channel is not self._history:
            return
        if self._end is None:
            self._end = _offset(properties)
        _acknowledge(channel, method)

    def _record_came(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        offset = _offset(properties)
        if channel is not self._history or offset is None:
            return
        self._came(channel, method, properties, body)
        _acknowledge(channel, method)
        if self._end is not None and offset >= self._end and not self._has_ended:
            self._has_ended = True
            # RabbitMQ sends a chunk of records in one go, and its answer to this after it.
            channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _: channel.close())

    def _history_closed(self, channel: Any, error: Exception) -> None:
        if channel is not self._history or channel.connection.is_closing:
            return
        self._history = None
        if self._has_ended or _is_absent(error):  # read, or nothing was ever cancelled
            self._recover()
        else:
            self._failed(error, self._read)

    # Both -----------------------------------------------------------------------------------------------

    def _open(self, on_open: Callable[[Any], None], on_close: Callable[[Any, Exception], None]) -> Any:
        try:
            channel = self._connection.channel(on_open)
        except BrokerError as error:
            self._report(str(error))
            return None
        channel.add_on_close_callback(on_close)
        return channel

    def _failed(self, error: Exception, again: Callable[[], None]) -> None:
        """Try again later, unless the connection is lost or the user has no permission."""
        if not self._connection.is_open:
            return
        self._report(describe(error))
        if isinstance(error, ChannelClosedByBroker) and error.reply_code == ACCESS_REFUSED:
            self._be_ready()
            return
        attempt = self._attempts

        def try_again() -> None:
            if attempt == self._attempts:
                again()

        self._connection.call_later(self._backoff.next(), try_again)

    def _report(self, reason: str) -> None:
        if reason != self._problem:
            logger.warning(
                "Cancelled messages cannot be read; the worker handles them like others.",
                extra={"queue": self._queue, "reason": reason},
            )
        self._problem = reason

    def _recover(self) -> None:
        self._problem = None
        self._backoff.reset()
        self._be_ready()

    def _stop_waiting(self, attempt: int) -> None:
        if attempt == self._attempts:
            self._be_ready()

    def _be_ready(self) -> None:
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready()


def _is_absent(error: Exception) -> bool:
    is_missing = isinstance(error, ChannelClosedByBroker) and error.reply_code == NOT_FOUND
    return is_missing and _ABSENT in describe(error)


def _offset(properties: Any) -> int | None:
    found = (properties.headers or {}).get(_OFFSET)
    return found if isinstance(found, int) else None


def _acknowledge(channel: Any, method: Any) -> None:
    if method.delivery_tag % ACK_EVERY == 0:
        channel.basic_ack(method.delivery_tag, multiple=True)
