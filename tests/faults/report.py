"""The rows of the fault matrix: one for each time that a fault was injected.

With FAULTS_REPORT in the environment each row becomes a line of JSON in that file; `python -m hack.bench.faults`
makes the table of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.support.ledger import Ledger

VARIABLE: Final = "FAULTS_REPORT"


@dataclass(frozen=True)
class Row:
    """One injection of a fault.

    Attributes:
        fault: what was done, in the same words each time: it is the first column of the table.
        rabbitmq: the version that the messages were in, such as `4.0.5`; empty: no message was concerned.
        sent: messages that were confirmed to the publisher.
        lost: confirmed messages that are nowhere.
        duplicates: how often messages ended more than once, explained or not.
        unexplained: messages that ended more than once without a cause, or that the test never sent.
        seconds: from the end of the fault until everything was as it should be; None: there was nothing to
            converge to.
        measured: what else was measured, by what is counted. The table has the highest of each.
        date: of the injection, in UTC.
    """

    fault: str
    rabbitmq: str
    sent: int
    lost: int
    duplicates: int
    unexplained: int
    seconds: float | None
    measured: Mapping[str, float] = field(default_factory=dict)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d}")


class Report:
    """Takes the rows of one test session."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def row(
        self,
        fault: str,
        rabbitmq: str,
        sent: int,
        lost: int,
        duplicates: int,
        unexplained: int,
        seconds: float | None,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """Write a row down, then hold it to what is promised.

        Raises:
            AssertionError: a message is lost, or a duplicate has no cause.
        """
        row = Row(fault, rabbitmq, sent, lost, duplicates, unexplained, seconds, measured or {})
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        assert lost == 0, f"{fault} (RabbitMQ {rabbitmq}): {lost} of {sent} confirmed messages are lost"
        assert unexplained == 0, (
            f"{fault} (RabbitMQ {rabbitmq}): {unexplained} messages ended twice without a cause, or were never sent"
        )

    def ledger(
        self,
        fault: str,
        rabbitmq: str,
        ledger: Ledger,
        seconds: float | None,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """Write down what a ledger says; the messages that do not balance are named.

        Raises:
            AssertionError: it does not balance.
        """
        problems = ledger.problems()
        try:
            self.row(
                fault,
                rabbitmq,
                len(ledger.confirmed),
                len(ledger.lost),
                sum(ledger.duplicates.values()),
                len(ledger.unexplained),
                seconds,
                measured,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}: {'; '.join(problems)}") from None


def from_environment() -> Report:
    """The report that FAULTS_REPORT names, or one that writes nothing down."""
    named = os.environ.get(VARIABLE)
    return Report(Path(named) if named else None)
