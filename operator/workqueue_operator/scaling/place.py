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
        self._timer: Timer | None = None

    @contextmanager
    def waits_for_broker(self, seconds: float = 0.0) -> Iterator[None]:
        """Give the place back during the context, unless the broker is busy.

        Args:
            seconds: for which the pass keeps it in any case.
        """
        if seconds > 0:
            self._timer = self._clock.call_later(seconds, self._look)
        else:
            self._look()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self) -> None:
        # Not a function inside: each pass would leave a reference cycle to the garbage collector.
        if self._broker.is_busy:
            self._timer = self._clock.call_later(LOOK_SECONDS, self._look)
        else:
            self._timer = None
            self.release()
