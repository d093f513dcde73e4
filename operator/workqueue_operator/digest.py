"""The digest of a JSON value or of a text, to detect changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

_ENCODER: Final = json.JSONEncoder(sort_keys=True)


def digest(value: Any) -> bytes:
    """Return a digest of 16 bytes. The order of keys does not matter."""
    return digest_of_text(sorted_json(value))


def digest_of_text(text: str) -> bytes:
    """Return a digest of 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def sorted_json(value: Any) -> str:
    """Return a value as JSON with sorted keys."""
    return _ENCODER.encode(value)
