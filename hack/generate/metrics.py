"""The page docs/metrics.md: every metric of operator and worker, read from the objects that expose them.

Place in the flow: `hack.generate` writes it. Names, types and labels come from the code; what a person reads in a
metric stands here, and a metric that is missing here stops the generation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from prometheus_client.metrics import MetricWrapperBase

from workqueue.worker.handlers.outcome import Outcome
from workqueue.worker.metrics import Exposition, Histogram
from workqueue.worker.runtime import Runtime
from workqueue_operator.metrics import Metrics

_MEANING: Final = {
    "workqueue_messages_ready": "Messages that wait. Not those in handlers, nor those that wait for a retry.",
    "workqueue_messages_in_handlers": "Messages that are known to be in a handler. Scale-out goes by this number.",
    "workqueue_messages_in_handlers_max": (
        "The same, with the slots of workers that do not answer. Scale-in goes by this number; both are equal while "
        "every worker answers."
    ),
    "workqueue_messages_retrying": "Messages that wait in delay queues for their next attempt.",
    "workqueue_dead_letters": "Messages in the dead-letter queue.",
    "workqueue_consumers": "Consumers of the queue, without the operator's own.",
    "workqueue_replicas": (
        "`state` is `desired` (asked for), `current` (pods that exist), `ready`, `busy`, `maximum`, which is "
        "`scaling.maxReplicas`, or 1 with `queue.singleActiveConsumer`, or `pinned`, which is `spec.replicas` and "
        "absent without a pin."
    ),
    "workqueue_condition": "1 for the `status` and the [reason](conditions.md) that each condition has.",
    "workqueue_depth_age_seconds": "Age of the oldest depth of a queue with workers. Above a few seconds: trouble.",
    "workqueue_reconcile_seconds": "How long one pass over one WorkQueue took.",
    "workqueue_reconcile_errors_total": "Passes that failed, by [reason](conditions.md). They are tried again.",
    "workqueue_scale_total": "Writes of a replica count. `direction` is `out` or `in`.",
    "workqueue_retire_total": "What workers answered that were asked to leave.",
    "workqueue_wake_seconds": "From a bell's ring to the replicas written.",
    "workqueue_broker_up": "1 while the operator's connection to this broker is open.",
    "workqueue_bells": "Idle queues that the operator listens to.",
    "workqueue_leader": "1 in the process that leads.",
    "workqueue_namespaces_left_out": "Listed namespaces that do not exist or in which the operator has no rights.",
    "workqueue_namespaces_served_elsewhere": (
        "1 for a namespace whose WorkQueues another release serves, which `operator` names."
    ),
    "workqueue_api_requests": "Requests to the API server beside watches, since the process started.",
    "workqueue_worker_messages_total": "Messages by how they ended; see below.",
    "workqueue_worker_handler_seconds": "How long handlers ran.",
    "workqueue_worker_message_age_seconds": (
        "From the publisher's timestamp to the arrival at the worker, for messages that have one."
    ),
    "workqueue_worker_slots": "Messages that this worker can handle at a time.",
    "workqueue_worker_busy_slots": "Messages that it has in hand.",
    "workqueue_worker_stuck_slots": "Those of them whose handler runs on a minute after its time was up.",
    "workqueue_worker_connected": "1 while its connection to RabbitMQ is open.",
    "workqueue_worker_reconnects_total": "How often that connection came back.",
}

_OUTCOMES: Final = {
    Outcome.ACKED: "done",
    Outcome.RETRIED: "a copy waits for its retry",
    Outcome.DEAD_LETTERED: "given up: attempts used up, rejected, or not decodable",
    Outcome.TIMED_OUT: "the handler ran too long; then retried or given up",
    Outcome.LOST: "the connection was lost meanwhile; RabbitMQ hands the message out again",
    Outcome.REQUEUED: "handed back by a worker that was stopped",
}

_HEAD: Final = """\
<!-- Generated from the metrics of operator and worker by `python -m hack.generate`: do not edit. -->

# Metrics

In the Prometheus format, base units, without authentication. How they are scraped, with the Prometheus operator or
without, and the alerts and the dashboard that come with the chart: [operations](operations.md#monitoring).
"""

_OPERATOR: Final = """\
## Operator

`GET /metrics` on port 8080 of each operator pod; the Service of the chart selects them all. Series of queues come
from the pod that leads. A count that the operator does not know at present keeps its last value, so that a pending
alert survives an outage; `workqueue_condition{condition="DepthKnown"}` says whether the depth is known.

    kubectl -n workqueue-system port-forward deployment/workqueue-operator 8080
    curl -s localhost:8080/metrics | grep ^workqueue_
"""

_WORKER: Final = """\
## Worker

`GET /metrics` on the port `workqueue` (8090) of each worker pod. Metrics that a handler keeps in prometheus-client's
default registry are shown beside these. `GET /status` says some of the same as JSON, for people and the operator.

    kubectl port-forward POD 8090
    curl -s localhost:8090/metrics | grep ^workqueue_
    curl -s localhost:8090/status
"""

_QUERIES: Final = """\
## Questions

    # Is the backlog being worked off? Messages a second, by outcome:
    sum by (queue, outcome) (rate(workqueue_worker_messages_total[5m]))

    # How long do nine of ten messages wait and how long do they take?
    histogram_quantile(0.9, sum by (queue, le) (rate(workqueue_worker_message_age_seconds_bucket[5m])))
    histogram_quantile(0.9, sum by (queue, le) (rate(workqueue_worker_handler_seconds_bucket[5m])))

    # How busy are the workers?
    sum by (queue) (workqueue_worker_busy_slots) / sum by (queue) (workqueue_worker_slots)

    # How fast do idle queues wake?
    histogram_quantile(0.99, sum by (le) (rate(workqueue_wake_seconds_bucket[1h])))
"""


def page() -> str:
    """The whole page as Markdown.

    Raises:
        ValueError: a metric is not described here, or one that is described does not exist.
    """
    operator, worker = list(_operator()), list(_worker())
    names = {name for name, _, _ in (*operator, *worker)}
    if strangers := names ^ set(_MEANING):
        raise ValueError(
            f"hack/generate/metrics.py and the code do not agree on {', '.join(sorted(strangers))}."
        )
    outcomes = ["| Outcome | Meaning |", "|---|---|", *(f"| `{o}` | {_OUTCOMES[o]} |" for o in Outcome)]
    return "\n".join(
        [_HEAD, _OPERATOR, *_table(operator), "", _WORKER, *_table(worker), "", *outcomes, "", _QUERIES]
    )


def series() -> frozenset[str]:
    """The names of all series, as a query names them: a histogram has three."""
    names = set()
    for name, kind, _ in (*_operator(), *_worker()):
        endings = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        names |= {f"{name}{ending}" for ending in endings}
    return frozenset(names)


def _table(metrics: list[tuple[str, str, tuple[str, ...]]]) -> Iterator[str]:
    yield "| Metric | Type | Labels | Meaning |"
    yield "|---|---|---|---|"
    for name, kind, labels in metrics:
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {_MEANING[name]} |"


def _operator() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    metrics = Metrics()
    for shown in metrics.workqueues.describe():
        yield shown.name, shown.type, tuple(shown._labelnames)  # noqa: SLF001
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
    """A runtime that has done nothing yet, as far as its metrics go."""

    def __init__(self) -> None:
        self.config = self.connection = self
        self.queue = "hello"
        self.is_open = False
        self.slots: list[Any] = []
        self.slot_count = 0
        self.reconnects = self.stuck = 0
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.handler_seconds = Histogram.of_handler_seconds()
        self.message_age_seconds = Histogram.of_message_age_seconds()

    @staticmethod
    def busy() -> int:
        """No slot is."""
        return 0
