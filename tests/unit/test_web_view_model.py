"""The view model of the page: rows, their order, the sparkline, ages."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workqueue_operator.kube.store import Store
from workqueue_operator.workers.client import WorkerStatus
from workqueue_web import view_model
from workqueue_web.dead_letters import Reasons
from workqueue_web.decisions import Recent
from workqueue_web.history import SAMPLES, History, Series
from workqueue_web.index import Index
from workqueue_web.server import Page
from workqueue_web.view_model import View


def body(name: str, ready: str = "True", **status: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": ready, "reason": "BrokerUnreachable", "message": "Away."}
    return {
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {},
        "status": {"conditions": [condition], **status},
    }


def test_workqueues_are_sorted_by_problems_then_depth() -> None:
    bodies = [
        body("b"),
        body("a"),
        body("deep", messages=9),
        body("broken", "False"),
        body("unsure", "Unknown"),
    ]
    assert [one["metadata"]["name"] for one in sorted(bodies, key=view_model.entry)] == [
        "broken",
        "unsure",
        "deep",
        "a",
        "b",
    ]


def test_unknown_count_is_not_zero() -> None:
    row = view_model.row({**body("new"), "status": None}, [], None)
    assert (row.messages, row.dead, row.busy, row.desired, row.rate, row.spark) == (None,) * 6
    assert row.ready.status == "Unknown"
    assert row.maximum == 10, "the default, where the API server did not fill it in"


def test_with_a_single_active_consumer_one_worker_is_the_most() -> None:
    one = {**body("turns"), "spec": {"queue": {"singleActiveConsumer": True}, "scaling": {"maxReplicas": 8}}}
    assert view_model.row(one, [], None).maximum == 1


def test_limit_bounds_the_maximum_of_replicas() -> None:
    worker = {"worker": {"concurrency": 2}, "limits": {"concurrency": 5}}
    one = {**body("limited"), "spec": {**worker, "scaling": {"maxReplicas": 8}}}
    assert view_model.row(one, [], None).maximum == 3


def rendered(template: str, **values: Any) -> str:
    parts: Any = SimpleNamespace(store=Store(lambda _: None), runbook_url="https://runbooks.example/")
    return Page(0, parts)._templates.get_template(template).render(**values)


def test_login_page_says_what_was_wrong() -> None:
    for problem in ("", "Wrong token."):
        assert problem in rendered("login.html", problem=problem, audience="workqueue-page", next="/")


def test_detail_page_names_what_ails_pods_and_dead_letters() -> None:
    pod = view_model.Pod("pod-1", "failing", "?", "-", "?", "3s", "The image is missing.")
    page = rendered(
        "_detail.html",
        row=view_model.row(body("jobs", deadLetters=2), [], None),
        conditions=[],
        queue="jobs",
        pods=[pod],
        recent=Recent(problem="The Events are forbidden."),
        reasons=Reasons(problem="RabbitMQ is away."),
        offer=None,
        stale=None,
    )
    assert "The image is missing." in page
    assert "RabbitMQ is away." in page
    assert "The Events are forbidden." in page


def test_sum_names_workqueues_with_unknown_count() -> None:
    summary = view_model.Summary()
    for one in (body("a", messages=3, deadLetters=0), body("b", "False", deadLetters=2)):
        summary.add(view_model.entry(one))

    assert (summary.messages.known, summary.messages.unknown) == (3, 1)
    assert (summary.dead.known, summary.dead.unknown) == (2, 0)
    assert (summary.busy.known, summary.busy.unknown) == (0, 2)


def test_advice_appears_only_beside_failed_condition() -> None:
    assert "Check host and port" in view_model.row(body("x", "False"), [], None).ready.advice
    assert view_model.row(body("x", "True"), [], None).ready.advice == ""


LINES = [
    pytest.param([], None, id="nothing yet"),
    pytest.param([None, 4, None], None, id="a single value is no line"),
    pytest.param([0, 10], ("0.0,23.0 120.0,1.0",), id="from the bottom to the top"),
    pytest.param([0, 0], ("0.0,23.0 120.0,23.0",), id="nothing waits"),
    pytest.param([5, 5, None, 5], ("0.0,1.0 40.0,1.0", "120.0,1.0"), id="a gap where it was not known"),
]


@pytest.mark.parametrize(("depths", "lines"), LINES)
def test_sparkline_scales_to_its_peak(depths: list[int | None], lines: tuple[str, ...] | None) -> None:
    spark = view_model.sparkline(depths)
    assert (spark.lines if spark is not None else None) == lines


def test_sparkline_of_an_hour_keeps_its_peak() -> None:
    depths: list[int | None] = [0] * SAMPLES
    depths[101] = 70
    spark = view_model.sparkline(depths)
    assert spark is not None
    (line,) = spark.lines
    assert len(line.split()) == view_model.POINTS
    assert any(point.endswith(",1.0") for point in line.split())
    assert spark.sentence == "Waiting messages in the last hour: highest 70, lowest 0, last 0."


def test_series_drops_oldest_sample_and_keeps_unknown_ones() -> None:
    series = Series()
    for value in range(SAMPLES + 3):
        series.add(None if value % 2 else value)
    values = series.values()
    assert len(values) == SAMPLES
    assert values[:2] == [None, 4]
    assert values[-1] == SAMPLES + 2
    series.add(2**40)
    assert series.values()[-1] == 0xFFFF_FFFE


def test_deleted_workqueue_is_forgotten() -> None:
    history = History()
    history.record([("a", 1), ("b", 2)])
    history.record([("b", 3)])
    assert history.depths("a") == []
    assert history.depths("b")[-2:] == [2, 3]


@pytest.mark.parametrize(
    ("view", "found"),
    [
        (View(), True),
        (View(words="shop"), True),
        (View(words="SHOP th"), True),
        (View(words="shop/th"), True),
        (View(words="mail"), False),
        (View(words="th nails x"), False),
        (View(show="dead"), True),
        (View(show="problems"), False),
        (View(words="mail", show="dead"), False),
        (View(show="paused"), True),
        (View(show="busy"), False),
    ],
    ids=lambda value: f"{value.words},{value.show}" if isinstance(value, View) else None,
)
def test_view_takes_the_matching_workqueues(view: View, found: bool) -> None:
    one = body("thumbnails", deadLetters=1, busyReplicas=0)
    one["spec"]["suspend"] = True
    assert view.takes(view_model.entry(one)) is found


def test_view_has_an_address_of_its_own() -> None:
    assert View().query == ""
    assert View(words="a&b", show="dead").query == "?q=a%26b&show=dead"


@pytest.mark.parametrize(
    ("ready", "desired", "terminating", "shown"),
    [(2, 2, 0, (2, 0)), (1, 0, 0, (0, 1)), (1, 0, 1, (0, 1)), (0, 0, 3, (0, 3)), (None, 1, 0, (None, 0))],
    ids=["none", "not-yet-terminating", "terminating", "only-terminating", "unknown"],
)
def test_leaving_workers_are_counted_once(
    ready: int | None, desired: int, terminating: int, shown: tuple[int | None, int]
) -> None:
    row = view_model.row(body("a", readyReplicas=ready, desiredReplicas=desired), [], None, terminating)
    assert (row.ready_replicas, row.leaving) == shown


def test_every_runbook_of_the_page_exists() -> None:
    names = {*view_model.RUNBOOKS.values(), view_model.NOT_READY_RUNBOOK, view_model.DEAD_LETTERS_RUNBOOK}
    folder = Path(__file__).parents[2] / "docs/runbooks"
    assert [name for name in names if not (folder / f"{name}.md").exists()] == []


def test_old_answer_of_a_worker_is_marked_with_its_age() -> None:
    view = SimpleNamespace(name="a", terminating=False, created=0.0, failure=None, ready=True)
    status = WorkerStatus(1, 0, True, 0.000115, 2.0)
    pods: Any = [view]
    for age, shown in ((3.0, ""), (75.0, "1m15s ago")):
        (pod,) = view_model.pods(pods, {"a": status}, datetime.now(UTC), {"a": age})
        assert (pod.as_of, pod.seconds) == (shown, "0.1 ms")


async def test_index_parses_only_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(lambda _: None)
    for number in range(300):
        one = body(f"queue-{number}", messages=number)
        one["metadata"] |= {"resourceVersion": "1", "uid": str(number)}
        store.put_workqueue(one)
    index = Index(store)
    await index.refresh()
    parsed: list[object] = []
    monkeypatch.setattr(store, "workqueue", lambda key: parsed.append(key) or store.workqueues.get(key))
    assert sum(one.messages or 0 for one in index) == sum(range(300))

    one["metadata"]["resourceVersion"] = "2"
    one["status"] = {**one["status"], "messages": 1000}
    store.put_workqueue(one)
    store.drop("workqueues", {"metadata": {"namespace": "shop", "name": "queue-0", "resourceVersion": "3"}})
    await index.refresh()

    assert parsed == [("shop", "queue-299")]
    assert sum(one.messages or 0 for one in index) == sum(range(299)) + 1000
