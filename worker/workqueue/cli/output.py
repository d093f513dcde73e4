"""Output of the commands: sentences and tables for people, or one JSON document.

Results go to standard output. Failures, warnings and progress go to standard error.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from workqueue.logs import escaped

ELLIPSIS: Final = "…"
_KEPT: Final = "\n\t"


def say(text: str) -> None:
    """Write a line to standard output."""
    write(f"{escaped(text, keep=_KEPT)}\n")


def write(text: str) -> None:
    """Write text that has no control characters to standard output. Ends the process if that is impossible."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Otherwise Python would try again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # not such as `| head`
            warn(f"The output cannot be written: {error.strerror}.")
        raise SystemExit(1) from None


def warn(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{escaped(text, keep=_KEPT)}\n")
    sys.stderr.flush()


def say_json(document: object) -> None:
    """Write one JSON document to standard output."""
    say(json.dumps(document, ensure_ascii=not is_unicode(), default=_plain))


def is_unicode() -> bool:
    """Return whether standard output can take every character. A StringIO, which has no encoding, can."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return encoding.lower().startswith("utf")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, cut: bool = True) -> str:
    """Return a table with columns as wide as needed.

    On a terminal, a cell ends at its first line break, and a line at the edge of the terminal. Each ends with an
    ellipsis. In a pipe or a file nothing is cut.

    Args:
        cut: False to cut nothing on a terminal either.
    """
    edge = terminal_width() if cut else None
    rows = [[escaped(_first_line(cell) if edge else cell) for cell in row] for row in rows]
    widths = [max(_cells(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = (
        "  ".join(cell + " " * (size - _cells(cell)) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )
    return "\n".join(lines if edge is None else (_shortened(line, edge) for line in lines))


def terminal_width() -> int | None:
    """Return the width of the terminal on standard output; None if that is a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _first_line(text: str) -> str:
    first, *rest = text.splitlines() or [""]
    return f"{first}{ELLIPSIS}" if rest else first


def _cells(text: str) -> int:
    """Return how many cells of a terminal a text takes. East Asian characters and emoji take two."""
    if text.isascii():
        return len(text)
    return sum(map(_cell, text))


def _cell(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _shortened(line: str, width: int) -> str:
    if _cells(line) <= width:
        return line
    left, kept = width - 1, []
    for character in line:
        left -= _cell(character)
        if left < 0:
            break
        kept.append(character)
    return f"{''.join(kept)}{ELLIPSIS}"


def count(number: int, noun: str) -> str:
    """Return text such as `1 message` or `2 messages`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def body_fields(body: bytes) -> dict[str, str]:
    """Return a body for JSON: as text if it is UTF-8, else in base64."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"bodyBase64": base64.b64encode(body).decode()}


def body_text(body: bytes) -> str:
    """Return a body for people."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return f"({count(len(body), 'byte')}, not text)"


def header_lines(headers: Mapping[str, Any]) -> list[str]:
    """Return a line `name: value` for each header."""
    return [
        f"{name}: {value if isinstance(value, str) else json.dumps(value, default=_plain)}"
        for name, value in headers.items()
    ]


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, int):  # pika has its own subclass
        return int(value)
    return str(value)
