"""Frames between a worker and its handler's processes: what arrives is what was sent."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pika import BasicProperties
from pika.compat import long

from workqueue import Message, Reject, Retry
from workqueue.worker.executors import frames
from workqueue.worker.executors.frames import HEAD, Kind, ProtocolError
from workqueue.worker.handlers.outcome import FailureReason

EVERY_TYPE: dict[str, Any] = {
    "text": "ü",
    "bytes": b"\xff",
    "number": 7,
    "long": long(2**40),
    "float": 0.5,
    "yes": True,
    "nothing": None,
    "time": datetime(2026, 11, 26, tzinfo=UTC),
    "decimal": Decimal("1.5"),
    "list": [1, [b"x", Decimal(2)]],
    "table": {"inside": {"time": datetime(2026, 1, 1, tzinfo=UTC)}},
}


def sent(body: bytes = b"", **properties: Any) -> Message:
    """The message that a process gets."""
    raw = BasicProperties(**properties)
    message = Message(
        body,
        headers=raw.headers,
        properties=raw,
        queue="jobs",
        exchange="images",
        routing_key="key",
        redelivered=True,
        deadline=12.5,
    )
    frame = frames.pack_message(3, message, raw)
    kind, token, size, body_size = HEAD.unpack_from(frame)
    assert (kind, token, size, body_size) == (Kind.MESSAGE, 3, len(frame) - HEAD.size, len(body))
    return frames.unpack_message(frame[HEAD.size :], body)


def test_every_type_of_header_survives() -> None:
    got = sent(headers=EVERY_TYPE)

    assert dict(got.headers) == EVERY_TYPE
    assert type(got.headers["yes"]) is bool


def test_message_keeps_its_properties_and_place() -> None:
    got = sent(b"body", message_id="m-1", correlation_id="c-1", priority=3, timestamp=1_700_000_000)

    assert (got.body, got.queue, got.exchange, got.routing_key) == (b"body", "jobs", "images", "key")
    assert (got.redelivered, got.deadline, got.attempt) == (True, 12.5, 1)
    assert (got.properties.message_id, got.properties.correlation_id) == ("m-1", "c-1")
    assert (got.properties.priority, got.properties.timestamp) == (3, 1_700_000_000)


def test_attempt_and_original_properties_of_a_retry_survive() -> None:
    got = sent(headers={"x-workqueue-attempt": 2, "tenant": "blue"})

    assert got.attempt == 3
    assert got.headers["tenant"] == "blue"


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


OUTCOMES: dict[str, tuple[BaseException, FailureReason, str, float | None]] = {
    "uncounted-retry": (Retry(after=7, counts=False), FailureReason.RETRY_REQUESTED, "asked", 7.0),
    "exception": (ValueError("no"), FailureReason.EXCEPTION, "ValueError: no", None),
    "exit": (SystemExit(3), FailureReason.EXCEPTION, "SystemExit: 3", None),
    "retry": (Retry(after=7, reason="busy"), FailureReason.RETRY_REQUESTED, "busy", 7.0),
    "reject": (Reject("bad"), FailureReason.REJECTED, "bad", None),
    "unreadable": (UnreadableError(), FailureReason.EXCEPTION, "UnreadableError: <its text", None),
}


@pytest.mark.parametrize(("error", "reason", "text", "after"), OUTCOMES.values(), ids=OUTCOMES)
def test_outcome_survives_as_text(
    error: BaseException, reason: FailureReason, text: str, after: float | None
) -> None:
    [frame] = frames.unpack(bytearray(frames.pack_outcome(5, error)))

    got = frames.unpack_outcome(frame.fields)

    assert (frame.kind, frame.token) == (Kind.FAILED, 5)
    assert (got.failure.reason, got.after) == (reason, after)
    assert got.counts == getattr(error, "counts", True)
    assert text in got.failure.message


def test_frames_are_read_whatever_the_pieces() -> None:
    data = frames.pack_outcome(1, None) + frames.pack_outcome(2, ValueError("no")) + frames.pack(Kind.PONG)
    buffer, found = bytearray(), []
    for number in range(len(data)):
        buffer += data[number : number + 1]
        found += frames.unpack(buffer)

    assert [(frame.kind, frame.token) for frame in found] == [
        (Kind.DONE, 1),
        (Kind.FAILED, 2),
        (Kind.PONG, 0),
    ]
    assert not buffer


MALFORMED = {
    "another program's output": b"Traceback (most recent call last):",
    "a message from a process": HEAD.pack(Kind.MESSAGE, 1, 0, 0),
    "too long": HEAD.pack(Kind.FAILED, 1, 2**30, 0),
    "with a body": HEAD.pack(Kind.DONE, 1, 0, 5),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.unpack(bytearray(data))


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        json.dumps({"reason": "Nothing", "message": "", "traceback": "", "after": None}).encode(),
    ],
)
def test_malformed_outcome_is_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.unpack_outcome(content)


def test_process_of_a_handler_is_light() -> None:
    heavy = "{'pika', 'asyncio', 'subprocess', 'prometheus_client', 'tempfile', 'http'}"
    script = f"import sys, workqueue.worker.child.__main__; print(sorted({heavy} & set(sys.modules)))"

    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert said.strip() == "[]"
