"""The declaration of queues, an exchange and bindings, on a channel of its own.

RabbitMQ answers a refused declaration by closing the channel, so nothing else may depend on that channel.

The result says whether a queue was created, since a new queue is not safe immediately: if RabbitMQ is killed
within the queue's first second, it loses the quorum queue and its confirmed messages (tried on 3.10, 4.0 and
4.3 with one node; the register of quorum queues is written half a second late).
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
"""Age from which a new quorum queue survives the death of its broker, with a margin."""

NOT_FOUND: Final = 404
PRECONDITION_FAILED: Final = 406

_Step = Callable[..., Any]


class Declaration:
    """The declaration of a plan. Each step waits for the answer to the previous one.

    Attributes:
        future: its result says whether at least one queue was created.
        deadline: when it times out, on the monotonic clock.
    """

    def __init__(self, plan: Plan, timeout_seconds: float) -> None:
        self.future: Future[bool] = Future()
        self.deadline = time.monotonic() + timeout_seconds
        self._plan = plan
        self._steps: deque[tuple[str, str, _Step]] = deque()
        self._unseen = deque([*plan.required, *(queue.name for queue in plan.queues)])
        self._looking = True
        self._current = self._advice = ""

    def begin(self, connection: Connection) -> None:
        """Open the channel and start. Call it under the lock."""
        if not self.future.done():
            self._open(connection)

    def fail(self, error: BrokerError) -> None:
        """Fail the future, unless it is done."""
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
        """Look for the queues one by one, until one is missing."""
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
        for exchange in self._plan.exchanges:
            yield (
                f"The exchange {exchange.name}",
                "",
                partial(channel.exchange_declare, exchange.name, exchange.type.value.lower(), durable=True),
            )
        for step in self._plan.step_bindings:
            yield (
                f"The binding of {step.exchange} to {step.source}",
                "",
                partial(channel.exchange_bind, step.exchange, step.source, step.routing_key),
            )
        for binding in self._plan.bindings:
            yield (
                f"The binding of {binding.queue} to {binding.exchange}",
                "",
                partial(
                    channel.queue_bind,
                    binding.queue,
                    binding.exchange,
                    binding.routing_key,
                    arguments=dict(binding.arguments),
                ),
            )

    def _on_closed(self, connection: Connection, error: BaseException) -> None:
        code = getattr(error, "reply_code", 0)
        if self._current in self._plan.required and code == NOT_FOUND:
            self.fail(BrokerError(f"The queue {self._current} does not exist. Create it."))
        elif self._looking and code == NOT_FOUND:
            self._looking = False
            self._open(connection)
        elif isinstance(error, pika.exceptions.ChannelClosedByBroker):
            advice = self._advice if code == PRECONDITION_FAILED else ""
            self.fail(DeclareError(self._current, code, error.reply_text, advice))
        else:
            self.fail(BrokerError(f"Nothing was declared: {describe(error)}."))
