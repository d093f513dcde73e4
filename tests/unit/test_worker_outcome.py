"""The verdict after a handler has ended: delay, reason and failure headers."""

from __future__ import annotations

import math
import os

import pytest

from workqueue import Reject, Retry
from workqueue.contract.errors import UndecodableError
from workqueue.contract.topology import LONGEST_DELAY_SECONDS, Jitter
from workqueue.worker.executors import frames
from workqueue.worker.handlers.outcome import (
    ACK,
    MESSAGE_CHARACTERS,
    TRACEBACK_CHARACTERS,
    FailureReason,
    GiveUp,
    HandlerFailed,
    HandlerTimeout,
    RetryLater,
    RetryPolicy,
    failure_of,
    refusal,
    verdict,
)

POLICY = RetryPolicy(3, (1, 10))

CASES = {
    "returning is done": (None, 1, ACK),
    "an exception is tried again after the first delay": (ValueError("x"), 1, 1),
    "the second failure waits for the second delay": (ValueError("x"), 2, 10),
    "the last attempt gives up": (ValueError("x"), 3, FailureReason.EXCEPTION),
    "a message that came with more attempts than allowed gives up": (
        ValueError("x"),
        9,
        FailureReason.EXCEPTION,
    ),
    "a rejection gives up at once": (Reject("no"), 1, FailureReason.REJECTED),
    "an undecodable body gives up at once": (UndecodableError("no"), 1, FailureReason.UNDECODABLE),
    "a timeout is tried again": (HandlerTimeout("late"), 1, 1),
    "a failed command is tried again": (HandlerFailed("exit code 1"), 1, 1),
    "a retry without a delay has the queue's own": (Retry(), 2, 10),
    "a retry asks for its delay": (Retry(after=37.5), 1, 37.5),
    "a retry at once": (Retry(after=0), 1, 0),
    "a retry cannot ask for more attempts": (Retry(after=5), 3, FailureReason.RETRY_REQUESTED),
    "a negative delay counts as none": (Retry(after=-1), 1, 1),
    "a delay that is no number counts as none": (Retry(after=math.nan), 1, 1),
    "an endless delay counts as none": (Retry(after=math.inf), 1, 1),
    "no delay is longer than 30 days": (Retry(after=10_000_000), 1, LONGEST_DELAY_SECONDS),
    "a retry that does not count has its delay": (Retry(after=5, counts=False), 1, 5),
    "a retry that does not count follows the last attempt": (Retry(after=5, counts=False), 3, 5),
    "a retry that does not count has the delay of its attempt": (Retry(counts=False), 2, 10),
}


@pytest.mark.parametrize(("error", "attempt", "expected"), CASES.values(), ids=CASES)
def test_verdict_on_each_end_of_a_handler(
    error: BaseException | None, attempt: int, expected: object
) -> None:
    found = verdict(error, attempt, POLICY, 0.0)
    match found:
        case RetryLater(seconds=seconds):
            assert seconds == expected
        case GiveUp(failure=failure):
            assert failure.reason == expected
        case _:
            assert found is expected


@pytest.mark.parametrize("expires_in", [1.0, 0.0, -3.0])
def test_message_expiring_before_next_attempt_is_dead_lettered_as_expired(expires_in: float) -> None:
    found = verdict(ValueError("disk full"), 1, POLICY, 0.0, expires_in)

    assert isinstance(found, GiveUp)
    assert found.failure.reason is FailureReason.EXPIRED
    assert "disk full" in found.failure.message
    assert "ValueError" in found.failure.traceback


@pytest.mark.parametrize("expires_in", [None, 1.001, math.inf])
def test_message_with_ttl_longer_than_delay_is_retried(expires_in: float | None) -> None:
    assert isinstance(verdict(ValueError(), 1, POLICY, 0.0, expires_in), RetryLater)


def test_expiry_does_not_hide_another_reason() -> None:
    found = verdict(Reject("no"), 1, POLICY, 0.0, -1.0)

    assert isinstance(found, GiveUp)
    assert found.failure.reason is FailureReason.REJECTED


@pytest.mark.parametrize("counts", [True, False], ids=["counted", "uncounted"])
def test_only_uncounted_retries_end_at_the_maximum_age(counts: bool) -> None:
    policy = RetryPolicy(3, (1, 10), max_age_seconds=60)

    before = verdict(Retry(after=5, counts=counts), 1, policy, 0.0, age=55)
    after = verdict(Retry(after=5, counts=counts), 1, policy, 0.0, age=55.1)

    assert isinstance(before, RetryLater)
    assert before.counts is counts
    assert isinstance(after, RetryLater) == counts


def test_too_old_message_says_its_limit_and_last_failure() -> None:
    found = verdict(Retry(after=5, reason="quota used up", counts=False), 1, RetryPolicy(), 0.0, age=86_400)

    assert isinstance(found, GiveUp)
    assert found.failure.reason is FailureReason.MAX_AGE
    assert found.failure.message == (
        "the next attempt would begin more than 86400 s after the first one; the last one failed: quota used up"
    )
    assert not found.counts


REFUSALS = {
    "first-delivery": (0, 1, None, None),
    "as-often-as-the-limit": (1, 1, None, None),
    "once-more-than-the-limit": (2, 1, None, FailureReason.DELIVERY_LIMIT),
    "no-limit": (100, None, None, None),
    "ttl-still-running": (0, 1, 0.1, None),
    "ttl-passed": (0, 1, 0.0, FailureReason.EXPIRED),
}


@pytest.mark.parametrize(("failed", "limit", "expires_in", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_delivery_is_refused_before_its_handler_is_called(
    failed: int, limit: int | None, expires_in: float | None, reason: FailureReason | None
) -> None:
    found = refusal(failed, limit, expires_in)

    assert (found and found.failure.reason) == reason
    assert found is None or not found.counts


def test_delivery_limit_says_what_is_known() -> None:
    """RabbitMQ's count does not tell whether the worker died, lost its connection or requeued the message."""
    found = refusal(3, 2, None)

    assert found is not None
    assert found.failure.message == "the message came back 3 times without an answer; the delivery limit is 2"


@pytest.mark.parametrize(
    ("attempt", "found"),
    [(1, {1}), (2, {1, 2}), (3, {1, 2, 4}), (9, {1, 2, 4})],
    ids=["first", "second", "third", "later"],
)
def test_full_jitter_picks_among_the_delays_up_to_that_of_the_attempt(attempt: int, found: set[int]) -> None:
    policy = RetryPolicy(10, (1, 2, 4), Jitter.FULL)

    picked = {policy.delay_after(attempt, chance / 100) for chance in range(101)}

    assert picked == found


def test_long_failure_texts_are_cut() -> None:
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError("x" * 100_000)

    with pytest.raises(ValueError, match="x") as caught:
        deep(50)
    failure = failure_of(caught.value)
    assert len(failure.message) <= MESSAGE_CHARACTERS + 3
    assert len(failure.traceback) <= TRACEBACK_CHARACTERS


class Throttled(Retry):
    """A retry of a user, who does not call `super().__init__`."""

    def __init__(self, after: object = None) -> None:
        if after is not None:
            self.after = after  # type: ignore[assignment]


class ParserError(SyntaxError):
    """An exception whose attributes are not what Python expects."""

    def __init__(self) -> None:
        super().__init__("no such word")
        self.lineno = self.offset = self.end_offset = "seven"  # type: ignore[assignment]
        self.text = "a line"


ODD: dict[str, tuple[BaseException, float]] = {
    "retry-without-super": (Throttled(), 1),
    "retry-with-a-delay-that-is-text": (Throttled("5"), 1),
    "retry-after-more-than-a-float-holds": (Retry(after=2**2000), LONGEST_DELAY_SECONDS),
    "retry-after-less-than-a-float-holds": (Retry(after=-(2**2000)), 1),
    "exception-with-odd-attributes": (ParserError(), 1),
    "group-of-exits": (BaseExceptionGroup("", [SystemExit(1)]), 1),
}


@pytest.mark.parametrize(("error", "seconds"), ODD.values(), ids=ODD)
def test_odd_exception_is_a_failed_attempt_like_any_other(error: BaseException, seconds: float) -> None:
    decided = verdict(error, 1, POLICY, 0.0)
    assert isinstance(decided, RetryLater)
    assert decided.seconds == seconds

    (frame,) = frames.unpack(bytearray(frames.pack_outcome(7, error)))
    from_process = verdict(frames.unpack_outcome(frame.fields), 1, POLICY, 0.0)
    assert isinstance(from_process, RetryLater)
    assert from_process.seconds == seconds


def test_failure_text_can_always_be_a_header() -> None:
    failure = failure_of(ValueError(f"no such file: {os.fsdecode(bytes([255]))}"))

    assert failure.message == "ValueError: no such file: \\udcff"
    assert failure.traceback.encode()


def test_retry_and_reject_have_no_traceback() -> None:
    assert failure_of(Reject("no image")).traceback == ""
    assert failure_of(Retry()).message == "the handler asked for a retry"
    assert failure_of(KeyError("a")).message == "KeyError: 'a'"
    assert failure_of(ValueError()).message == "ValueError"
