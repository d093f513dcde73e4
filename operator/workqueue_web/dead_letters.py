"""Dead letters by reason, from a sample of the dead-letter queue that is requeued immediately.

This module opens a short connection in a thread, as `workqueue dead list` does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from workqueue.amqp.session import Session
from workqueue.contract import dead_letters
from workqueue.contract.binding import Binding
from workqueue.contract.errors import WorkerError
from workqueue.contract.topology import dead_letter_queue_name
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.addresses import permitted
from workqueue_operator.destinations import ANYWHERE, Destinations
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.secrets import Secrets
from workqueue_web.lookups import Lookups

SAMPLE: Final = 100
AGAIN_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 5.0
SAMPLE_SECONDS: Final = 5.0
"""Time limit of a sample: RabbitMQ sends whole bodies of up to 512 MiB each."""


@dataclass(frozen=True, slots=True)
class Reasons:
    """The reasons of the oldest dead letters of a queue.

    Attributes:
        counts: (reason, number), the most frequent first.
        sampled: number of dead letters in the sample.
        total: number of dead letters in the queue.
        problem: why there is no sample. The other values are then meaningless.
    """

    counts: tuple[tuple[str, int], ...] = ()
    sampled: int = 0
    total: int = 0
    problem: str = ""


class DeadLetters:
    """Samples dead-letter queues.

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
        secret = workqueue.spec.connection_secret_ref.name
        if not workqueue.spec.queue.declare:
            return Reasons(
                problem="The operator does not declare this queue, so the page does not read its dead letters."
            )
        if workqueue.spec.queue.dead_letter_queue is not None:
            return Reasons(
                problem="The operator does not declare this dead-letter queue, so the page does not read it."
            )
        if secret not in self._allowed:
            return Reasons(
                problem=f'The page may not read the Secret "{secret}". To see the reasons, add it to'
                " page.connectionSecrets in the chart."
            )
        found = await self._lookups.get(workqueue.key, lambda: self._sample(workqueue))
        return found or Reasons(problem="Reading the dead letters.")

    async def stop(self) -> None:
        """Stop reading."""
        await self._lookups.stop()

    async def _sample(self, workqueue: WorkQueue) -> Reasons:
        try:
            binding = await self._secrets.binding(
                workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
            )
            binding = await permitted(binding, self._destinations)
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
            counts[dead_letters.read(received, queue).reason] += 1
        session.give_back_all()
    return Reasons(tuple(counts.most_common()), counts.total(), total)
