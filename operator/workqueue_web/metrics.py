"""The page's Prometheus metrics: about its own process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector


class Metrics:
    """All metrics of one process of the page, in their own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.viewers = Gauge("workqueue_page_viewers", "Browsers with live updates.", registry=registry)
        self.api_requests = Counter(
            "workqueue_page_api_requests",
            "Requests of the page to the API server, without watches.",
            registry=registry,
        )
