"""Sent messages and their outcomes, recorded outside the system under test.

Every message that was confirmed to its publisher must be done, dead-lettered or waiting in a queue. A message
that ended more than once must have a cause: RabbitMQ delivered it again or moved it twice, or a retry had two copies.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from workqueue.contract import headers

Id: TypeAlias = Hashable
"""The identity of a message: the `id` of its JSON body."""

DELIVERED_AGAIN: Final = "delivered again"
COPIED_TWICE: Final = "retried or given up with two copies"
MOVED_TWICE: Final = "moved from a delay queue before RabbitMQ died and again after it"

_FAILURE: Final = (headers.ATTEMPT, headers.FAILED_AT, headers.WORKER)


@dataclass
class Ledger:
    """The fate of every message, by id.

    Attributes:
        confirmed: the broker accepted them; they must not be lost.
        unconfirmed: refused, or without a response; RabbitMQ may or may not have stored them.
        done: how often each was handled to its end.
        dead: how often each is in the dead-letter queue.
        waiting: how often each is in the work queue or a delay queue.
        discarded: the test has asked for their end without a trace; see `docs/cancelling.md`.
        causes: the messages that may have ended more than once, by cause.
    """

    confirmed: set[Id] = field(default_factory=set)
    unconfirmed: set[Id] = field(default_factory=set)
    done: Counter[Id] = field(default_factory=Counter)
    dead: Counter[Id] = field(default_factory=Counter)
    waiting: Counter[Id] = field(default_factory=Counter)
    discarded: set[Id] = field(default_factory=set)
    causes: dict[str, set[Id]] = field(default_factory=lambda: defaultdict(set))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _retried: set[tuple[Id, int]] = field(default_factory=set, repr=False)
    _ways: dict[Id, str | None] = field(default_factory=dict, repr=False)
    _given_up: set[tuple[Id, tuple[Any, ...]]] = field(default_factory=set, repr=False)

    # -- input

    def sent(self, number: Id, error: BaseException | None = None) -> None:
        """Record the result of a publish: confirmed, or the error. Callable from any thread."""
        with self._lock:
            (self.confirmed if error is None else self.unconfirmed).add(number)

    def read_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in what handlers wrote: `Worker.events` of tests/support/worker.py, or `Lab` results.

        An event has `id` and `event` (`start`, `end` or `done`, others are passed over), and perhaps `attempt`,
        `redelivered` and `headers`. RabbitMQ writes into the header `x-death` when it moved a message.
        """
        for event in events:
            number, kind, attempt = event["id"], event["event"], event.get("attempt", 1)
            if kind in {"end", "done"}:
                self.done[number] += 1
            if kind in {"start", "done"}:
                if event.get("redelivered"):
                    self.causes[DELIVERED_AGAIN].add(number)
                elif attempt > 1:
                    if (number, attempt) in self._retried:
                        self.causes[COPIED_TWICE].add(number)
                    self._retried.add((number, attempt))
                elif self._ways.setdefault(number, way := event.get("headers", {}).get("x-death")) != way:
                    self.causes[MOVED_TWICE].add(number)

    def read_dead(self, letters: Iterable[Mapping[str, Any]]) -> None:
        """Take in the dead-letter queue: JSON bodies, or what `dead_letter` makes of each message."""
        for letter in letters:
            number = letter["id"]
            self.dead[number] += 1
            if failure := letter.get("failure"):
                if (number, failure) in self._given_up:
                    self.causes[COPIED_TWICE].add(number)
                self._given_up.add((number, failure))

    def read_waiting(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        """Take in the JSON bodies that are still in the work queue or a delay queue."""
        self.waiting.update(body["id"] for body in bodies)

    # -- results

    @property
    def ends(self) -> Counter[Id]:
        """How often each message is anywhere: done, dead or waiting."""
        return self.done + self.dead + self.waiting

    @property
    def lost(self) -> set[Id]:
        """Confirmed, and nowhere."""
        return self.confirmed - set(self.ends) - self.discarded

    @property
    def duplicates(self) -> dict[Id, int]:
        """Messages that ended more than once, with the number of extra ends."""
        return {number: count - 1 for number, count in self.ends.items() if count > 1}

    @property
    def unexplained(self) -> set[Id]:
        """Messages that ended more than once without a cause, and messages that the test never sent."""
        strangers = set(self.ends) - self.confirmed - self.unconfirmed
        return strangers | (set(self.duplicates) - set().union(*self.causes.values()))

    def problems(self) -> list[str]:
        """All imbalances, in sentences; empty when the ledger balances."""
        found = []
        if self.lost:
            found.append(f"{len(self.lost)} confirmed messages are lost: {_some(self.lost)}")
        if self.unexplained:
            found.append(
                f"{len(self.unexplained)} messages ended twice without cause, or were never sent: "
                f"{_some(self.unexplained)}"
            )
        return found


def dead_letter(body: bytes, found: Mapping[str, Any] | None) -> dict[str, Any]:
    """A message of a dead-letter queue as `Ledger.read_dead` takes it.

    Args:
        found: its headers. Two dead letters about one failure, by the same worker, are copies of one message: the
            confirm of the first did not arrive.
    """
    failure = tuple((found or {}).get(name) for name in _FAILURE)
    return {**json.loads(body), **({"failure": failure} if any(failure) else {})}


def _some(numbers: set[Id]) -> list[Id]:
    return sorted(numbers, key=str)[:10]
