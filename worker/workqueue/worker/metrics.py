"""The worker's figures for Prometheus.

Place in the flow: the runtime counts, in plain numbers under a lock that it holds anyway; only when somebody
asks for /metrics is prometheus-client imported, which would otherwise be a quarter of a worker's start. A
handler's own metrics in prometheus-client's default registry are shown too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workqueue.worker.handlers.outcome import Outcome

if TYPE_CHECKING:
    from workqueue.worker.runtime import Runtime


class Exposition:
    """Makes the text of /metrics.

    Args:
        runtime: whose figures to show.
    """

    def __init__(self, runtime: Runtime) -> None:
        import prometheus_client

        self._client = prometheus_client
        self._runtime = runtime
        self.content_type = prometheus_client.CONTENT_TYPE_LATEST
        prometheus_client.REGISTRY.register(self)

    def render(self) -> bytes:
        """The whole page."""
        return self._client.generate_latest()

    def close(self) -> None:
        """Take our figures out of the registry."""
        self._client.REGISTRY.unregister(self)

    def collect(self) -> Iterator[Any]:
        """Called by prometheus-client."""
        from prometheus_client import core

        consumer, deliveries = self._runtime.consumer, self._runtime.deliveries
        labels, queue = ["queue"], [self._runtime.config.queue]
        messages = core.CounterMetricFamily(
            "workqueue_worker_messages", "Messages by how they ended.", labels=["queue", "outcome"]
        )
        for outcome in Outcome:
            messages.add_metric([*queue, outcome], deliveries.outcomes[outcome])
        yield messages
        for name, text, histogram in (
            ("handler_seconds", "How long handlers ran.", deliveries.handler_seconds),
            ("message_age_seconds", "From publishing to receiving.", deliveries.message_age_seconds),
        ):
            family = core.HistogramMetricFamily(f"workqueue_worker_{name}", text, labels=labels)
            family.add_metric(queue, histogram.buckets(), histogram.total)
            yield family
        for name, text, value in (
            ("slots", "Messages that can be handled at once.", consumer.slot_count),
            ("busy_slots", "Messages in hand.", consumer.busy()),
            ("stuck_slots", "Handlers that run on although their time was up.", deliveries.stuck),
            ("connected", "Whether the consuming connection is open.", int(consumer.connection.is_open)),
        ):
            gauge = core.GaugeMetricFamily(f"workqueue_worker_{name}", text, labels=labels)
            gauge.add_metric(queue, value)
            yield gauge
        reconnects = core.CounterMetricFamily(
            "workqueue_worker_reconnects", "How often the consuming connection came back.", labels=labels
        )
        reconnects.add_metric(queue, consumer.reconnects)
        yield reconnects
