"""The ledger outside the system: lost, duplicate and explained messages; and the table of the fault matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hack.bench import faults
from tests.faults.report import Report
from tests.support.ledger import Ledger, dead_letter
from workqueue.contract import headers


def event(number: int, kind: str, attempt: int = 1, *, redelivered: bool = False) -> dict[str, object]:
    return {"id": number, "event": kind, "attempt": attempt, "redelivered": redelivered}


def ledger(*events: dict[str, object], confirmed: int = 2) -> Ledger:
    made = Ledger()
    for number in range(confirmed):
        made.sent(number)
    made.read_events(events)
    return made


BOTH_DONE = (event(0, "done"), event(1, "done"))


@pytest.mark.parametrize(
    ("made", "lost", "unexplained"),
    [
        pytest.param(ledger(*BOTH_DONE), set(), set(), id="all done"),
        pytest.param(ledger(event(0, "done")), {1}, set(), id="one is nowhere"),
        pytest.param(ledger(event(0, "start"), event(1, "end")), {0}, set(), id="begun is not done"),
        pytest.param(ledger(*BOTH_DONE, event(1, "done")), set(), {1}, id="twice without a cause"),
        pytest.param(
            ledger(*BOTH_DONE, event(1, "done", redelivered=True)), set(), set(), id="delivered again"
        ),
        pytest.param(
            ledger(*BOTH_DONE, event(1, "start", 2), event(1, "start", 2), event(1, "end", 2)),
            set(),
            set(),
            id="a retry had two copies",
        ),
        pytest.param(ledger(*BOTH_DONE, event(7, "done")), set(), {7}, id="never-sent"),
    ],
)
def test_ledger_finds_lost_and_unexplained_messages(
    made: Ledger, lost: set[int], unexplained: set[int]
) -> None:
    assert (made.lost, made.unexplained) == (lost, unexplained)
    assert bool(made.problems()) == bool(lost or unexplained)


def test_dead_and_waiting_messages_are_not_lost_and_unconfirmed_may_be() -> None:
    made = ledger()
    made.read_dead([{"id": 0}])
    made.read_waiting([{"id": 1}])
    made.sent(2, TimeoutError())
    assert not made.problems()


def test_duplicate_dead_letters_of_one_failure_are_explained() -> None:
    def given_up(attempt: int) -> dict[str, Any]:
        return dead_letter(b'{"id": 0}', {headers.ATTEMPT: attempt, headers.WORKER: "one"})

    made = ledger()
    made.read_dead([given_up(3), given_up(3)])
    assert (made.duplicates, made.unexplained) == ({0: 1}, set())
    other = ledger()
    other.read_dead([given_up(2), given_up(3)])
    assert other.unexplained == {0}
    bare = ledger()
    bare.read_dead([dead_letter(b'{"id": 0}', None)] * 2)
    assert bare.unexplained == {0}


@pytest.mark.parametrize(("seconds", "unexplained"), [((4, 9), set()), ((4, 4), {0})], ids=["twice", "once"])
def test_delayed_message_that_rabbitmq_moved_twice_is_explained(
    seconds: tuple[int, int], unexplained: set[int]
) -> None:
    starts = [{**event(0, "start"), "headers": {"x-death": f"moved at {second}"}} for second in seconds]
    made = ledger(*starts, event(0, "end"), event(0, "end"), event(1, "done"))
    assert (made.duplicates, made.unexplained) == ({0: 1}, unexplained)


def test_fault_table_has_a_line_per_fault_and_loss_fails(tmp_path: Path) -> None:
    file = tmp_path / "report"
    report = Report(file)
    report.ledger("cut", "4.0.5", ledger(*BOTH_DONE), 1.0)
    report.ledger("cut", "4.0.5", ledger(*BOTH_DONE), 3.0)
    report.row("said", "", 0, 0, 0, 0, None)
    with pytest.raises(AssertionError, match=r"cut \(RabbitMQ 4.3.6\): 1 of 2 .* are lost: 1 .*: \[1\]"):
        report.ledger("cut", "4.3.6", ledger(event(0, "done")), None)
    *lines, dates = zip(*faults.table(faults.read(file)), strict=True)
    assert list(zip(*lines, strict=True)) == [
        ("cut", "4.0.5", "2", "4", "0", "0", "2.0", "3.0", ""),
        ("cut", "4.3.6", "1", "2", "1", "0", "-", "-", ""),
        ("said", "-", "1", "0", "0", "0", "-", "-", ""),
    ]
    assert len(set(dates)) == 1
