"""Carry out a verdict: acknowledge, or publish a copy, wait for its confirmation, and then acknowledge.

Place in the flow: `runtime` hands over work whose handler has ended or timed out. The original stays
unacknowledged until RabbitMQ has confirmed the copy, so that a crash at any moment leaves at least one of
them. What fails is tried again for as long as the delivery is ours. A copy that was sent waits for its
confirmation or for the end of its channel before it is sent again, and keeps its message id then.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final, Protocol

from workqueue.amqp import field_table
from workqueue.amqp.backoff import Backoff
from workqueue.amqp.declaration import SAFE_AFTER_SECONDS
from workqueue.amqp.errors import BrokerError, Unencodable
from workqueue.amqp.outgoing import Outgoing
from workqueue.contract import headers, topology
from workqueue.contract.properties import Properties
from workqueue.worker.handlers.outcome import (
    Ack,
    Failure,
    FailureReason,
    GiveUp,
    Outcome,
    RetryLater,
    Verdict,
)
from workqueue.worker.slot import Delivery

FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 5.0

ROOM: Final = 124 * 1024
"""Bytes for the headers of a copy. All properties travel in one frame, of 128 KiB where nobody made it smaller."""

LEAST_ROOM: Final = 1024
_NAMES_CHARACTERS: Final = 200

logger = logging.getLogger(__name__)


class Republisher(Protocol):
    """What settling needs of the publisher. Both calls return at once and may be made from any thread."""

    def submit(self, outgoing: Outgoing, is_wanted: Callable[[], bool]) -> Future[None]:
        """Publish mandatory and confirmed, unless it is no longer wanted when its turn has come."""

    def declare(self, queue: topology.Queue) -> Future[bool]:
        """Declare a queue; tells whether it was created."""


class SettlingConnection(Protocol):
    """What settling needs of the consuming connection."""

    def call(self, function: Callable[[], None]) -> None:
        """Run a function where pika may be touched."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> Any:
        """The same, later."""

    def flush(self) -> None:
        """Send what was written now."""


class Settler:
    """Settles the deliveries of one queue. Use it only where pika may be touched.

    Args:
        queue: the work queue.
        worker: who we are, for the header.
        port: the consuming connection.
        republisher: makes (or returns) the publisher when the first copy is needed: most workers never do.
        on_settled: called with the work and how it ended. Not called when the delivery was lost or handed
            back meanwhile: whoever did that knows.
    """

    def __init__(
        self,
        queue: str,
        worker: str,
        connection: SettlingConnection,
        republisher: Callable[[], Republisher],
        on_settled: Callable[[Delivery, Outcome], None],
    ) -> None:
        self.queue = queue
        self.connection = connection
        self.republisher = republisher
        self.known_queues = {topology.dead_letter_queue_name(queue)}
        self.safe_from: dict[str, float] = {}
        self._deliveryer = worker
        self._on_settled = on_settled

    @property
    def delays_seconds(self) -> list[int]:
        """The delays whose queues exist because this worker declared them."""
        # /status asks without the lock, while a copy may make another queue known: look at a snapshot.
        found = (topology.delay_seconds(name, self.queue) for name in tuple(self.known_queues))
        return sorted(seconds for seconds in found if seconds is not None)

    def settle(self, delivery: Delivery, verdict: Verdict, error: BaseException | None = None) -> None:
        """Begin to carry out the verdict.

        Args:
            error: what the handler raised, for the log.
        """
        if isinstance(verdict, Ack):
            self.ack(delivery, Outcome.ACKED)
            return
        target, copy = make_copy(delivery, verdict, self.queue, self._deliveryer, time.time())
        retried = isinstance(verdict, RetryLater)
        logger.log(
            logging.WARNING if retried else logging.ERROR,
            "Message failed; trying again later." if retried else "Message given up.",
            # What a handler says with Reject, an exit code or a status code needs no traceback.
            exc_info=error if verdict.failure.traceback and not retried else None,
            extra={
                "queue": self.queue,
                "to": target.name,
                "attempt": delivery.message.attempt,
                "reason": str(verdict.failure.reason),
                "error": verdict.failure.message,
                "message_id": delivery.message.properties.message_id,
            },
        )
        outcome = Outcome.RETRIED if retried else Outcome.DEAD_LETTERED
        if verdict.failure.reason is FailureReason.TIMED_OUT:
            outcome = Outcome.TIMED_OUT
        _Republishing(self, delivery, target, copy, outcome).start()

    def ack(self, delivery: Delivery, outcome: Outcome) -> None:
        """Acknowledge."""
        if delivery.lease.held:
            is_acked = delivery.lease.ack()
            self.connection.flush()  # while we count, RabbitMQ has the next message on its way
            self._on_settled(delivery, outcome if is_acked else Outcome.LOST)


class _Republishing:
    """One copy on its way: declare its queue unless that is known to exist, publish, acknowledge."""

    def __init__(
        self, settler: Settler, delivery: Delivery, target: topology.Queue, copy: Outgoing, outcome: Outcome
    ) -> None:
        self._settler = settler
        self._delivery = delivery
        self._target = target
        self._copy = copy
        self._outcome = outcome
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        self._told = False
        self._room = ROOM

    def start(self) -> None:
        if self._target.name in self._settler.known_queues:
            self._publish()
        else:
            self._declare()

    def _declare(self) -> None:
        self._step(lambda: self._settler.republisher().declare(self._target), self._declared)

    def _declared(self, created: bool) -> None:
        if created:
            self._settler.safe_from[self._target.name] = time.monotonic() + SAFE_AFTER_SECONDS
        self._settler.known_queues.add(self._target.name)
        self._publish()

    def _publish(self) -> None:
        # Also when another slot has just made the queue.
        wait = self._settler.safe_from.get(self._target.name, 0.0) - time.monotonic()
        if wait > 0:
            self._settler.connection.call_later(wait, self._publish)
            return
        self._step(
            # The publisher asks from its own thread; to read the state is safe there.
            lambda: self._settler.republisher().submit(self._copy, lambda: self._delivery.lease.held),
            lambda _: self._settler.ack(self._delivery, self._outcome),
        )

    def _step(self, begin: Callable[[], Future[Any]], then: Callable[[Any], None]) -> None:
        def finished(done: Future[Any]) -> None:
            # We are in the publisher's thread, which must not wait for the consuming connection.
            error = done.exception()
            self._settler.connection.call(
                (lambda: then(done.result())) if error is None else lambda: self._failed(error)
            )

        if not self._delivery.lease.held:
            return
        try:
            begin().add_done_callback(finished)
        except BrokerError as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if not self._delivery.lease.held:
            return
        if isinstance(error, Unencodable) and self._room > LEAST_ROOM:
            # A message must not stay in hand for ever because of what its publisher wrote into its headers.
            self._room //= 2
            kept = fitted(self._copy.headers or {}, self._room)
            logger.warning(
                "The headers of a copy have no room in a frame; it goes without the largest.",
                extra={"queue": self._settler.queue, "to": self._target.name, "reason": str(error)},
            )
            self._copy = self._copy._replace(headers=kept)
            self._publish()
            return
        if not self._told:
            self._told = True
            logger.warning(
                "A copy could not be published; the message stays unacknowledged, trying again.",
                extra={"queue": self._settler.queue, "to": self._target.name, "reason": str(error)},
            )
        # Whatever it was, the queue may be gone: to declare it again is harmless and heals that.
        self._settler.known_queues.discard(self._target.name)
        self._settler.connection.call_later(self._backoff.next(), self._declare)


def make_copy(
    delivery: Delivery, verdict: RetryLater | GiveUp, queue: str, worker: str, now: float
) -> tuple[topology.Queue, Outgoing]:
    """The queue that the copy goes to, and the copy.

    A message without an id gets one here, so that all later attempts share it.

    Args:
        now: Unix seconds.
    """
    properties, kept = headers.preserve(Properties.of(delivery.properties), delivery.properties.headers or {})
    if not properties.message_id:
        properties = replace(properties, message_id=str(uuid.uuid4()))
    if isinstance(verdict, RetryLater):
        target = topology.delay_queue(queue, verdict.queue_seconds)
        properties = replace(properties, expiration=str(max(1, round(verdict.seconds * 1000))))
    else:
        target = topology.dead_letter_queue(queue)
    attempts = delivery.message.attempt
    if isinstance(verdict, GiveUp) and not verdict.handled:
        attempts -= 1
    if delivery.expires_at is not None:
        kept[headers.EXPIRES_AT] = round(delivery.expires_at * 1000)
    kept = fitted(kept | _failure_headers(verdict.failure, attempts, worker, now), ROOM)
    return target, Outgoing.with_properties(properties, target.name, delivery.body, kept)


def fitted(wanted: Mapping[str, Any], room: int) -> dict[str, Any]:
    """Headers without what has no room, and the names of what is missing.

    The traceback goes first, then the largest of the publisher's, our own last. What cannot be written as
    AMQP at all, such as an object that a handler has put there, goes in any case.
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
