"""The tokens of a rate limit: the worker uses one up each time it starts a handler.

A message comes first and then asks for a token, so that an idle worker holds none. Each waiting message has a
consumer with prefetch 1 on the queue of the tokens. A token that no message waits for goes back. If a token allows
several starts, the worker asks for the next one when half of them are used, so that no message waits for it.

Everything here happens under the lock of the connection.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

from workqueue.worker.slot import Delivery, SlotConnection
from workqueue.worker.token_channel import TokenChannel, still_waits

LEFT_SECONDS: Final = 10.0
"""For so long a worker that starts no handler keeps the starts that are left of a token.

Longer than the time between two tokens of a worker, at 1,000 workers and 100 tokens per second. Otherwise each worker
would throw away most of its tokens, and the limit would not be used up."""


class StartTokens(TokenChannel):
    """The handlers that one worker may start."""

    def __init__(self, queue: str, connection: SlotConnection) -> None:
        super().__init__(queue, connection)
        self._left = 0
        self._left_until = 0.0
        self._starts_per_token = 1
        self._consumers: set[str] = set()
        self._granted: set[Delivery] = set()

    def take(self, delivery: Delivery) -> bool:
        """Return whether the handler may start now. Otherwise `on_token` is called when it may."""
        if delivery in self._granted:
            self._granted.remove(delivery)
            return True
        now = time.monotonic()
        if self._left and now < self._left_until and delivery not in self._waiting:
            self._left -= 1
            self._left_until = now + LEFT_SECONDS
            if not self._consumers:
                self._ask()
            return True
        self._wait(delivery)
        return False

    def release(self, delivery: Delivery) -> None:
        """Give the start of a delivery to another one, if its handler has not started."""
        if delivery in self._granted:
            self._granted.remove(delivery)
            self._left += 1
            self._serve()

    # Inside ---------------------------------------------------------------------------------------------

    @property
    def _needed(self) -> int:
        """How many tokens are needed."""
        if waiting := self.waiting:
            return math.ceil(waiting / self._starts_per_token)
        is_low = self._starts_per_token > 1 and self._left <= self._starts_per_token // 2
        return int(is_low and time.monotonic() < self._left_until)

    def _ask(self) -> None:
        if not self._is_open:
            return
        for _ in range(self._needed - len(self._consumers)):
            self._consumers.add(self._channel.basic_consume(self.queue, on_message_callback=self._came))

    def _came(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        if channel is not self._channel:
            return
        self._note_tokens()
        self._starts_per_token = starts_of(body)
        if not self._needed:
            # In this order: otherwise RabbitMQ could deliver the token to the same consumer.
            self._end(method.consumer_tag)
            channel.basic_nack(method.delivery_tag, requeue=True)
            return
        now = time.monotonic()
        left = self._left if now < self._left_until else 0
        self._left, self._left_until = left + self._starts_per_token, now + LEFT_SECONDS
        served = self._next_served()
        if self._needed < len(self._consumers):
            self._end(method.consumer_tag)
        channel.basic_ack(method.delivery_tag)
        self._ask()
        for delivery in served:
            self.on_token(delivery)

    def _serve(self) -> None:
        for delivery in self._next_served():
            self.on_token(delivery)

    def _next_served(self) -> list[Delivery]:
        """Give the starts that are left to the messages that have waited the longest."""
        served = []
        while self._left and self._waiting:
            delivery = self._waiting.popleft()
            if still_waits(delivery):
                self._left -= 1
                self._granted.add(delivery)
                served.append(delivery)
        return served

    def _end(self, consumer: str) -> None:
        self._consumers.discard(consumer)
        self._cancel(consumer)

    def _drop(self, *, pauses: bool) -> None:
        super()._drop(pauses=pauses)
        self._consumers.clear()
        self._left = 0


def starts_of(body: bytes) -> int:
    """Return how many handlers may start with a token."""
    return max(int(body), 1) if body.isdigit() else 1
