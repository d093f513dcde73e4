"""The channel over which a worker takes the tokens of a limit.

It opens again after RabbitMQ has closed it, such as when the queue of the tokens does not exist yet. Everything here
happens under the lock of the connection.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from pika.exceptions import ChannelClosedByBroker

from workqueue.amqp.backoff import Backoff
from workqueue.amqp.errors import BrokerError
from workqueue.worker.slot import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    NOT_FOUND,
    Delivery,
    SlotConnection,
)

logger = logging.getLogger(__name__)


class TokenChannel(ABC):
    """A channel to one queue of tokens.

    Args:
        queue: where the tokens are.
        connection: the consuming connection.

    Attributes:
        on_token: called with a delivery that has waited and got a token.
        problem: why no token can be taken, or None.
        lost: how many tokens were lost while their handler ran.
    """

    def __init__(self, queue: str, connection: SlotConnection) -> None:
        self.queue = queue
        self.on_token: Callable[[Delivery], None] = lambda _delivery: None
        self.problem: str | None = None
        self.lost = 0
        self._was_found = False
        self._waiting: deque[Delivery] = deque()
        self._connection = connection
        self._channel: Any = None
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)

    def attach(self) -> None:
        """Open a channel, when the connection is open."""
        if self._channel is not None:
            return
        try:
            channel = self._connection.channel(self._opened)
        except BrokerError as error:
            if self._connection.is_open:
                self._report(
                    "No channel for the tokens of the limit can be opened; trying again.", str(error)
                )
                self._reopen()
            return
        self._channel = channel
        channel.add_on_close_callback(self._closed)

    def detach(self) -> None:
        """Drop the channel, when the connection is lost."""
        self._drop(pauses=True)

    @property
    def waiting(self) -> int:
        """How many messages wait for a token."""
        return sum(map(still_waits, tuple(self._waiting)))

    @abstractmethod
    def take(self, delivery: Delivery) -> bool:
        """Return whether the handler may start now. Otherwise `on_token` is called when it may."""

    @abstractmethod
    def release(self, delivery: Delivery) -> None:
        """Take back what the delivery has and does not need any more."""

    def give_back_unused(self) -> None:  # noqa: B027 - for subclasses
        """Give back the tokens that no handler uses. The worker takes no further messages."""

    def _wait(self, delivery: Delivery) -> None:
        if delivery not in self._waiting:
            self._waiting.append(delivery)
            self._ask()

    @property
    def _is_open(self) -> bool:
        return self._channel is not None and bool(self._channel.is_open)

    @abstractmethod
    def _ask(self) -> None:
        """Ask RabbitMQ for as many tokens as are needed."""

    def _drop(self, *, pauses: bool) -> None:  # noqa: ARG002 - for subclasses
        """Forget the channel and its tokens: RabbitMQ has them, or they are gone.

        Args:
            pauses: whether other workers may have lost theirs, too.
        """
        self._channel = None

    def _note_tokens(self) -> None:
        """Note that the queue of the tokens can be used."""
        self._was_found = True
        self._backoff.reset()
        if self.problem is not None:
            self.problem = None
            logger.info("The limit has tokens again.", extra={"queue": self.queue})

    def _cancel(self, consumer: str) -> None:
        # With a callback, since pika keeps the tags of consumers that were cancelled without an answer.
        self._channel.basic_cancel(consumer, callback=lambda _frame: None)

    def _opened(self, channel: Any) -> None:
        if channel is not self._channel:
            return
        channel.add_on_cancel_callback(lambda _frame: self._cancelled(channel))
        channel.basic_qos(prefetch_count=1)
        self._ask()

    def _cancelled(self, channel: Any) -> None:
        """Handle a cancel by RabbitMQ: the queue was deleted, or its node is down."""
        if channel is not self._channel:
            return
        self._report("The tokens of the limit are gone; asking for others.", "basic.cancel")
        self._drop(pauses=True)
        channel.close()
        self._reopen()

    def _closed(self, channel: Any, error: Exception) -> None:
        if channel is not self._channel:
            return
        is_missing = isinstance(error, ChannelClosedByBroker) and error.reply_code == NOT_FOUND
        is_lost = is_missing and self._was_found  # otherwise no worker has a token yet
        self._drop(pauses=is_lost or not isinstance(error, ChannelClosedByBroker))
        if isinstance(error, ChannelClosedByBroker):
            sentence = "The queue of the limit's tokens cannot be used; trying again."
            if is_missing:
                sentence = "The queue of the limit's tokens does not exist; trying again."
            self._report(sentence, f"{error.reply_code} {error.reply_text}")
            self._reopen()

    def _reopen(self) -> None:
        self._connection.call_later(self._backoff.next(), self._reopen_now)

    def _reopen_now(self) -> None:
        if self._connection.is_open:
            self.attach()

    def _report(self, sentence: str, reason: str) -> None:
        if reason != self.problem:
            logger.warning(sentence, extra={"queue": self.queue, "reason": reason})
        self.problem = reason


def still_waits(delivery: Delivery) -> bool:
    """Whether the message of a delivery is still here, and its handler does not run."""
    return delivery.lease.held and delivery.returned and not delivery.decided
