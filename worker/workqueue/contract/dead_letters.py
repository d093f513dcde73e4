"""Dead letters: why and when a message was given up, after how many attempts, and how it is replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from workqueue.contract import headers
from workqueue.contract.properties import Properties

UNKNOWN: Final = "Unknown"
_BROKERS_REASONS: Final = {
    "delivery_limit": "DeliveryLimit",
    "expired": "Expired",
    "maxlen": "MaxLength",
    "rejected": "Rejected",
}


class ReceivedMessage(Protocol):
    """A message as received from RabbitMQ."""

    @property
    def properties(self) -> Properties:
        """Its AMQP properties, without the headers."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """Its headers."""

    @property
    def body(self) -> bytes:
        """Its body."""


class DeadLetter(NamedTuple):
    """A message in a dead-letter queue.

    Attributes:
        reason: a `FailureReason` of the worker; or RabbitMQ's reason: DeliveryLimit (came back too often without an
            answer), Expired, MaxLength, Rejected; or Unknown.
        message: the handler's error; empty when RabbitMQ gave the message up.
        attempts: how many attempts are known to have ended.
        failed_at: when it was given up; None if the headers do not say.
    """

    message_id: str
    reason: str
    message: str
    traceback: str
    attempts: int
    failed_at: datetime | None
    worker: str
    size: int

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the commands' JSON output."""
        return {
            "id": self.message_id or None,
            "reason": self.reason,
            "message": self.message,
            "attempts": self.attempts,
            "failedAt": self.failed_at,
            "worker": self.worker or None,
            "size": self.size,
        }


def read(received: ReceivedMessage, queue: str) -> DeadLetter:
    """Read the headers of a dead letter of the work queue `queue`."""
    found = received.headers
    # A worker removes `x-death` when it publishes a dead letter. If it is present, RabbitMQ gave the message up last.
    death = _death_in(queue, found)
    if death:
        why = str(death.get("reason"))
        reason = _BROKERS_REASONS.get(why, why)
        message, traceback, failed_at = "", "", _moment(death.get("time"))
    else:
        reason = str(found.get(headers.FAILURE_REASON, UNKNOWN))
        message = str(found.get(headers.FAILURE_MESSAGE, ""))
        traceback = str(found.get(headers.FAILURE_TRACEBACK, ""))
        failed_at = _moment(found.get(headers.FAILED_AT))
    return DeadLetter(
        message_id=received.properties.readable().message_id or "",
        reason=reason,
        message=message,
        traceback=traceback,
        attempts=headers.attempts_made(found),
        failed_at=failed_at,
        worker=str(found.get(headers.WORKER, "")),
        size=len(received.body),
    )


def is_of(received: ReceivedMessage, queue: str) -> bool:
    """Return whether a message in a shared dead-letter queue comes from the work queue `queue`."""
    found = received.headers
    return found.get(headers.QUEUE) == queue or _death_in(queue, found) is not None


@dataclass(frozen=True, slots=True)
class Filter:
    """Criteria for dead letters. A dead letter must meet all of them.

    Attributes:
        reasons: any of these, in lower case; empty for all.
        message_ids: any of these; empty for all.
        failed_before: a dead letter with an unknown time does not meet it.
    """

    reasons: frozenset[str] = frozenset()
    message_ids: frozenset[str] = frozenset()
    failed_before: datetime | None = None

    @property
    def takes_all(self) -> bool:
        """Whether every dead letter meets the criteria."""
        return self == Filter()

    def takes(self, letter: DeadLetter) -> bool:
        """Whether a dead letter meets the criteria."""
        return (
            (not self.reasons or letter.reason.lower() in self.reasons)
            and (not self.message_ids or letter.message_id in self.message_ids)
            and (
                self.failed_before is None
                or (letter.failed_at is not None and letter.failed_at <= self.failed_before)
            )
        )


def replay_properties(
    received: ReceivedMessage, *, keep_attempts: bool, now: float
) -> tuple[Properties, dict[str, Any] | None]:
    """Return properties and headers of the message as its publisher set them, for another run through the work queue.

    No earlier cancel concerns the replay, also if the clock of the program that cancelled is ahead.

    CC, BCC and the user id stay in our headers, where the handler still finds them: CC and BCC would send copies to
    other queues a second time, and RabbitMQ accepts a user id only from that user.

    Args:
        now: Unix seconds.
    """
    properties, kept = headers.preserve(received.properties, received.headers)
    attempts = headers.attempts_made(received.headers)
    kept = {name: value for name, value in kept.items() if name not in headers.OURS}
    expiration = kept.pop(headers.ORIGINAL_EXPIRATION, None)
    if keep_attempts and attempts:
        kept[headers.ATTEMPT] = attempts
    if properties.message_id:
        cancelled_at = received.headers.get(headers.CANCELS_UNTIL)
        kept[headers.CANCELS_UNTIL] = max(
            round(now * 1000), cancelled_at if isinstance(cancelled_at, int) else 0
        )
    return properties._replace(expiration=expiration), kept or None


def _death_in(queue: str, found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    deaths = found.get("x-death")
    if not isinstance(deaths, list):
        return None
    return next(
        (death for death in deaths if isinstance(death, dict) and death.get("queue") == queue),
        None,
    )


def _moment(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        return datetime.fromisoformat(str(value)) if value else None
    except ValueError:
        return None
