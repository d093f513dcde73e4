"""The demo says `no message lost` only when every document came back exactly once, and with the right counts."""

from __future__ import annotations

import json

import pytest

from hack.demo.ledger import Ledger

EXPECTED = {"run-0": {"words": 2}, "run-1": {"words": 5}}
NAMES = {"run-0": "a.txt", "run-1": "b.txt"}
RIGHT = [("r0", "run-0", {"words": 2}), ("r1", "run-1", {"words": 5})]


def ledger(*results: tuple[str, str | None, object]) -> Ledger:
    made = Ledger(EXPECTED, NAMES)
    for result_id, message_id, result in results:
        made.record(result_id, message_id, json.dumps(result).encode())
    return made


@pytest.mark.parametrize(
    ("results", "complaints"),
    [
        pytest.param(RIGHT, [], id="each document came back once, with the right counts"),
        pytest.param(RIGHT[:1], ["1 of 2 results is missing: b.txt"], id="one is missing"),
        pytest.param(
            [], ["2 of 2 results are missing: a.txt, b.txt"], id="nothing came back: all are missing"
        ),
        pytest.param(
            [RIGHT[0], ("r1", "run-1", {"words": 4})],
            ["1 of 2 results is wrong: b.txt"],
            id="one has another count",
        ),
        pytest.param(
            [*RIGHT, ("r2", "run-0", {"words": 2})],
            ["1 of 2 results is there more than once: a.txt"],
            id="one document was counted twice",
        ),
        pytest.param([*RIGHT, RIGHT[0]], [], id="the same message of a result is handed out again"),
    ],
)
def test_demo_ledger_reports_broken_promises(
    results: list[tuple[str, str | None, object]], complaints: list[str]
) -> None:
    assert ledger(*results).complaints() == complaints


@pytest.mark.parametrize("message_id", ["earlier-0", None])
def test_result_of_another_run_is_ignored(message_id: str | None) -> None:
    seen = ledger(("r0", message_id, {"words": 2}))
    assert (seen.done, seen.foreign) == (0, 1)


def test_result_that_is_not_json_is_an_error() -> None:
    seen = ledger(RIGHT[0])
    seen.record("r1", "run-1", b"\xff{")
    assert seen.complaints() == ["1 of 2 results is wrong: b.txt"]


def test_long_demo_report_is_truncated() -> None:
    expected = {f"run-{number}": {} for number in range(5)}
    names = {f"run-{number}": f"{number}.txt" for number in range(5)}
    assert Ledger(expected, names).complaints() == [
        "5 of 5 results are missing: 0.txt, 1.txt, 2.txt and 2 more"
    ]
