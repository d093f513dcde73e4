"""Requests to the API server are a counter, with the suffix and the type that Prometheus expects."""

from __future__ import annotations

from typing import Any

import pytest

from workqueue_operator import metrics as of_the_operator
from workqueue_web import metrics as of_the_page


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (of_the_operator.Metrics, "workqueue_api_requests"),
        (of_the_page.Metrics, "workqueue_page_api_requests"),
    ],
    ids=["operator", "page"],
)
def test_requests_are_a_counter(make: Any, name: str) -> None:
    metrics = make()
    for total in (7, 7, 9):
        metrics.count_api_requests(total)

    assert metrics.registry.get_sample_value(f"{name}_total") == 9
    assert {family.name: family.type for family in metrics.registry.collect()}[name] == "counter"
