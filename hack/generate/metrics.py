"""Generate docs/metrics.md from the objects that expose the metrics of operator, worker and web page.

Names, types and labels come from the code. The meaning of each metric is here, and the generation fails if one is
missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from prometheus_client.metrics import MetricWrapperBase

from workqueue.worker.handlers.outcome import Outcome
from workqueue.worker.histograms import Histogram
from workqueue.worker.metrics import Exposition
from workqueue.worker.runtime import Runtime
from workqueue_operator.metrics import Metrics
from workqueue_web.metrics import Metrics as PageMetrics

_MEANING: Final = {
    "workqueue_messages_ready": "Waiting messages. Messages being handled or waiting for a retry are not included.",
    "workqueue_messages_in_handlers": "Messages being handled, as far as workers answer. Scale-out uses this number.",
    "workqueue_messages_in_handlers_max": (
        "The same plus the slots of workers that do not answer. Scale-in uses this number. Both are equal while "
        "every worker answers."
    ),
    "workqueue_messages_retrying": "Messages in delay queues, waiting for their next attempt.",
    "workqueue_dead_letters": "Messages in the dead-letter queue.",
    "workqueue_consumers": "Consumers of the queue, without the operator's own.",
    "workqueue_messages_arrived_total": (
        "Messages that arrived at a queue with [`maxWaitSeconds`](waiting-time.md), by what the operator counts."
    ),
    "workqueue_messages_late_total": (
        "Those of them that waited for longer. Each counts when its time is over, whether it starts later or not."
    ),
    "workqueue_replicas": (
        "`state` is `desired` (the replica count), `current` (existing pods), `ready`, `busy`, `maximum` "
        "(`scaling.maxReplicas`, or less with `queue.singleActiveConsumer` or `limits`) or `pinned` "
        "(`spec.replicas`; absent without a pin)."
    ),
    "workqueue_condition": "1 for the current `status` and [reason](conditions.md) of each condition.",
    "workqueue_depth_age_seconds": "Age of the oldest depth of a queue with workers. Normal: up to a few seconds.",
    "workqueue_reconcile_seconds": "Duration of one pass over one WorkQueue.",
    "workqueue_reconcile_errors_total": "Failed passes and writes of a status, by [reason](conditions.md). "
    "The operator retries them.",
    "workqueue_scale_total": "Writes of a replica count. `direction` is `out` or `in`.",
    "workqueue_retire_total": "Answers of workers that were asked to retire.",
    "workqueue_recurring_total": (
        "[Recurring messages](recurring.md). `outcome` is `Published`, or the [reason](conditions.md) of an Event, "
        "such as `RecurringMissed`."
    ),
    "workqueue_wake_seconds": "From a ring of the doorbell to the write of the replica count.",
    "workqueue_broker_up": "1 while the operator's connection to this broker is open.",
    "workqueue_doorbells": "Idle queues with a doorbell.",
    "workqueue_leader": "1 in the leading process.",
    "workqueue_namespaces_left_out": "Listed namespaces that do not exist or that the operator may not read.",
    "workqueue_namespaces_served_elsewhere": (
        "1 for a namespace that another release serves. `operator` names that release."
    ),
    "workqueue_api_requests_total": "Requests to the API server, without watches.",
    "workqueue_page_viewers": "Browsers that this process of the page updates.",
    "workqueue_page_api_requests_total": "Requests of the page to the API server, without watches.",
    "workqueue_worker_messages_total": "Messages by outcome, see below.",
    "workqueue_worker_handler_seconds": "Running time of handlers.",
    "workqueue_worker_message_age_seconds": (
        "From the publisher's timestamp to the arrival at the worker, for messages with a timestamp."
    ),
    "workqueue_worker_slots": "Messages that this worker can handle at the same time.",
    "workqueue_worker_busy_slots": "Messages that this worker is handling.",
    "workqueue_worker_waiting_slots": "Busy slots whose message waits for a token of a [limit](limits.md).",
    "workqueue_worker_stuck_slots": "Busy slots whose handler still runs 1 minute after its timeout.",
    "workqueue_worker_connected": "1 while the worker's connection to RabbitMQ is open.",
    "workqueue_worker_tokens_lost_total": (
        "Tokens of the [limit](limits.md) that were lost while their handler ran, so that more handlers than the "
        "limit may have run."
    ),
    "workqueue_worker_reconnects_total": "How often that connection was opened again.",
}

_OUTCOMES: Final = {
    Outcome.ACKED: "done",
    Outcome.RETRIED: "a copy waits for its retry",
    Outcome.DEAD_LETTERED: "given up: attempts used up, rejected, or not decodable",
    Outcome.TIMED_OUT: "the handler ran too long; the message is retried or given up",
    Outcome.CANCELLED: "[cancelled by its id](cancelling.md): moved to the dead-letter queue, or discarded",
    Outcome.LOST: "the connection was lost during the handler; RabbitMQ redelivers the message",
    Outcome.REQUEUED: "returned to the queue by a worker that was stopped",
}

_HEAD: Final = """\
<!-- Generated from the metrics of operator, worker and web page by `python -m hack.generate`: do not edit. -->

# Metrics

All metrics of operator, worker and [web page](page.md). They use the Prometheus format and base units, and need no
authentication.
[Operations](operations.md#monitoring) describes how to scrape them, and the alerts and the dashboard of the chart.
"""

_OPERATOR: Final = """\
## Operator

`GET /metrics` on port 8080 of each operator pod. The Service of the chart selects all of them. The leading pod
exposes the series of queues. A count that is currently unknown keeps its last value, so that a pending alert survives
an outage. `workqueue_condition{condition="DepthKnown"}` shows whether the depth is known. A suspended WorkQueue
has no counts of messages, consumers and busy workers.

    kubectl -n workqueue-system port-forward deployment/workqueue-operator 8080
    curl -s localhost:8080/metrics | grep ^workqueue_
"""

_WORKER: Final = """\
## Worker

`GET /metrics` on the port `workqueue` (8090) of each worker pod. It also exposes a handler's metrics from
prometheus-client's default registry. `GET /status` returns some of the same values as JSON.

    kubectl port-forward POD 8090
    curl -s localhost:8090/metrics | grep ^workqueue_
    curl -s localhost:8090/status
"""

_PAGE: Final = """\
## Web page

`GET /metrics` on port 8080 of each pod of the page, and on the port `metrics` of its Service.
"""

_QUERIES: Final = """\
## Questions

    # How fast do workers handle the backlog? Messages per second, by outcome:
    sum by (queue, outcome) (rate(workqueue_worker_messages_total[5m]))

    # How long do 90 % of the messages wait at most, and how long do their handlers run?
    histogram_quantile(0.9, sum by (queue, le) (rate(workqueue_worker_message_age_seconds_bucket[5m])))
    histogram_quantile(0.9, sum by (queue, le) (rate(workqueue_worker_handler_seconds_bucket[5m])))

    # How busy are the workers?
    sum by (queue) (workqueue_worker_busy_slots) / sum by (queue) (workqueue_worker_slots)

    # How fast do idle queues wake?
    histogram_quantile(0.99, sum by (le) (rate(workqueue_wake_seconds_bucket[1h])))
"""


def page() -> str:
    """Return the page as Markdown.

    Raises:
        ValueError: a metric has no meaning here, or a metric here does not exist.
    """
    operator, worker, page = list(_operator()), list(_worker()), list(_wrapped(PageMetrics()))
    names = {name for name, _, _ in (*operator, *worker, *page)}
    if mismatches := names ^ set(_MEANING):
        raise ValueError(
            f"hack/generate/metrics.py and the code disagree on {', '.join(sorted(mismatches))}."
        )
    outcomes = ["| Outcome | Meaning |", "|---|---|", *(f"| `{o}` | {_OUTCOMES[o]} |" for o in Outcome)]
    return "\n".join(
        [
            *(_HEAD, _OPERATOR, *_table(operator), "", _WORKER, *_table(worker), "", *outcomes, ""),
            *(_PAGE, *_table(page), "", _QUERIES),
        ]
    )


def series() -> frozenset[str]:
    """Return the names of all series, as queries use them. A histogram has three."""
    names = set()
    for name, kind, _ in (*_operator(), *_worker(), *_wrapped(PageMetrics())):
        suffixes = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        names |= {f"{name}{suffix}" for suffix in suffixes}
    return frozenset(names)


def _table(metrics: list[tuple[str, str, tuple[str, ...]]]) -> Iterator[str]:
    yield "| Metric | Type | Labels | Meaning |"
    yield "|---|---|---|---|"
    for name, kind, labels in metrics:
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {_MEANING[name]} |"


def _operator() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    metrics = Metrics()
    for shown in metrics.workqueues.describe():
        yield _full(shown.name, shown.type), shown.type, tuple(shown._labelnames)  # noqa: SLF001
    yield from _wrapped(metrics)


def _wrapped(metrics: object) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the metrics that are attributes of an object."""
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            family = next(iter(metric.describe()))
            yield _full(family.name, family.type), family.type, tuple(metric._labelnames)  # noqa: SLF001


def _worker() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    exposition = Exposition(cast(Runtime, _Idle()))
    try:
        for family in exposition.collect():
            labels = tuple(family.samples[0].labels)
            own = tuple(label for label in labels if label != "le")
            yield _full(family.name, family.type), family.type, own
    finally:
        exposition.close()


def _full(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


class _Idle:
    """The metrics' view of a runtime that has handled nothing yet."""

    def __init__(self) -> None:
        self.config = self.consumer = self.deliveries = self.connection = self
        self.queue = "hello"
        self.is_open = False
        self.slots: list[Any] = []
        self.slot_count = 0
        self.reconnects = self.stuck = self.waiting_for_token = self.tokens_lost = 0
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.handler_seconds = Histogram.of_handler_seconds()
        self.message_age_seconds = Histogram.of_message_age_seconds()

    @staticmethod
    def busy() -> int:
        """Return the number of busy slots."""
        return 0
