"""Message headers on the wire, written and read without loss.

pika writes no floating-point numbers and reads them as integers. Headers that it cannot read end the connection, so
that one message could stop a worker: infinity, a time after the year 9999, tables nested hundreds deep. All of these
must survive a retry, so headers are written and read here, and everything else by pika. pika itself is not patched,
since the user's code may use it too.
"""

from __future__ import annotations

import calendar
import struct
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from pika import data, spec
from pika.compat import long

LONGEST_SHORT_STRING: Final = 255
DEEPEST: Final = 32
"""How deep tables and lists may be nested. Deeper ones are read as bytes."""

_FLOATS: Final = {b"d": struct.Struct(">d"), b"f": struct.Struct(">f")}


def short_string(text: str | bytes) -> bytes:
    """Encode a string of at most 255 bytes. pika gives bytes for a received string that is not UTF-8.

    Raises:
        ValueError: it is longer.
    """
    encoded = text if isinstance(text, bytes) else text.encode()
    size = len(encoded)
    if size > LONGEST_SHORT_STRING:
        raise ValueError(f"{text[:20]!r}... is longer than {LONGEST_SHORT_STRING} bytes")
    return b"%c%b" % (size, encoded)


def table(values: Mapping[str, Any]) -> bytes:
    """Encode headers, or a mapping within them.

    Raises:
        ValueError: a name is too long.
        TypeError: a value is of a type that AMQP does not have.
        struct.error: a number is too large.
    """
    encoded = b"".join(short_string(name) + _value(value) for name, value in values.items())
    return struct.pack(">I", len(encoded)) + encoded


def size(name: str, value: Any) -> int | None:
    """Return the size of an encoded header in bytes, or None if it cannot be encoded."""
    try:
        return len(short_string(name)) + len(_value(value))
    except Exception:  # noqa: BLE001 - an object of the user raises what it likes
        return None


def _value(value: Any) -> bytes:  # noqa: PLR0911 - one line for each type
    if value is None:
        return b"V"
    if isinstance(value, str):
        return _sized(b"S", value.encode())
    if isinstance(value, bytes):
        return _sized(b"x", value)
    if isinstance(value, bool):
        return struct.pack(">c?", b"t", value)
    if isinstance(value, int):
        fits = -(2**31) <= value < 2**31 and not isinstance(value, long)
        return struct.pack(">ci", b"I", value) if fits else struct.pack(">cq", b"l", value)
    if isinstance(value, float):
        return struct.pack(">cd", b"d", value)
    if isinstance(value, datetime):
        return struct.pack(">cQ", b"T", calendar.timegm(value.utctimetuple()))
    if isinstance(value, Mapping):
        return b"F" + table(value)
    if isinstance(value, (list, tuple)):
        return _sized(b"A", b"".join(map(_value, value)))
    if isinstance(value, Decimal):
        pieces: list[bytes] = []
        data.encode_value(pieces, value)
        joined: bytes = b"".join(pieces)
        return joined
    raise TypeError(f"a header cannot hold a {type(value).__name__}")


def _sized(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">cI", kind, len(content)) + content


_FLAGS: Final = struct.Struct(">H")
_SIZE: Final = struct.Struct(">I")
_TIME: Final = struct.Struct(">Q")
_LATEST: Final = 253_402_300_799
"""Unix seconds. The last time that a Python datetime can have."""


def properties(encoded: bytes) -> spec.BasicProperties:
    """Decode the properties of a message: the headers here, the rest by pika.

    Raises:
        IndexError, ValueError, struct.error, AMQPError: they cannot be read.
    """
    found = spec.BasicProperties()
    flags = word = _FLAGS.unpack_from(encoded)[0]
    if flags & found.FLAG_HEADERS:
        start = _FLAGS.size
        while word & 1:  # more flags follow
            word = _FLAGS.unpack_from(encoded, start)[0]
            start += _FLAGS.size
        for flag in (
            found.FLAG_CONTENT_TYPE,
            found.FLAG_CONTENT_ENCODING,
        ):  # short strings before the headers
            if flags & flag:
                start += 1 + encoded[start]
        headers, end = _decode_table(encoded, start)
        others = _FLAGS.pack(flags & ~found.FLAG_HEADERS) + encoded[_FLAGS.size : start] + encoded[end:]
        found.decode(others)
        found.headers = headers
    else:
        found.decode(encoded)
    return found


def _decode_table(encoded: bytes, offset: int, depth: int = 0) -> tuple[Any, int]:
    start = offset + _SIZE.size
    end = start + _SIZE.unpack_from(encoded, offset)[0]
    if depth > DEEPEST:
        return encoded[start:end], end
    found: dict[str, Any] = {}
    offset = start
    while offset < end:
        name, offset = data.decode_short_string(encoded, offset)
        if isinstance(name, bytes):
            name = name.decode(errors="backslashreplace")
        found[name], offset = _decode_value(encoded, offset, depth)
    return found, offset


def _decode_list(encoded: bytes, offset: int, depth: int) -> tuple[Any, int]:
    start = offset + _SIZE.size
    end = start + _SIZE.unpack_from(encoded, offset)[0]
    if depth > DEEPEST:
        return encoded[start:end], end
    found: list[Any] = []
    offset = start
    while offset < end:
        value, offset = _decode_value(encoded, offset, depth)
        found.append(value)
    return found, offset


def _decode_value(encoded: bytes, offset: int, depth: int = 0) -> tuple[Any, int]:
    kind = encoded[offset : offset + 1]
    if kind == b"F":
        return _decode_table(encoded, offset + 1, depth + 1)
    if kind == b"A":
        return _decode_list(encoded, offset + 1, depth + 1)
    if (form := _FLOATS.get(kind)) is not None:
        return form.unpack_from(encoded, offset + 1)[0], offset + 1 + form.size
    if kind == b"T" and (seconds := _TIME.unpack_from(encoded, offset + 1)[0]) > _LATEST:
        return str(seconds), offset + 1 + _TIME.size
    found: tuple[Any, int] = data.decode_value(encoded, offset)
    return found
