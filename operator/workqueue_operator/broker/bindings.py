"""Records the bindings that the operator creates, so that it can remove obsolete ones.

AMQP cannot list bindings, and the record must survive a restart. So the operator writes them to an annotation of the
WorkQueue before it creates them: a list with an object for each broker, the present broker last.

    [{"broker": "amqp://rabbitmq:5672/", "bindings": {"images": ["small", "large"]}}]

Earlier releases recorded the bindings without a broker: `{"images": ["small", "large"]}`. They count as bindings on
the present broker, and the next declaration writes them with its name.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

from workqueue.contract import topology
from workqueue.contract.topology import QueueBinding
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.connection import Broker
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster, workqueue_path
from workqueue_operator.kube.refusal import as_refusal
from workqueue_operator.kube.store import Store
from workqueue_operator.names import ANNOTATION_BINDINGS

NONE: Final[AbstractSet[QueueBinding]] = frozenset()

BROKERS_KEPT: Final = 4
"""Brokers that are recorded, the latest ones. An annotation has a limited size."""

Record: TypeAlias = dict[str, AbstractSet[QueueBinding]]
"""Recorded bindings by broker (`Binding.display`), the latest broker last."""


def wanted(workqueue: WorkQueue) -> AbstractSet[QueueBinding]:
    """Return the bindings that the spec asks for."""
    return (
        frozenset(topology.plan(workqueue.queue_settings).bindings) if workqueue.spec.queue.declare else NONE
    )


def recorded(workqueue: WorkQueue, broker: str) -> Record:
    """Return the recorded bindings: the operator has created them, or was about to.

    Args:
        broker: the present broker.
    """
    try:
        found = json.loads(workqueue.metadata.annotations.get(ANNOTATION_BINDINGS, "[]"))
        entries: Any = [{"broker": broker, "bindings": found}] if isinstance(found, dict) else found
        return {
            str(entry["broker"]): frozenset(
                _read(exchange, workqueue.queue_name, one)
                for exchange, some in entry["bindings"].items()
                for one in some
            )
            for entry in entries
        }
    except (LookupError, ValueError, TypeError, AttributeError):
        # A user has edited the annotation. The operator then removes nothing.
        return {}


def _read(exchange: str, queue: str, entry: Any) -> QueueBinding:
    """A recorded binding: its routing key, or an object if it has arguments."""
    if isinstance(entry, str):
        return QueueBinding(exchange, queue, entry)
    return QueueBinding(exchange, queue, str(entry["routingKey"]), tuple(sorted(entry["arguments"].items())))


def _written(binding: QueueBinding) -> Any:
    if not binding.arguments:
        return binding.routing_key
    return {"routingKey": binding.routing_key, "arguments": dict(binding.arguments)}


def _order(binding: QueueBinding) -> tuple[str, str, str]:
    return binding.exchange, binding.routing_key, repr(binding.arguments)


def _with(record: Record, broker: str, bindings: AbstractSet[QueueBinding]) -> Record:
    """The record with other bindings on the present broker."""
    others = {name: some for name, some in record.items() if name != broker}
    latest = {**others, broker: bindings} if bindings else others
    return dict([*latest.items()][-BROKERS_KEPT:])


def _text(record: Record) -> str | None:
    """The annotation; None without a binding."""
    entries = []
    for broker, bindings in record.items():
        by_exchange: dict[str, list[Any]] = {}
        for binding in sorted(bindings, key=_order):
            by_exchange.setdefault(binding.exchange, []).append(_written(binding))
        entries.append({"broker": broker, "bindings": by_exchange})
    return json.dumps(entries) if entries else None


class Bindings:
    """Records bindings, and removes obsolete ones."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self._cluster = cluster
        self._store = store

    async def announce(self, workqueue: WorkQueue, broker: str) -> None:
        """Add the bindings that the operator is about to create to the record.

        Args:
            broker: where it creates them (`Binding.display`).

        Raises:
            ReconcileError: the API server denied the write.
        """
        before = workqueue.metadata.annotations.get(ANNOTATION_BINDINGS)
        await self._write(workqueue, before, _text(_announced(workqueue, broker)))

    async def remove_unwanted(self, workqueue: WorkQueue, broker: Broker) -> None:
        """Remove bindings recorded for this broker that the spec no longer asks for. Other bindings stay.

        Args:
            workqueue: as it was before `announce`.

        Raises:
            ReconcileError: the broker refused, or the API server denied the write.
        """
        where, now = broker.binding.display, wanted(workqueue)
        announced = _announced(workqueue, where)
        for binding in sorted(announced.get(where, NONE) - now, key=_order):
            await broker.unbind(binding)
        await self._write(workqueue, _text(announced), _text(_with(announced, where, now)))

    async def _write(self, workqueue: WorkQueue, before: str | None, after: str | None) -> None:
        if before == after:
            return
        body = {"metadata": {"uid": workqueue.metadata.uid, "annotations": {ANNOTATION_BINDINGS: after}}}
        try:
            written = await self._cluster.merge(workqueue_path(*workqueue.key), body)
        except ClusterError as error:
            raise as_refusal(error, f"annotation {ANNOTATION_BINDINGS!r} of the WorkQueue") from error
        self._store.put_workqueue(written)


def _announced(workqueue: WorkQueue, broker: str) -> Record:
    """The record while the operator creates what the spec asks for."""
    record = recorded(workqueue, broker)
    return _with(record, broker, record.get(broker, NONE) | wanted(workqueue))
