"""What happens to each delivery: receive, handle, settle, time out.

All of this runs under the lock of the consuming connection, so that an acknowledgement, a lost channel, a timeout and
a retirement never overlap. Nothing waits under this lock.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from workqueue.amqp.backoff import Backoff
from workqueue.contract import headers
from workqueue.contract.binding import Binding
from workqueue.contract.cancels import Cancel
from workqueue.contract.properties import Headers
from workqueue.contract.worker_api import ExitCode
from workqueue.message import Message
from workqueue.worker.config import RunConfig
from workqueue.worker.consumer import SETTLING_SECONDS, Consumer
from workqueue.worker.errors import too_slow
from workqueue.worker.executors.executor import Executor
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import (
    GiveUp,
    HandlerTimeout,
    HandlerUnavailable,
    Outcome,
    Verdict,
    cancelled,
    refusal,
    verdict,
)
from workqueue.worker.histograms import Histogram
from workqueue.worker.rates import HandlerRates
from workqueue.worker.settlement import Settler
from workqueue.worker.slot import Delivery

if TYPE_CHECKING:
    from workqueue.amqp.publish_pipeline import PublishPipeline
    from workqueue.worker.executors.launcher import Launcher
    from workqueue.worker.executors.tasks import Opening
    from workqueue.worker.handlers.lifespan import Lifespan

STUCK_SECONDS: Final = 60.0
"""A handler counts as stuck when it still runs this long after its deadline."""

HUNG_SECONDS: Final = 10.0
"""A handler counts as hung when it still runs a whole timeout, and at least this long, after its deadline."""

LOOP_ENDED_GRACE_SECONDS: Final = 1.0
"""Time for the other handlers when one of them has ended the asyncio loop, which asks the process to end."""

BLOCKED_SECONDS: Final = 0.5
"""How soon a handler that another one blocks is looked at again."""

FIRST_WAIT_SECONDS: Final = 0.2
LONGEST_WAIT_SECONDS: Final = 5.0
"""Between two attempts to start handlers that could not be started."""

STARTED_SECONDS: Final = 12.0
"""A handler that runs this long was started. A handler that cannot be started fails sooner.

For HTTP handlers, a connect and a TLS handshake may take `CONNECT_SECONDS` each.
"""

logger = logging.getLogger(__name__)


class Failure(NamedTuple):
    """Why only a new process can continue, how long handlers may still run, and the exit code."""

    reason: str
    grace_seconds: float
    code: ExitCode = ExitCode.FAILED


class Deliveries:
    """The deliveries in the slots of one worker, from arrival to the end of the handler.

    Args:
        config: the worker's configuration.
        consumer: whose slots hold the deliveries.
        binding_source: returns the connection data, for the publisher of copies.
        on_failure: called when only a new process can continue.
        on_finished: called when `max_messages` are settled.
    """

    def __init__(
        self,
        config: RunConfig,
        consumer: Consumer,
        binding_source: Callable[[], Binding],
        on_failure: Callable[[Failure], None],
        on_finished: Callable[[], None],
    ) -> None:
        self.rates = HandlerRates(time.monotonic())
        self.outcomes: Counter[Outcome] = Counter()
        self.handler_seconds = Histogram.of_handler_seconds()
        self.message_age_seconds = Histogram.of_message_age_seconds()
        self._config = config
        self._consumer = consumer
        self._connection = consumer.connection
        self._binding_source = binding_source
        self._on_failure = on_failure
        self._on_finished = on_finished
        self._publisher: PublishPipeline | None = None
        self._settler = Settler(
            config.queue,
            config.worker_name,
            self._connection,
            self._get_publisher,
            self._settled,
            config.queue_settings.dead_letter_queue,
        )
        self._refused_at = 0.0
        self._tries_again = False
        self._handler_backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        self._hung_seconds = max(config.timeout_seconds, HUNG_SECONDS)
        self._next_check = float("inf")
        self._executor: Executor | None = None
        self.ready = False
        self._cancels = consumer.cancels
        if self._cancels is not None:
            self._cancels.on_cancel = self._cancel_by_id
        self._limits = consumer.limits
        for limit in self._limits:
            limit.on_token = self._start_with_token

    def start(self, handler: Handler | Launcher) -> None:
        """Start the threads or processes that run handlers, and the thread that runs the I/O loop.

        Args:
            handler: loaded and checked, or what starts processes that load it.
        """
        self._executor = self._executor or self._make_executor(handler)
        self._executor.start()

    def _make_executor(self, handler: Handler | Launcher) -> Executor:
        # Imported here, since a worker uses only one of them.
        loop = self._connection.loop
        if not isinstance(handler, Handler):
            from workqueue.worker.executors.processes import ProcessExecutor

            slots = range(len(self._consumer.slots))
            self.slots_lost(slots)
            return ProcessExecutor(loop, handler, self, slots)
        if handler.is_async:
            from workqueue.worker.executors.tasks import AsyncExecutor

            opening = None if handler.lifespan is None else self._opening(handler.name, handler.lifespan)
            self.ready = opening is None
            return AsyncExecutor(loop, handler.call, self.handled, self._loop_ended, opening)
        self.ready = True
        from workqueue.worker.executors.threads import ThreadExecutor

        return ThreadExecutor(loop, handler.call, self.handled, self._config.concurrency)

    def _opening(self, name: str, lifespan: Lifespan) -> Opening:
        """Take no messages until the lifespan is open, and end the worker if that fails or takes too long."""
        from workqueue.worker.executors.tasks import Opening

        slots = range(len(self._consumer.slots))
        self.slots_lost(slots)
        seconds = self._config.startup_timeout_seconds

        def opened() -> None:
            with self._connection.exclusive():
                self.slots_ready(slots)

        def check() -> None:
            if not self.ready:
                self.cannot_load(too_slow(name, seconds))

        def watch() -> None:
            self._connection.call_later(seconds, check)

        self._connection.call(watch)
        return Opening(lifespan, opened, self.cannot_load)

    def close_publisher(self) -> None:
        """Disconnect the publisher of copies."""
        if self._publisher is not None:
            self._publisher.close(0.0)

    def stop(self, timeout: float) -> bool:
        """End the executor; return False when a handler still runs after `timeout` seconds."""
        return self._executor is None or self._executor.stop(timeout)

    # Reading, from any thread ---------------------------------------------------------------------------

    @property
    def delay_queues(self) -> list[str]:
        """The delay queues that this worker knows, in the order in which messages pass them."""
        return self._settler.delay_queues

    @property
    def publisher_tick_age(self) -> float:
        """Seconds since the publisher's I/O loop last turned; 0 without a publisher."""
        return 0.0 if self._publisher is None else self._publisher.connection.tick_age

    @property
    def stuck(self) -> int:
        """How many handlers still run long after their deadline."""
        now = time.monotonic()
        # Without the lock, for /livez: a delivery may not have its message yet.
        return sum(
            delivery.message is not None
            and not delivery.returned
            and now > delivery.message.deadline + STUCK_SECONDS
            for delivery in self._consumer.deliveries()
        )

    # Arrival --------------------------------------------------------------------------------------------

    def receive(self, delivery: Delivery) -> None:
        """Hand a message to its handler, or give it up when its delivery limit or TTL has passed."""
        now = time.monotonic()
        properties = delivery.properties
        sent = properties.headers or {}
        delivery.message = Message(
            delivery.body,
            headers=properties.headers,
            properties=properties,
            queue=self._config.queue,
            exchange=delivery.method.exchange,
            routing_key=delivery.method.routing_key,
            redelivered=delivery.method.redelivered,
        )
        self.rates.arrived(now)
        if properties.timestamp is not None:
            self.message_age_seconds.observe(max(0.0, time.time() - properties.timestamp))
        self._limit()
        # A message that has neither is new and has no TTL.
        refused = self._refusal(delivery, sent) if sent or properties.expiration is not None else None
        cancel = None if self._cancels is None else self._cancels.find(properties)
        if cancel is not None:
            delivery.started = now
            self._drop(delivery, cancel)
            return
        if refused is not None:
            delivery.started = now
            delivery.returned = delivery.decided = True
            self._settler.settle(delivery, refused)
            return
        self._start(delivery)

    def _refusal(self, delivery: Delivery, sent: Headers) -> GiveUp | None:
        """Read what the headers say about earlier deliveries, and return GiveUp if there may be no other."""
        if headers.DUE_AT in sent:
            self._settler.note_delay(sent.get(headers.FIRST_DEATH_QUEUE))
        delivery.expires_at = headers.expires_at(delivery.properties, sent, time.time())
        failed = headers.deliveries_failed(sent, redelivered=delivery.method.redelivered)
        # Before the first attempt, RabbitMQ itself enforces the TTL.
        expires_in = _expires_in(delivery) if headers.was_retried(sent) else None
        return refusal(failed, self._delivery_limit(), expires_in)

    def _cancel_by_id(self, cancel: Cancel) -> None:
        """Drop the message if it is here, and tell its handler."""
        for delivery in self._consumer.deliveries():
            properties = delivery.properties
            undecided = delivery.lease.held and not delivery.decided and not delivery.abandoned
            if (
                undecided
                and properties.message_id == cancel.message_id
                and cancel.concerns(properties.timestamp, properties.headers or {}, time.time())
            ):
                self._drop(delivery, cancel, was_running=not delivery.returned)

    def _drop(self, delivery: Delivery, cancel: Cancel, *, was_running: bool = False) -> None:
        delivery.cancel = cancel
        delivery.decided = True
        if was_running:
            delivery.slot.hold()
            self._cancel(delivery)
        else:
            delivery.returned = True
        try:
            if cancel.discard:
                self._settler.discard(delivery)
            else:
                self._settler.settle(delivery, cancelled(was_running=was_running))
        except Exception as failure:  # noqa: BLE001 - it is logged
            self._cannot_settle(failure)

    def _delivery_limit(self) -> int | None:
        limit, version = self._config.delivery_limit, self._connection.version
        if limit is None or version is None or not version.nack_counts_as_delivery:
            return limit
        return limit + self._config.wake_deliveries

    def _start(self, delivery: Delivery) -> None:
        delivery.started = time.monotonic()
        delivery.returned = True
        if not self._get_executor().accepts(delivery.slot.number):
            return  # postponed, until `slots_ready`
        for limit in self._limits:
            if not limit.take(delivery):
                return  # postponed, until `_start_with_token`
        delivery.returned = False
        delivery.message.deadline = delivery.started + self._config.timeout_seconds
        if delivery.message.deadline < self._next_check:
            self._check_later(self._config.timeout_seconds)
        self._get_executor().submit(delivery)

    def _start_with_token(self, delivery: Delivery) -> None:
        """Start a handler that has waited for a token of a limit, or let it wait for that of another limit."""
        self._start(delivery)
        if delivery.returned and not self._get_executor().accepts(delivery.slot.number):
            self._release_token(delivery)  # its slot has no process now

    def _release_token(self, delivery: Delivery) -> None:
        for limit in self._limits:
            limit.release(delivery)

    def _get_executor(self) -> Executor:
        assert self._executor is not None  # noqa: S101 - no message arrives before the start
        return self._executor

    # Slots whose process is being replaced --------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether the worker shuts down."""
        return self._consumer.draining

    def slots_lost(self, slots: Sequence[int]) -> None:
        """Take no messages in these slots, until a handler can start there."""
        for number in slots:
            self._consumer.slots[number].hold()

    def slots_ready(self, slots: Sequence[int]) -> None:
        """Take messages in these slots again, and start the handlers of those that have one."""
        self.ready = True
        for number in slots:
            slot = self._consumer.slots[number]
            if slot.delivery is None:
                slot.release()
            elif slot.delivery in self._postponed():
                self._start(slot.delivery)

    def interrupted(self, delivery: Delivery) -> None:
        """Postpone a handler whose process was ended because of another message."""
        delivery.returned = True
        self._release_token(delivery)
        if not delivery.lease.held:
            self._free(delivery)
        elif delivery.abandoned or self._consumer.draining:
            self._hand_back(delivery)

    def cannot_load(self, reason: str) -> None:
        """End the worker: no process can load the handler."""
        self._on_failure(Failure(reason, self._config.grace_seconds, ExitCode.HANDLER))

    # The end of a handler -------------------------------------------------------------------------------

    def handled(self, delivery: Delivery, error: BaseException | None) -> None:
        """Settle a message whose handler has returned."""
        with self._connection.loop:
            try:
                self._end(delivery, error)
            except Exception as failure:  # noqa: BLE001 - it is logged
                self._cannot_settle(failure)

    def _cannot_settle(self, failure: Exception) -> None:
        """Connect again, so that RabbitMQ delivers the message again: it must not stay unsettled."""
        logger.error("A message could not be settled; connecting again.", exc_info=failure)
        self._connection.abort(f"a message could not be settled: {failure!r}")

    def _end(self, delivery: Delivery, error: BaseException | None) -> None:
        now = time.monotonic()
        delivery.returned = True
        self._release_token(delivery)
        if not delivery.lease.held:
            self._free(delivery)
        elif delivery.abandoned:
            self._hand_back(delivery)
        elif isinstance(error, HandlerUnavailable) and not delivery.decided:
            self._postpone(delivery, str(error))
            return
        elif not delivery.decided:
            delivery.decided = True
            if self._consumer.handler_problem and delivery.started > self._refused_at:
                self._reached_again()
            if error is None:
                self._settler.ack(delivery, Outcome.ACKED)
            else:
                self._settler.settle(delivery, self._verdict(delivery, error), error)
        seconds = now - delivery.started
        self.rates.handled(now, seconds)
        self.handler_seconds.observe(seconds)

    def _verdict(self, delivery: Delivery, error: BaseException) -> Verdict:
        import random  # takes 1 ms, and most messages succeed

        spread = random.random()  # noqa: S311 - no secret
        begun_at = time.time() - (time.monotonic() - delivery.started)
        first_at = headers.first_attempt_at(delivery.properties.headers or {}, begun_at)
        return verdict(
            error,
            delivery.message.attempt,
            self._config.retry,
            spread,
            expires_in=_expires_in(delivery),
            age=time.time() - first_at,
        )

    # A handler that cannot be reached -------------------------------------------------------------------

    def _postpone(self, delivery: Delivery, reason: str) -> None:
        """Keep a message whose handler was not started, and take no others until it can be started."""
        if self._consumer.draining:
            self._hand_back(delivery)
            return
        if self._consumer.handler_problem is None:
            logger.warning(
                "The handler cannot be reached; keeping its messages and taking no others.",
                extra={"queue": self._config.queue, "reason": reason},
            )
        self._refused_at = time.monotonic()
        self._consumer.set_handler_problem(reason)
        if not self._tries_again:
            self._tries_again = True
            self._connection.call_later(self._handler_backoff.next(), self._try_again)

    def _postponed(self) -> list[Delivery]:
        return [
            delivery
            for delivery in self._consumer.deliveries()
            if delivery.returned and not delivery.decided and delivery.lease.held
        ]

    def _try_again(self) -> None:
        self._tries_again = False
        if self._consumer.draining:
            return
        tried_at = time.monotonic()
        tried = self._postponed()
        if not tried:  # all were lost: only another message can show whether the handler can be reached
            self._consumer.set_handler_problem(None)
            return

        def look() -> None:
            if self._consumer.draining or not self._consumer.handler_problem or self._refused_at >= tried_at:
                return
            if any(not delivery.returned for delivery in tried):
                self._reached_again()
            else:  # all were lost or timed out
                self._consumer.set_handler_problem(None)

        for delivery in tried:
            self._start(delivery)
        self._connection.call_later(STARTED_SECONDS, look)

    def _reached_again(self) -> None:
        logger.info("The handler can be reached again.", extra={"queue": self._config.queue})
        self._handler_backoff.reset()
        self._consumer.set_handler_problem(None)

    # The end of a delivery ------------------------------------------------------------------------------

    def lose(self, delivery: Delivery) -> None:
        """Cancel the handler of a delivery that RabbitMQ will deliver to another consumer."""
        self.outcomes[Outcome.LOST] += 1
        self._limit()
        if delivery.returned:
            self._free(delivery)
        else:
            logger.warning(
                "The delivery was lost while its handler ran; the result will not count.",
                extra={"queue": self._config.queue, "slot": delivery.slot.number},
            )
            self._cancel(delivery)
            if self.is_hung(delivery):
                self._fail_hung(delivery)

    def cancel_handlers(self) -> None:
        """Cancel every running handler. Its message is requeued when the handler returns."""
        with self._connection.exclusive():
            # The others were cancelled before: their message is lost, or they timed out and it is being settled.
            for delivery in self._consumer.deliveries():
                if delivery.lease.held and not delivery.decided:
                    delivery.abandoned = True
                    self._cancel(delivery)

    def hand_back(self) -> int:
        """Requeue every unsettled message, and return how many there were."""
        with self._connection.exclusive():
            return sum(
                self._hand_back(delivery) for delivery in self._consumer.deliveries() if delivery.lease.held
            )

    def hand_back_postponed(self) -> None:
        """Requeue the messages whose handler was not started. Call it under the lock."""
        for delivery in self._postponed():
            self._hand_back(delivery)

    def _limit(self) -> None:
        """Take no more messages than `max_messages`. A lost or requeued message does not count."""
        limit = self._config.max_messages
        if limit is None:
            return
        settled = self.outcomes.total() - self.outcomes[Outcome.LOST] - self.outcomes[Outcome.REQUEUED]
        self._consumer.set_full(settled + self._consumer.held() >= limit)
        if settled >= limit:
            self._on_finished()

    def _settled(self, delivery: Delivery, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1
        self._limit()
        if delivery.returned:
            self._free(delivery)
        elif self.is_hung(delivery):
            self._fail_hung(delivery)

    def _hand_back(self, delivery: Delivery) -> bool:
        is_handed_back = delivery.lease.hand_back()
        self.outcomes[Outcome.REQUEUED if is_handed_back else Outcome.LOST] += 1
        self._limit()
        if delivery.returned:
            self._free(delivery)
        return is_handed_back

    def _cancel(self, delivery: Delivery) -> None:
        delivery.message.cancelled.set()
        self._get_executor().cancel(delivery)

    def _free(self, delivery: Delivery) -> None:
        self._release_token(delivery)  # it may wait for that of another limit
        if delivery.slot.delivery is delivery:
            if self._get_executor().accepts(delivery.slot.number):
                delivery.slot.release()
            else:
                delivery.slot.vacate()
            self._consumer.changed.notify_all()

    def _get_publisher(self) -> PublishPipeline:
        if self._publisher is None:
            from workqueue.amqp.publish_pipeline import PublishPipeline  # most workers need none

            self._publisher = PublishPipeline(
                # The slots limit how many copies are under way. A copy may take as long as its original can be held:
                # a shorter limit would make a second copy during a long memory alarm.
                self._binding_source,
                f"{self._config.queue} publisher",
                timeout_seconds=SETTLING_SECONDS,
            ).start()
        return self._publisher

    # Time -----------------------------------------------------------------------------------------------

    def _check_later(self, seconds: float) -> None:
        self._next_check = time.monotonic() + seconds
        self._connection.call_later(seconds, self._check_time)

    def _check_time(self) -> None:
        """Time out every handler that is past its deadline. One timer serves all: most handlers end long before."""
        now = time.monotonic()
        self._next_check = float("inf")
        blocked = False
        running = [delivery for delivery in self._consumer.deliveries() if not delivery.returned]
        # The one with the earliest deadline first: if handlers block each other, it counts as the one that blocks.
        for delivery in sorted(running, key=lambda delivery: delivery.message.deadline):
            undecided = delivery.lease.held and not delivery.decided and not delivery.abandoned
            if undecided and delivery.message.deadline <= now:
                if self._get_executor().is_blocked(delivery):
                    blocked = (
                        True  # by another handler, whose process is being ended: not this handler's fault
                    )
                    continue
                delivery.decided = True
                delivery.slot.hold()
                self._cancel(delivery)
                error = HandlerTimeout(f"the handler ran for more than {self._config.timeout_seconds:g} s")
                try:
                    self._settler.settle(delivery, self._verdict(delivery, error))
                except Exception as failure:  # noqa: BLE001 - it is logged
                    self._cannot_settle(failure)
            elif self.is_hung(delivery):
                self._fail_hung(delivery)
        moments = [
            moment
            for delivery in running
            for moment in (delivery.message.deadline, delivery.message.deadline + self._hung_seconds)
            if moment > now
        ]
        if blocked:
            moments.append(now + BLOCKED_SECONDS)
        if moments:
            self._check_later(min(moments) - now)

    def is_hung(self, delivery: Delivery) -> bool:
        """Whether a handler still runs a whole timeout after its deadline, and its message is settled or lost."""
        hung_from: float = delivery.message.deadline + self._hung_seconds
        return not delivery.returned and not delivery.lease.held and time.monotonic() >= hung_from

    def _fail_hung(self, delivery: Delivery) -> None:
        seconds = time.monotonic() - delivery.started
        self._on_failure(
            Failure(
                f"A handler has not returned for {seconds:.0f} s, in slot {delivery.slot.number}; its time was"
                f" {self._config.timeout_seconds:g} s.",
                self._config.grace_seconds,
            )
        )

    def _loop_ended(self, reason: str) -> None:
        self._on_failure(Failure(reason, LOOP_ENDED_GRACE_SECONDS))


def _expires_in(delivery: Delivery) -> float | None:
    return None if delivery.expires_at is None else delivery.expires_at - time.time()
