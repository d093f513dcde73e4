"""The tokens of a limit: a handler runs only while the worker holds one of them unacknowledged.

A message comes first and then asks for a token, so that no idle worker holds one that another could use. Each wanted
token has a consumer with prefetch 1, which stays until the token is given back. RabbitMQ serves consumers in their
order, and gives the tokens of a worker that died to others.

A token stays with the worker while messages follow each other, for a slice of time. So a limit that is not reached
costs next to nothing, and a worker that waits gets its turn.

Everything here happens under the lock of the connection.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from workqueue.amqp.connection import LONGEST_WAIT_SECONDS as LONGEST_RECONNECT_SECONDS
from workqueue.worker.slot import Delivery, SlotConnection
from workqueue.worker.token_channel import TokenChannel, still_waits

SLICE_SECONDS: Final = 0.2
"""After this time a token goes back at the end of its handler, also if the next message waits for it here."""

LINGER_SECONDS: Final = 0.05
"""A token without a handler goes back after this time."""

RECLAIM_SECONDS: Final = LONGEST_RECONNECT_SECONDS
"""After a loss of the connection or the queue, no handler starts for this time after the queue was found again.

The handlers of all workers may still run, and RabbitMQ has all tokens. In this time every worker connects again and
takes tokens for the handlers that it still runs. The time of the loss says nothing: an outage may be longer."""

logger = logging.getLogger(__name__)


class _Token:
    """A token that the worker holds, or waits for.

    Attributes:
        consumer: the tag of its consumer.
        delivery_tag: None while the worker waits for it.
        since: when it came, on the monotonic clock.
        unused_since: when its last handler ended.
    """

    __slots__ = ("consumer", "delivery_tag", "since", "unused_since")

    def __init__(self) -> None:
        self.consumer = ""
        self.delivery_tag: int | None = None
        self.since = 0.0
        self.unused_since = 0.0


class Tokens(TokenChannel):
    """The tokens of one worker."""

    def __init__(self, queue: str, connection: SlotConnection) -> None:
        super().__init__(queue, connection)
        self._requested: set[_Token] = set()
        self._unused: list[_Token] = []
        self._held: dict[Delivery, _Token] = {}
        self._without: set[Delivery] = set()
        """Deliveries whose handler still runs, and whose token was lost."""
        self._starts_from = 0.0
        self._must_be_found = False
        """Whether tokens were lost, and it is not known whether RabbitMQ has their queue."""
        self._asks_later = False
        self._looks_later = False
        self._is_looking = False

    # Called by the worker -------------------------------------------------------------------------------

    def take(self, delivery: Delivery) -> bool:
        """Return whether the delivery has a token. Otherwise `on_token` is called when it has one."""
        if delivery in self._held:
            return True
        if self._unused and not self._is_paused:
            self._held[delivery] = self._unused.pop()
            return True
        self._wait(delivery)
        return False

    def release(self, delivery: Delivery) -> None:
        """Take the token of a handler that has returned."""
        self._without.discard(delivery)
        token = self._held.pop(delivery, None)
        if token is None:
            return
        now = time.monotonic()
        if now - token.since >= SLICE_SECONDS:
            self._queue_up(token)
        else:
            self._use(token, now)

    def give_back_unused(self) -> None:
        """Give back the tokens that no handler uses."""
        unused, self._unused = self._unused, []
        for token in unused:
            self._give_back(token)

    # Inside ---------------------------------------------------------------------------------------------

    @property
    def _is_paused(self) -> bool:
        return self._must_be_found or time.monotonic() < self._starts_from

    def _use(self, token: _Token, now: float) -> None:
        """Hand a token to a handler that runs without one, or to the message that has waited the longest."""
        if self._without:
            self._held[self._without.pop()] = token
            return
        while self._waiting and not self._is_paused:
            delivery = self._waiting.popleft()
            if still_waits(delivery):
                self._held[delivery] = token
                self.on_token(delivery)
                return
        token.unused_since = now
        self._unused.append(token)
        if not self._looks_later:
            self._look_later(LINGER_SECONDS)

    def _look_later(self, seconds: float) -> None:
        self._looks_later = True
        self._connection.call_later(seconds, self._look)

    def _look(self) -> None:
        """Give back the tokens that have not been used for a while."""
        self._looks_later = False
        now = time.monotonic()
        left = []
        for token in self._unused:
            if now - token.unused_since >= LINGER_SECONDS:
                self._give_back(token)
            else:
                left.append(token)
        self._unused = left
        if left:
            self._look_later(LINGER_SECONDS)

    def _ask(self) -> None:
        """Ask RabbitMQ for as many tokens as are needed."""
        if not self._is_open:
            return
        if self._must_be_found:
            self._find()
            return
        needed = len(self._without)
        waiting = self.waiting
        left = self._starts_from - time.monotonic()
        if left <= 0:
            needed += waiting
        elif waiting and not self._asks_later:
            self._asks_later = True
            self._connection.call_later(left, self._ask_again)
        for _ in range(needed - len(self._requested)):
            token = _Token()
            self._requested.add(token)
            token.consumer = self._channel.basic_consume(
                self.queue,
                on_message_callback=lambda channel, method, _properties, _body, token=token: self._came(
                    channel, token, method.delivery_tag
                ),
            )

    def _find(self) -> None:
        """Ask for the queue. If RabbitMQ does not have it, it closes the channel."""
        if self._is_looking:
            return
        self._is_looking = True
        channel = self._channel
        channel.queue_declare(self.queue, passive=True, callback=lambda _frame: self._found(channel))

    def _found(self, channel: Any) -> None:
        if channel is not self._channel:
            return
        self._must_be_found = False
        self._starts_from = time.monotonic() + RECLAIM_SECONDS
        self._note_tokens()
        self._ask()

    def _ask_again(self) -> None:
        self._asks_later = False
        self._ask()

    def _came(self, channel: Any, token: _Token, delivery_tag: int) -> None:
        if channel is not self._channel:
            return
        self._requested.discard(token)
        self._note_tokens()
        token.delivery_tag = delivery_tag
        token.since = time.monotonic()
        self._use(token, token.since)

    def _queue_up(self, token: _Token) -> None:
        """Give a token back and wait for another one, behind the consumers that wait already."""
        if self._is_open:
            self._channel.basic_nack(token.delivery_tag, requeue=True)
            token.delivery_tag = None
            self._requested.add(token)

    def _give_back(self, token: _Token) -> None:
        if not self._is_open:  # RabbitMQ has it
            return
        # In this order: otherwise RabbitMQ could deliver the token to the same consumer. pika rejects such a token.
        self._cancel(token.consumer)
        self._channel.basic_nack(token.delivery_tag, requeue=True)

    def _drop(self, *, pauses: bool) -> None:
        super()._drop(pauses=pauses)
        running = [delivery for delivery in self._held if not delivery.returned]
        if running:
            logger.warning(
                "Tokens of the limit were lost while handlers ran; more handlers than the limit may run.",
                extra={"queue": self.queue, "handlers": len(running)},
            )
        self.lost += len(running)
        self._without.update(running)
        self._held.clear()
        self._unused.clear()
        self._requested.clear()
        self._is_looking = False
        self._must_be_found |= pauses
