"""Publish the recurring messages of each WorkQueue: record the slot, publish with confirm, record again.

RabbitMQ also keeps the ids of confirmed messages in a ledger for a while. It answers a new leader that finds only the
first record.

The leader alone does this. A pass asks `look` for the next slot and starts the work, which runs beside the passes, so
that it delays none. Only this module writes `status.recurring`, under a field manager of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

from workqueue.contract import topology
from workqueue.contract.topology import Queue
from workqueue_operator.api.reasons import UNANSWERED, Reason
from workqueue_operator.api.workqueue import Recurring, RecurringStatus, WorkQueue, timestamp
from workqueue_operator.broker.confirmed import NotPublishedError, OwnMessage, UnconfirmedError
from workqueue_operator.broker.connection import QueueMissingError
from workqueue_operator.errors import ClusterError, LeadershipLostError, ReconcileError
from workqueue_operator.kube.client import configmap_path, workqueue_path
from workqueue_operator.kube.store import Key
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import API_VERSION, KIND, RECURRING_FIELD_MANAGER
from workqueue_operator.ports import Clock, Kubernetes
from workqueue_operator.reconcile.reporter import Event, Reporter
from workqueue_operator.scaling import slots
from workqueue_operator.scaling.slots import Note, Publish, Wait

logger = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 5.0
"""Seconds until the next attempt after a message could not be published, or progress not be recorded."""

LEDGER_SECONDS: Final = topology.LEDGER_MILLISECONDS / 1000 / 2
"""Seconds between two declarations of a ledger, so that RabbitMQ does not remove it while it is used."""

LEDGER_AGAIN_SECONDS: Final = 60.0
"""The same after RabbitMQ has not answered."""

LEDGER_PATIENCE_SECONDS: Final = 30.0
"""Seconds for which a new leader waits for a ledger that does not answer, such as on a frozen node. It ends before
slots are missed."""

LONGEST_WAIT_SECONDS: Final = 3600.0
"""A pass looks again at least this often, so that a clock that was set is noticed."""


class _Ledger(NamedTuple):
    """The ledger of a WorkQueue.

    Attributes:
        name: of its queue; empty if it could not be declared.
        connection: over which it was declared: the broker and the number of its connections so far.
        until: when to declare it again, on the monotonic clock.
    """

    name: str
    connection: tuple[Publishing, int]
    until: float


class _Running(NamedTuple):
    """The work for a WorkQueue, and the broker that it publishes to."""

    task: asyncio.Task[None]
    broker: Publishing


class Publishing(Protocol):
    """The part of a broker that this module uses."""

    @property
    def generation(self) -> int:
        """The number of connections so far. After a reconnect, RabbitMQ may have lost its queues."""
        ...

    async def publish_in_turn(self, message: OwnMessage) -> None:
        """Publish and wait for the confirm. Raises NotPublishedError, UnconfirmedError or ReconcileError."""
        ...

    async def declare_queue(self, queue: Queue) -> object:
        """Declare a queue. Raises QueueMissingError or ReconcileError."""
        ...

    async def read_ledger(self, ledger: Queue) -> set[str]:
        """Return the ids of the messages that were confirmed lately.

        Raises ReconcileError; with the reason BrokerTimeout if only the ledger does not answer.
        """
        ...


class RecurringRunner:
    """Publishes recurring messages.

    Args:
        enqueue: asks for a pass over a WorkQueue.
    """

    def __init__(
        self,
        kubernetes: Kubernetes,
        reporter: Reporter,
        metrics: Metrics,
        clock: Clock,
        enqueue: Callable[[Key], object],
    ) -> None:
        self._kubernetes = kubernetes
        self._reporter = reporter
        self._metrics = metrics
        self._clock = clock
        self._enqueue = enqueue
        self._progress: dict[str, dict[str, RecurringStatus]] = {}
        self._unpublished: dict[str, set[tuple[str, datetime]]] = {}
        """By uid, the slots that are recorded as being published, and that certainly are not."""
        self._unrecorded: set[str] = set()
        self._ledgers: dict[str, _Ledger] = {}
        self._not_before: dict[str, float] = {}
        self._silent_since: dict[str, float] = {}
        self._running: dict[str, _Running] = {}

    def look(self, workqueue: WorkQueue, broker: Publishing) -> float | None:
        """Start the work that is due.

        Returns:
            The seconds until the next look; None if the end of the work, or a change, asks for it.
        """
        uid, entries = workqueue.metadata.uid, workqueue.spec.recurring
        running = self._running.get(uid)
        if running is not None:
            if running.broker is not broker:
                # The WorkQueue has left it, and its confirm may never come.
                running.task.cancel()
            return None
        if not entries and not workqueue.status.recurring:
            return None
        pause = self._not_before.get(uid, 0.0) - self._clock.monotonic()
        if pause > 0:
            return pause
        known, now = self._progress.get(uid), self._clock.now()
        is_recorded = known is not None and uid not in self._unrecorded
        if is_recorded and known is not None and known.keys() == {entry.name for entry in entries}:
            waits = [self._wait(workqueue, entry, known[entry.name], now) for entry in entries]
            if None not in waits:
                return min((wait for wait in waits if wait is not None), default=None)
        task = asyncio.create_task(self._work(workqueue, broker), name=f"recurring {workqueue.key}")
        self._running[uid] = _Running(task, broker)
        task.add_done_callback(lambda ended: self._ended(workqueue, ended))
        return None

    def forget(self, uid: str) -> None:
        """Forget a WorkQueue that is suspended or deleted, or that another operator serves, and stop its work."""
        for known in (self._progress, self._unpublished, self._ledgers, self._not_before, self._silent_since):
            known.pop(uid, None)
        self._unrecorded.discard(uid)
        running = self._running.pop(uid, None)
        if running is not None:
            running.task.cancel()

    async def stop(self, patience: float) -> None:
        """Wait until what is being published is recorded, and stop. The next leader names the rest.

        Args:
            patience: seconds to wait.
        """
        tasks = [running.task for running in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _ended(self, workqueue: WorkQueue, task: asyncio.Task[None]) -> None:
        running = self._running.get(workqueue.metadata.uid)
        if running is not None and running.task is task:
            del self._running[workqueue.metadata.uid]
            self._enqueue(workqueue.key)

    def _wait(
        self, workqueue: WorkQueue, entry: Recurring, progress: RecurringStatus, now: datetime
    ) -> float | None:
        """Return the seconds until the next slot of an entry; None if there is something to do now."""
        try:
            found = slots.action(entry, progress, now)
        except ReconcileError as problem:
            self._tell(workqueue, problem.reason, problem.message)
            return LONGEST_WAIT_SECONDS
        if not isinstance(found, Wait):
            return None
        if found.until is None:
            return LONGEST_WAIT_SECONDS
        return min(max((found.until - now).total_seconds(), 0.0), LONGEST_WAIT_SECONDS)

    async def _work(self, workqueue: WorkQueue, broker: Publishing) -> None:
        uid = workqueue.metadata.uid
        try:
            progress = self._progress.get(uid)
            if progress is None:
                progress = await self._read(workqueue)
                await self._clear_doubts(workqueue, broker, progress)
            due = self._decide(workqueue, progress)
            if due:
                await self._declare_ledger(workqueue, broker)
            await self._write(workqueue, progress)
            self._progress[uid] = progress
            if not due:
                return
            results = await asyncio.gather(
                *(self._publish(workqueue, broker, entry, found) for entry, found in due)
            )
            for (entry, found), is_published in zip(due, results, strict=True):
                if is_published:
                    progress[entry.name] = slots.published(progress[entry.name], found.slot)
            if not all(results):
                self._pause(uid)
            await self._write(workqueue, progress)
        except (LeadershipLostError, ReconcileError):
            self._pause(uid)
        except ClusterError as error:
            self._pause(uid)
            logger.warning(
                "The progress of recurring messages could not be recorded.",
                extra={
                    "namespace": workqueue.key[0],
                    "workqueue": workqueue.key[1],
                    "status": error.status,
                    "detail": error.message,
                },
            )
        except Exception:
            self._pause(uid)
            logger.exception(
                "Recurring messages failed.",
                extra={"namespace": workqueue.key[0], "workqueue": workqueue.key[1]},
            )

    def _pause(self, uid: str) -> None:
        self._not_before[uid] = self._clock.monotonic() + AGAIN_SECONDS

    def _decide(
        self, workqueue: WorkQueue, progress: dict[str, RecurringStatus]
    ) -> list[tuple[Recurring, Publish]]:
        """Update the progress, and return the slots to publish now: at most one of each entry."""
        now = self._clock.now()
        due: list[tuple[Recurring, Publish]] = []
        entries = {entry.name: entry for entry in workqueue.spec.recurring}
        for name in progress.keys() - entries.keys():
            del progress[name]
        for name, entry in entries.items():
            try:
                found = slots.action(entry, progress.get(name), now)
            except ReconcileError as problem:
                self._tell(workqueue, problem.reason, problem.message)
                progress.setdefault(name, RecurringStatus(name=name, schedule="", slot=now))
                continue
            if isinstance(found, Publish):
                is_uncertain = found.uncertain and (name, found.slot) not in self._unpublished_of(workqueue)
                due.append((entry, replace(found, uncertain=is_uncertain)))
                progress[name] = progress[name].model_copy(update={"publishing": found.slot})
                if not is_uncertain:
                    self._unpublished_of(workqueue).add((name, found.slot))
            elif isinstance(found, Note):
                progress[name] = found.progress
            if isinstance(found, Publish | Note) and found.missed is not None:
                first, last = found.missed
                self._tell(
                    workqueue,
                    Reason.RECURRING_MISSED,
                    f"The recurring message {name!r} missed its slots from {timestamp(first)} to {timestamp(last)}. "
                    f"missed is {entry.missed}.",
                )
        return due

    def _unpublished_of(self, workqueue: WorkQueue) -> set[tuple[str, datetime]]:
        return self._unpublished.setdefault(workqueue.metadata.uid, set())

    async def _publish(
        self, workqueue: WorkQueue, broker: Publishing, entry: Recurring, found: Publish
    ) -> bool:
        """Publish the message of a slot. Returns whether RabbitMQ has confirmed it."""
        unpublished, slot = self._unpublished_of(workqueue), found.slot
        if found.uncertain:
            await self._tell_uncertain(workqueue, self._id(workqueue, entry, slot))
        try:
            message = OwnMessage(
                workqueue.queue_name,
                self._id(workqueue, entry, slot),
                await self._body(workqueue, entry),
                entry.content_type,
                entry.headers,
                self._ledgers[workqueue.metadata.uid].name,
            )
            unpublished.discard((entry.name, slot))
            await broker.publish_in_turn(message)
        except UnconfirmedError as error:
            logger.info("A recurring message was not confirmed.", extra={"detail": str(error)})
            return False
        except (NotPublishedError, ReconcileError) as error:
            unpublished.add((entry.name, slot))
            self._tell(
                workqueue,
                Reason.RECURRING_FAILED,
                f"The recurring message {entry.name!r} of {timestamp(slot)} could not be published: {error}. The "
                "operator tries again.",
            )
            return False
        self._metrics.recurring.labels("Published").inc()
        return True

    async def _body(self, workqueue: WorkQueue, entry: Recurring) -> bytes:
        """Return the body.

        Raises:
            NotPublishedError: its ConfigMap cannot be read.
        """
        if entry.body_from is None:
            return (entry.body or "").encode()
        source = entry.body_from.config_map_key_ref
        try:
            found = await self._kubernetes.get(configmap_path(workqueue.metadata.namespace, source.name))
        except ClusterError as error:
            raise NotPublishedError(
                f"the ConfigMap {source.name!r} cannot be read ({error.message})"
            ) from error
        text = (found.get("data") or {}).get(source.key)
        if text is None:
            raise NotPublishedError(f"the ConfigMap {source.name!r} has no key {source.key!r}")
        return str(text).encode()

    @staticmethod
    def _id(workqueue: WorkQueue, entry: Recurring, slot: datetime) -> str:
        return slots.message_id(workqueue.metadata.name, entry.name, slot)

    # -- the ledger ----------------------------------------------------------------------------------

    async def _declare_ledger(self, workqueue: WorkQueue, broker: Publishing) -> None:
        """Declare the ledger. Without it, what a killed leader was publishing is published again."""
        uid, now = workqueue.metadata.uid, self._clock.monotonic()
        connection = (broker, broker.generation)
        known = self._ledgers.get(uid)
        if known is not None and known.connection == connection and now < known.until:
            return
        ledger = topology.ledger(workqueue.queue_name)
        name, seconds = ledger.name, LEDGER_SECONDS
        try:
            await broker.declare_queue(ledger)
        except (QueueMissingError, ReconcileError) as problem:
            name = ""
            if isinstance(problem, QueueMissingError) or problem.reason in UNANSWERED:
                seconds = LEDGER_AGAIN_SECONDS
            logger.info("There is no ledger of recurring messages.", extra={"detail": str(problem)})
        self._ledgers[uid] = _Ledger(name, connection, now + seconds)

    async def _clear_doubts(
        self, workqueue: WorkQueue, broker: Publishing, progress: dict[str, RecurringStatus]
    ) -> None:
        """Update the progress: the ledger knows slots that another leader has published and not recorded.

        Raises:
            ReconcileError: the ledger is unknown.
        """
        doubtful = [(one, one.publishing) for one in progress.values() if one.publishing is not None]
        if not doubtful:
            return
        ids = await self._read_ledger(workqueue, broker)
        for one, slot in doubtful:
            if slots.message_id(workqueue.metadata.name, one.name, slot) in ids:
                progress[one.name] = slots.published(one, slot)

    async def _read_ledger(self, workqueue: WorkQueue, broker: Publishing) -> set[str]:
        """Read the ledger. After some time, one that does not answer counts as empty.

        Raises:
            ReconcileError: the ledger is unknown.
        """
        uid, ledger = workqueue.metadata.uid, topology.ledger(workqueue.queue_name)
        now = self._clock.monotonic()
        try:
            ids = await broker.read_ledger(ledger)
        except ReconcileError as problem:
            if problem.reason is not Reason.BROKER_TIMEOUT:
                self._silent_since.pop(uid, None)
                raise
            if now - self._silent_since.setdefault(uid, now) < LEDGER_PATIENCE_SECONDS:
                raise
            logger.warning(
                "The ledger of recurring messages does not answer.",
                extra={"queue": ledger.name, "detail": problem.message},
            )
            ids = set()
        self._silent_since.pop(uid, None)
        return ids

    # -- the record ----------------------------------------------------------------------------------

    async def _read(self, workqueue: WorkQueue) -> dict[str, RecurringStatus]:
        """Read the progress from the API server: the store may not have the last write of another leader yet."""
        live = WorkQueue.model_validate(await self._kubernetes.get(workqueue_path(*workqueue.key)))
        same = live.metadata.uid == workqueue.metadata.uid
        return {one.name: one for one in live.status.recurring or ()} if same else {}

    async def _write(self, workqueue: WorkQueue, progress: Mapping[str, RecurringStatus]) -> None:
        namespace, name = workqueue.key
        self._unrecorded.add(workqueue.metadata.uid)
        await self._kubernetes.apply(
            f"{workqueue_path(namespace, name)}/status",
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                # With the uid, the API server refuses the write if another object of this name has replaced it.
                "metadata": {"name": name, "namespace": namespace, "uid": workqueue.metadata.uid},
                "status": {"recurring": [_wire(one) for one in progress.values()]},
            },
            manager=RECURRING_FIELD_MANAGER,
        )
        self._unrecorded.discard(workqueue.metadata.uid)

    async def _tell_uncertain(self, workqueue: WorkQueue, message_id: str) -> None:
        """Send the Event before the message: once the message is recorded, no other leader knows of it."""
        reason = Reason.RECURRING_UNCERTAIN
        self._metrics.recurring.labels(reason.value).inc()
        text = f"The message {message_id} is published again, because it may or may not have been published."
        await self._reporter.event_now(workqueue, Event(reason, text, "Publish", warning=True))

    def _tell(self, workqueue: WorkQueue, reason: Reason, message: str) -> None:
        self._metrics.recurring.labels(reason.value).inc()
        self._reporter.event(workqueue, Event(reason, message, "Publish", warning=True))


def _wire(progress: RecurringStatus) -> dict[str, str]:
    times = {"slot": progress.slot, "publishing": progress.publishing, "published": progress.published}
    return {
        "name": progress.name,
        "schedule": progress.schedule,
        **{field: timestamp(at.astimezone(UTC)) for field, at in times.items() if at is not None},
    }
