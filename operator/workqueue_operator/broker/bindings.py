"""Records the bindings that the operator creates, so that it can remove obsolete ones.

AMQP cannot list bindings, and the record must survive a restart. So the operator writes them to an annotation of the
WorkQueue before it creates them.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from typing import Any, Final

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


def wanted(workqueue: WorkQueue) -> AbstractSet[QueueBinding]:
    """Return the bindings that the spec asks for."""
    return (
        frozenset(topology.plan(workqueue.queue_settings).bindings) if workqueue.spec.queue.declare else NONE
    )


def noted(workqueue: WorkQueue) -> AbstractSet[QueueBinding]:
    """Return the recorded bindings: the operator has created them, or was about to."""
    try:
        found = json.loads(workqueue.metadata.annotations.get(ANNOTATION_BINDINGS, "{}"))
        return frozenset(
            _read(exchange, workqueue.queue_name, entry)
            for exchange, entries in found.items()
            for entry in entries
        )
    except (ValueError, TypeError, AttributeError):
        # A user has edited the annotation. The operator then removes nothing.
        return NONE


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


class Bindings:
    """Records bindings, and removes obsolete ones."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self._cluster = cluster
        self._store = store

    async def announce(self, workqueue: WorkQueue) -> None:
        """Add the bindings that the operator is about to create to the record.

        Raises:
            ReconcileError: the API server denied the write.
        """
        before = noted(workqueue)
        await self._note(workqueue, before, before | wanted(workqueue))

    async def remove_unwanted(self, workqueue: WorkQueue, broker: Broker) -> None:
        """Remove recorded bindings that the spec no longer asks for. Other bindings stay.

        Raises:
            ReconcileError: the broker refused, or the API server denied the write.
        """
        before, now = noted(workqueue), wanted(workqueue)
        for binding in sorted(before - now, key=_order):
            await broker.unbind(binding)
        await self._note(workqueue, before | now, now)

    async def _note(
        self, workqueue: WorkQueue, before: AbstractSet[QueueBinding], after: AbstractSet[QueueBinding]
    ) -> None:
        if before == after:
            return
        keys: dict[str, list[Any]] = {}
        for binding in sorted(after, key=_order):
            keys.setdefault(binding.exchange, []).append(_written(binding))
        text = json.dumps(keys) if keys else None
        body = {"metadata": {"uid": workqueue.metadata.uid, "annotations": {ANNOTATION_BINDINGS: text}}}
        try:
            written = await self._cluster.merge(workqueue_path(*workqueue.key), body)
        except ClusterError as error:
            raise as_refusal(error, f"annotation {ANNOTATION_BINDINGS!r} of the WorkQueue") from error
        self._store.put_workqueue(written)
