"""Cancelled messages: what is written about one, and which messages it concerns.

Times are in Unix milliseconds, by the clock of the program that cancels or replays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from workqueue.contract import headers
from workqueue.contract.properties import Headers

MOST: Final = 10_000
"""The newest cancels of a work queue that a worker remembers."""

LONGEST_ID_BYTES: Final = 255
"""AMQP's limit for a message id."""

_LATEST: Final = 2**53
"""A time must fit into a header of AMQP."""

CLOCK_SECONDS: Final = 60
"""A timestamp that is further in the future is no time, but perhaps a number of milliseconds."""


class Cancel(NamedTuple):
    """The request that no handler finishes a message.

    Attributes:
        at: when the message was cancelled.
        discard: whether to drop the message instead of moving it to the dead-letter queue.
    """

    message_id: str
    at: int
    discard: bool = False

    def encode(self) -> bytes:
        """Return the body of the AMQP message."""
        return json.dumps({"id": self.message_id, "at": self.at, "discard": self.discard}).encode()

    @classmethod
    def decode(cls, body: bytes) -> Cancel | None:
        """Read a body; None if another program has written it."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict):
            return None
        message_id, at = found.get("id"), found.get("at")
        if not isinstance(message_id, str) or len(message_id) > LONGEST_ID_BYTES:
            return None
        if not isinstance(at, int) or not 0 <= at <= _LATEST:
            return None
        return cls(message_id, at, found.get("discard") is True)

    def concerns(self, timestamp: object, found: Headers, now: float) -> bool:
        """Whether a message with this id is meant, and not one that was published or replayed later.

        Args:
            timestamp: of the message, in whole Unix seconds.
            found: its headers.
            now: Unix seconds.
        """
        until = found.get(headers.CANCELS_UNTIL)
        if isinstance(until, int) and self.at <= until:
            return False
        if isinstance(timestamp, int) and timestamp <= now + CLOCK_SECONDS:
            return timestamp <= self.at // 1000
        return True


class KnownCancels:
    """The newest cancels of a work queue, bounded in number and time.

    Args:
        most: how many.
        keep_seconds: for how long.
    """

    def __init__(self, most: int, keep_seconds: int) -> None:
        self._most = most
        self._keep_milliseconds = keep_seconds * 1000
        self._by_id: dict[str, Cancel] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, cancel: Cancel) -> bool:
        """Remember a cancel; return whether it was new."""
        known = self._by_id.get(cancel.message_id)
        if known is not None and known.at >= cancel.at:
            return False
        self._put_last(cancel)
        if len(self._by_id) > self._most:
            while (first := next(iter(self._by_id.values()))).at > cancel.at:
                # It was heard while the earlier ones are still being read.
                self._put_last(first)
            del self._by_id[first.message_id]
        return True

    def _put_last(self, cancel: Cancel) -> None:
        # Removed first, since a dictionary keeps the place of a key.
        self._by_id.pop(cancel.message_id, None)
        self._by_id[cancel.message_id] = cancel

    def find(self, properties: Any, now: float) -> Cancel | None:
        """Return the cancel of a message, or None.

        Args:
            properties: its AMQP properties with its headers, as pika has read them.
            now: Unix seconds.
        """
        if not self._by_id:  # most workers never know one
            return None
        cancel = self._by_id.get(properties.message_id)
        if cancel is None:
            return None
        if cancel.at < now * 1000 - self._keep_milliseconds:
            del self._by_id[cancel.message_id]
            return None
        found: Mapping[str, Any] = properties.headers or {}
        return cancel if cancel.concerns(properties.timestamp, found, now) else None
