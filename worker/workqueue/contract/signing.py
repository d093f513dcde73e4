"""Signed calls from the operator to a worker. The key is a secret that both have.

A signature covers purpose, pod uid and time, so it is worthless for another pod, purpose or minute.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import Final

HEADER: Final = "Workqueue-Signature"
"""The HTTP header. Its value is `SECONDS:DIGEST`: Unix seconds with a fraction, and the HMAC-SHA256 in hex."""

TOLERANCE_SECONDS: Final = 60.0
"""How far the clocks of operator and worker may differ."""


class Purpose(StrEnum):
    """What a signed call asks for."""

    RETIRE = "retire"
    RESUME = "resume"


class SignatureCheck(StrEnum):
    """The result of `verify`."""

    GOOD = "Good"
    MISSING = "Missing"
    MALFORMED = "Malformed"
    EXPIRED = "Expired"
    WRONG = "Wrong"


def sign(purpose: Purpose, pod_uid: str, key: bytes, now: float) -> str:
    """Return the header's value for a call at `now` (Unix seconds).

    Args:
        key: the WorkQueue's retirement key; never empty.
    """
    stamp = f"{now:.6f}"
    return f"{stamp}:{_digest(purpose, pod_uid, stamp, key)}"


def verify(header: str | None, purpose: Purpose, pod_uid: str, key: bytes, now: float) -> SignatureCheck:
    """Check that the caller has `key` and signed this purpose, pod and time."""
    if not header:
        return SignatureCheck.MISSING
    stamp, separator, digest = header.partition(":")
    try:
        sent = float(stamp)
    except ValueError:
        return SignatureCheck.MALFORMED
    if not separator or not digest.isascii():
        return SignatureCheck.MALFORMED
    if not key or not hmac.compare_digest(digest, _digest(purpose, pod_uid, stamp, key)):
        return SignatureCheck.WRONG
    # Every comparison with NaN is false, so that NaN is refused too.
    return SignatureCheck.GOOD if abs(now - sent) <= TOLERANCE_SECONDS else SignatureCheck.EXPIRED


def _digest(purpose: Purpose, pod_uid: str, stamp: str, key: bytes) -> str:
    text = f"workqueue.dev/{purpose}\n{pod_uid}\n{stamp}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
