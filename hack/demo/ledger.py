"""Compare results with the expected ones. Each document needs exactly one result, with the right counts.

The thread that consumes the results writes the ledger, and other threads read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

Result: TypeAlias = Mapping[str, Any]

_MOST_NAMES: Final = 3


class Ledger:
    """The results of one run.

    Args:
        expected: the right result of each document, by the id of its message.
        names: the name of each document, by the id of its message.
    """

    def __init__(self, expected: Mapping[str, Result], names: Mapping[str, str]) -> None:
        self._expected = expected
        self._names = names
        self._wrong: list[str] = []
        self._repeated: list[str] = []
        self._taken: set[str] = set()
        self.seen_at: dict[str, float] = {}
        """When the first result of a message came, by message id, on the clock of `time.monotonic()`."""
        self.foreign = 0
        """The number of results from another run, such as an interrupted one."""

    @property
    def total(self) -> int:
        """Return the number of expected results."""
        return len(self._expected)

    @property
    def done(self) -> int:
        """Return the number of documents with a result."""
        return len(self.seen_at)

    def record(self, result_id: str, message_id: str | None, body: bytes) -> None:
        """Record one result.

        Args:
            result_id: the id of the result's own message. RabbitMQ redelivers it after a lost connection.
            message_id: the id of the document's message.
        """
        if result_id in self._taken:
            return
        self._taken.add(result_id)
        if message_id is None or message_id not in self._expected:
            self.foreign += 1
            return
        if message_id in self.seen_at:
            self._repeated.append(message_id)
            return
        if not _is(body, self._expected[message_id]):
            self._wrong.append(message_id)
        self.seen_at[message_id] = time.monotonic()

    def complaints(self) -> list[str]:
        """Return one clause for each kind of wrong result. The list is empty if all results are right."""
        missing = [message_id for message_id in self._expected if message_id not in self.seen_at]
        found = ((missing, "missing"), (self._wrong, "wrong"), (self._repeated, "there more than once"))
        return [self._clause(ids, what) for ids, what in found if ids]

    def _clause(self, ids: list[str], what: str) -> str:
        names = ", ".join(self._names[message_id] for message_id in ids[:_MOST_NAMES])
        rest = f" and {len(ids) - _MOST_NAMES} more" if len(ids) > _MOST_NAMES else ""
        return f"{len(ids)} of {self.total} results {'is' if len(ids) == 1 else 'are'} {what}: {names}{rest}"


def _is(body: bytes, expected: Result) -> bool:
    try:
        return bool(json.loads(body) == expected)
    except ValueError:
        return False
