"""One declaring of queues, an exchange and bindings, on a channel of its own.

Place in the flow: asked for by `publisher`. RabbitMQ answers a refused declaration by closing the channel,
so that nothing else may depend on it.

It tells whether a queue was created, since a queue is not safe at once: RabbitMQ forgets a quorum queue, with
its confirmed messages, when it is killed within its first second (tried on 3.10, 4.0 and 4.3, one node;
its register of quorum queues is written half a second late).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, Final

import pika.exceptions

from workqueue.amqp.connection import Connection
from workqueue.amqp.errors import BrokerError, DeclareError, describe
from workqueue.contract.topology import Plan, conflict_advice

SAFE_AFTER_SECONDS: Final = 2.0
"""When a quorum queue that was just created survives the death of its broker, with a margin."""

NOT_FOUND: Final = 404
PRECONDITION_FAILED: Final = 406

_Step = Callable[..., Any]


class Declaration:
    """Declares a plan step by step, each after the answer to the one before.

    Attributes:
        future: of the whole; tells whether at least one of the queues was created.
        deadline: when it should be over, by the monotonic clock.
    """

    def __init__(self, plan: Plan, timeout_seconds: float) -> None:
        self.future: Future[bool] = Future()
        self.deadline = time.monotonic() + timeout_seconds
        self._plan = plan
        self._steps: deque[tuple[str, str, _Step]] = deque()
        self._unseen = deque(queue.name for queue in plan.queues)
        self._looking = True
        self._current = self._advice = ""

    def begin(self, connection: Connection) -> None:
        """Open the channel and start. In the I/O thread."""
        if not self.future.done():
            self._open(connection)

    def fail(self, error: BrokerError) -> None:
        """End it with an error, unless it has ended."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def _open(self, connection: Connection) -> None:
        def opened(channel: Any) -> None:
            channel.add_on_close_callback(lambda _, error: self._on_closed(connection, error))
            self._look(channel)

        try:
            connection.channel(opened)
        except BrokerError as error:
            self.fail(error)

    def _look(self, channel: Any) -> None:
        """Ask for the queues, until one is missing."""
        if self._looking and self._unseen:
            self._current = self._unseen.popleft()
            channel.queue_declare(self._current, passive=True, callback=lambda _: self._look(channel))
        else:
            self._steps.extend(self._steps_on(channel))
            self._next(channel)

    def _next(self, channel: Any) -> None:
        if not self._steps:
            channel.close()
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(not self._looking)
            return
        self._current, self._advice, step = self._steps.popleft()
        step(callback=lambda _: self._next(channel))

    def _steps_on(self, channel: Any) -> Iterator[tuple[str, str, _Step]]:
        """Yield for each step its subject, the advice for a conflict, and the call."""
        for queue in self._plan.queues:
            yield (
                f"The queue {queue.name}",
                conflict_advice(queue.name),
                partial(channel.queue_declare, queue.name, durable=True, arguments=dict(queue.arguments)),
            )
        exchange = self._plan.exchange
        if exchange is not None:
            yield (
                f"The exchange {exchange.name}",
                "",
                partial(channel.exchange_declare, exchange.name, exchange.type.value.lower(), durable=True),
            )
        for binding in self._plan.bindings:
            yield (
                f"The binding of {binding.queue} to {binding.exchange}",
                "",
                partial(channel.queue_bind, binding.queue, binding.exchange, binding.routing_key),
            )

    def _on_closed(self, connection: Connection, error: BaseException) -> None:
        code = getattr(error, "reply_code", 0)
        if self._looking and code == NOT_FOUND:
            self._looking = False
            self._open(connection)
        elif isinstance(error, pika.exceptions.ChannelClosedByBroker):
            advice = self._advice if code == PRECONDITION_FAILED else ""
            self.fail(DeclareError(self._current, code, error.reply_text, advice))
        else:
            self.fail(BrokerError(f"Nothing was declared: {describe(error)}."))
