"""What a worker and the processes of its handler send each other. PURE.

A frame is a head of fixed size, then fields, then (for a message) the body. The fields of a message are in marshal's
format: they come from RabbitMQ, have several types, and both sides are the same Python. The fields of an outcome are
JSON, since the user's code may have written them.
"""

from __future__ import annotations

import json
import marshal
import struct
from datetime import datetime
from decimal import Decimal
from enum import IntEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

from workqueue.contract.properties import Properties
from workqueue.message import Message, Retry
from workqueue.worker.handlers.outcome import Failure, FailureReason, HandlerRaised, asked_delay, failure_of

HEAD: Final = struct.Struct("!BIIQ")
"""Kind, token, size of the fields, size of the body. The token identifies a message within one process."""

TOKEN: Final = struct.Struct("!I")
"""On the pipe for cancellations."""

LONGEST_ANSWER: Final = 2**20
"""A process that announces longer fields does not speak this protocol."""

_properties: Final = attrgetter(*Properties._fields)
_PLAIN: Final = frozenset({str, bytes, bool, int, float, type(None)})
_TIME, _DECIMAL = "time", "decimal"


class Kind(IntEnum):
    """The kinds of frames."""

    MESSAGE = 1
    """To the process: handle this message."""
    PING = 2
    """To the process: answer when the asyncio loop turns."""
    LOADED = 3
    """The handler is loaded."""
    UNLOADABLE = 4
    """The handler cannot be loaded."""
    DONE = 5
    """The handler has returned."""
    FAILED = 6
    """The handler has raised."""
    PONG = 7
    """The asyncio loop turns."""


KINDS: Final = {kind.value: kind for kind in Kind}
"""By number. To look one up is faster than to call the class."""

_ANSWERS: Final = {kind: KINDS[kind] for kind in range(Kind.LOADED, Kind.PONG + 1)}


class Frame(NamedTuple):
    """A frame without a body."""

    kind: Kind
    token: int
    fields: bytes


class Settings(NamedTuple):
    """What a process of a handler needs to know.

    Attributes:
        handler: `module:function`.
        retry: the fields of the `RetryPolicy`.
        service: the name of the service in traces.
        metrics_name: names the files of its metrics. No two processes that run at the same time share it.
        socket, answers, cancellations: file descriptors.
    """

    handler: str
    retry: dict[str, Any]
    service: str
    metrics_name: str
    log_format: str | None
    log_level: str
    socket: int
    answers: int
    cancellations: int

    def to_argument(self) -> str:
        """Return them as a command line argument."""
        return json.dumps(self._asdict())

    @classmethod
    def of_argument(cls, text: str) -> Settings:
        """Return the settings of `to_argument`."""
        return cls(**json.loads(text))


class ProtocolError(Exception):
    """The other side sent something that is no frame."""


def pack(kind: Kind, token: int = 0, content: Any = None) -> bytes:
    """Return a frame from a handler's process, with its content as JSON."""
    text = b"" if content is None else json.dumps(content).encode()
    return HEAD.pack(kind, token, len(text), 0) + text


def unpack(buffer: bytearray) -> list[Frame]:
    """Remove the complete frames from the buffer and return them.

    Raises:
        ProtocolError: the buffer has something else.
    """
    found: list[Frame] = []
    start = 0
    while len(buffer) - start >= HEAD.size:
        kind, token, size, body = HEAD.unpack_from(buffer, start)
        if body or size > LONGEST_ANSWER or kind not in _ANSWERS:
            raise ProtocolError(f"no frame: kind {kind}, {size} and {body} bytes")
        end = start + HEAD.size + size
        if len(buffer) < end:
            break
        found.append(Frame(_ANSWERS[kind], token, bytes(buffer[start + HEAD.size : end])))
        start = end
    del buffer[:start]
    return found


# A message -----------------------------------------------------------------------------------------------


def pack_message(token: int, message: Message, raw_properties: Any) -> bytes:
    """Return a frame up to the body, which follows as it is.

    Args:
        raw_properties: as received, with headers.
    """
    headers = raw_properties.headers
    content = marshal.dumps(
        (
            {name: _plain(value) for name, value in headers.items()} if headers else None,
            _properties(raw_properties),
            message.queue,
            message.exchange,
            message.routing_key,
            bool(message.redelivered),
            message.deadline,
        )
    )
    return HEAD.pack(Kind.MESSAGE, token, len(content), len(message.body)) + content


def unpack_message(content: bytes, body: bytes) -> Message:
    """Return the message of a frame. The deadline is on a clock that all processes of a machine share."""
    headers, given, queue, exchange, routing_key, redelivered, deadline = marshal.loads(content)  # noqa: S302
    return Message(
        body,
        headers=None if headers is None else {name: _restored(value) for name, value in headers.items()},
        properties=Properties._make(given),
        queue=queue,
        exchange=exchange,
        routing_key=routing_key,
        redelivered=redelivered,
        deadline=deadline,
    )


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one line for each type
    """Return a header value that marshal can write. AMQP has no tuples, so these mark the two other types."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, int):  # pika's type for long integers
        return int(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, datetime):
        return (_TIME, value.isoformat())
    if isinstance(value, Decimal):
        return (_DECIMAL, str(value))
    return str(value)


def _restored(value: Any) -> Any:
    if isinstance(value, tuple):
        return datetime.fromisoformat(value[1]) if value[0] == _TIME else Decimal(value[1])
    if isinstance(value, list):
        return [_restored(one) for one in value]
    if isinstance(value, dict):
        return {name: _restored(one) for name, one in value.items()}
    return value


# An outcome ----------------------------------------------------------------------------------------------


def pack_outcome(token: int, error: BaseException | None) -> bytes:
    """Return the frame for a handler's return, or for its exception."""
    if error is None:
        return HEAD.pack(Kind.DONE, token, 0, 0)
    failure = failure_of(error)
    after, counts = (asked_delay(error), bool(error.counts)) if isinstance(error, Retry) else (None, True)
    return pack(
        Kind.FAILED,
        token,
        {
            "reason": failure.reason,
            "message": failure.message,
            "traceback": failure.traceback,
            "after": after,
            "counts": counts,
        },
    )


def unpack_outcome(content: bytes) -> HandlerRaised:
    """Return the exception for a frame of kind FAILED.

    Raises:
        ProtocolError: it is malformed.
    """
    try:
        found = json.loads(content)
        after = found["after"]
        return HandlerRaised(
            Failure(FailureReason(found["reason"]), str(found["message"]), str(found["traceback"])),
            None if after is None else float(after),
            counts=bool(found["counts"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f"no outcome: {error!r}") from error


def unpack_content(content: bytes) -> dict[str, Any]:
    """Return the fields of a frame of kind LOADED or UNLOADABLE.

    Raises:
        ProtocolError: they are malformed.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no fields: {error!r}") from error
    if not isinstance(found, dict):
        raise ProtocolError("no fields")
    return found
