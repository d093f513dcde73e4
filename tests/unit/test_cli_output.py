"""Tables for people, and durations in words."""

from __future__ import annotations

import os
import sys

import pytest

from workqueue.cli import output
from workqueue.contract import durations

HEAD = ("ID", "MESSAGE")
ROWS = [("a", "a long sentence\nand its second line"), ("bb", "short")]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(output.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))


def test_table_in_a_pipe_is_whole() -> None:
    assert output.table(HEAD, ROWS).splitlines() == [
        "ID  MESSAGE",
        "a   a long sentence\\nand its second line",
        "bb  short",
    ]


def test_table_on_a_terminal_ends_at_its_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch, 12)

    assert output.table(HEAD, ROWS).splitlines() == ["ID  MESSAGE", "a   a long …", "bb  short"]


def test_wide_table_on_a_terminal_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch, 12)

    assert "and its second line" in output.table(HEAD, ROWS, cut=False)


@pytest.mark.parametrize("text", ["注文", "e\u0301te\u0301", "📦!"], ids=["chinese", "combining", "emoji"])
def test_columns_line_up_whatever_the_script(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch, 12)
    _, first, second = output.table(("N", "X"), [(text, "x" * 20), ("abcdef", "y")]).splitlines()

    assert output._cells(first) == 12
    assert output._cells(first.partition("x")[0]) == output._cells(second.partition("y")[0])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "< 0.1 ms"),
        (0.000115, "0.1 ms"),
        (0.0042, "4.2 ms"),
        (0.0096, "9.6 ms"),
        (0.0107, "11 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (2.3456, "2.35 s"),
        (59.96, "1m"),
        (252.2, "4m12s"),
    ],
)
def test_measured_duration_has_a_fitting_unit(seconds: float, text: str) -> None:
    assert durations.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (61, "1m1s"),
        (3600, "1h"),
        (3725, "1h2m"),
        (90_000, "1d1h"),
        (-5, "0s"),
    ],
)
def test_age_is_shown_like_kubectl(seconds: int, text: str) -> None:
    assert durations.age(seconds) == text
