"""Generate the Grafana dashboard of the chart from the list of panels below.

`hack.generate` writes it to the chart, which installs it as a ConfigMap. The tests run every query on a real
Prometheus, with the variables replaced by `filled`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["timeseries", "stat", "table"]

COLUMNS: Final = 24
"""The width of Grafana's grid, in columns."""

HEIGHTS: Final[dict[Kind, int]] = {"stat": 4, "timeseries": 8, "table": 9}
"""The height of a panel, in rows of the grid."""

_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_QUEUE: Final = 'namespace=~"$namespace", workqueue=~"$workqueue"'


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression. `legend` is Grafana's template for the name of a series or of a table column."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        description: the meaning of good and bad values.
        unit: Grafana's name of the unit.
        width: in columns of the grid.
        alarm: the value from which a stat is red, inclusive.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    alarm: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _sum(metric: str, *by: str, also: str = "") -> str:
    """Return the sum of a metric of the selected queues."""
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} ({metric}{{{_QUEUE}{also}}})"


def _rate(metric: str, *by: str, where: str = _QUEUE) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{{{where}}}[$__rate_interval]))"


def _quantile(quantile: float, metric: str, *by: str, where: str = _QUEUE) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', *by, 'le', where=where)})"


def _conditions(labels: str) -> str:
    """Return the number of selected queues with such a condition. Without one, it is 0 instead of no value."""
    return f"count(workqueue_condition{{{_QUEUE}, {labels}}}) or vector(0)"


def _replicas(state: str, *by: str) -> str:
    return _sum("workqueue_replicas", *by, also=f', state="{state}"')


_NAMES: Final = ("namespace", "workqueue")
_LEGEND: Final = "{{namespace}}/{{workqueue}}"

OVERVIEW: Final = Row(
    "Overview",
    (
        Panel(
            "Waiting",
            "Messages that wait for a worker.",
            (Query(_sum("workqueue_messages_ready")),),
            kind="stat",
            width=4,
        ),
        Panel(
            "Not Ready",
            "WorkQueues whose condition Ready is not True.",
            (Query(_conditions('condition="Ready", status!="True"')),),
            kind="stat",
            width=4,
            alarm=1,
        ),
        Panel(
            "At maximum",
            "WorkQueues whose backlog asks for more workers than scaling.maxReplicas.",
            (Query(_conditions('condition="ScalingActive", reason="AtMaximum"')),),
            kind="stat",
            width=4,
            alarm=1,
        ),
        Panel(
            "Dead letters",
            "Messages that were given up and kept.",
            (Query(_sum("workqueue_dead_letters")),),
            kind="stat",
            width=4,
            alarm=1,
        ),
        Panel(
            "Workers",
            "Pods that are Ready.",
            (Query(_replicas("ready")),),
            kind="stat",
            width=4,
        ),
        Panel(
            "Done per second",
            "Messages that a handler finished successfully.",
            (
                Query(
                    f'sum(rate(workqueue_worker_messages_total{{{_QUEUE}, outcome="acked"}}[$__rate_interval]))'
                ),
            ),
            kind="stat",
            width=4,
        ),
        Panel(
            "WorkQueues",
            "All selected WorkQueues at the end of the time range.",
            (
                Query(_sum("workqueue_messages_ready", *_NAMES), "Waiting"),
                Query(_sum("workqueue_messages_in_handlers", *_NAMES), "In handlers"),
                Query(_sum("workqueue_messages_in_handlers_max", *_NAMES), "In handlers, at most"),
                Query(_sum("workqueue_messages_retrying", *_NAMES), "Retrying"),
                Query(_replicas("ready", *_NAMES), "Workers"),
                Query(_replicas("busy", *_NAMES), "Busy"),
                Query(_replicas("desired", *_NAMES), "Desired"),
                Query(_replicas("maximum", *_NAMES), "Maximum"),
                Query(_sum("workqueue_dead_letters", *_NAMES), "Dead letters"),
                Query(_sum("workqueue_condition", *_NAMES, "reason", also=', condition="Ready"'), "Ready"),
            ),
            kind="table",
            width=COLUMNS,
        ),
    ),
)

QUEUES: Final = Row(
    "Queues",
    (
        Panel(
            "Messages that wait",
            "A backlog that keeps growing needs more workers or faster handlers.",
            (Query(_sum("workqueue_messages_ready", *_NAMES), _LEGEND),),
        ),
        Panel(
            "Messages per second by outcome",
            "acked: done. retried, dead_lettered, timed_out: failed. cancelled: by id. lost, requeued: redelivered.",
            (Query(_rate("workqueue_worker_messages_total", "outcome"), "{{outcome}}"),),
            unit="ops",
        ),
        Panel(
            "Replicas",
            "Desired follows the backlog and never passes maximum; ready follows desired.",
            tuple(
                Query(_replicas(state), state) for state in ("desired", "current", "ready", "busy", "maximum")
            ),
        ),
        Panel(
            "Age of messages at arrival",
            "From the publisher's timestamp to the worker, in whole seconds.",
            tuple(
                Query(_quantile(q, "workqueue_worker_message_age_seconds"), f"p{q * 100:g}")
                for q in (0.5, 0.9, 0.99)
            ),
            unit="s",
        ),
        Panel(
            "Messages that start late",
            "The share that waits for longer than maxWaitSeconds. 1 % uses up the error budget of the alert.",
            (
                Query(
                    f"{_rate('workqueue_messages_late_total', *_NAMES)}"
                    f" / {_rate('workqueue_messages_arrived_total', *_NAMES)}",
                    _LEGEND,
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Running time of handlers",
            "How long one message takes.",
            tuple(
                Query(_quantile(q, "workqueue_worker_handler_seconds"), f"p{q * 100:g}")
                for q in (0.5, 0.9, 0.99)
            ),
            unit="s",
        ),
        Panel(
            "Dead letters",
            "Each step up is a message that was given up.",
            (Query(_sum("workqueue_dead_letters", *_NAMES), _LEGEND),),
        ),
    ),
)

WORKERS: Final = Row(
    "Workers",
    (
        Panel(
            "Slots in use",
            "If this stays near 100 %, workers are the bottleneck.",
            (
                Query(
                    f"{_sum('workqueue_worker_busy_slots', *_NAMES)}"
                    f" / {_sum('workqueue_worker_slots', *_NAMES)}",
                    _LEGEND,
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Workers without a connection",
            "RabbitMQ is unreachable or refuses them.",
            (Query(f"count(workqueue_worker_connected{{{_QUEUE}}} == 0) or vector(0)", "disconnected"),),
        ),
        Panel(
            "Slots that wait for a limit",
            "Their message has no token of spec.limits yet.",
            (Query(_sum("workqueue_worker_waiting_slots", *_NAMES), _LEGEND),),
        ),
        Panel(
            "Lost tokens per second",
            "Tokens of spec.limits that were lost while their handler ran.",
            (Query(_rate("workqueue_worker_tokens_lost_total", *_NAMES), _LEGEND),),
            unit="ops",
        ),
        Panel(
            "Stuck handlers",
            "Handlers that still run after their timeout.",
            (Query(_sum("workqueue_worker_stuck_slots", *_NAMES), _LEGEND),),
        ),
        Panel(
            "Reconnects per second",
            "How often workers lost their connection and reconnected.",
            (Query(_rate("workqueue_worker_reconnects_total", *_NAMES), _LEGEND),),
            unit="ops",
        ),
        Panel(
            "Memory of workers",
            "The largest process of each WorkQueue, without the children that an exec handler starts.",
            (
                Query(
                    "max by (namespace, workqueue) (process_resident_memory_bytes"
                    f"{{{_QUEUE}}} and on (instance) workqueue_worker_slots)",
                    _LEGEND,
                ),
            ),
            unit="bytes",
        ),
        Panel(
            "Namespaces served by another release",
            "Namespaces that this operator watches and leaves to another release.",
            (Query("sum(workqueue_namespaces_served_elsewhere) or vector(0)", "Namespaces"),),
        ),
        Panel(
            "Consumers",
            "Consumers that RabbitMQ counts, without the operator's own.",
            (Query(_sum("workqueue_consumers", *_NAMES), _LEGEND),),
        ),
    ),
)

_EVERYWHERE: Final = ""
OPERATOR: Final = Row(
    "Operator",
    (
        Panel(
            "Leaders",
            "1. During a takeover it is 0 for a few seconds.",
            (Query("sum(workqueue_leader)", "leaders"),),
        ),
        Panel(
            "Brokers",
            "1 while the operator's connection is open.",
            (Query("max by (broker, user) (workqueue_broker_up)", "{{broker}} {{user}}"),),
        ),
        Panel(
            "Age of the oldest depth",
            "For queues with workers. Normal: up to a few seconds.",
            (Query("max by (broker, user) (workqueue_depth_age_seconds)", "{{broker}} {{user}}"),),
            unit="s",
        ),
        Panel(
            "Waking an idle queue",
            "From a message on an idle queue to the write of the replica count.",
            tuple(
                Query(_quantile(q, "workqueue_wake_seconds", where=_EVERYWHERE), f"p{q * 100:g}")
                for q in (0.5, 0.9, 0.99)
            ),
            unit="s",
        ),
        Panel(
            "Idle queues listened to",
            "Each has a consumer of the operator that waits for its first message.",
            (Query("max by (broker, user) (workqueue_doorbells)", "{{broker}} {{user}}"),),
        ),
        Panel(
            "Scale writes per second",
            "By direction and reason.",
            (
                Query(
                    _rate("workqueue_scale_total", "direction", "reason", where=_EVERYWHERE),
                    "{{direction}}: {{reason}}",
                ),
            ),
            unit="ops",
        ),
        Panel(
            "Answers of workers that were asked to retire",
            "A busy worker refuses and stays.",
            (Query(_rate("workqueue_retire_total", "answer", where=_EVERYWHERE), "{{answer}}"),),
            unit="ops",
        ),
        Panel(
            "Recurring messages per second",
            "By outcome.",
            (Query(_rate("workqueue_recurring_total", "outcome", where=_EVERYWHERE), "{{outcome}}"),),
            unit="ops",
        ),
        Panel(
            "Running time of passes",
            "The duration of one pass over one WorkQueue.",
            tuple(
                Query(_quantile(q, "workqueue_reconcile_seconds", where=_EVERYWHERE), f"p{q * 100:g}")
                for q in (0.5, 0.99)
            ),
            unit="s",
        ),
        Panel(
            "Passes that failed per second",
            "The operator retries them with increasing delays.",
            (
                Query(
                    _rate("workqueue_reconcile_errors_total", "reason", where=_EVERYWHERE),
                    "{{reason}}",
                ),
            ),
            unit="ops",
        ),
        Panel(
            "Requests to the API server per second",
            "Without watches. Almost none while nothing changes.",
            (Query("sum(rate(workqueue_api_requests_total[$__rate_interval]))", "requests"),),
            unit="ops",
        ),
        Panel(
            "Memory of the operator",
            "The memory of each process.",
            (
                Query(
                    "max by (namespace, pod) (process_resident_memory_bytes"
                    " and on (instance) workqueue_leader)",
                    "{{pod}}",
                ),
            ),
            unit="bytes",
        ),
        Panel(
            "Processor time of the operator",
            "Cores in use by each process.",
            (
                Query(
                    "max by (namespace, pod) (rate(process_cpu_seconds_total[$__rate_interval])"
                    " and on (instance) workqueue_leader)",
                    "{{pod}}",
                ),
            ),
        ),
    ),
)

ROWS: Final = (OVERVIEW, QUEUES, WORKERS, OPERATOR)


def panels() -> Iterator[Panel]:
    """Yield all panels, from top to bottom."""
    for row in ROWS:
        yield from row.panels


def filled(expr: str, *, namespace: str, workqueue: str, rate_interval: str) -> str:
    """Return an expression as Grafana sends it, with its variables replaced."""
    values = {"$namespace": namespace, "$workqueue": workqueue, "$__rate_interval": rate_interval}
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    return expr


def text() -> str:
    """Return the dashboard as JSON."""
    dashboard = {
        "title": "WorkQueues",
        "uid": "workqueue-operator",
        "description": "Queues, workers and the operator of workqueue-operator.",
        "tags": ["workqueue", "rabbitmq"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_grid()),
    }
    return json.dumps(dashboard, indent=2) + "\n"


def _variables() -> list[dict[str, Any]]:
    def labels(name: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }

    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        labels("namespace", "label_values(workqueue_messages_ready, namespace)"),
        labels("workqueue", 'label_values(workqueue_messages_ready{namespace=~"$namespace"}, workqueue)'),
    ]


def _grid() -> Iterator[dict[str, Any]]:
    """Yield rows and panels with their positions. Panels fill a row from left to right."""
    number, top = 0, 0
    for row in ROWS:
        number += 1
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place}
        top, left, height = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            number += 1
            height = max(height, HEIGHTS[panel.kind])
            place = {"x": left, "y": top, "w": panel.width, "h": HEIGHTS[panel.kind]}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            left += panel.width
        top += height


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    made: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "targets": [_target(panel, place, query) for place, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }
    if panel.kind == "stat":
        green = {"color": "green", "value": None}
        red = [] if panel.alarm is None else [{"color": "red", "value": panel.alarm}]
        defaults["thresholds"] = {"mode": "absolute", "steps": [green, *red]}
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"}
    elif panel.kind == "timeseries":
        made["options"] = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        }
    else:
        made["transformations"] = list(_columns(panel))
    return made


def _target(panel: Panel, place: int, query: Query) -> dict[str, Any]:
    table = panel.kind == "table"
    return {
        "refId": _letter(place),
        "datasource": _DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "instant": table,
        "range": not table,
        "format": "table" if table else "time_series",
    }


def _columns(panel: Panel) -> Iterator[dict[str, Any]]:
    """Yield the transformations that make one line for each WorkQueue, with legends as column names."""
    columns = {f"Value #{_letter(place)}": query.legend for place, query in enumerate(panel.queries)}
    ready = f"Value #{_letter(len(panel.queries) - 1)}"
    # The value of a condition is always 1. Its reason is a label.
    shown = {"namespace": "Namespace", "workqueue": "WorkQueue", **columns, "reason": columns[ready]}
    del shown[ready]
    yield {"id": "merge", "options": {}}
    yield {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True, ready: True},
            "indexByName": {name: place for place, name in enumerate(shown)},
            "renameByName": shown,
        },
    }


def _letter(place: int) -> str:
    return chr(ord("A") + place)
