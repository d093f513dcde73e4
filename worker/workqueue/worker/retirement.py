"""The operator's question before it removes a worker: are you idle? then stop taking messages.

Place in the flow: asked over the endpoint. A worker that says yes has cancelled its consumers and holds
itself out for a lease of 30 seconds; if it is still there then, it consumes again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from workqueue.contract import signing
from workqueue.contract.signing import Purpose, SignatureCheck
from workqueue.worker.consumer import Consumer

LEASE_SECONDS: Final = 30.0
CANCEL_SECONDS: Final = 2.0
"""How long the broker may take to confirm that it will send nothing more."""

logger = logging.getLogger(__name__)


class Retirement:
    """Whether this worker holds itself out for removal.

    Args:
        consumer: takes no messages while the lease runs.
        read_key: returns the key that calls are signed with; called for each of them, so that it can be rotated.
        pod_uid: signatures are made for it.
    """

    def __init__(self, consumer: Consumer, read_key: Callable[[], bytes], pod_uid: str) -> None:
        self._consumer = consumer
        self._read_key = read_key
        self._pod_uid = pod_uid
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._seen: dict[str, float] = {}

    @property
    def active(self) -> bool:
        """Whether the lease runs."""
        return self._timer is not None

    def verify(self, header: str | None, purpose: Purpose, now: float) -> str | None:
        """Check a signature; a good one is good once. Returns what is wrong with it, or None.

        Args:
            now: Unix seconds.
        """
        key = self._read_key()
        verdict = signing.verify(header, purpose, self._pod_uid, key, now)
        if verdict is not SignatureCheck.GOOD or header is None:
            return str(verdict)
        with self._lock:
            # Only good ones are kept, and only for as long as they would be good, so that nobody can fill it.
            self._seen = {
                seen: at for seen, at in self._seen.items() if now - at <= 2 * signing.TOLERANCE_SECONDS
            }
            if header in self._seen:
                return "Replayed"
            self._seen[header] = now
        return None

    def begin(self) -> int:
        """Retire, or renew the lease. Returns how many slots are busy: 0 when it is done.

        Raises:
            TimeoutError: the broker did not confirm that the consumers are cancelled; they start again.
        """
        with self._lock:
            renewed = self._end_lease()
            busy = self._consumer.retire(CANCEL_SECONDS)
            if busy:
                return busy
            self._timer = timer = threading.Timer(LEASE_SECONDS, lambda: self._expire(timer))
            timer.daemon = True
            timer.start()
        if not renewed:
            logger.info("Retired: idle, and the consumers are cancelled.", extra={"lease": LEASE_SECONDS})
        return 0

    def end(self) -> None:
        """Consume again."""
        with self._lock:
            self._resume()

    def _expire(self, timer: threading.Timer) -> None:
        with self._lock:
            if timer is self._timer:  # else the lease was renewed while this one waited for the lock
                self._resume()

    def _resume(self) -> None:
        if self._end_lease():
            self._consumer.resume()
            logger.info("No longer retired; consuming again.")

    def _end_lease(self) -> bool:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return timer is not None
