"""The operator's Prometheus metrics: about itself and about the WorkQueues."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from workqueue_operator.api.reasons import Reason

Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily

_LABELS: Final = ("namespace", "workqueue")
_COUNTERS: Final = frozenset({"arrived", "late"})
_STATES: Final = ("desired", "current", "ready", "busy", "maximum", "pinned")

WAKE_BUCKETS: Final = (0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Fine around the objectives for the wake: 15 ms at the median, 50 ms at the 99th percentile."""


@dataclass(slots=True)
class Shown:
    """The values of one WorkQueue. None until a value is known; a value that becomes unknown keeps its last number.

    Attributes:
        messages_ready: messages waiting in the queue.
        in_handlers: messages known to be in a handler.
        most_in_handlers: `in_handlers` plus the slots of workers that did not answer.
        messages_retrying: messages waiting for their next attempt.
        dead_letters: messages in the dead-letter queue.
        consumers: consumers of the queue, without the doorbell.
        desired: desired replicas. The next four attributes also count replicas.
        pinned: spec.replicas; None without a pin.
        arrived: messages that arrived at a queue with maxWaitSeconds; None without it.
        late: how many of them waited for longer.
        conditions: (type, status, reason) of each condition.
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
    arrived: int | None = None
    late: int | None = None
    conditions: Sequence[tuple[str, str, str]] = ()

    def forget_queue(self) -> None:
        """Show no number that RabbitMQ or the workers have to tell. No one asks them."""
        self.messages_ready = self.in_handlers = self.most_in_handlers = self.messages_retrying = None
        self.dead_letters = self.consumers = self.busy = None


class WorkQueues(Collector):
    """The series of all WorkQueues, created at each scrape: those of 1,000 WorkQueues would occupy 10 MiB.

    A scrape runs in a thread, while the event loop continues to change the values.
    """

    def __init__(self) -> None:
        self._shown: defaultdict[tuple[str, str], Shown] = defaultdict(Shown)

    def of(self, namespace: str, workqueue: str) -> Shown:
        """Return the values of a WorkQueue. The caller changes them in place."""
        return self._shown[namespace, workqueue]

    def forget(self, namespace: str, workqueue: str) -> None:
        """Remove the series of a deleted WorkQueue."""
        self._shown.pop((namespace, workqueue), None)

    def describe(self) -> Iterator[Family]:
        """Return the metric families without series."""
        return WorkQueues().collect()

    def collect(self) -> Iterator[Family]:
        """Return the metric families with all series."""
        all_shown = list(self._shown.items())
        for field, name, help_text in (
            ("messages_ready", "workqueue_messages_ready", "Messages waiting in the queue."),
            ("in_handlers", "workqueue_messages_in_handlers", "Messages known to be in a handler."),
            (
                "most_in_handlers",
                "workqueue_messages_in_handlers_max",
                "Messages that may be in a handler: known ones plus the slots of workers that did not answer.",
            ),
            ("messages_retrying", "workqueue_messages_retrying", "Messages waiting for their next attempt."),
            ("dead_letters", "workqueue_dead_letters", "Messages in the dead-letter queue."),
            ("consumers", "workqueue_consumers", "Consumers of the queue, without the operator's doorbell."),
            (
                "arrived",
                "workqueue_messages_arrived",
                "Messages that arrived at a queue with maxWaitSeconds.",
            ),
            ("late", "workqueue_messages_late", "How many of them waited for longer than maxWaitSeconds."),
        ):
            kind = CounterMetricFamily if field in _COUNTERS else GaugeMetricFamily
            family = kind(name, help_text, labels=_LABELS)
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
            f"Worker replicas by state: {', '.join(_STATES)}.",
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
            "1 for the current status and reason of each condition.",
            labels=(*_LABELS, "condition", "status", "reason"),
        )
        for key, shown in all_shown:
            for one in shown.conditions:
                family.add_metric((*key, *one), 1)
        return family


class Metrics:
    """All metrics of one operator process, in their own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # Memory, CPU time and start of the process, under the usual names.
        ProcessCollector(registry=registry)
        self.workqueues = WorkQueues()
        registry.register(self.workqueues)
        self.depth_age_seconds = Gauge(
            "workqueue_depth_age_seconds",
            "Age of the oldest depth reading of a queue with workers, in seconds.",
            ("broker", "user"),
            registry=registry,
        )
        self.reconcile_seconds = Histogram(
            "workqueue_reconcile_seconds", "Duration of one pass, in seconds.", registry=registry
        )
        self.reconcile_errors = Counter(
            "workqueue_reconcile_errors",
            "Passes and writes of a status that failed, by reason.",
            ("reason",),
            registry=registry,
        )
        for reason in (Reason.API_UNAVAILABLE, Reason.INTERNAL_ERROR):
            # Created at start, so that the first failure is an increase and not a new series.
            self.reconcile_errors.labels(reason.value)
        self.scale = Counter(
            "workqueue_scale", "Writes of the replica count.", ("direction", "reason"), registry=registry
        )
        self.retire = Counter(
            "workqueue_retire", "Answers of workers to retirement requests.", ("answer",), registry=registry
        )
        self.recurring = Counter(
            "workqueue_recurring", "Recurring messages, by outcome.", ("outcome",), registry=registry
        )
        self.wake_seconds = Histogram(
            "workqueue_wake_seconds",
            "Time from a ring of the doorbell to the write of the replica count, in seconds.",
            buckets=WAKE_BUCKETS,
            registry=registry,
        )
        self.broker_up = Gauge(
            "workqueue_broker_up",
            "Whether the connection to a broker is open.",
            ("broker", "user"),
            registry=registry,
        )
        self.doorbells = Gauge(
            "workqueue_doorbells", "Installed doorbells.", ("broker", "user"), registry=registry
        )
        self.leader = Gauge("workqueue_leader", "Whether this process is the leader.", registry=registry)
        self.namespaces_left_out = Gauge(
            "workqueue_namespaces_left_out",
            "Configured namespaces that are missing or that the operator may not read.",
            registry=registry,
        )
        self.served_elsewhere = Gauge(
            "workqueue_namespaces_served_elsewhere",
            "Namespaces whose WorkQueues another release of the operator serves.",
            ("namespace", "operator"),
            registry=registry,
        )
        self.api_requests = Counter(
            "workqueue_api_requests", "Requests to the API server, without watches.", registry=registry
        )
