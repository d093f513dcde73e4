"""What the operator measures of itself and of the queues, for Prometheus.

Place in the flow: set by `reconcile` and its helpers, served by `endpoint`. Base units, and names as the
docs list them; series of a WorkQueue that is gone are removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from .reasons import Reason

_LABELS: Final = ("namespace", "workqueue")
_STATES: Final = ("desired", "current", "ready", "busy", "maximum")

WAKE_BUCKETS: Final = (0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Around the promise of 15 ms at the median and 50 ms at the 99th percentile."""


class Metrics:
    """All metrics of one operator process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # Memory, processor time and start of the process, under the names that every exporter has.
        ProcessCollector(registry=registry)
        self.messages_ready = Gauge(
            "workqueue_messages_ready", "Messages that wait.", _LABELS, registry=registry
        )
        self.dead_letters = Gauge(
            "workqueue_dead_letters", "Messages in the dead-letter queue.", _LABELS, registry=registry
        )
        self.consumers = Gauge(
            "workqueue_consumers", "Consumers without the operator's own.", _LABELS, registry=registry
        )
        self.replicas = Gauge(
            "workqueue_replicas",
            f"Replicas of the workers: {', '.join(_STATES)}.",
            (*_LABELS, "state"),
            registry=registry,
        )
        self.condition = Gauge(
            "workqueue_condition",
            "1 for the status and reason that a condition has.",
            (*_LABELS, "condition", "status", "reason"),
            registry=registry,
        )
        self._conditions: dict[tuple[str, str], set[tuple[str, str, str]]] = {}
        self.depth_age_seconds = Gauge(
            "workqueue_depth_age_seconds",
            "Age of the oldest depth of a queue with workers.",
            ("broker", "user"),
            registry=registry,
        )
        self.reconcile_seconds = Histogram(
            "workqueue_reconcile_seconds", "Duration of one pass.", registry=registry
        )
        self.reconcile_errors = Counter(
            "workqueue_reconcile_errors", "Passes that failed, by reason.", ("reason",), registry=registry
        )
        for reason in (Reason.API_UNAVAILABLE, Reason.INTERNAL_ERROR):
            # Shown from the start, so that the first failure is an increase and not a new series.
            self.reconcile_errors.labels(reason.value)
        self.scale = Counter(
            "workqueue_scale", "Writes of the replica count.", ("direction", "reason"), registry=registry
        )
        self.retire = Counter(
            "workqueue_retire", "Answers of workers that were asked to leave.", ("answer",), registry=registry
        )
        self.wake_seconds = Histogram(
            "workqueue_wake_seconds",
            "From a bell's ring to replicas written.",
            buckets=WAKE_BUCKETS,
            registry=registry,
        )
        self.broker_up = Gauge(
            "workqueue_broker_up",
            "Whether the connection to a broker is open.",
            ("broker", "user"),
            registry=registry,
        )
        self.bells = Gauge("workqueue_bells", "Bells that hang.", ("broker", "user"), registry=registry)
        self.leader = Gauge("workqueue_leader", "Whether this process is the leader.", registry=registry)
        self.namespaces_left_out = Gauge(
            "workqueue_namespaces_left_out",
            "Listed namespaces that are missing or forbidden.",
            registry=registry,
        )
        self.api_requests = Gauge(
            "workqueue_api_requests",
            "Requests to the API server beside watches, since start.",
            registry=registry,
        )

    def conditions(self, namespace: str, workqueue: str, conditions: Iterable[Mapping[str, Any]]) -> None:
        """Show the conditions of a WorkQueue, as its status has them, instead of those it had before."""
        shown = {(one["type"], one["status"], one["reason"]) for one in conditions}
        before = self._conditions.get((namespace, workqueue), set())
        for labels in before - shown:
            _remove(self.condition, namespace, workqueue, *labels)
        for labels in shown - before:
            self.condition.labels(namespace, workqueue, *labels).set(1)
        self._conditions[namespace, workqueue] = shown

    def forget(self, namespace: str, workqueue: str) -> None:
        """Remove the series of a WorkQueue that is gone."""
        for gauge in (self.messages_ready, self.dead_letters, self.consumers):
            _remove(gauge, namespace, workqueue)
        for state in _STATES:
            _remove(self.replicas, namespace, workqueue, state)
        self.conditions(namespace, workqueue, ())
        del self._conditions[namespace, workqueue]


def _remove(gauge: Gauge, *labels: str) -> None:
    try:
        gauge.remove(*labels)
    except KeyError:
        return
