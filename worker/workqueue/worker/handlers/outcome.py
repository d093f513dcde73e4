"""The verdict on a message after its handler has ended. Pure; clock and chance are arguments.

A handler that returns has handled the message. Everything else is an exception, also for exec and HTTP
handlers, which raise according to their exit code or status code.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from workqueue.contract.errors import UndecodableError, WorkerError
from workqueue.contract.topology import (
    DEFAULT_MAX_AGE_SECONDS,
    DEFAULT_RETRY_DELAYS,
    LONGEST_DELAY_SECONDS,
    Jitter,
)
from workqueue.message import Reject, Retry

MESSAGE_CHARACTERS: Final = 2_000
TRACEBACK_CHARACTERS: Final = 4_000
"""All headers, with those of the publisher, must fit into one frame (at most 128 KiB)."""


class Outcome(StrEnum):
    """How a delivery ended; the label of `workqueue_worker_messages_total`."""

    ACKED = "acked"
    RETRIED = "retried"
    DEAD_LETTERED = "dead_lettered"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    REQUEUED = "requeued"


class FailureReason(StrEnum):
    """Why a message was retried or given up. The value of its failure header."""

    EXCEPTION = "Exception"
    RETRY_REQUESTED = "RetryRequested"
    REJECTED = "Rejected"
    UNDECODABLE = "Undecodable"
    TIMED_OUT = "TimedOut"
    EXPIRED = "Expired"
    DELIVERY_LIMIT = "DeliveryLimit"
    MAX_AGE = "MaxAge"
    CANCELLED = "Cancelled"


class HandlerTimeout(WorkerError, TimeoutError):  # noqa: N818
    """The handler timed out."""


class HandlerFailed(WorkerError):  # noqa: N818
    """An exec or HTTP handler failed. Retried like any exception."""


class HandlerUnavailable(WorkerError):  # noqa: N818
    """The handler could not be started. This is not an attempt: the worker keeps the message."""


class HandlerRaised(WorkerError):  # noqa: N818
    """A handler in another process has raised an exception, which stays there.

    Args:
        failure: what that process reports of the exception.
        after: the delay that the handler asked for, in seconds.
        counts: whether the attempt counts.
    """

    def __init__(self, failure: Failure, after: float | None, *, counts: bool = True) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.after = after
        self.counts = counts


class RetryPolicy(NamedTuple):
    """How often and after which delays (whole seconds) a message is retried. The last delay repeats.

    Attributes:
        jitter: which of the delays up to that of its attempt a message waits for.
        max_age_seconds: how long after its first attempt a message may get an attempt that does not count.
    """

    max_attempts: int = 5
    delays_seconds: Sequence[int] = DEFAULT_RETRY_DELAYS
    jitter: Jitter = Jitter.NONE
    max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS

    def delay_after(self, attempt: int, chance: float = 0.0) -> int:
        """Return the delay after a failed attempt, in seconds.

        Args:
            attempt: from 1.
            chance: from 0 to 1; for the jitter.
        """
        allowed = self.delays_seconds[:attempt]
        if self.jitter == Jitter.NONE:  # a text in the process of a handler
            return allowed[-1]
        return allowed[min(int(chance * len(allowed)), len(allowed) - 1)]


class Failure(NamedTuple):
    """The values of the failure headers."""

    reason: FailureReason
    message: str
    traceback: str = ""


class Ack:
    """The message was handled."""


class RetryLater(NamedTuple):
    """A copy goes to the delay queues, and returns after `seconds`.

    Attributes:
        counts: whether this delivery counts as an attempt.
    """

    failure: Failure
    seconds: float
    counts: bool = True


class GiveUp(NamedTuple):
    """A copy goes to the dead-letter queue.

    Attributes:
        counts: whether this delivery counts as an attempt. It does not if no handler was called.
    """

    failure: Failure
    counts: bool = True


Verdict: TypeAlias = Ack | RetryLater | GiveUp
ACK: Final = Ack()


def refusal(deliveries_failed: int, delivery_limit: int | None, expires_in: float | None) -> GiveUp | None:
    """Return GiveUp if the message must not reach its handler, or None.

    RabbitMQ does not enforce these limits exactly: its own delivery limit is higher, to allow for wake-ups,
    and it removes the TTL of a message that returns from a delay queue.

    Args:
        deliveries_failed: how often the message came back without an answer.
        delivery_limit: how often it may; None for no limit.
        expires_in: seconds until the message's own TTL passes; None without one.
    """
    if delivery_limit is not None and deliveries_failed > delivery_limit:
        return GiveUp(
            Failure(
                FailureReason.DELIVERY_LIMIT,
                f"the message came back {deliveries_failed} times without an answer; "
                f"the delivery limit is {delivery_limit}",
            ),
            counts=False,
        )
    if expires_in is not None and expires_in <= 0:
        return GiveUp(
            Failure(FailureReason.EXPIRED, "the message's TTL passed while it waited for this attempt"),
            counts=False,
        )
    return None


def cancelled(*, was_running: bool) -> GiveUp:
    """Return the verdict on a message that was cancelled by its id.

    Args:
        was_running: whether a handler was called. Otherwise this is no attempt.
    """
    when = "while its handler ran" if was_running else "before its handler was called"
    return GiveUp(Failure(FailureReason.CANCELLED, f"the message was cancelled {when}"), counts=was_running)


def verdict(
    error: BaseException | None,
    attempt: int,
    policy: RetryPolicy,
    chance: float,
    expires_in: float | None = None,
    age: float = 0.0,
) -> Verdict:
    """Return what to do with the message.

    Args:
        error: the handler's exception; None if it returned.
        attempt: the number of the attempt that has ended.
        chance: from 0 to 1; for the jitter.
        expires_in: seconds until the message's own TTL passes; None without one.
        age: seconds since the message's first attempt began.
    """
    if error is None:
        return ACK
    failure = failure_of(error)
    final = failure.reason in {FailureReason.REJECTED, FailureReason.UNDECODABLE}
    counts = bool(error.counts) if isinstance(error, (Retry, HandlerRaised)) else True
    if final or (counts and attempt >= policy.max_attempts):
        return GiveUp(failure)
    asked = asked_delay(error) if isinstance(error, (Retry, HandlerRaised)) else None
    if asked is not None and math.isfinite(asked) and asked >= 0:
        seconds = min(asked, LONGEST_DELAY_SECONDS)
    else:
        seconds = policy.delay_after(attempt, chance)
    if expires_in is not None and seconds >= expires_in:
        expired = f"the message's TTL passes before the next attempt; the last one failed: {failure.message}"
        return GiveUp(Failure(FailureReason.EXPIRED, _head(expired), failure.traceback), counts)
    if not counts and age + seconds > policy.max_age_seconds:
        too_old = (
            f"the next attempt would begin more than {policy.max_age_seconds:g} s after the first one; "
            f"the last one failed: {failure.message}"
        )
        return GiveUp(Failure(FailureReason.MAX_AGE, _head(too_old), failure.traceback), counts)
    return RetryLater(failure, seconds, counts)


def asked_delay(error: Retry | HandlerRaised) -> float | None:
    """Return the delay that a handler asked for, in seconds. A class of the user may have set anything."""
    after: object = error.after
    if not isinstance(after, (int, float)):
        return None
    try:
        return float(after)
    except OverflowError:  # such as 2 ** 2000
        return float(LONGEST_DELAY_SECONDS) if after > 0 else None


def failure_of(error: BaseException) -> Failure:
    """Return the failure headers for an exception."""
    if isinstance(error, HandlerRaised):
        return error.failure
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
        # The outermost frames are ours. The useful ones are at the end.
        text = _traceback_of(error)
        said = f"{type(error).__name__}: {_text_of(error)}".removesuffix(": ")
        return Failure(reason, _head(said), text[-TRACEBACK_CHARACTERS:])
    return Failure(reason, _head(_text_of(error)))


def _traceback_of(error: BaseException) -> str:
    """Return the traceback. An exception's attributes may be anything, which must not be another failure."""
    try:
        return _encodable("".join(traceback.format_exception(error, limit=-20)))
    except Exception as failure:  # noqa: BLE001
        return f"<the traceback cannot be formatted: {type(failure).__name__}>"


def _text_of(error: BaseException) -> str:
    """Return an exception's text. The user's `__str__` may raise, which must not be another failure."""
    try:
        return _encodable(str(error))
    except BaseException as failure:  # noqa: BLE001
        return f"<its text cannot be read: {type(failure).__name__}>"


def _encodable(text: str) -> str:
    """Return text that a header can hold. The name of a file may have bytes that are no text."""
    return text.encode(errors="backslashreplace").decode()


def _head(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."
