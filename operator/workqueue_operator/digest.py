"""The digest of a JSON value, to detect changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

_ENCODER: Final = json.JSONEncoder(sort_keys=True)


def digest(value: Any) -> bytes:
    """Return a digest of 16 bytes. The order of keys does not matter."""
    return hashlib.blake2b(_ENCODER.encode(value).encode(), digest_size=16).digest()
