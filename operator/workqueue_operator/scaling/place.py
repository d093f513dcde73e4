"""When a pass gives its place in the ReconcileQueue back, so that another pass may begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from workqueue_operator.ports import BrokerConnection, Clock, Timer

LOOK_SECONDS: Final = 0.25
"""Seconds until a pass that has kept its place looks again whether its broker is busy."""


class Place:
    """The place of one pass.

    The pass keeps it while its broker is busy: further passes would only wait behind this one, and make all of them
    slower.

    Args:
        release: gives the place back. It may be called again.
    """

    def __init__(self, clock: Clock, broker: BrokerConnection, release: Callable[[], None]) -> None:
        self._clock = clock
        self._broker = broker
        self.release = release

    @contextmanager
    def waits_for_broker(self, seconds: float = 0.0) -> Iterator[None]:
        """Give the place back during the context, unless the broker is busy.

        Args:
            seconds: for which the pass keeps it in any case.
        """
        timer: Timer | None = None

        def look() -> None:
            nonlocal timer
            if self._broker.is_busy:
                timer = self._clock.call_later(LOOK_SECONDS, look)
            else:
                self.release()

        if seconds > 0:
            timer = self._clock.call_later(seconds, look)
        else:
            look()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
