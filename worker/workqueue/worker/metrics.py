"""The worker's figures for Prometheus.

Place in the flow: the runtime counts, in plain numbers under a lock that it holds anyway; only when somebody
asks for /metrics is prometheus-client imported, which would otherwise be a quarter of a worker's start. A
handler's own metrics in prometheus-client's default registry are shown too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from workqueue.worker.handlers.outcome import Outcome

if TYPE_CHECKING:
    from workqueue.worker.runtime import Runtime

_HANDLER_BUCKETS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0)
"""From a no-op to hours: handlers of one queue are alike, but nobody knows which kind they are."""

_AGE_BUCKETS: Final = (1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0)
"""From "at once" to a day. The timestamp property has whole seconds: nothing below one has meaning."""


class Histogram:
    """Counts by upper bound; as cheap as counting can be."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @classmethod
    def of_handler_seconds(cls) -> Histogram:
        """For the running time of handlers."""
        return cls(_HANDLER_BUCKETS)

    @classmethod
    def of_message_age_seconds(cls) -> Histogram:
        """For the time from publishing to receiving."""
        return cls(_AGE_BUCKETS)

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts with their bounds as text, as Prometheus wants them."""
        bounds = [*map(str, self._bounds), "+Inf"]
        running, cumulative = 0, []
        for bound, count in zip(bounds, self._counts, strict=True):
            running += count
            cumulative.append((bound, float(running)))
        return cumulative


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

        runtime = self._runtime
        labels, queue = ["queue"], [runtime.config.queue]
        messages = core.CounterMetricFamily(
            "workqueue_worker_messages", "Messages by how they ended.", labels=["queue", "outcome"]
        )
        for outcome in Outcome:
            messages.add_metric([*queue, outcome], runtime.outcomes[outcome])
        yield messages
        for name, text, histogram in (
            ("handler_seconds", "How long handlers ran.", runtime.handler_seconds),
            ("message_age_seconds", "From publishing to receiving.", runtime.message_age_seconds),
        ):
            family = core.HistogramMetricFamily(f"workqueue_worker_{name}", text, labels=labels)
            family.add_metric(queue, histogram.buckets(), histogram.total)
            yield family
        for name, text, value in (
            ("slots", "Messages that can be handled at once.", runtime.slot_count),
            ("busy_slots", "Messages in hand.", runtime.busy()),
            ("stuck_slots", "Handlers that run on although their time was up.", runtime.stuck),
            ("connected", "Whether the consuming connection is open.", int(runtime.connection.is_open)),
        ):
            gauge = core.GaugeMetricFamily(f"workqueue_worker_{name}", text, labels=labels)
            gauge.add_metric(queue, value)
            yield gauge
        reconnects = core.CounterMetricFamily(
            "workqueue_worker_reconnects", "How often the consuming connection came back.", labels=labels
        )
        reconnects.add_metric(queue, runtime.reconnects)
        yield reconnects
