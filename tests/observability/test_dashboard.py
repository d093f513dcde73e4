"""The dashboard is consistent. tests/e2e/test_observability.py shows that its queries find data."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from hack.cluster.prometheus import promtool
from hack.generate import dashboard, metrics

MADE: dict[str, Any] = json.loads(dashboard.text())
OF_EVERY_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def expressions() -> list[str]:
    return [
        dashboard.filled(query.expr, namespace=".*", workqueue=".*", rate_interval="1m")
        for panel in dashboard.panels()
        for query in panel.queries
    ]


def test_every_dashboard_query_is_valid_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{place}", "expr": expr} for place, expr in enumerate(expressions())]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool(), "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dashboard_queries_only_existing_metrics() -> None:
    for expr in expressions():
        used = set(re.findall(r"\b(?:workqueue|process)_\w+", expr))
        assert used
        assert used <= metrics.series() | OF_EVERY_PROCESS


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for expr in expressions() for name in re.findall(r"\bworkqueue_\w+", expr)}
    shown |= {f"{name.removesuffix('_bucket')}{ending}" for name in shown for ending in ("_count", "_sum")}
    with_an_alert = {"workqueue_namespaces_left_out"}
    of_the_optional_page = {"workqueue_page_viewers", "workqueue_page_api_requests_total"}
    assert metrics.series() - shown == with_an_alert | of_the_optional_page


def test_dashboard_variables_are_all_substituted() -> None:
    assert not [expr for expr in expressions() if "$" in expr]


def test_dashboard_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in MADE["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < dashboard.COLUMNS
    assert [panel["id"] for panel in MADE["panels"]] == list(range(1, len(MADE["panels"]) + 1))


def test_panel_has_a_description() -> None:
    for panel in dashboard.panels():
        assert panel.description.endswith(".")


def test_series_of_one_panel_have_distinct_names() -> None:
    for panel in dashboard.panels():
        if panel.kind != "stat":
            assert all(query.legend for query in panel.queries), panel.title
        for one, other in itertools.combinations(panel.queries, 2):
            assert one.legend != other.legend
