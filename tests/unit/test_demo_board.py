"""The table of the demo."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hack.demo.board import Board, Row, Screen, bar, picture
from hack.demo.watch import Workers


@pytest.mark.parametrize(
    ("count", "length"),
    [
        pytest.param(0, 0, id="nothing waits"),
        pytest.param(1, 1, id="a single message is seen"),
        pytest.param(200, 12, id="half of them"),
        pytest.param(400, 24, id="all of them"),
        pytest.param(500, 24, id="more than there should be"),
    ],
)
def test_bar_chart_is_proportional(count: int, length: int) -> None:
    assert bar(count, 400, 24) == "█" * length


@pytest.mark.parametrize(
    ("workers", "shown"),
    [
        pytest.param(Workers(), "", id="no worker"),
        pytest.param(Workers(desired=3), "···", id="asked for, no pod yet"),
        pytest.param(Workers(desired=3, existing=3, ready=2, busy=1), "■□·", id="at work, idle, starting"),
        pytest.param(Workers(desired=0, existing=2, ready=0, busy=0), "··", id="being stopped"),
        pytest.param(
            Workers(desired=1, existing=1, ready=1, busy=3), "■", id="the count of busy ones is older"
        ),
    ],
)
def test_worker_picture_shows_each_state(workers: Workers, shown: str) -> None:
    assert picture(workers) == shown


def test_demo_board_without_terminal_prints_each_row_once() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out))
    with Board(screen, 4) as board:
        board.show(Row(None, Workers(), 0))
        board.show(Row(4, Workers(desired=2), 0))
        board.show(Row(0, Workers(), 4))
        board.show(Row(0, Workers(existing=1), 4))
    lines = [line.split("s  ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == [
        "waiting    ?  workers 0/0  busy 0  done    0/4",
        "waiting    0  workers 0/0  busy 0  done    4/4",
    ]
