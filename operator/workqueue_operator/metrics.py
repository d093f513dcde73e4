"""What the operator measures of itself and of the queues, for Prometheus.

Place in the flow: set by `reconcile` and its helpers, served by `endpoint`. Base units, and names as the
docs list them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from workqueue_operator.api.reasons import Reason

_LABELS: Final = ("namespace", "workqueue")
_STATES: Final = ("desired", "current", "ready", "busy", "maximum", "pinned")

WAKE_BUCKETS: Final = (0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Around the promise of 15 ms at the median and 50 ms at the 99th percentile."""


@dataclass(slots=True)
class Shown:
    """What is shown of one WorkQueue; None: nobody knew it yet. What is not known any more stays as it was.

    Attributes:
        messages_ready: messages that wait.
        in_handlers: messages that are known to be in a handler.
        most_in_handlers: the same with the slots of workers that did not answer.
        messages_retrying: messages that wait for a retry.
        dead_letters: messages in the dead-letter queue.
        consumers: of the queue, without the operator's own.
        desired: replicas that are asked for; the next four count replicas as well.
        pinned: spec.replicas; None without a pin.
        conditions: (type, status, reason) of each.
    """

    messages_ready: int | None = None
    in_handlers: int | None = None
    most_in_handlers: int | None = None
    messages_retrying: int | None = None
    dead_letters: int | None = None
    consumers: int | None = None
    desired: int | None = None
    current: int | None = None
    ready: int | None = None
    busy: int | None = None
    maximum: int | None = None
    pinned: int | None = None
    conditions: Sequence[tuple[str, str, str]] = ()


class WorkQueues(Collector):
    """The series of the WorkQueues, made when they are scraped: those of a thousand would be 10 MiB to hold.

    Scraped in a thread, while the loop goes on to change what is shown.
    """

    def __init__(self) -> None:
        self._shown: defaultdict[tuple[str, str], Shown] = defaultdict(Shown)

    def of(self, namespace: str, workqueue: str) -> Shown:
        """What is shown of this WorkQueue, to be changed in place."""
        return self._shown[namespace, workqueue]

    def forget(self, namespace: str, workqueue: str) -> None:
        """Show nothing of a WorkQueue that is gone."""
        self._shown.pop((namespace, workqueue), None)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The families without series."""
        return WorkQueues().collect()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All series, as the registry asks for them."""
        all_shown = list(self._shown.items())
        for field, name, help_text in (
            ("messages_ready", "workqueue_messages_ready", "Messages that wait."),
            ("in_handlers", "workqueue_messages_in_handlers", "Messages known to be in a handler."),
            (
                "most_in_handlers",
                "workqueue_messages_in_handlers_max",
                "Messages that may be in a handler, with the slots of workers that did not answer.",
            ),
            ("messages_retrying", "workqueue_messages_retrying", "Messages that wait for a retry."),
            ("dead_letters", "workqueue_dead_letters", "Messages in the dead-letter queue."),
            ("consumers", "workqueue_consumers", "Consumers without the operator's own."),
        ):
            family = GaugeMetricFamily(name, help_text, labels=_LABELS)
            for key, shown in all_shown:
                if (value := getattr(shown, field)) is not None:
                    family.add_metric(key, value)
            yield family
        yield self._replicas(all_shown)
        yield self._conditions(all_shown)

    @staticmethod
    def _replicas(all_shown: Sequence[tuple[tuple[str, str], Shown]]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "workqueue_replicas",
            f"Replicas of the workers: {', '.join(_STATES)}.",
            labels=(*_LABELS, "state"),
        )
        for key, shown in all_shown:
            for state in _STATES:
                if (value := getattr(shown, state)) is not None:
                    family.add_metric((*key, state), value)
        return family

    @staticmethod
    def _conditions(all_shown: Sequence[tuple[tuple[str, str], Shown]]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "workqueue_condition",
            "1 for the status and reason that a condition has.",
            labels=(*_LABELS, "condition", "status", "reason"),
        )
        for key, shown in all_shown:
            for one in shown.conditions:
                family.add_metric((*key, *one), 1)
        return family


class Metrics:
    """All metrics of one operator process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # Memory, processor time and start of the process, under the names that every exporter has.
        ProcessCollector(registry=registry)
        self.workqueues = WorkQueues()
        registry.register(self.workqueues)
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
        self.doorbells = Gauge("workqueue_bells", "Bells that hang.", ("broker", "user"), registry=registry)
        self.leader = Gauge("workqueue_leader", "Whether this process is the leader.", registry=registry)
        self.namespaces_left_out = Gauge(
            "workqueue_namespaces_left_out",
            "Listed namespaces that are missing or forbidden.",
            registry=registry,
        )
        self.served_elsewhere = Gauge(
            "workqueue_namespaces_served_elsewhere",
            "Namespaces whose WorkQueues another release of the operator serves.",
            ("namespace", "operator"),
            registry=registry,
        )
        self.api_requests = Gauge(
            "workqueue_api_requests",
            "Requests to the API server beside watches, since start.",
            registry=registry,
        )
