"""Rates, histograms, backoff and log lines of the worker."""

from __future__ import annotations

import io
import json
import logging
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue import logs
from workqueue.amqp.backoff import Backoff
from workqueue.worker.handlers.http import retry_after
from workqueue.worker.histograms import Histogram
from workqueue.worker.rates import WINDOW_SECONDS, HandlerRates


def test_rates_are_unknown_before_the_first_message() -> None:
    recent = HandlerRates(0)
    assert recent.mean_seconds() is None
    assert recent.recent_seconds(1) is None
    assert recent.arrivals_per_second(1) is None
    assert recent.arrivals_per_second(10) == 0


def test_recent_rates_cover_the_last_minute_only() -> None:
    recent = HandlerRates(0)
    recent.arrived(1)
    recent.handled(2, 10.0)
    for moment in range(100, 130):
        recent.arrived(moment)
        recent.handled(moment, 1.0)
    assert recent.mean_seconds() == pytest.approx(40 / 31)
    assert recent.recent_seconds(130) == 1.0
    assert recent.arrivals_per_second(130) == pytest.approx(30 / WINDOW_SECONDS)
    assert recent.recent_seconds(1000) is None
    assert recent.arrivals_per_second(1000) == 0
    assert (recent.received, recent.times()) == (31, {0: 30, 14: 1}), "since the start"


@given(st.lists(st.floats(0, 1e6)))
def test_histogram_counts_each_value_in_one_bucket(values: list[float]) -> None:
    histogram = Histogram.of_handler_seconds()
    for value in values:
        histogram.observe(value)
    buckets = histogram.buckets()
    assert buckets[-1] == ("+Inf", len(values))
    for bound, count in buckets[:-1]:
        assert count == sum(value <= float(bound) for value in values)
    assert histogram.total == pytest.approx(sum(values))


def test_backoff_doubles_up_to_its_bound_and_resets() -> None:
    backoff = Backoff(1, 8)
    for bound in (1, 2, 4, 8, 8, 8):
        assert 0 <= backoff.next() <= bound
    backoff.reset()
    assert backoff.next() <= 1
    for _ in range(5000):  # a long outage
        assert backoff.next() <= 8


RETRY_AFTER = {
    "seconds": ("120", 120.0),
    "a date": ("Fri, 31 Dec 1999 23:59:59 GMT", 59.0),
    "a date that is over": ("Fri, 31 Dec 1999 23:00:00 GMT", 0.0),
    "nonsense": ("soon", None),
    "nothing": (None, None),
    "an empty text": ("", None),
}


@pytest.mark.parametrize(("value", "expected"), RETRY_AFTER.values(), ids=RETRY_AFTER)
def test_retry_after_is_read_as_seconds_or_date(value: str | None, expected: float | None) -> None:
    now = 946_684_740.0  # 1999-12-31 23:59:00 UTC
    assert retry_after(value, now) == expected


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(autouse=True)
def restore_logging():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)


def test_json_log_line_is_one_object_with_its_pairs(output: io.StringIO) -> None:
    logs.configure("json", stream=output)
    logging.getLogger("x").warning("Lost.", extra={"queue": "q", "reason": "it\nbroke", "at": time})
    entry = json.loads(output.getvalue())
    assert len(output.getvalue().splitlines()) == 1
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "x", "Lost.")
    assert (entry["queue"], entry["reason"]) == ("q", "it\nbroke")
    assert entry["time"].endswith("Z")


def test_text_log_line_has_time_level_sentence_and_pairs(output: io.StringIO) -> None:
    logs.configure("text", stream=output)
    logging.getLogger("x").info("Lost.", extra={"queue": "q", "reason": "two words", "empty": ""})
    assert output.getvalue().endswith('INFO    Lost.  queue=q  reason="two words"  empty=""\n')


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_exception_is_logged_with_its_traceback(output: io.StringIO, log_format: str) -> None:
    logs.configure(log_format, stream=output)
    logging.getLogger("x").error("Failed.", exc_info=ValueError("oops"))
    assert "ValueError: oops" in output.getvalue()


def test_log_format_without_a_terminal_is_json(output: io.StringIO) -> None:
    logs.configure(stream=output)
    logging.getLogger("x").info("Hello.")
    assert output.getvalue().startswith("{")
    assert sys.stderr is not output
