"""The output of a handler in a process: each line becomes an entry of the worker's log, with the message's id.

This is for Python's own streams and for `logging`. What C code or a command writes to the file descriptors goes to
the log unchanged.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from contextvars import ContextVar
from typing import Any, Final

from workqueue import logs

STANDARD_OUTPUT: Final = 1
STANDARD_ERROR: Final = 2
LONGEST_LINE: Final = 2**16
"""A longer line is split."""

_message_id: ContextVar[str | None] = ContextVar("message_id", default=None)
_latest: list[str | None] = [None]
"""For threads that the handler starts: they do not inherit the context."""

_streams: list[_Lines] = []


def install(log_format: str | None, level: str) -> None:
    """Replace the standard streams, and configure logging."""
    error = _Log(os.dup(STANDARD_ERROR))
    logs.configure(log_format, level, error)  # type: ignore[arg-type]
    [handler] = logging.getLogger().handlers
    handler.addFilter(_add_message_id)
    formatter = handler.formatter
    assert formatter is not None  # noqa: S101 - `configure` sets one
    for name, descriptor in (("stdout", STANDARD_OUTPUT), ("stderr", STANDARD_ERROR)):
        lines = _Lines(name, descriptor, error, formatter)
        _streams.append(lines)
        stream = io.TextIOWrapper(  # type: ignore[type-var]
            lines, encoding="utf-8", errors="backslashreplace", write_through=True
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def begin(message_id: str | None, *, everywhere: bool = False) -> None:
    """Note the message whose handler starts.

    Args:
        everywhere: also for threads that the handler starts, since no other handler runs.
    """
    _message_id.set(message_id)
    if everywhere:
        _latest[0] = message_id


def end() -> None:
    """Write lines that are not complete, before the outcome of the message is reported."""
    for stream in _streams:
        stream.complete()
    _latest[0] = None
    _message_id.set(None)


def _current() -> str | None:
    return _message_id.get() or _latest[0]


def _add_message_id(record: logging.LogRecord) -> bool:
    message_id = _current()
    if message_id is not None and not hasattr(record, "message_id"):
        record.message_id = message_id
    return True


class _Log:
    """Standard error, with one call to the system for each entry, so that entries of two processes do not mix."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


class _Lines(io.BufferedIOBase):
    """Writes each line as an entry of the log."""

    def __init__(self, name: str, descriptor: int, output: _Log, formatter: logging.Formatter) -> None:
        self._name = name
        self._descriptor = descriptor
        self._output = output
        self._formatter = formatter
        self._lock = threading.RLock()
        self._incomplete = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Return the real descriptor, for `subprocess`."""
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        piece = bytes(data)
        with self._lock:
            *lines, rest = (self._incomplete + piece).split(b"\n")
            while len(rest) > LONGEST_LINE:
                lines.append(rest[:LONGEST_LINE])
                rest = rest[LONGEST_LINE:]
            self._incomplete = rest
            for line in lines:
                self._emit(line)
        return len(piece)

    def complete(self) -> None:
        """Write a line that has no end yet."""
        if self._incomplete:
            with self._lock:
                line, self._incomplete = self._incomplete, b""
                self._emit(line)

    def _emit(self, line: bytes) -> None:
        text = line.decode(errors="backslashreplace").rstrip("\r")
        record = logging.LogRecord(self._name, logging.INFO, "", 0, "%s", (text,), None)
        _add_message_id(record)
        self._output.write(f"{self._formatter.format(record)}\n")
