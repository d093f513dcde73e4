"""Settling a delivery: acknowledge it, or publish a copy, wait for the confirm, and then acknowledge it.

The original stays unacknowledged until RabbitMQ has confirmed the copy, so that a crash at any moment leaves
at least one of them. A failed step is repeated while the lease is held. A copy that was sent is sent again
only after its confirm failed or its channel closed, with the same message id.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from workqueue.amqp import field_table
from workqueue.amqp.backoff import Backoff
from workqueue.amqp.errors import BrokerError, Unencodable
from workqueue.amqp.outgoing import Outgoing
from workqueue.contract import headers, topology
from workqueue.contract.properties import Properties
from workqueue.worker.handlers.outcome import (
    Ack,
    Failure,
    FailureReason,
    GiveUp,
    HandlerRaised,
    Outcome,
    RetryLater,
    Verdict,
)
from workqueue.worker.slot import Delivery

if TYPE_CHECKING:
    from concurrent.futures import Future

FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 5.0

ROOM: Final = 96 * 1024
"""Bytes for the headers of a copy. All properties must fit into one frame, which has 128 KiB by default. RabbitMQ
adds a record of at most 1 KiB for each delay queue that the copy passes."""

LEAST_ROOM: Final = 1024
CANCELLED: Final = "Message cancelled."
_NAMES_CHARACTERS: Final = 200

logger = logging.getLogger(__name__)


class Republisher(Protocol):
    """The parts of a publisher that settling uses. Both methods return immediately and are thread-safe."""

    def submit(self, outgoing: Outgoing, is_wanted: Callable[[], bool]) -> Future[None]:
        """Publish with mandatory flag and confirm, unless `is_wanted` returns False just before sending."""

    def declare_plan(self, plan: topology.Plan) -> Future[bool]:
        """Declare queues. The future's result says whether one was created."""


class SettlingConnection(Protocol):
    """The parts of the consuming connection that settling uses."""

    def call(self, function: Callable[[], None]) -> None:
        """Run a function under the lock."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> Any:
        """Run a function under the lock after `seconds`."""

    def flush(self) -> None:
        """Send written data now."""


class Target(NamedTuple):
    """Where a copy goes: its queue or exchange, and what must exist for it."""

    name: str
    plan: topology.Plan

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues that the copy passes."""
        return tuple(queue.name for queue in self.plan.queues)


class Settler:
    """Settles the deliveries of one queue. Use it under the lock of the connection.

    Args:
        queue: the work queue.
        worker: the worker's name, for the header.
        connection: the consuming connection.
        republisher: returns the publisher, which is made for the first copy. Most workers never need one.
        on_settled: called with the delivery and its outcome, unless the delivery was lost or requeued before.
        dead_letter_queue: one that exists, and that the worker never declares; None for the queue's own.
    """

    def __init__(
        self,
        queue: str,
        worker: str,
        connection: SettlingConnection,
        republisher: Callable[[], Republisher],
        on_settled: Callable[[Delivery, Outcome], None],
        dead_letter_queue: str | None = None,
    ) -> None:
        self.queue = queue
        self.connection = connection
        self.republisher = republisher
        self.dead_letter_queue = topology.dead_letter_queue(queue)
        self.required_queue = dead_letter_queue
        if dead_letter_queue is not None:
            self.dead_letter_queue = topology.Queue(dead_letter_queue)
        self.known_queues = {self.dead_letter_queue.name}
        self.safe_from: dict[str, float] = {}
        self._longest_seen: dict[bool, topology.Step] = {}
        self._is_declaring = False
        self._waiting: list[_Republishing] = []
        self._deliveryer = worker
        self._on_settled = on_settled

    @property
    def delay_queues(self) -> list[str]:
        """The delay queues that this worker knows, in the order in which messages pass them."""
        # A copy, since /status reads this without the lock while another queue may be added.
        found = (topology.step_of(name, self.queue) for name in tuple(self.known_queues))
        known = {step for step in found if step is not None}
        known.update(*map(topology.steps_from, tuple(self._longest_seen.values())))
        return [topology.step_name(self.queue, step) for step in sorted(known, key=topology.STEPS.index)]

    def note_delay(self, first_queue: object) -> None:
        """Note the steps of a message that a publisher has delayed.

        Args:
            first_queue: the first delay queue of the message, according to its headers.
        """
        step = topology.step_of(str(first_queue), self.queue)
        if step is not None:
            longest = self._longest_seen.get(step.is_high, step)
            self._longest_seen[step.is_high] = max(longest, step)

    def settle(self, delivery: Delivery, verdict: Verdict, error: BaseException | None = None) -> None:
        """Start to carry out the verdict.

        Args:
            error: the handler's exception, for the log.
        """
        if isinstance(verdict, Ack):
            self.ack(delivery, Outcome.ACKED)
            return
        target, copy = make_copy(
            delivery, verdict, self.queue, self.dead_letter_queue, self._deliveryer, time.time()
        )
        retried = isinstance(verdict, RetryLater)
        sentence = "Message failed; trying again later." if retried else "Message given up."
        level = logging.WARNING if retried else logging.ERROR
        if delivery.cancel is not None:
            sentence, level = CANCELLED, logging.INFO
        # Reject, an exit code and a status code have no useful traceback.
        shows_traceback = bool(verdict.failure.traceback) and not retried
        remote = {"exception": verdict.failure.traceback.rstrip()} if isinstance(error, HandlerRaised) else {}
        logger.log(
            level,
            sentence,
            exc_info=error if shows_traceback and not remote else None,
            extra={
                "queue": self.queue,
                "to": target.name,
                "attempt": delivery.message.attempt,
                "reason": str(verdict.failure.reason),
                "error": verdict.failure.message,
                "message_id": delivery.message.properties.message_id,
                **(remote if shows_traceback else {}),
            },
        )
        outcome = Outcome.RETRIED if retried else Outcome.DEAD_LETTERED
        if verdict.failure.reason is FailureReason.TIMED_OUT:
            outcome = Outcome.TIMED_OUT
        elif delivery.cancel is not None:
            outcome = Outcome.CANCELLED
        _Republishing(self, delivery, target, copy, outcome).publish()

    def discard(self, delivery: Delivery) -> None:
        """Drop a cancelled message."""
        logger.info(
            CANCELLED, extra={"queue": self.queue, "message_id": delivery.message.properties.message_id}
        )
        self.ack(delivery, Outcome.CANCELLED)

    def knows(self, target: Target) -> bool:
        """Whether the queues of a copy were declared."""
        return self.known_queues.issuperset(target.queues)

    def seconds_until_safe(self, target: Target) -> float:
        """Return after how many seconds the queues of a copy survive a restart of the broker."""
        return max(self.safe_from.get(name, 0.0) for name in target.queues) - time.monotonic()

    def declare(self, copy: _Republishing) -> None:
        """Declare the queues of a copy. Other copies wait for the answer.

        Otherwise one copy could use a queue that another one has just created, before it is known to be new.
        """
        if self._is_declaring:
            self._waiting.append(copy)
            return

        def answered(done: Future[bool]) -> None:
            # This is the publisher's thread, which must not wait for the lock of the consuming connection.
            self.connection.call(lambda: self._declared(copy, done))

        try:
            declared = self.republisher().declare_plan(copy.target.plan)
        except BrokerError as error:
            copy.failed(error)
            return
        self._is_declaring = True
        declared.add_done_callback(answered)

    def _declared(self, copy: _Republishing, done: Future[bool]) -> None:
        self._is_declaring = False
        waiting, self._waiting = self._waiting, []
        error = done.exception()
        if error is None:
            from workqueue.amqp.declaration import SAFE_AFTER_SECONDS

            names = copy.target.queues
            self.known_queues.update(names)
            if done.result():
                self.safe_from |= dict.fromkeys(names, time.monotonic() + SAFE_AFTER_SECONDS)
        for waiter in (copy, *waiting):
            if error is not None and waiter.target.queues == copy.target.queues:
                waiter.failed(error)
            else:
                waiter.publish()

    def ack(self, delivery: Delivery, outcome: Outcome) -> None:
        """Acknowledge."""
        if delivery.lease.held:
            is_acked = delivery.lease.ack()
            self.connection.flush()  # RabbitMQ then sends the next message while we count
            self._on_settled(delivery, outcome if is_acked else Outcome.LOST)


class _Republishing:
    """One copy: declare its queue unless it is known to exist, publish, acknowledge the original."""

    def __init__(
        self, settler: Settler, delivery: Delivery, target: Target, copy: Outgoing, outcome: Outcome
    ) -> None:
        self.target = target
        self._settler = settler
        self._delivery = delivery
        self._copy = copy
        self._outcome = outcome
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        self._told = False
        self._room = ROOM

    def _declare(self) -> None:
        if self._delivery.lease.held:
            self._settler.declare(self)

    def publish(self) -> None:
        """Publish the copy as soon as its queues are known to survive a restart of the broker."""
        if not self._settler.knows(self.target):
            self._declare()
            return
        # Also if another slot has just created a queue.
        wait = self._settler.seconds_until_safe(self.target)
        if wait > 0:
            self._settler.connection.call_later(wait, self.publish)
            return
        if not self._delivery.lease.held:
            return

        def answered(done: Future[Any]) -> None:
            # This is the publisher's thread, which must not wait for the lock of the consuming connection.
            self._settler.connection.call(lambda: self._published(done))

        try:
            # The lease is read in the publisher's thread, where that is safe.
            published = self._settler.republisher().submit(self._copy, lambda: self._delivery.lease.held)
        except BrokerError as error:
            self.failed(error)
            return
        published.add_done_callback(answered)

    def _published(self, done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            self._settler.ack(self._delivery, self._outcome)
        else:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Try again after a pause: the queue could not be declared, or the copy not be published."""
        if not self._delivery.lease.held:
            return
        if isinstance(error, Unencodable) and self._room > LEAST_ROOM:
            # The headers of a publisher must not keep a message unsettled.
            self._room //= 2
            kept = fitted(self._copy.headers or {}, self._room)
            logger.warning(
                "The headers of a copy do not fit into a frame; dropping the largest.",
                extra={"queue": self._settler.queue, "to": self.target.name, "reason": str(error)},
            )
            self._copy = self._copy._replace(headers=kept)
            self.publish()
            return
        if not self._told:
            self._told = True
            logger.warning(
                "A copy could not be published; the message stays unacknowledged, trying again.",
                extra={"queue": self._settler.queue, "to": self.target.name, "reason": str(error)},
            )
        again = self.publish
        if self.target.name != self._settler.required_queue:
            # A queue may have been deleted. Declaring it again is harmless and repairs that.
            self._settler.known_queues.difference_update(self.target.queues)
            again = self._declare
        self._settler.connection.call_later(self._backoff.next(), again)


def make_copy(
    delivery: Delivery,
    verdict: RetryLater | GiveUp,
    queue: str,
    dead_letter_queue: topology.Queue,
    worker: str,
    now: float,
) -> tuple[Target, Outgoing]:
    """Return the target of the copy, and the copy.

    A message without an id gets one here, which all later attempts share.

    Args:
        now: Unix seconds.
    """
    properties, kept = headers.preserve(Properties.of(delivery.properties), delivery.properties.headers or {})
    if not properties.message_id:
        properties = properties._replace(message_id=str(uuid.uuid4()))
    if isinstance(verdict, RetryLater):
        route = topology.delay_route(queue, verdict.seconds, properties.priority)
        target = Target(route.exchange, route.plan)
    else:
        target = Target(dead_letter_queue.name, topology.Plan((dead_letter_queue,), None, ()))
        kept.pop(headers.DUE_AT, None)
        kept[headers.QUEUE] = queue
        if delivery.cancel is not None:
            kept[headers.CANCELS_UNTIL] = delivery.cancel.at
    attempts = delivery.message.attempt
    if not verdict.counts:
        attempts -= 1
    found = delivery.properties.headers or {}
    begun_at = now - (time.monotonic() - delivery.started)
    kept[headers.FIRST_ATTEMPT_AT] = round(headers.first_attempt_at(found, begun_at) * 1000)
    if delivery.expires_at is not None:
        kept[headers.EXPIRES_AT] = round(delivery.expires_at * 1000)
    kept = fitted(kept | _failure_headers(verdict.failure, attempts, worker, now), ROOM)
    copy = Outgoing.with_properties(properties, dead_letter_queue.name, delivery.body, kept)
    if isinstance(verdict, RetryLater):
        copy = copy.delayed(route, now + verdict.seconds)
    return target, copy


def fitted(wanted: Mapping[str, Any], room: int) -> dict[str, Any]:
    """Return the headers that fit into `room` bytes, plus one with the names of the dropped headers.

    The traceback is dropped first, then the publisher's headers from the largest, then our own. A header that
    AMQP cannot encode, such as an object that a handler set, is always dropped.
    """
    sizes = {name: field_table.size(name, value) for name, value in wanted.items()}
    dropped = [name for name, size in sizes.items() if size is None]
    known = {name: size for name, size in sizes.items() if size is not None}
    left = sum(known.values())
    if dropped or left > room:
        order = sorted(
            known.keys() - {headers.ATTEMPT},
            key=lambda name: (name != headers.FAILURE_TRACEBACK, name in headers.OURS, -known[name]),
        )
        room -= 4 * _NAMES_CHARACTERS
        for name in order:
            if left <= room:
                break
            left -= known[name]
            dropped.append(name)
    if not dropped:
        return dict(wanted)
    kept = {name: value for name, value in wanted.items() if name not in dropped}
    names = ", ".join(filter(None, [str(kept.get(headers.DROPPED, "")), *map(str, dropped)]))
    return kept | {headers.DROPPED: names[:_NAMES_CHARACTERS]}


def _failure_headers(failure: Failure, attempt: int, worker: str, now: float) -> dict[str, Any]:
    made: dict[str, Any] = {
        headers.ATTEMPT: attempt,
        headers.FAILURE_REASON: str(failure.reason),
        headers.FAILURE_MESSAGE: failure.message,
        headers.FAILURE_TRACEBACK: failure.traceback,
        headers.FAILED_AT: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        headers.WORKER: worker,
    }
    return {key: value for key, value in made.items() if value != ""}
