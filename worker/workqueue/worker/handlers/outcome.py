"""What the end of a handler means for its message.

Place in the flow: `runtime` asks `verdict` when a handler has ended, `settlement` carries it out. Pure; the
clock and chance are arguments. A handler that returns is done; everything else is an exception, also for
exec and http handlers, which raise what their exit code or status code means.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from workqueue.contract.errors import UndecodableError, WorkerError
from workqueue.contract.topology import delay_step
from workqueue.message import Reject, Retry

MESSAGE_CHARACTERS: Final = 2_000
TRACEBACK_CHARACTERS: Final = 4_000
"""Headers travel in one frame (128 KiB at most) together with those of the publisher."""


class Outcome(StrEnum):
    """How a delivery ended; the label of `workqueue_worker_messages_total`."""

    ACKED = "acked"
    RETRIED = "retried"
    DEAD_LETTERED = "dead_lettered"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    REQUEUED = "requeued"


class FailureReason(StrEnum):
    """Why a message was retried or given up; stands in its failure header."""

    EXCEPTION = "Exception"
    RETRY_REQUESTED = "RetryRequested"
    REJECTED = "Rejected"
    UNDECODABLE = "Undecodable"
    TIMED_OUT = "TimedOut"
    EXPIRED = "Expired"
    DELIVERY_LIMIT = "DeliveryLimit"


class HandlerTimeout(WorkerError):  # noqa: N818
    """The handler ran past its time."""


class HandlerFailed(WorkerError):  # noqa: N818
    """An exec or http handler failed; the text says how. Retried like any exception."""


class HandlerUnavailable(WorkerError):  # noqa: N818
    """Nothing was started for the message; the text says why. It costs no attempt: the worker keeps the message."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after which delays (whole seconds) a message is tried again; the last one repeats."""

    max_attempts: int = 5
    delays_seconds: Sequence[int] = (1, 10, 60)

    def delay_after(self, attempt: int) -> int:
        """The delay after the failed attempt of this number (1 for the first)."""
        return self.delays_seconds[min(attempt, len(self.delays_seconds)) - 1]


@dataclass(frozen=True, slots=True)
class Failure:
    """What goes into the headers."""

    reason: FailureReason
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """The message is done."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """A copy goes to the delay queue of `queue_seconds`, and comes back after `seconds` at the earliest."""

    failure: Failure
    queue_seconds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A copy goes to the dead-letter queue.

    Attributes:
        handled: whether a handler was called for this delivery.
    """

    failure: Failure
    handled: bool = True


Verdict: TypeAlias = Ack | RetryLater | GiveUp
ACK: Final = Ack()


def refusal(deliveries_failed: int, delivery_limit: int | None, expires_in: float | None) -> GiveUp | None:
    """Decide before the handler is called: give the message up, or None to handle it.

    RabbitMQ enforces neither exactly: its own delivery limit is higher, to allow for wake-ups, and it takes the
    TTL off a message that returns from a delay queue.

    Args:
        deliveries_failed: how often the message came back because its worker died.
        delivery_limit: how often it may; None for no limit.
        expires_in: seconds until the message's own TTL passes; None without one.
    """
    if delivery_limit is not None and deliveries_failed > delivery_limit:
        return GiveUp(
            Failure(
                FailureReason.DELIVERY_LIMIT,
                f"the message came back {deliveries_failed} times because its worker ended without an answer; "
                f"the delivery limit is {delivery_limit}",
            ),
            handled=False,
        )
    if expires_in is not None and expires_in <= 0:
        return GiveUp(
            Failure(FailureReason.EXPIRED, "the message's TTL passed while it waited for this attempt"),
            handled=False,
        )
    return None


def verdict(
    error: BaseException | None,
    attempt: int,
    policy: RetryPolicy,
    chance: float,
    expires_in: float | None = None,
) -> Verdict:
    """What to do with the message.

    Args:
        error: what the handler raised; None when it returned.
        attempt: the number of the attempt that has just ended.
        chance: from 0 to 1, spreads the retries of messages that failed together.
        expires_in: seconds until the message's own TTL passes; None without one.
    """
    if error is None:
        return ACK
    failure = failure_of(error)
    final = failure.reason in {FailureReason.REJECTED, FailureReason.UNDECODABLE}
    if final or attempt >= policy.max_attempts:
        return GiveUp(failure)
    asked = error.after if isinstance(error, Retry) else None
    if asked is not None and math.isfinite(asked) and asked >= 0:
        queue_seconds = delay_step(asked)
        seconds = min(max(asked, 0.001), queue_seconds)
    else:
        queue_seconds = policy.delay_after(attempt)
        seconds = queue_seconds * (1 - 0.1 * chance)
    if expires_in is not None and seconds >= expires_in:
        expired = f"the message's TTL passes before the next attempt; the last one failed: {failure.message}"
        return GiveUp(Failure(FailureReason.EXPIRED, _head(expired), failure.traceback))
    return RetryLater(failure, queue_seconds, seconds)


def failure_of(error: BaseException) -> Failure:
    """Describe an exception for the headers."""
    reason = FailureReason.EXCEPTION
    for kind, known in (
        (Retry, FailureReason.RETRY_REQUESTED),
        (Reject, FailureReason.REJECTED),
        (UndecodableError, FailureReason.UNDECODABLE),
        (HandlerTimeout, FailureReason.TIMED_OUT),
    ):
        if isinstance(error, kind):
            reason = known
    if reason is FailureReason.EXCEPTION and not isinstance(error, HandlerFailed):
        # Ours is the outermost frame; what a person looks for is at the end.
        text = "".join(traceback.format_exception(error, limit=-20))
        return Failure(
            reason, _head(f"{type(error).__name__}: {error}".removesuffix(": ")), text[-TRACEBACK_CHARACTERS:]
        )
    return Failure(reason, _head(str(error)))


def _head(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."
