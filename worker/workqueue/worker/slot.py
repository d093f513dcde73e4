"""A slot: one channel with prefetch 1, so that it has at most one message.

A slot takes no new message while the handler of a lost delivery still runs, while the worker is retired, and during
shutdown. Everything here happens under the lock of the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol

from pika.exceptions import ChannelClosedByBroker

from workqueue.amqp.backoff import Backoff
from workqueue.amqp.errors import BrokerError
from workqueue.contract.cancels import Cancel
from workqueue.worker.lease import Lease

FIRST_WAIT_SECONDS: Final = 0.2
LONGEST_WAIT_SECONDS: Final = 5.0
"""The operator declares a missing queue again within seconds, so a longer delay has no advantage."""

ANSWER_SECONDS: Final = 30.0
"""A quorum queue without a leader never answers basic.consume, and its channel stays unusable.

Without an answer to basic.cancel, an idle worker would use its whole grace period to shut down.
"""

NOT_FOUND: Final = 404


class SlotConnection(Protocol):
    """The parts of a connection that a slot uses."""

    generation: int

    @property
    def is_open(self) -> bool:
        """Whether channels can be opened."""

    def channel(self, on_open: Callable[[Any], None]) -> Any:
        """Open a channel."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> Any:
        """Run a function later."""


class ConsumerState(Enum):
    """The state of a slot's consumer."""

    NONE = "none"
    STARTING = "starting"
    ACTIVE = "active"
    CANCELLING = "cancelling"


_PENDING: Final = frozenset({ConsumerState.STARTING, ConsumerState.CANCELLING})
"""RabbitMQ has been asked, and has not answered."""


class Delivery:
    """A delivery and its progress. Its slot is free when the message is settled and the handler has returned.

    Attributes:
        lease: the right to settle it.
        message: the handler's argument; None until the delivery is received.
        started: when the handler started, on the monotonic clock.
        expires_at: when the message's own TTL passes, in Unix seconds; None without one.
        returned: whether the handler has returned.
        decided: whether the verdict on the message is known, at the latest when the handler returns.
        abandoned: whether shutdown requeues the message, whatever the handler's result.
        task: the asyncio task of an async handler.
        cancel: the request that ended the handler, or kept the message from it; None without one.
    """

    __slots__ = (
        "abandoned",
        "body",
        "cancel",
        "decided",
        "expires_at",
        "lease",
        "message",
        "method",
        "properties",
        "returned",
        "slot",
        "started",
        "task",
    )

    def __init__(self, slot: Slot, lease: Lease, method: Any, properties: Any, body: bytes) -> None:
        self.slot = slot
        self.lease = lease
        self.method = method
        self.properties = properties
        self.body = body
        self.message: Any = None
        self.started = 0.0
        self.expires_at: float | None = None
        self.returned = False
        self.decided = False
        self.abandoned = False
        self.task: Any = None
        self.cancel: Cancel | None = None


class Slot:
    """One of a worker's slots.

    Args:
        number: from 0; for log lines.
        queue: to consume from.
        connection: the consuming connection.
        arguments: returns the consumer's arguments, which depend on the broker's version.
        on_delivery: called with each delivery that the slot takes.
        on_lost: called with a delivery whose lease is lost.
        on_problem: called with a sentence and a reason when the slot cannot consume, and with None and None
            when it can.
        on_change: called when the consumer has ended.
    """

    def __init__(
        self,
        number: int,
        queue: str,
        connection: SlotConnection,
        *,
        arguments: Callable[[], dict[str, Any]],
        on_delivery: Callable[[Delivery], None],
        on_lost: Callable[[Delivery], None],
        on_problem: Callable[[str | None, str | None], None],
        on_change: Callable[[], None],
    ) -> None:
        self.number = number
        self.queue = queue
        self.consumer = ConsumerState.NONE
        self.delivery: Delivery | None = None
        self._connection = connection
        self._arguments = arguments
        self._on_delivery = on_delivery
        self._on_lost = on_lost
        self._on_problem = on_problem
        self._on_change = on_change
        self._channel: Any = None
        self._channel_is_open = False
        self._tag = ""
        self._requests = 0
        self._wanted = True
        self._takes_late = False
        self._held = False
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        self._reopening = False
        self._gave_up = False

    @property
    def closed(self) -> bool:
        """Whether no message can arrive: there is no consumer, not even one that is being cancelled."""
        return self.consumer is ConsumerState.NONE

    @property
    def consuming(self) -> bool:
        """Whether RabbitMQ has confirmed the consumer."""
        return self.consumer is ConsumerState.ACTIVE

    @property
    def unanswered(self) -> bool:
        """Whether RabbitMQ has not answered the last request, or the one before the slot tried again."""
        return self.consumer in _PENDING or (self._gave_up and self._wanted and not self._held)

    # Called by the worker -------------------------------------------------------------------------------

    def attach(self) -> None:
        """Open a channel, when the connection is open."""
        if self._channel is not None or not self._connection.is_open:
            return
        try:
            channel = self._connection.channel(self._opened)
        except BrokerError as error:
            if self._connection.is_open:
                self._on_problem("No channel can be opened; trying again.", str(error))
                self._reopen()
            return
        self._channel = channel
        channel.add_on_close_callback(self._closed)

    def detach(self) -> None:
        """Drop the channel, when the connection is lost."""
        self._drop()

    def pause(self, *, take_late: bool) -> None:
        """Cancel the consumer. `on_change` is called when RabbitMQ has confirmed it.

        Args:
            take_late: whether to take a message that is already under way. Before RabbitMQ 4.3, requeueing it
                would count towards its delivery limit.
        """
        self._wanted = False
        self._takes_late = take_late
        self._adjust()

    def resume(self) -> None:
        """Take messages again."""
        self._wanted = True
        self._adjust()

    def hold(self) -> None:
        """Take no message until `release()`: the handler still runs, or no handler can start here."""
        self._held = True
        self._adjust()

    def vacate(self) -> None:
        """Forget the delivery and stay held: its message is settled, but no handler can start here."""
        self.delivery = None
        self._adjust()

    def release(self) -> None:
        """Free the slot: its message is settled, and a handler can start."""
        self.delivery = None
        self._held = False
        self._adjust()

    # Called for RabbitMQ ---------------------------------------------------------------------------------

    def _opened(self, channel: Any) -> None:
        if channel is not self._channel:
            return
        self._channel_is_open = True
        channel.add_on_cancel_callback(lambda _frame: self._cancelled(channel))
        channel.basic_qos(prefetch_count=1)
        self._adjust()

    def _adjust(self) -> None:
        """Start or cancel the consumer as needed, unless an answer of RabbitMQ is pending.

        No consumer starts while the slot has a delivery: the handler of a lost delivery may still run.
        """
        if not self._channel_is_open:
            return
        wanted = self._wanted and not self._held
        channel = self._channel
        if wanted and self.consumer is ConsumerState.NONE and self.delivery is None:
            self.consumer = ConsumerState.STARTING
            self._tag = channel.basic_consume(
                self.queue,
                on_message_callback=self._delivered,
                arguments=self._arguments(),
                callback=lambda _frame: self._started(channel),
            )
            self._expect_answer("basic.consume")
        elif not wanted and self.consumer is ConsumerState.ACTIVE:
            self.consumer = ConsumerState.CANCELLING
            channel.basic_cancel(self._tag, callback=lambda _frame: self._stopped(channel))
            # pika would reject a delivery that is under way. From RabbitMQ 4.3 that counts towards the
            # delivery limit, while the nack of `_delivered` does not.
            channel._cancelled.discard(self._tag)  # noqa: SLF001
            self._expect_answer("basic.cancel")

    def _started(self, channel: Any) -> None:
        if channel is self._channel:
            self.consumer = ConsumerState.ACTIVE
            self._gave_up = False
            self._backoff.reset()
            self._on_problem(None, None)
            self._adjust()

    def _expect_answer(self, method: str) -> None:
        self._requests += 1
        request = self._requests
        self._connection.call_later(ANSWER_SECONDS, lambda: self._give_up_on(request, method))

    def _give_up_on(self, request: int, method: str) -> None:
        if request != self._requests or self.consumer not in _PENDING:
            return
        if self.delivery is not None and self.delivery.lease.held:
            self._expect_answer(method)  # its message can still be settled, on this channel only
            return
        self._on_problem("The queue does not answer; trying again.", f"no answer to {method}")
        channel = self._channel
        self._drop()
        self._gave_up = True
        channel.close()
        self._reopen()

    def _stopped(self, channel: Any) -> None:
        if channel is self._channel:
            self.consumer = ConsumerState.NONE
            self._adjust()
            self._on_change()

    def _delivered(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        lease = Lease(self._connection.generation, channel, method.delivery_tag)
        takes = self._wanted or self._takes_late
        if channel is not self._channel or not takes or self.delivery is not None:
            lease.hand_back()
            return
        self.delivery = Delivery(self, lease, method, properties, body)
        self._on_delivery(self.delivery)

    def _cancelled(self, channel: Any) -> None:
        """Handle a cancel by RabbitMQ: the queue was deleted, or a message exceeded the consumer timeout."""
        if channel is not self._channel:
            return
        self._on_problem("The broker cancelled the consumer; consuming again.", "basic.cancel")
        # The message is redelivered or deleted. A new queue of this name may have another type, which a channel that
        # knew the old one cannot consume.
        self._drop()
        channel.close()
        self._reopen()

    def _closed(self, channel: Any, error: Exception) -> None:
        if channel is not self._channel:
            return
        if isinstance(error, ChannelClosedByBroker):
            reason = f"{error.reply_code} {error.reply_text}"
            sentence = (
                "The queue does not exist; trying again."
                if error.reply_code == NOT_FOUND
                else "The broker closed the channel; opening another."
            )
            self._on_problem(sentence, reason)
            self._drop()
            self._reopen()
        else:  # the connection is lost; `attach` is called when it is open again
            self._drop()

    def _drop(self) -> None:
        self._channel = None
        self._channel_is_open = False
        self._gave_up = False
        self.consumer = ConsumerState.NONE
        if self.delivery is not None and self.delivery.lease.lose():
            self._on_lost(self.delivery)
        self._on_change()

    def _reopen(self) -> None:
        if not self._reopening:
            self._reopening = True
            self._connection.call_later(self._backoff.next(), self._reopen_now)

    def _reopen_now(self) -> None:
        self._reopening = False
        self.attach()
