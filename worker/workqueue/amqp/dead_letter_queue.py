"""Take dead letters from their queue: to look at them, to replay them, or to delete them.

A replay publishes the message to the work queue, waits for the confirm, and only then acknowledges the dead
letter. If the process is killed at any moment, each message is in at least one of the two queues. RabbitMQ requeues
all others when the session ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from workqueue.amqp.errors import BrokerError, NotSent, PublishError
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import DEFAULT_TIMEOUT_SECONDS, DEFAULT_WINDOW_BYTES, PublishPipeline
from workqueue.amqp.session import Received, Session, wait_until_open
from workqueue.contract import dead_letters
from workqueue.contract.binding import Binding
from workqueue.contract.dead_letters import DeadLetter, Filter
from workqueue.contract.topology import dead_letter_queue_name

_LOOK_SECONDS: Final = 0.1
_INTERRUPTED_SECONDS: Final = 10.0
"""How long an interrupted replay waits for the confirms of messages that it has sent."""

Update = Callable[[int], None]
"""Called with the number done so far."""


@dataclass(frozen=True, slots=True)
class DeadLetterQueue:
    """The dead-letter queue of a work queue.

    Attributes:
        queue: the work queue.
        named: the dead-letter queue, if it is not the work queue's own. Other work queues may share it.
    """

    queue: str
    named: str | None = None

    @property
    def name(self) -> str:
        """Its name in RabbitMQ."""
        return self.named or dead_letter_queue_name(self.queue)

    @property
    def owner(self) -> str:
        """The queue that the number of all dead letters is about."""
        return self.named or self.queue

    def depth(self, session: Session) -> int:
        """Return the number of all messages in it.

        Raises:
            BrokerError: it does not exist.
        """
        depth = session.depth(self.name)
        if depth is None:
            raise BrokerError(
                f"The queue {self.name} does not exist: is {self.queue} the name of the work queue?"
            )
        return depth.ready

    def take(
        self, session: Session, total: int, deadline: float | None = None
    ) -> Iterator[tuple[Received, DeadLetter]]:
        """Take messages one by one, at most `total`, and yield those of the work queue.

        Dead letters that arrive later stay for the next call. Messages of other work queues in a shared queue are
        requeued at the end of the session.

        Args:
            deadline: a monotonic time after which no message is taken.
        """
        for _ in range(total):
            if deadline is not None and time.monotonic() >= deadline:
                return
            received = session.get(self.name)
            if received is None:
                return
            if self.named is None or dead_letters.is_of(received, self.queue):
                yield received, dead_letters.read(received, self.queue)


class Replay:
    """Moves dead letters back to the work queue.

    Args:
        binding_source: returns the connection data, for the publisher's own connection.
        limit: the largest number to replay.
        keep_attempts: whether to continue the count of attempts.
        window_bytes: how many bytes of bodies may be in memory.
        confirm_seconds: how long RabbitMQ may take to confirm a message.

    Attributes:
        moved: number of messages that are back in the work queue.
        errors: why others are not. The replay stops at the first one.
        is_interrupted: whether Ctrl-C has stopped it.
    """

    def __init__(
        self,
        place: DeadLetterQueue,
        binding_source: Callable[[], Binding],
        wanted: Filter,
        *,
        limit: int | None = None,
        keep_attempts: bool = False,
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        confirm_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self.moved = 0
        self.errors: list[str] = []
        self.is_interrupted = False
        self._place = place
        self._binding_source = binding_source
        self._wanted = wanted
        self._limit = limit
        self._keep_attempts = keep_attempts
        self._window_bytes = window_bytes
        self._confirm_seconds = confirm_seconds

    def run(
        self, session: Session, total: int, update: Update = lambda _: None, deadline: float | None = None
    ) -> None:
        """Replay at most the first `total` dead letters of the queue.

        After a KeyboardInterrupt, it sends no more messages and settles those that it has sent. Otherwise each of
        them would be in both queues. A second KeyboardInterrupt is raised.

        Raises:
            BrokerError: the work queue does not exist, or RabbitMQ cannot be reached. Nothing was moved.
        """
        queue = self._place.queue
        if session.depth(queue) is None:
            raise BrokerError(
                f"The queue {queue} does not exist: apply its WorkQueue first. Nothing was moved."
            )
        with PublishPipeline(
            self._binding_source,
            "workqueue dead replay",
            window_bytes=self._window_bytes,
            timeout_seconds=self._confirm_seconds,
        ) as publisher:
            wait_until_open(publisher.connection, self._binding_source)
            try:
                self._move(publisher, session, total, update, deadline)
            except KeyboardInterrupt:
                self.is_interrupted = True
                publisher.close(_INTERRUPTED_SECONDS)
        try:
            session.give_back_all()  # RabbitMQ answers this after all acknowledgements
        except BrokerError as error:
            self.errors.append(f"{error} Replayed messages may still be dead letters too; compare their ids.")

    def _move(
        self,
        publisher: PublishPipeline,
        session: Session,
        total: int,
        update: Update,
        deadline: float | None,
    ) -> None:
        begun = 0
        for received, letter in self._place.take(session, total, deadline):
            if self.errors or begun == self._limit:
                break
            if self._wanted.takes(letter):
                begun += 1
                self._publish(publisher, session, received)
            update(self.moved)
        while not publisher.wait(_LOOK_SECONDS):
            update(self.moved)

    def _publish(self, publisher: PublishPipeline, session: Session, received: Received) -> None:
        properties, kept = dead_letters.replay_properties(
            received, keep_attempts=self._keep_attempts, now=time.time()
        )
        copy = Outgoing.with_properties(properties, self._place.queue, received.body, kept)
        try:
            publisher.publish_then(copy, partial(self._settled, session, received))
        except NotSent as error:
            self.errors.append(str(error))

    def _settled(self, session: Session, received: Received, error: PublishError | None) -> None:
        """Acknowledge a dead letter whose copy is confirmed. Runs in the publisher's thread."""
        if error is None:
            session.ack(received)
            self.moved += 1
        else:
            self.errors.append(str(error))


class Purged(NamedTuple):
    """How many dead letters were deleted, and whether Ctrl-C has stopped that."""

    dropped: int
    is_interrupted: bool


def purge(
    session: Session,
    place: DeadLetterQueue,
    wanted: Filter,
    total: int,
    update: Update = lambda _: None,
    deadline: float | None = None,
) -> Purged:
    """Delete at most the first `total` dead letters. A KeyboardInterrupt ends that.

    Not with queue.purge, which would also delete dead letters that have arrived since the count.

    Raises:
        BrokerError: RabbitMQ cannot be reached. Some may have been deleted.
    """
    dropped, is_interrupted = 0, False
    try:
        for received, letter in place.take(session, total, deadline):
            if wanted.takes(letter):
                session.ack(received)
                dropped += 1
            update(dropped)
    except KeyboardInterrupt:
        is_interrupted = True
    session.give_back_all()  # RabbitMQ answers this after all acknowledgements
    return Purged(dropped, is_interrupted)
