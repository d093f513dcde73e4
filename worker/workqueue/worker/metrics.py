"""The worker's metrics, and a handler's own ones from prometheus-client's default registry.

prometheus-client is imported at the first request for /metrics. Importing it earlier would take a quarter of
a worker's start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workqueue.worker.handlers.outcome import Outcome

if TYPE_CHECKING:
    from workqueue.worker.runtime import Runtime


class Exposition:
    """Renders the text of /metrics.

    Args:
        runtime: whose metrics to show.
        folder: where the processes of the handler write its metrics; None without such processes.
    """

    def __init__(self, runtime: Runtime, folder: str | None = None) -> None:
        import prometheus_client

        self._client = prometheus_client
        self._runtime = runtime
        self.content_type = prometheus_client.CONTENT_TYPE_LATEST
        prometheus_client.REGISTRY.register(self)
        self._of_processes: Any = None
        if folder is not None:
            from prometheus_client.multiprocess import MultiProcessCollector

            self._of_processes = MultiProcessCollector(prometheus_client.REGISTRY, path=folder)  # type: ignore[no-untyped-call]

    def render(self) -> bytes:
        """Return the page."""
        return self._client.generate_latest()

    def close(self) -> None:
        """Remove the metrics from the registry."""
        self._client.REGISTRY.unregister(self)
        if self._of_processes is not None:
            self._client.REGISTRY.unregister(self._of_processes)

    def collect(self) -> Iterator[Any]:
        """Yield the metrics, for prometheus-client."""
        from prometheus_client import core

        consumer, deliveries = self._runtime.consumer, self._runtime.deliveries
        labels, queue = ["queue"], [self._runtime.config.queue]
        messages = core.CounterMetricFamily(
            "workqueue_worker_messages", "Messages by outcome.", labels=["queue", "outcome"]
        )
        for outcome in Outcome:
            messages.add_metric([*queue, outcome], deliveries.outcomes[outcome])
        yield messages
        for name, text, histogram in (
            ("handler_seconds", "How long handlers ran.", deliveries.handler_seconds),
            ("message_age_seconds", "Time from publishing to receiving.", deliveries.message_age_seconds),
        ):
            family = core.HistogramMetricFamily(f"workqueue_worker_{name}", text, labels=labels)
            family.add_metric(queue, histogram.buckets(), histogram.total)
            yield family
        for name, text, value in (
            ("slots", "Messages that can be handled at the same time.", consumer.slot_count),
            ("busy_slots", "Slots with a message.", consumer.busy()),
            ("waiting_slots", "Busy slots that wait for a token of a limit.", consumer.waiting_for_token),
            ("stuck_slots", "Handlers that still run a minute after their timeout.", deliveries.stuck),
            ("connected", "Whether the consuming connection is open.", int(consumer.connection.is_open)),
        ):
            gauge = core.GaugeMetricFamily(f"workqueue_worker_{name}", text, labels=labels)
            gauge.add_metric(queue, value)
            yield gauge
        for name, text, count in (
            (
                "tokens_lost",
                "Tokens of the limit that were lost while their handler ran.",
                consumer.tokens_lost,
            ),
            ("reconnects", "How often the consuming connection was opened again.", consumer.reconnects),
        ):
            counter = core.CounterMetricFamily(f"workqueue_worker_{name}", text, labels=labels)
            counter.add_metric(queue, count)
            yield counter
