"""The messages of `workqueue send`: from arguments, lines, JSON lines or files.

Each source yields messages one by one, so that an endless stream can be sent. A template has the common properties.
"""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from workqueue.amqp.outgoing import Outgoing
from workqueue.contract.errors import WorkerError
from workqueue.contract.headers import HIGHEST_PRIORITY

TEXT: Final = "text/plain"
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
FILE_NAME_HEADER: Final = "filename"

_STRING_KEYS: Final = {"id": "message_id", "contentType": "content_type", "correlationId": "correlation_id"}
_KEYS: Final = {"body", "bodyBase64", "headers", "priority", *_STRING_KEYS}


class InputError(WorkerError):
    """A line or a file is not a valid message. The error names it."""


class Item(NamedTuple):
    """A message, and its name in errors."""

    label: str
    outgoing: Outgoing


def from_arguments(words: Iterable[str], template: Outgoing) -> Iterator[Item]:
    """Yield one message per word."""
    for number, word in enumerate(words, 1):
        try:
            body = word.encode()
        except UnicodeEncodeError:
            raise InputError(f"message {number} is not UTF-8. Use --stdin or --files.") from None
        yield Item(f"message {number}", _with_body(template, body, TEXT))


def from_lines(lines: Iterable[bytes], template: Outgoing) -> Iterator[Item]:
    """Yield one message per line, without its end. An empty line is an empty message."""
    for number, line in enumerate(lines, 1):
        yield Item(f"line {number}", _with_body(template, line.rstrip(b"\r\n"), TEXT))


def from_json_lines(lines: Iterable[bytes], template: Outgoing) -> Iterator[Item]:
    """Yield one message per JSON object. Empty lines are skipped.

    Keys: `body` (a string as text, anything else as JSON) or `bodyBase64`, and optionally `headers`,
    `priority`, `id`, `contentType`, `correlationId`.

    Raises:
        InputError: a line has another form.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            label = f"line {number}"
            try:
                yield Item(label, _from_object(json.loads(line), template))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{label}: {error}") from error


def from_files(paths: Iterable[Path], template: Outgoing) -> Iterator[Item]:
    """Yield one message per file, with the content type guessed from its name, and its name in a header.

    Raises:
        InputError: a file cannot be read.
    """
    for path in paths:
        try:
            body = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        headers = {FILE_NAME_HEADER: path.name, **(template.headers or {})}
        guessed = mimetypes.guess_type(path.name)[0] or BYTES
        yield Item(str(path), _with_body(template, body, guessed)._replace(headers=headers))


def _with_body(template: Outgoing, body: bytes, content_type: str) -> Outgoing:
    return template._replace(body=body, content_type=template.content_type or content_type)


def _from_object(value: Any, template: Outgoing) -> Outgoing:
    if not isinstance(value, dict) or ("body" in value) == ("bodyBase64" in value):
        raise ValueError('it must be a JSON object with the key "body" or the key "bodyBase64".')
    if unknown := sorted(value.keys() - _KEYS):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}.")
    changes: dict[str, Any] = {}
    for key, field in _STRING_KEYS.items():
        if key in value:
            if not isinstance(value[key], str):
                raise ValueError(f"the key {key!r} must be a string.")
            changes[field] = value[key]
    if "headers" in value:
        if not isinstance(value["headers"], dict):
            raise ValueError("the key 'headers' must be an object.")
        changes["headers"] = {**(template.headers or {}), **value["headers"]}
    if "priority" in value:
        priority = value["priority"]
        if type(priority) is not int or not 0 <= priority <= HIGHEST_PRIORITY:
            raise ValueError(f"the key 'priority' must be a number from 0 to {HIGHEST_PRIORITY}.")
        changes["priority"] = priority
    body, content_type = _body(value)
    return _with_body(template, body, content_type)._replace(**changes)


def _body(value: dict[str, Any]) -> tuple[bytes, str]:
    if "bodyBase64" in value:
        try:
            return base64.b64decode(value["bodyBase64"], validate=True), BYTES
        except (binascii.Error, TypeError) as error:
            raise ValueError("the key 'bodyBase64' must be base64 text.") from error
    if isinstance(value["body"], str):
        return value["body"].encode(), TEXT
    return json.dumps(value["body"], ensure_ascii=False).encode(), JSON
