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
from typing import Any, Final, NamedTuple

from workqueue.amqp.backoff import Backoff
from workqueue.amqp.connection import Connection
from workqueue.amqp.declaration import Declaration
from workqueue.amqp.publisher import Publisher
from workqueue.contract import headers, topology
from workqueue.contract.binding import Binding
from workqueue.message import Message
from workqueue.worker.config import RunConfig
from workqueue.worker.executors.tasks import AsyncExecutor
from workqueue.worker.executors.threads import ThreadExecutor
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import HandlerTimeout, HandlerUnavailable, Outcome, refusal, verdict
from workqueue.worker.histograms import Histogram
from workqueue.worker.rates import HandlerRates
from workqueue.worker.settlement import Settler
from workqueue.worker.slot import Delivery, Slot

DEFAULT_CONSUMER_TIMEOUT_SECONDS: Final = 1_800
"""RabbitMQ's own default: it takes a message back that was not settled for so long."""

SETTLING_SECONDS: Final = 300
"""What the consumer timeout leaves after the handler's time, to publish a copy and settle."""

CONSUMER_TIMEOUT: Final = "x-consumer-timeout"

STUCK_SECONDS: Final = 60.0
"""So long after its deadline a handler that ignores its cancellation counts as stuck."""

DECLARE_TIMEOUT_SECONDS: Final = 30.0
DECLARE_AGAIN_SECONDS: Final = 2.0

FIRST_WAIT_SECONDS: Final = 0.2
LONGEST_WAIT_SECONDS: Final = 5.0
"""Between two attempts to start handlers that could not be started."""

STARTED_SECONDS: Final = 1.0
"""A handler that runs for so long was started. To find that it cannot be takes an instant, as a rule."""

HUNG_SECONDS: Final = 10.0
"""A handler counts as hung a whole timeout after its deadline, but not earlier than this."""

LOOP_ENDED_GRACE_SECONDS: Final = 1.0
"""For the other handlers, when one of them has ended the asyncio loop and so asked for the end of the process."""

logger = logging.getLogger(__name__)


class Failure(NamedTuple):
    """Why only a new process can go on, and how long handlers may still run."""

    reason: str
    grace_seconds: float


class Runtime:
    """The slots of one worker process and everything that moves between them.

    Args:
        config: as parsed.
        binding_source: where RabbitMQ is, read at each attempt to connect.
        handler: loaded and checked.
        connect: makes the consuming connection; another one for tests.
        on_failure: called when `failure` is set.

    Attributes:
        failure: why only a new process can go on, or None. No more messages are taken then.
    """

    def __init__(
        self,
        config: RunConfig,
        binding_source: Callable[[], Binding],
        handler: Handler,
        connect: Callable[..., Connection] = Connection,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.started = time.monotonic()
        self.recent = HandlerRates(self.started)
        self.outcomes: Counter[Outcome] = Counter()
        self.handler_seconds = Histogram.of_handler_seconds()
        self.message_age_seconds = Histogram.of_message_age_seconds()
        self.reconnects = 0
        self.draining = False
        self.failure: Failure | None = None
        self._on_failure = on_failure
        self.connection = connect(
            binding_source, f"{config.queue} consumer", on_open=self._opened, on_lost=self._lost
        )
        self._withdrawn = False
        self._unavailable: str | None = None
        self._refused_at = 0.0
        self._tries_again = False
        self._handler_backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        self._hung_seconds = max(config.timeout_seconds, HUNG_SECONDS)
        self._binding_source = binding_source
        self._problem: str | None = None
        self._too_few_channels: str | None = None
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
                on_delivery=self._received,
                on_lost=self._delivery_lost,
                on_problem=self._slot_problem,
                on_change=self._changed.notify_all,
            )
            for number in range(config.concurrency)
        ]
        self.slot_count = len(self.slots)
        """Slots that can take messages: those beyond the broker's channel_max cannot."""
        self._runner: ThreadExecutor | AsyncExecutor
        if handler.is_async:
            self._runner = AsyncExecutor(self.connection.loop, handler.call, self._handled, self._loop_ended)
        else:
            self._runner = ThreadExecutor(
                self.connection.loop, handler.call, self._handled, config.concurrency
            )

    # Life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and consume, in threads of our own."""
        self.connection.begin()
        self._runner.start()

    def stop_taking(self) -> None:
        """Take no more messages, for good."""
        with self.connection.exclusive():
            self.draining = True
            self._adjust_slots()
            for delivery in self._postponed():
                self._hand_back(delivery)

    def fail(self, failure: Failure) -> None:
        """Take no more messages, and have the main thread end the process. Ignored while it shuts down."""
        with self.connection.exclusive():
            self._changed.notify_all()
            if self.draining:
                return
            self.failure = failure
            self.stop_taking()
        logger.error(
            "The worker cannot go on; shutting down.",
            extra={"queue": self.config.queue, "reason": failure.reason},
        )
        self._on_failure()

    def wait_quiet(self, deadline: float) -> bool:
        """Wait until no slot has a message or could get one. Returns whether that came about in time.

        A hung handler is not waited for.
        """
        return self._wait_until(
            lambda: all(
                slot.closed and (slot.delivery is None or self._is_hung(slot.delivery)) for slot in self.slots
            ),
            deadline,
        )

    def cancel_handlers(self) -> None:
        """Tell every running handler that its result will not count; it is handed back when it returns."""
        with self.connection.exclusive():
            # Others know: their message is lost, or their time was up and it is being settled.
            for slot in self.slots:
                delivery = slot.delivery
                if delivery is not None and delivery.lease.held and not delivery.decided:
                    delivery.abandoned = True
                    self._cancel(delivery)

    def hand_back(self) -> int:
        """Give every message that is still in hand back to the queue; returns how many."""
        count = 0
        with self.connection.exclusive():
            for slot in self.slots:
                delivery = slot.delivery
                if delivery is not None and delivery.lease.held:
                    count += self._hand_back(delivery)
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
        return sum(slot.delivery is not None for slot in self.slots)

    def held(self) -> int:
        """How many messages are ours and not settled. A handler may run on after its message was settled."""
        return sum(slot.delivery is not None and slot.delivery.lease.held for slot in self.slots)

    def cancel_consumers(self, timeout: float) -> int:
        """Stop taking messages if none is held, then or until that is confirmed; returns how many are.

        Raises:
            TimeoutError: the broker did not confirm it in `timeout` seconds. We take messages again.
        """
        with self.connection.exclusive():
            held = self.held()
            if held:
                return held
            self._withdrawn = True
            self._adjust_slots()
        if not self._wait_until(lambda: all(slot.closed for slot in self.slots), time.monotonic() + timeout):
            self.resume()
            raise TimeoutError("RabbitMQ has not confirmed that the consumers are cancelled.")
        held = self.held()
        if held:
            self.resume()
        return held

    def resume(self) -> None:
        """Take messages again, unless we are shutting down."""
        with self.connection.exclusive():
            self._withdrawn = False
            self._adjust_slots()

    def _adjust_slots(self) -> None:
        """Have the slots take messages, unless something speaks against it."""
        takes = not (self.draining or self._withdrawn or self._unavailable)
        for slot in self.slots:
            if takes:
                slot.resume()
            else:
                slot.pause(take_late=not self.draining)

    # Showing ---------------------------------------------------------------------------------------------

    @property
    def consuming(self) -> bool:
        """Whether at least one slot has a consumer."""
        return any(slot.consuming for slot in self.slots)

    @property
    def retry_delays_seconds(self) -> list[int]:
        """The delays whose queues this worker has declared; messages may wait in them for a retry."""
        return self._settler.delays_seconds

    @property
    def last_error(self) -> str | None:
        """Why we do not consume, or with fewer slots than asked for, as far as it is known."""
        return self.connection.last_error or self._problem or self._unavailable or self._too_few_channels

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
        deliveries = [slot.delivery for slot in self.slots]
        return sum(
            delivery is not None
            and delivery.message is not None
            and not delivery.returned
            and now > delivery.message.deadline + STUCK_SECONDS
            for delivery in deliveries
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
        count = min(len(self.slots), self.connection.channel_max)
        self._too_few_channels = None
        if count < len(self.slots):
            self._too_few_channels = (
                f"RabbitMQ allows {count} channels per connection (channel_max), and each of the "
                f"{len(self.slots)} slots needs one: lower the concurrency, or raise channel_max."
            )
            logger.error(
                "Slots without a channel take no messages.",
                extra={"queue": self.config.queue, "slots": count, "reason": self._too_few_channels},
            )
        self.slot_count = count
        for slot in self.slots[:count]:
            slot.attach()

    def _declare(self) -> None:
        declaration = Declaration(topology.plan(self.config.queue_settings), DECLARE_TIMEOUT_SECONDS)

        def finished(_done: object) -> None:
            error = declaration.future.exception()
            if error is None:
                self._declared = True
                self._problem = None
                self._attach()
            else:
                self._slot_problem("The queue cannot be declared; trying again.", str(error))
                self.connection.call_later(DECLARE_AGAIN_SECONDS, self._declare_again)

        declaration.future.add_done_callback(finished)
        declaration.begin(self.connection)

    def _declare_again(self) -> None:
        if self.connection.is_open and not self._declared:
            self._declare()

    def _lost(self, _reason: str) -> None:
        for slot in self.slots:
            slot.detach()

    def _slot_problem(self, sentence: str | None, reason: str | None) -> None:
        if reason is not None and CONSUMER_TIMEOUT in reason:
            # Only quorum queues take it: so this queue, which somebody else declared, is a classic one.
            self._is_classic = True
            return
        # All slots have the same trouble at the same time: it is told once, until it is over.
        if reason is not None and reason != self._problem:
            logger.warning(sentence, extra={"queue": self.config.queue, "reason": reason})
        elif reason is None and self._problem is not None:
            logger.info("Consuming again.", extra={"queue": self.config.queue})
        self._problem = reason
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

    def _received(self, delivery: Delivery) -> None:
        now = time.monotonic()
        properties = delivery.properties
        delivery.message = Message(
            delivery.body,
            headers=properties.headers,
            properties=properties,
            queue=self.config.queue,
            exchange=delivery.method.exchange,
            routing_key=delivery.method.routing_key,
            redelivered=delivery.method.redelivered,
        )
        delivery.expires_at = headers.expires_at(properties, properties.headers or {}, time.time())
        self.recent.arrived(now)
        if properties.timestamp is not None:
            self.message_age_seconds.observe(max(0.0, time.time() - properties.timestamp))
        failed = headers.deliveries_failed(properties.headers or {}, redelivered=delivery.method.redelivered)
        # On its first way through the queue, RabbitMQ itself has looked after its TTL.
        expires_in = _expires_in(delivery) if delivery.message.attempt > 1 else None
        refused = refusal(failed, self._delivery_limit(), expires_in)
        if refused is not None:
            delivery.started = now
            delivery.returned = delivery.decided = True
            self._settler.settle(delivery, refused)
            return
        self._start(delivery)

    def _start(self, delivery: Delivery) -> None:
        delivery.started = time.monotonic()
        delivery.returned = False
        delivery.message.deadline = delivery.started + self.config.timeout_seconds
        if delivery.message.deadline < self._next_check:
            self._check_later(self.config.timeout_seconds)
        self._runner.submit(delivery)

    def _delivery_limit(self) -> int | None:
        limit, version = self.config.delivery_limit, self.connection.version
        if limit is None or version is None or not version.nack_counts_as_delivery:
            return limit
        return limit + self.config.wake_deliveries

    def _handled(self, delivery: Delivery, error: BaseException | None) -> None:
        with self.connection.loop:
            try:
                self._end(delivery, error)
            except Exception as failure:
                # Whatever it was, the message must not stay in hand for ever: the broker gives it out again.
                logger.exception("A message could not be settled; connecting again.")
                self.connection.abort(f"a message could not be settled: {failure!r}")

    def _end(self, delivery: Delivery, error: BaseException | None) -> None:
        now = time.monotonic()
        delivery.returned = True
        if not delivery.lease.held:
            self._free(delivery)
        elif delivery.abandoned:
            self._hand_back(delivery)
        elif isinstance(error, HandlerUnavailable) and not delivery.decided:
            self._postpone(delivery, str(error))
            return
        elif not delivery.decided:
            delivery.decided = True
            if self._unavailable and delivery.started > self._refused_at:
                self._available()
            if error is None:
                self._settler.end(delivery, Outcome.ACKED)
            else:
                spread = random.random()  # noqa: S311 - no secret
                attempt, retry = delivery.message.attempt, self.config.retry
                decision = verdict(error, attempt, retry, spread, _expires_in(delivery))
                self._settler.settle(delivery, decision, error)
        seconds = now - delivery.started
        self.recent.handled(now, seconds)
        self.handler_seconds.observe(seconds)

    # A handler that cannot be started ---------------------------------------------------------------------

    def _postpone(self, delivery: Delivery, reason: str) -> None:
        """Keep a message for which nothing was started, and take no others until that can be done."""
        if self.draining:
            self._hand_back(delivery)
            return
        if self._unavailable is None:
            logger.warning(
                "The handler cannot be reached; keeping its messages and taking no others.",
                extra={"queue": self.config.queue, "reason": reason},
            )
        self._unavailable = reason
        self._refused_at = time.monotonic()
        self._adjust_slots()
        if not self._tries_again:
            self._tries_again = True
            self.connection.call_later(self._handler_backoff.next(), self._try_again)

    def _postponed(self) -> list[Delivery]:
        deliveries = [slot.delivery for slot in self.slots if slot.delivery is not None]
        return [
            delivery
            for delivery in deliveries
            if delivery.returned and not delivery.decided and delivery.lease.held
        ]

    def _try_again(self) -> None:
        self._tries_again = False
        tried_at = time.monotonic()

        def look() -> None:
            if self._unavailable and self._refused_at < tried_at:
                self._available()

        for delivery in self._postponed():
            self._start(delivery)
        self.connection.call_later(STARTED_SECONDS, look)

    def _available(self) -> None:
        logger.info("The handler can be reached again.", extra={"queue": self.config.queue})
        self._unavailable = None
        self._handler_backoff.reset()
        self._adjust_slots()

    # The end of a delivery --------------------------------------------------------------------------------

    def _settled(self, delivery: Delivery, outcome: Outcome) -> None:
        self._count(outcome)
        if delivery.returned:
            self._free(delivery)
        elif self._is_hung(delivery):
            self._fail_hung(delivery)

    def _hand_back(self, delivery: Delivery) -> bool:
        is_handed_back = delivery.lease.hand_back()
        self._count(Outcome.REQUEUED if is_handed_back else Outcome.LOST)
        if delivery.returned:
            self._free(delivery)
        return is_handed_back

    def _delivery_lost(self, delivery: Delivery) -> None:
        self._count(Outcome.LOST)
        if delivery.returned:
            self._free(delivery)
        else:
            logger.warning(
                "The delivery was lost while its handler ran; the result will not count.",
                extra={"queue": self.config.queue, "slot": delivery.slot.number},
            )
            self._cancel(delivery)
            if self._is_hung(delivery):
                self._fail_hung(delivery)

    def _cancel(self, delivery: Delivery) -> None:
        delivery.message.cancelled.set()
        self._runner.cancel(delivery)

    def _free(self, delivery: Delivery) -> None:
        if delivery.slot.delivery is delivery:
            delivery.slot.release()
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
            slot.delivery for slot in self.slots if slot.delivery is not None and not slot.delivery.returned
        ]
        for delivery in running:
            undecided = delivery.lease.held and not delivery.decided and not delivery.abandoned
            if undecided and delivery.message.deadline <= now:
                delivery.decided = True
                delivery.slot.hold()
                self._cancel(delivery)
                error = HandlerTimeout(f"the handler ran for more than {self.config.timeout_seconds:g} s")
                attempt, retry = delivery.message.attempt, self.config.retry
                self._settler.settle(delivery, verdict(error, attempt, retry, 0.0, _expires_in(delivery)))
            elif self._is_hung(delivery):
                self._fail_hung(delivery)
        moments = [
            moment
            for delivery in running
            for moment in (delivery.message.deadline, delivery.message.deadline + self._hung_seconds)
            if moment > now
        ]
        if moments:
            self._check_later(min(moments) - now)

    def _is_hung(self, delivery: Delivery) -> bool:
        """Whether a handler still runs a whole timeout after its deadline, and its message is settled or lost."""
        hung_from: float = delivery.message.deadline + self._hung_seconds
        return not delivery.returned and not delivery.lease.held and time.monotonic() >= hung_from

    def _fail_hung(self, delivery: Delivery) -> None:
        seconds = time.monotonic() - delivery.started
        self.fail(
            Failure(
                f"A handler has not returned for {seconds:.0f} s, in slot {delivery.slot.number}; its time was"
                f" {self.config.timeout_seconds:g} s.",
                self.config.grace_seconds,
            )
        )

    def _loop_ended(self, reason: str) -> None:
        self.fail(Failure(reason, LOOP_ENDED_GRACE_SECONDS))


def _expires_in(delivery: Delivery) -> float | None:
    return None if delivery.expires_at is None else delivery.expires_at - time.time()
