"""The consuming side of a worker: one connection, the queue's declaration, and the slots that take messages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from workqueue.amqp.connection import Connection
from workqueue.contract import topology
from workqueue.contract.binding import Binding
from workqueue.worker.cancels import Cancels
from workqueue.worker.config import RunConfig
from workqueue.worker.slot import Delivery, Slot

if TYPE_CHECKING:
    from workqueue.worker.token_channel import TokenChannel

DEFAULT_CONSUMER_TIMEOUT_SECONDS: Final = 1_800
"""RabbitMQ's own default: it requeues a message that was not settled within this time."""

SETTLING_SECONDS: Final = 300
"""Time that the consumer timeout leaves after the handler's time, to publish a copy and settle."""

CONSUMER_TIMEOUT: Final = "x-consumer-timeout"

CANCELS_CHANNELS: Final = 2
"""While the worker learns of cancelled messages. Later it is one."""

DECLARE_TIMEOUT_SECONDS: Final = 30.0
DECLARE_AGAIN_SECONDS: Final = 2.0

logger = logging.getLogger(__name__)


class Consumer:
    """The connection and slots of one worker. Its state changes only under the connection's lock.

    Slots take messages unless the worker shuts down, is retired or full, or its handler cannot be reached.

    Args:
        config: the worker's configuration.
        binding_source: returns the connection data; called at each attempt to connect.
        connect: makes the connection; tests pass another one.
        on_delivery: called with each message that a slot takes.
        on_lost: called with a delivery whose channel closed before the delivery was settled.

    Attributes:
        changed: notified when a wait of `wait_until` may be over.
        draining: whether the worker shuts down. It then takes no more messages.
        handler_problem: why the handler cannot be reached, or None.
        full: whether the worker has taken all messages that it may take.
        reconnects: how often the connection was opened again.
        slot_count: slots that can take messages. Those beyond the broker's channel_max cannot.
        limits: what each handler needs a token of, in this order.
        cancels: the cancelled messages; None if the worker does not learn of them.
    """

    def __init__(
        self,
        config: RunConfig,
        binding_source: Callable[[], Binding],
        connect: Callable[..., Connection],
        on_delivery: Callable[[Delivery], None],
        on_lost: Callable[[Delivery], None],
    ) -> None:
        self.draining = False
        self.handler_problem: str | None = None
        self.full = False
        self.reconnects = 0
        self._config = config
        self._retired = False
        self._declared = not config.declare
        self._is_learning = False
        self._is_classic = False
        self._problem: str | None = None
        self._has_consumed = False
        self._too_few_channels: str | None = None
        self.connection = connect(
            binding_source, f"{config.queue} consumer", on_open=self._opened, on_lost=self._lost
        )
        self.changed = threading.Condition(self.connection.loop.lock)
        self.slots = [
            Slot(
                number,
                config.queue,
                self.connection,
                arguments=self._consumer_arguments,
                on_delivery=on_delivery,
                on_lost=on_lost,
                on_problem=self._slot_problem,
                on_change=self.changed.notify_all,
            )
            for number in range(config.concurrency)
        ]
        self.slot_count = len(self.slots)
        self.limits: list[TokenChannel] = []
        if config.limit_queue is not None:
            from workqueue.worker.tokens import Tokens

            self.limits.append(Tokens(config.limit_queue, self.connection))
        if config.limit_rate_queue is not None:
            from workqueue.worker.start_tokens import StartTokens

            self.limits.append(StartTokens(config.limit_rate_queue, self.connection))
        self.cancels = Cancels(config.queue, self.connection) if config.hears_cancels else None

    # Taking messages, or not ----------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no more messages. This cannot be undone. Call it under the lock."""
        self.draining = True
        self._adjust_slots()
        for limit in self.limits:
            limit.give_back_unused()

    def retire(self, timeout: float) -> int:
        """Stop taking messages if none is unsettled, and return how many are unsettled.

        Raises:
            TimeoutError: RabbitMQ did not confirm this within `timeout` seconds. The slots take messages again.
        """
        with self.connection.exclusive():
            held = self.held()
            if held:
                return held
            self._retired = True
            self._adjust_slots()
        if not self.wait_until(lambda: all(slot.closed for slot in self.slots), time.monotonic() + timeout):
            self.resume()
            raise TimeoutError("RabbitMQ has not confirmed that the consumers are cancelled.")
        with self.connection.exclusive():
            held = self.held()
            if held:
                self.resume()
        return held

    def resume(self) -> None:
        """End a retirement."""
        with self.connection.exclusive():
            self._retired = False
            self._adjust_slots()

    def set_handler_problem(self, reason: str | None) -> None:
        """Take no messages while the handler cannot be reached, and take them again when the reason is None."""
        self.handler_problem = reason
        self._adjust_slots()

    def set_full(self, full: bool) -> None:
        """Take no messages while the worker has taken all that it may take."""
        if full != self.full:
            self.full = full
            self._adjust_slots()

    def _adjust_slots(self) -> None:
        takes = not (self.draining or self._retired or self.handler_problem or self.full or self._is_learning)
        for slot in self.slots:
            if takes:
                slot.resume()
            else:
                slot.pause(take_late=not (self.draining or self.full))

    def wait_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait until the condition holds; return False when the deadline (monotonic clock) passes first."""
        with self.changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.changed.wait(left)
        return True

    # Reading, from any thread ---------------------------------------------------------------------------

    def deliveries(self) -> list[Delivery]:
        """Return the deliveries in the slots. Without the lock, each slot is read once."""
        return [delivery for slot in self.slots if (delivery := slot.delivery) is not None]

    def busy(self) -> int:
        """Return how many slots have a delivery."""
        return len(self.deliveries())

    def busy_seconds(self, now: float) -> float | None:
        """Return for how long the oldest handler with a held delivery has run, or None without such a handler."""
        started = [
            delivery.started
            for delivery in self.deliveries()
            if delivery.started and delivery.lease.held and not delivery.returned
        ]
        return now - min(started) if started else None

    def held(self) -> int:
        """Return how many deliveries are not settled. A handler may still run after its message was settled."""
        return sum(delivery.lease.held for delivery in self.deliveries())

    @property
    def consuming(self) -> bool:
        """Whether at least one slot has a consumer."""
        return any(slot.consuming for slot in self.slots)

    @property
    def queue_answers(self) -> bool:
        """Whether no slot waits for an answer about its consumer."""
        return not any(slot.unanswered for slot in self.slots)

    @property
    def waiting_for_token(self) -> int:
        """How many messages wait for a token of a limit."""
        return sum(limit.waiting for limit in self.limits)

    @property
    def tokens_lost(self) -> int:
        """How many tokens were lost while their handler ran."""
        return sum(limit.lost for limit in self.limits)

    @property
    def last_error(self) -> str | None:
        """Why no slot, or not every slot, takes messages, if known."""
        return (
            self.connection.last_error
            or self._problem
            or self.handler_problem
            or next((limit.problem for limit in self.limits if limit.problem), None)
            or self._too_few_channels
        )

    # The connection -------------------------------------------------------------------------------------

    def _opened(self, generation: int) -> None:
        if generation > 1:
            self.reconnects += 1
        if self._declared:
            self._learn_cancels()
        else:
            self._declare()

    def _lost(self, _reason: str) -> None:
        for limit in self.limits:
            limit.detach()
        if self.cancels is not None:
            self.cancels.detach()
        for slot in self.slots:
            slot.detach()

    def _declare(self) -> None:
        from workqueue.amqp.declaration import (
            Declaration,  # takes 1 ms; the operator declares for its workers
        )

        declaration = Declaration(topology.plan(self._config.queue_settings), DECLARE_TIMEOUT_SECONDS)

        def finished(_done: object) -> None:
            error = declaration.future.exception()
            if error is None:
                self._declared = True
                self._problem = None
                self._learn_cancels()
            else:
                self._slot_problem("The queue cannot be declared; trying again.", str(error))
                self.connection.call_later(DECLARE_AGAIN_SECONDS, self._declare_again)

        declaration.future.add_done_callback(finished)
        declaration.begin(self.connection)

    def _declare_again(self) -> None:
        if self.connection.is_open and not self._declared:
            self._declare()

    def _learn_cancels(self) -> None:
        """Take messages as soon as it is known which ones are cancelled."""
        if self.cancels is None:
            self._attach()
            return
        self._is_learning = True
        self._adjust_slots()
        self.cancels.attach(self._learned)
        # The channels of the slots open at the same time, as far as there is surely one for each.
        free = self.connection.channel_max - len(self.limits) - CANCELS_CHANNELS
        for slot in self.slots[: max(0, free)]:
            slot.attach()

    def _learned(self) -> None:
        self._is_learning = False
        self._adjust_slots()
        self._attach()

    def _attach(self) -> None:
        version = self.connection.version
        wanted = self._message_seconds
        if (
            version is not None
            and not version.consumer_timeout_as_consumer_argument
            and wanted > DEFAULT_CONSUMER_TIMEOUT_SECONDS
        ):
            logger.warning(
                "The broker's consumer timeout must be raised by a policy for handlers that run this long.",
                extra={"queue": self._config.queue, "consumer_timeout_milliseconds": wanted * 1000},
            )
        channels = self.connection.channel_max - len(self.limits)
        for limit in self.limits:
            limit.attach()
        if self.cancels is not None:
            channels -= 1
        count = max(0, min(len(self.slots), channels))
        self._too_few_channels = None
        if count < len(self.slots):
            advice = "lower the concurrency, or raise channel_max" if count else "raise channel_max"
            self._too_few_channels = (
                f"RabbitMQ allows {self.connection.channel_max} channels per connection (channel_max), which leaves "
                f"{count} for {len(self.slots)} slots: {advice}."
            )
            logger.error(
                "Slots without a channel take no messages.",
                extra={"queue": self._config.queue, "slots": count, "reason": self._too_few_channels},
            )
        self.slot_count = count
        for slot in self.slots[:count]:
            slot.attach()

    def _slot_problem(self, sentence: str | None, reason: str | None) -> None:
        if reason is not None and CONSUMER_TIMEOUT in reason:
            # Only quorum queues accept this argument: the queue exists, and it is a classic one.
            self._is_classic = True
            return
        # All slots have the same problem at the same time. It is logged once, until it is over.
        if reason is not None and reason != self._problem:
            logger.warning(sentence, extra={"queue": self._config.queue, "reason": reason})
        elif reason is None and not self._has_consumed:
            self._has_consumed = True
            logger.info("Consuming.", extra={"queue": self._config.queue})
        elif reason is None and self._problem is not None:
            logger.info("Consuming again.", extra={"queue": self._config.queue})
        self._problem = reason
        self.changed.notify_all()

    @property
    def _message_seconds(self) -> float:
        """How long a slot may have a message. With a limit, it may first wait for as long as another handler runs."""
        handlers = 2 if self.limits else 1
        return handlers * self._config.timeout_seconds + SETTLING_SECONDS

    def _consumer_arguments(self) -> dict[str, Any]:
        version = self.connection.version
        quorum = self._config.queue_settings.type is topology.QueueType.QUORUM and not self._is_classic
        if quorum and version is not None and version.consumer_timeout_as_consumer_argument:
            seconds = max(DEFAULT_CONSUMER_TIMEOUT_SECONDS, self._message_seconds)
            return {CONSUMER_TIMEOUT: int(seconds * 1000)}
        return {}
