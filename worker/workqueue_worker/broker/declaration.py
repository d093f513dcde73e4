"""One declaring of queues, an exchange and bindings, on a channel of its own.

Place in the flow: asked for by `publisher`. RabbitMQ answers a refused declaration by closing the channel,
so that nothing else may depend on it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any

import pika.exceptions

from workqueue_worker.errors import BrokerError, DeclareError
from workqueue_worker.topology import Plan

from .connection import Connection, describe

_Step = Callable[..., Any]


class Declaration:
    """Declares a plan step by step, each after the answer to the one before.

    Attributes:
        future: of the whole.
        deadline: when it should be over, by the monotonic clock.
    """

    def __init__(self, plan: Plan, timeout_seconds: float) -> None:
        self.future: Future[None] = Future()
        self.deadline = time.monotonic() + timeout_seconds
        self._plan = plan
        self._steps: deque[tuple[str, _Step]] = deque()
        self._current = ""

    def begin(self, connection: Connection) -> None:
        """Open the channel and start. In the I/O thread."""
        if self.future.done():
            return
        try:
            connection.channel(self._on_open)
        except BrokerError as error:
            self.fail(error)

    def fail(self, error: BrokerError) -> None:
        """End it with an error, unless it has ended."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def _on_open(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_closed)
        self._steps.extend(self._steps_on(channel))
        self._next(channel)

    def _next(self, channel: Any) -> None:
        if not self._steps:
            channel.close()
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(None)
            return
        self._current, step = self._steps.popleft()
        step(callback=lambda _: self._next(channel))

    def _steps_on(self, channel: Any) -> Iterator[tuple[str, _Step]]:
        for queue in self._plan.queues:
            yield (
                f"The queue {queue.name}",
                partial(channel.queue_declare, queue.name, durable=True, arguments=dict(queue.arguments)),
            )
        exchange = self._plan.exchange
        if exchange is not None:
            yield (
                f"The exchange {exchange.name}",
                partial(channel.exchange_declare, exchange.name, exchange.type.value.lower(), durable=True),
            )
        for binding in self._plan.bindings:
            yield (
                f"The binding of {binding.queue} to {binding.exchange}",
                partial(channel.queue_bind, binding.queue, binding.exchange, binding.routing_key),
            )

    def _on_closed(self, _channel: Any, error: BaseException) -> None:
        if isinstance(error, pika.exceptions.ChannelClosedByBroker):
            self.fail(DeclareError(self._current, error.reply_code, error.reply_text))
        else:
            self.fail(BrokerError(f"Nothing was declared: {describe(error)}."))
