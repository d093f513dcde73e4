"""Dead letters by reason, from a sample of the dead-letter queue that is requeued immediately; replay and purge.

This module opens a short connection in a thread, as `workqueue dead` does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from workqueue.amqp.dead_letter_queue import DeadLetterQueue, Replay, purge
from workqueue.amqp.session import Session
from workqueue.contract import dead_letters
from workqueue.contract.binding import Binding
from workqueue.contract.dead_letters import Filter
from workqueue.contract.errors import WorkerError
from workqueue.contract.topology import dead_letter_queue_name
from workqueue.logs import escaped
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.addresses import permitted
from workqueue_operator.destinations import ANYWHERE, Destinations
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.secrets import Secrets
from workqueue_web.lookups import Lookups

SAMPLE: Final = 100
REASON_LENGTH: Final = 60
AGAIN_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 5.0
SAMPLE_SECONDS: Final = 5.0
"""Time limit of a sample: RabbitMQ sends whole bodies of up to 512 MiB each."""

ACTION_SECONDS: Final = 20.0
"""Time limit of a replay or a purge, because a browser waits for it."""

CONFIRM_SECONDS: Final = 8.0
"""The part of it for the confirms of the last messages, such as while a memory alarm blocks publishing."""

REPLAY_BYTES: Final = 16 * 1024 * 1024
"""Bodies that a replay may have in memory, besides the one that it reads."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reasons:
    """The reasons of the oldest dead letters of a queue.

    Attributes:
        counts: (reason, number), the most frequent first.
        sampled: number of dead letters in the sample.
        total: number of dead letters in the queue.
        problem: why there is no sample. The other values are then meaningless.
        read_at: when it was taken, in Unix seconds.
    """

    counts: tuple[tuple[str, int], ...] = ()
    sampled: int = 0
    total: int = 0
    problem: str = ""
    read_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a replay or a purge.

    Attributes:
        settled: number of dead letters that were replayed or deleted.
        errors: why others were not.
    """

    settled: int
    errors: tuple[str, ...] = ()


class NotReadableError(Exception):
    """The page does not read the dead-letter queue of this WorkQueue. The message says why."""


class ChangedError(Exception):
    """The queue does not have the number of dead letters that the user has seen. Nothing was changed."""


class DeadLetters:
    """Samples dead-letter queues, and replays or purges dead letters.

    Args:
        allowed: names of the connection Secrets that this process may read.
    """

    def __init__(
        self, secrets: Secrets, allowed: Collection[str], destinations: Destinations = ANYWHERE
    ) -> None:
        self._secrets = secrets
        self._allowed = allowed
        self._destinations = destinations
        self._lookups: Lookups[Reasons] = Lookups(AGAIN_SECONDS)

    async def reasons(self, workqueue: WorkQueue) -> Reasons:
        """Return the reasons of a WorkQueue's dead letters.

        A sample counts as a delivery. Dead-letter queues of the operator have no delivery limit. Other dead-letter
        queues may have one, so they are not sampled.
        """
        try:
            self._require_readable(workqueue)
        except NotReadableError as error:
            return Reasons(problem=str(error))
        found = await self._lookups.get(workqueue.key, lambda: self._sample(workqueue))
        return found or Reasons(problem="Reading the dead letters.")

    async def count(self, workqueue: WorkQueue) -> int:
        """Return the number of dead letters.

        Raises:
            NotReadableError: the page does not read this queue.
            ClusterError, ReconcileError, WorkerError: the Secret or RabbitMQ cannot be reached.
        """
        self._require_readable(workqueue)
        place = DeadLetterQueue(workqueue.queue_name)
        async with self._lookups.alone(workqueue.key):
            binding = await self._binding(workqueue)
            return await asyncio.to_thread(_with_session, binding, place, place.depth)

    async def replay(self, workqueue: WorkQueue, expected: int) -> Outcome:
        """Move dead letters back to the work queue, if there are as many as the user has seen.

        Raises:
            ChangedError: there are more or fewer. Nothing was changed.
            NotReadableError, ClusterError, ReconcileError, WorkerError: as `count`. Nothing was changed.
        """
        return await self._settle(workqueue, expected, _replay)

    async def purge(self, workqueue: WorkQueue, expected: int) -> Outcome:
        """Delete dead letters, if there are as many as the user has seen. Raises as `replay`."""
        return await self._settle(workqueue, expected, _purge)

    async def _settle(
        self,
        workqueue: WorkQueue,
        expected: int,
        settle: Callable[[Session, Binding, DeadLetterQueue, int], Outcome],
    ) -> Outcome:
        self._require_readable(workqueue)
        place = DeadLetterQueue(workqueue.queue_name)
        # A sample holds messages back for a moment, so the number would not match.
        async with self._lookups.alone(workqueue.key):
            binding = await self._binding(workqueue)

            def run(session: Session) -> Outcome:
                total = place.depth(session)
                if total != expected:
                    raise ChangedError(
                        f"Nothing was changed: there were {expected} dead letters when the form was shown, and now"
                        f" there are {total}. Look at them again."
                    )
                return settle(session, binding, place, total)

            return await asyncio.to_thread(_with_session, binding, place, run, ACTION_SECONDS)

    def _require_readable(self, workqueue: WorkQueue) -> None:
        secret = workqueue.spec.connection_secret_ref.name
        if not workqueue.spec.queue.declare:
            raise NotReadableError(
                "The operator does not declare this queue, so the page does not read its dead letters."
            )
        if workqueue.spec.queue.dead_letter_queue is not None:
            raise NotReadableError(
                "The operator does not declare this dead-letter queue, so the page does not read it."
            )
        if secret not in self._allowed:
            raise NotReadableError(
                f'The page may not read the Secret "{secret}". To see the reasons, add it to'
                " page.connectionSecrets in the chart."
            )

    async def _binding(self, workqueue: WorkQueue) -> Binding:
        binding = await self._secrets.binding(
            workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
        )
        return await permitted(binding, self._destinations)

    async def stop(self) -> None:
        """Stop reading."""
        await self._lookups.stop()

    async def _sample(self, workqueue: WorkQueue) -> Reasons:
        try:
            binding = await self._binding(workqueue)
            return await asyncio.to_thread(sample, binding, workqueue.queue_name)
        except (ClusterError, ReconcileError, WorkerError) as error:
            return Reasons(problem=str(error))


def sample(binding: Binding, queue: str, most: int = SAMPLE) -> Reasons:
    """Read the headers of the oldest dead letters of a queue. Blocks. Discards bodies as they arrive.

    Raises:
        BrokerError: RabbitMQ is unreachable, or refuses.
    """
    name = dead_letter_queue_name(queue)
    counts: Counter[str] = Counter()
    with Session(
        lambda: binding, f"{queue} page", timeout_seconds=ANSWER_SECONDS, keeps_bodies=False
    ) as session:
        depth = session.depth(name)
        total = depth.ready if depth is not None else 0
        deadline = time.monotonic() + SAMPLE_SECONDS
        for _ in range(min(total, most)):
            received = session.get(name) if time.monotonic() < deadline else None
            if received is None:
                break
            # A publisher may write any text, of any length.
            reason = dead_letters.read(received, queue).reason
            counts[escaped(reason[:REASON_LENGTH])[:REASON_LENGTH]] += 1
        session.give_back_all()
    return Reasons(tuple(counts.most_common()), counts.total(), total, read_at=time.time())


def _with_session(
    binding: Binding,
    place: DeadLetterQueue,
    run: Callable[[Session], T],
    timeout_seconds: float = ANSWER_SECONDS,
) -> T:
    with Session(lambda: binding, f"{place.queue} page", timeout_seconds=timeout_seconds) as session:
        return run(session)


def _replay(session: Session, binding: Binding, place: DeadLetterQueue, total: int) -> Outcome:
    replay = Replay(
        place, lambda: binding, Filter(), window_bytes=REPLAY_BYTES, confirm_seconds=CONFIRM_SECONDS
    )
    replay.run(session, total, deadline=time.monotonic() + ACTION_SECONDS - CONFIRM_SECONDS)
    return Outcome(replay.moved, tuple(replay.errors) or _unfinished(replay.moved, total))


def _purge(session: Session, _: Binding, place: DeadLetterQueue, total: int) -> Outcome:
    deleted = purge(session, place, Filter(), total, deadline=time.monotonic() + ACTION_SECONDS).dropped
    return Outcome(deleted, _unfinished(deleted, total))


def _unfinished(settled: int, total: int) -> tuple[str, ...]:
    if settled >= total:
        return ()
    return (f"The page stops after {ACTION_SECONDS:g} s, or another program took the rest. Repeat it.",)
