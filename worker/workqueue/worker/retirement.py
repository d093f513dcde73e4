"""Retirement: the operator asks a worker whether it is idle before it removes the worker.

An idle worker cancels its consumers and waits for its removal for a lease of 30 s. Then it consumes again.
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
"""How long RabbitMQ may take to confirm that the consumers are cancelled."""

logger = logging.getLogger(__name__)


class Retirement:
    """Whether this worker waits for its removal.

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
        """Return what is wrong with a signature, or None. Each signature is accepted once.

        Args:
            now: Unix seconds.
        """
        key = self._read_key()
        verdict = signing.verify(header, purpose, self._pod_uid, key, now)
        if verdict is not SignatureCheck.GOOD or header is None:
            return str(verdict)
        with self._lock:
            # Only valid signatures are kept, and only while they are valid, so that a caller cannot fill the memory.
            self._seen = {
                seen: at for seen, at in self._seen.items() if now - at <= 2 * signing.TOLERANCE_SECONDS
            }
            if header in self._seen:
                return "Replayed"
            self._seen[header] = now
        return None

    def begin(self) -> int:
        """Retire, or renew the lease. Return how many messages are unsettled: 0 if the worker retired.

        Raises:
            TimeoutError: RabbitMQ did not confirm that the consumers are cancelled. They start again.
        """
        with self._lock:
            renewed = self._end_lease()
            try:
                busy = self._consumer.retire(CANCEL_SECONDS)
                if busy:
                    return busy
                timer = threading.Timer(LEASE_SECONDS, lambda: self._expire(timer))
                timer.daemon = True
                timer.start()
            except BaseException:  # without a lease the worker would stay retired
                self._consumer.resume()
                raise
            self._timer = timer
        if not renewed:
            logger.info("Retired: idle, and the consumers are cancelled.", extra={"lease": LEASE_SECONDS})
        return 0

    def end(self) -> None:
        """Consume again."""
        with self._lock:
            self._resume()

    def _expire(self, timer: threading.Timer) -> None:
        with self._lock:
            if timer is self._timer:  # otherwise the lease was renewed while this thread waited for the lock
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
