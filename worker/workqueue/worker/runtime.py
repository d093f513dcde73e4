"""One worker process: a consumer that takes messages, what becomes of them, and how both start and stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from workqueue.amqp.connection import Connection
from workqueue.contract.binding import Binding
from workqueue.worker.config import RunConfig
from workqueue.worker.consumer import Consumer
from workqueue.worker.deliveries import Deliveries, Failure
from workqueue.worker.handlers.handler import Handler

if TYPE_CHECKING:
    from workqueue.worker.executors.launcher import Launcher

logger = logging.getLogger(__name__)


class Runtime:
    """Consumer and deliveries of one worker process.

    Args:
        config: as parsed.
        binding_source: returns the connection data; called at each attempt to connect.
        connect: makes the consuming connection; tests pass another one.
        on_end: called when `failure` or `finished` is set.

    Attributes:
        failure: why only a new process can continue, or None. The worker then takes no more messages.
        finished: whether the worker has done what it was started for.
        started: when, on the monotonic clock.
    """

    def __init__(
        self,
        config: RunConfig,
        binding_source: Callable[[], Binding],
        connect: Callable[..., Connection] = Connection,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.started = time.monotonic()
        self.failure: Failure | None = None
        self.finished = False
        self._on_end = on_end
        self.consumer = Consumer(
            config,
            binding_source,
            connect,
            # `deliveries` needs the consumer, so it is looked up when a delivery comes.
            on_delivery=lambda delivery: self.deliveries.receive(delivery),  # noqa: PLW0108
            on_lost=lambda delivery: self.deliveries.lose(delivery),  # noqa: PLW0108
        )
        self.deliveries = Deliveries(config, self.consumer, binding_source, self.fail, self.finish)
        self._connection = self.consumer.connection
        self._runs = False

    def start(self, handler: Handler | Launcher) -> None:
        """Connect and consume, in threads of their own.

        Args:
            handler: loaded and checked, or what starts processes that load it.
        """
        self._runs = True
        self._connection.begin()
        self.deliveries.start(handler)

    def stop_taking(self) -> None:
        """Take no more messages. This cannot be undone."""
        with self._connection.exclusive():
            self.consumer.stop()
            self.deliveries.hand_back_postponed()

    def fail(self, failure: Failure) -> None:
        """Take no more messages, and have the main thread end the process. Ignored while it shuts down."""
        with self._connection.exclusive():
            self.consumer.changed.notify_all()
            if self.consumer.draining:
                return
            self.failure = failure
            self.stop_taking()
        logger.error(
            "The worker cannot go on; shutting down.",
            extra={"queue": self.config.queue, "reason": failure.reason},
        )
        self._on_end()

    def finish(self) -> None:
        """Have the main thread end the process."""
        if not self.finished:
            self.finished = True
            self._on_end()

    def wait_quiet(self, deadline: float) -> bool:
        """Wait until no slot has a message or could get one; return False when the deadline passes first.

        It does not wait for a handler that never returns.
        """
        return self.consumer.wait_until(
            lambda: all(
                slot.closed and (slot.delivery is None or self.deliveries.is_hung(slot.delivery))
                for slot in self.consumer.slots
            ),
            deadline,
        )

    def close(self) -> None:
        """Disconnect and end the threads. A handler that does not return is left behind."""
        self.deliveries.close_publisher()
        self._connection.close()
        if self.deliveries.stop(1.0):
            self._connection.loop.close()

    @property
    def tick_age(self) -> float:
        """Seconds since the slower of the I/O loops last turned; 0 while the handler is loaded."""
        if not self._runs:
            return 0.0
        return max(self._connection.tick_age, self.deliveries.publisher_tick_age)
