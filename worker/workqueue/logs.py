"""Logging of worker and operator: a constant sentence with key/value pairs, as JSON or as text.

`logger.info("Sentence.", extra={...})`. Bodies and passwords are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
import time
from typing import Any, Final, TextIO

FORMATS: Final = ("json", "text")
NEWLINE: Final = "\n"
EXCEPTION: Final = "exception"

_OWN_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """One JSON object per record: time (UTC, RFC 3339), level, logger, message, then the key/value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **key_values(record),
        }
        if record.exc_info:
            entry[EXCEPTION] = self.formatException(record.exc_info)
        return escaped(json.dumps(entry, default=str, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """One line per record: time of day, level, sentence, then `key=value` pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and an exception below it."""
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        given = key_values(record)
        # The text of an exception of another process.
        exception = given.pop(EXCEPTION, None)
        pairs = "".join(f"  {key}={_quoted(value)}" for key, value in given.items())
        line = f"{stamp} {record.levelname:<7} {escaped(record.getMessage())}{pairs}"
        if record.exc_info:
            exception = self.formatException(record.exc_info)
        if not exception:
            return line
        # Indented, so that the text of an exception cannot look like a log line.
        return f"{line}\n{textwrap.indent(escaped(str(exception), keep=NEWLINE), '  ')}"


def key_values(record: logging.LogRecord) -> dict[str, Any]:
    """Return the pairs that were given as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}


def configure(
    log_format: str | None = None, level: int | str = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send all logging of the process to `stream` (default: standard error).

    Args:
        log_format: `json` or `text`; None means text on a terminal and JSON otherwise.
        level: a level of the logging module.
    """
    stream = stream or sys.stderr
    chosen = log_format or ("text" if stream.isatty() else "json")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter() if chosen == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def _quoted(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and " " not in text and '"' not in text:
        return text
    return escaped(json.dumps(text, ensure_ascii=False))


def escaped(text: str, keep: str = "") -> str:
    """Return the text with control codes, line breaks and invisible characters escaped as in JSON.

    Text from a publisher or a broker can then neither forge a log line nor control a terminal.

    Args:
        keep: characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else json.dumps(one)[1:-1] for one in text)
