"""The worker at work: slots receive, handlers handle, deliveries are settled.

Place in the flow: made by `commands.run` from the configuration and a loaded handler; `drain` ends it, the
endpoint asks it. All of its state changes where pika may be touched, that is under the lock of the consuming
connection, so that an acknowledgement, a lost channel, a timeout and a retirement cannot meet half-way.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from . import topology
from .binding import Binding
from .broker.connection import Connection
from .broker.declaration import Declaration
from .broker.publisher import Publisher
from .broker.slot import Slot, Work
from .config import RunConfig
from .crew import Crew
from .handlers.handler import Handler
from .handlers.outcome import HandlerTimeout, Outcome, verdict
from .message import Message
from .metrics import Histogram
from .recent import Recent
from .settlement import Settler
from .tasks import Tasks

DEFAULT_CONSUMER_TIMEOUT_SECONDS: Final = 1_800
"""RabbitMQ's own default: it takes a message back that was not settled for so long."""

SETTLING_SECONDS: Final = 300
"""What the consumer timeout leaves after the handler's time, to publish a copy and settle."""

CONSUMER_TIMEOUT: Final = "x-consumer-timeout"

STUCK_SECONDS: Final = 60.0
"""So long after its deadline a handler that ignores its cancellation counts as stuck."""

DECLARE_TIMEOUT_SECONDS: Final = 30.0
DECLARE_AGAIN_SECONDS: Final = 2.0

logger = logging.getLogger(__name__)


class Runtime:
    """The slots of one worker process and everything that moves between them.

    Args:
        config: as parsed.
        binding_source: where RabbitMQ is, read at each attempt to connect.
        handler: loaded and checked.
        connect: makes the consuming connection; another one for tests.
    """

    def __init__(
        self,
        config: RunConfig,
        binding_source: Callable[[], Binding],
        handler: Handler,
        connect: Callable[..., Connection] = Connection,
    ) -> None:
        self.config = config
        self.started = time.monotonic()
        self.recent = Recent(self.started)
        self.outcomes: Counter[Outcome] = Counter()
        self.handler_seconds = Histogram.of_handler_seconds()
        self.message_age_seconds = Histogram.of_message_age_seconds()
        self.reconnects = 0
        self.draining = False
        self.connection = connect(
            binding_source, f"{config.queue} consumer", on_open=self._opened, on_lost=self._lost
        )
        self._binding_source = binding_source
        self._trouble: str | None = None
        self._is_classic = False
        self._publisher: Publisher | None = None
        self._declared = not config.declare
        self._next_check = float("inf")
        self._changed = threading.Condition(self.connection.loop.lock)
        self._settler = Settler(
            config.queue, config.worker_name, self.connection, self._get_publisher, self._settled
        )
        self.slots = [
            Slot(
                number,
                config.queue,
                self.connection,
                arguments=self._consumer_arguments,
                on_work=self._received,
                on_lost=self._work_lost,
                on_trouble=self._slot_trouble,
                on_change=self._changed.notify_all,
            )
            for number in range(config.concurrency)
        ]
        self._runner: Crew | Tasks
        if handler.is_async:
            self._runner = Tasks(self.connection.loop, handler.call, self._handled)
        else:
            self._runner = Crew(self.connection.loop, handler.call, self._handled, config.concurrency)

    # Life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and consume, in threads of our own."""
        self.connection.begin()
        self._runner.start()

    def stop_taking(self) -> None:
        """Take no more messages, for good."""
        with self.connection.exclusive():
            self.draining = True
            for slot in self.slots:
                slot.pause(take_late=False)

    def wait_quiet(self, deadline: float) -> bool:
        """Wait until no slot has a message or could get one. Returns whether that came about in time."""
        return self._wait_until(
            lambda: all(slot.closed and slot.work is None for slot in self.slots), deadline
        )

    def cancel_handlers(self) -> None:
        """Tell every running handler that its result will not count; it is handed back when it returns."""
        with self.connection.exclusive():
            # Others know: their message is lost, or their time was up and it is being settled.
            for slot in self.slots:
                work = slot.work
                if work is not None and work.lease.held and not work.decided:
                    work.abandoned = True
                    self._cancel(work)

    def hand_back(self) -> int:
        """Give every message that is still in hand back to the queue; returns how many."""
        count = 0
        with self.connection.exclusive():
            for slot in self.slots:
                work = slot.work
                if work is not None and work.lease.held:
                    count += self._hand_back(work)
        return count

    def close(self) -> None:
        """Disconnect in order and end the threads. A handler that does not return is left behind."""
        if self._publisher is not None:
            self._publisher.close(0.0)
        self.connection.close()
        if self._runner.stop(1.0):
            self.connection.loop.close()

    # Scaling in ------------------------------------------------------------------------------------------

    def busy(self) -> int:
        """How many slots have a message in hand."""
        return sum(slot.work is not None for slot in self.slots)

    def withdraw(self, timeout: float) -> int:
        """Stop taking messages if no slot is busy, then or until that is confirmed; returns how many are.

        Raises:
            TimeoutError: the broker did not confirm it in `timeout` seconds. We take messages again.
        """
        with self.connection.exclusive():
            busy = self.busy()
            if busy:
                return busy
            for slot in self.slots:
                slot.pause(take_late=True)
        if not self._wait_until(lambda: all(slot.closed for slot in self.slots), time.monotonic() + timeout):
            self.resume()
            raise TimeoutError("RabbitMQ has not confirmed that the consumers are cancelled.")
        busy = self.busy()
        if busy:
            self.resume()
        return busy

    def resume(self) -> None:
        """Take messages again, unless we are shutting down."""
        with self.connection.exclusive():
            if not self.draining:
                for slot in self.slots:
                    slot.resume()

    # Showing ---------------------------------------------------------------------------------------------

    @property
    def consuming(self) -> bool:
        """Whether at least one slot has a consumer."""
        return any(slot.consuming for slot in self.slots)

    @property
    def last_error(self) -> str | None:
        """Why we do not consume, as far as it is known."""
        return self.connection.last_error or self._trouble

    @property
    def tick_age(self) -> float:
        """Seconds since the slower of our I/O loops last turned."""
        ages = [self.connection.tick_age]
        if self._publisher is not None:
            ages.append(self._publisher.connection.tick_age)
        return max(ages)

    @property
    def stuck(self) -> int:
        """How many handlers run on although their time was up some while ago."""
        now = time.monotonic()
        # Without the lock, for /livez: each work is read once, and may not have its message yet.
        works = [slot.work for slot in self.slots]
        return sum(
            work is not None
            and work.message is not None
            and not work.returned
            and now > work.message.deadline + STUCK_SECONDS
            for work in works
        )

    # The connection --------------------------------------------------------------------------------------

    def _opened(self, generation: int) -> None:
        if generation > 1:
            self.reconnects += 1
        if self._declared:
            self._attach()
        else:
            self._declare()

    def _attach(self) -> None:
        version = self.connection.version
        wanted = self.config.timeout_seconds + SETTLING_SECONDS
        if (
            version is not None
            and not version.consumer_timeout_as_consumer_argument
            and wanted > DEFAULT_CONSUMER_TIMEOUT_SECONDS
        ):
            logger.warning(
                "The broker's consumer timeout must be raised by a policy for handlers that run this long.",
                extra={"queue": self.config.queue, "consumer_timeout_milliseconds": wanted * 1000},
            )
        for slot in self.slots:
            slot.attach()

    def _declare(self) -> None:
        declaration = Declaration(topology.plan(self.config.queue_settings), DECLARE_TIMEOUT_SECONDS)

        def finished(_done: object) -> None:
            error = declaration.future.exception()
            if error is None:
                self._declared = True
                self._trouble = None
                self._attach()
            else:
                self._slot_trouble("The queue cannot be declared; trying again.", str(error))
                self.connection.call_later(DECLARE_AGAIN_SECONDS, self._declare_again)

        declaration.future.add_done_callback(finished)
        declaration.begin(self.connection)

    def _declare_again(self) -> None:
        if self.connection.is_open and not self._declared:
            self._declare()

    def _lost(self, _reason: str) -> None:
        for slot in self.slots:
            slot.detach()

    def _slot_trouble(self, sentence: str | None, reason: str | None) -> None:
        if reason is not None and CONSUMER_TIMEOUT in reason:
            # Only quorum queues take it: so this queue, which somebody else declared, is a classic one.
            self._is_classic = True
            return
        # All slots have the same trouble at the same time: it is told once, until it is over.
        if reason is not None and reason != self._trouble:
            logger.warning(sentence, extra={"queue": self.config.queue, "reason": reason})
        elif reason is None and self._trouble is not None:
            logger.info("Consuming again.", extra={"queue": self.config.queue})
        self._trouble = reason
        self._changed.notify_all()

    def _consumer_arguments(self) -> dict[str, Any]:
        version = self.connection.version
        quorum = self.config.queue_settings.type is topology.QueueType.QUORUM and not self._is_classic
        if quorum and version is not None and version.consumer_timeout_as_consumer_argument:
            seconds = max(DEFAULT_CONSUMER_TIMEOUT_SECONDS, self.config.timeout_seconds + SETTLING_SECONDS)
            return {CONSUMER_TIMEOUT: int(seconds * 1000)}
        return {}

    def _get_publisher(self) -> Publisher:
        if self._publisher is None:
            self._publisher = Publisher(
                # The slots limit how many copies are on their way. A copy may take as long as its original can
                # be held: a shorter limit would make a second copy during a long memory alarm.
                self._binding_source,
                f"{self.config.queue} publisher",
                timeout_seconds=SETTLING_SECONDS,
            ).start()
        return self._publisher

    # A message -------------------------------------------------------------------------------------------

    def _received(self, work: Work) -> None:
        now = time.monotonic()
        properties = work.properties
        work.started = now
        work.message = Message(
            work.body,
            headers=properties.headers,
            properties=properties,
            queue=self.config.queue,
            exchange=work.method.exchange,
            routing_key=work.method.routing_key,
            redelivered=work.method.redelivered,
            deadline=now + self.config.timeout_seconds,
        )
        self.recent.arrived(now)
        if properties.timestamp is not None:
            self.message_age_seconds.observe(max(0.0, time.time() - properties.timestamp))
        if work.message.deadline < self._next_check:
            self._check_later(work.message.deadline - now)
        self._runner.submit(work)

    def _handled(self, work: Work, error: BaseException | None) -> None:
        with self.connection.loop:
            try:
                self._end(work, error)
            except Exception as failure:
                # Whatever it was, the message must not stay in hand for ever: the broker gives it out again.
                logger.exception("A message could not be settled; connecting again.")
                self.connection.abort(f"a message could not be settled: {failure!r}")

    def _end(self, work: Work, error: BaseException | None) -> None:
        now = time.monotonic()
        work.returned = True
        if not work.lease.held:
            self._free(work)
        elif work.abandoned:
            self._hand_back(work)
        elif not work.decided:
            work.decided = True
            if error is None:
                self._settler.end(work, Outcome.ACKED)
            else:
                spread = random.random()  # noqa: S311 - no secret
                self._settler.settle(work, verdict(error, work.message.attempt, self.config.retry, spread))
        seconds = now - work.started
        self.recent.handled(now, seconds)
        self.handler_seconds.observe(seconds)

    def _settled(self, work: Work, outcome: Outcome) -> None:
        self._count(outcome)
        if work.returned:
            self._free(work)

    def _hand_back(self, work: Work) -> bool:
        is_handed_back = work.lease.hand_back()
        self._count(Outcome.REQUEUED if is_handed_back else Outcome.LOST)
        if work.returned:
            self._free(work)
        return is_handed_back

    def _work_lost(self, work: Work) -> None:
        self._count(Outcome.LOST)
        if work.returned:
            self._free(work)
        else:
            logger.warning(
                "The delivery was lost while its handler ran; the result will not count.",
                extra={"queue": self.config.queue, "slot": work.slot.number},
            )
            self._cancel(work)

    def _cancel(self, work: Work) -> None:
        work.message.cancelled.set()
        self._runner.cancel(work)

    def _free(self, work: Work) -> None:
        if work.slot.work is work:
            work.slot.release()
            self._changed.notify_all()

    def _count(self, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1

    def _wait_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    # Time ------------------------------------------------------------------------------------------------

    def _check_later(self, seconds: float) -> None:
        self._next_check = time.monotonic() + seconds
        self.connection.call_later(seconds, self._check_time)

    def _check_time(self) -> None:
        """End every handler whose time is up. One timer serves all messages: most end long before."""
        now = time.monotonic()
        self._next_check = float("inf")
        running = [
            slot.work
            for slot in self.slots
            if slot.work is not None and not slot.work.returned and not slot.work.decided
        ]
        for work in running:
            if work.message.deadline <= now and work.lease.held and not work.abandoned:
                work.decided = True
                work.slot.hold()
                self._cancel(work)
                error = HandlerTimeout(f"the handler ran for more than {self.config.timeout_seconds:g} s")
                self._settler.settle(work, verdict(error, work.message.attempt, self.config.retry, 0.0))
        left = [work.message.deadline for work in running if work.message.deadline > now]
        if left:
            self._check_later(min(left) - now)
