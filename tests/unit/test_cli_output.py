"""Tables for people, and durations in words."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import COMMAND, environment, workqueue
from workqueue.amqp.outgoing import Outgoing
from workqueue.cli import dead, output
from workqueue.cli.message_sources import InputError, from_arguments
from workqueue.contract import durations

HEAD = ("ID", "MESSAGE")
ROWS = [("a", "a long sentence\nand its second line"), ("bb", "short")]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(output.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((columns, 24)))


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


def test_time_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="'999999999d' is longer than 36500d"):
        durations.duration("999999999d")
    assert workqueue("dead", "list", "--queue", "q", "--older-than", "999999999d").code == 2


@pytest.mark.parametrize("option", [["--delay", "5"], ["--declare"]], ids=["delay", "declare"])
def test_queue_that_no_worker_could_have_is_refused(option: list[str]) -> None:
    done = workqueue("send", "--queue", "q" * 240, *option, "x", url="amqp://127.0.0.1:1")

    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        "workqueue send: error: The name of the queue has 240 bytes; a work queue's has at most 230.",
    )


def test_full_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            output.say("text")

    assert ended.value.code == 1
    assert capsys.readouterr().err == "The output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"], ids=["stdin", "stdout", "stderr"])
def test_standard_streams_may_be_closed(closed: str) -> None:
    command = f"{shlex.join([*COMMAND, 'send', '--queue', 'q', '--stdin', '--timeout', '1'])} {closed}"

    done = subprocess.run(
        command,
        shell=True,
        env=environment("amqp://127.0.0.1:1"),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    if closed != "2>&-":
        assert "cannot be used" in done.stderr


def test_message_that_is_no_text_is_named() -> None:
    with pytest.raises(InputError, match="message 2 is not UTF-8"):
        list(from_arguments(["a", os.fsdecode(bytes([255]))], Outgoing("q", b"")))


def test_errors_of_a_replay_do_not_fill_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    dead._warn_of([f"Message {number} was not confirmed." for number in range(1000)])

    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[-1]) == ("Message 0 was not confirmed.", "And so on for 990 other messages.")
    assert len(lines) == 11
