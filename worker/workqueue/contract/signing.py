"""Signed calls from the operator to a worker, keyed by a secret that both hold.

Place in the flow: the operator signs before it calls a worker's endpoint, the worker verifies. Pure: the
clock is an argument. What is signed is the purpose, the uid of the pod and the time, so that a signature
is worth nothing for another pod, another purpose or another minute.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import Final

HEADER: Final = "Workqueue-Signature"
"""The HTTP header that carries `<unix seconds with fraction>.<hex HMAC-SHA256>`, joined by a colon."""

TOLERANCE_SECONDS: Final = 60.0
"""How far the clocks of operator and worker may differ."""


class Purpose(StrEnum):
    """What a signed call asks for."""

    RETIRE = "retire"
    RESUME = "resume"


class SignatureCheck(StrEnum):
    """The answer of `verify`."""

    GOOD = "Good"
    QUEUE_MISSING = "Missing"
    MALFORMED = "Malformed"
    EXPIRED = "Expired"
    WRONG = "Wrong"


def sign(purpose: Purpose, pod_uid: str, key: bytes, now: float) -> str:
    """The header's value for a call at `now` (Unix seconds).

    Args:
        key: the WorkQueue's retirement key; never empty.
    """
    stamp = f"{now:.6f}"
    return f"{stamp}:{_digest(purpose, pod_uid, stamp, key)}"


def verify(header: str | None, purpose: Purpose, pod_uid: str, key: bytes, now: float) -> SignatureCheck:
    """Whether `header` was made by somebody who holds `key`, for this purpose, pod and time."""
    if not header:
        return SignatureCheck.QUEUE_MISSING
    stamp, separator, digest = header.partition(":")
    try:
        sent = float(stamp)
    except ValueError:
        return SignatureCheck.MALFORMED
    if not separator or not digest.isascii():
        return SignatureCheck.MALFORMED
    if not key or not hmac.compare_digest(digest, _digest(purpose, pod_uid, stamp, key)):
        return SignatureCheck.WRONG
    # Written so that NaN, which compares false with everything, is refused too.
    return SignatureCheck.GOOD if abs(now - sent) <= TOLERANCE_SECONDS else SignatureCheck.EXPIRED


def _digest(purpose: Purpose, pod_uid: str, stamp: str, key: bytes) -> str:
    text = f"workqueue.dev/{purpose}\n{pod_uid}\n{stamp}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
