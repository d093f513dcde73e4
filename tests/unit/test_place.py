"""When a pass that waits for its broker gives its place back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.clock import FakeClock
from workqueue_operator.scaling.place import Place


class Waiting:
    """A pass with a place, whose broker is busy or not."""

    def __init__(self, *, is_busy: bool) -> None:
        self.clock = FakeClock()
        self.released: list[float] = []
        self.broker: Any = SimpleNamespace(is_busy=is_busy)
        self.begun = self.clock.monotonic()
        self.place = Place(self.clock, self.broker, self._release)

    def _release(self) -> None:
        self.released.append(self.clock.monotonic() - self.begun)


@pytest.mark.parametrize("seconds", [0.0, 0.25])
async def test_place_is_given_back_while_the_broker_may_not_answer(seconds: float) -> None:
    waiting = Waiting(is_busy=False)

    with waiting.place.waits_for_broker(seconds):
        await waiting.clock.advance(10)

    assert waiting.released == [seconds]


async def test_fast_answer_keeps_the_place() -> None:
    waiting = Waiting(is_busy=False)

    with waiting.place.waits_for_broker(0.25):
        await waiting.clock.advance(0.2)
    await waiting.clock.advance(10)

    assert waiting.released == []


@pytest.mark.parametrize("seconds", [0.0, 0.25])
async def test_place_is_kept_while_the_broker_is_busy_and_not_longer(seconds: float) -> None:
    waiting = Waiting(is_busy=True)

    with waiting.place.waits_for_broker(seconds):
        await waiting.clock.advance(1.6)
        assert waiting.released == []
        waiting.broker.is_busy = False  # such as when RabbitMQ no longer answers
        await waiting.clock.advance(10)

    assert waiting.released == [1.75]


async def test_error_ends_the_looks_at_the_broker() -> None:
    waiting = Waiting(is_busy=True)

    with pytest.raises(ValueError, match="refused"), waiting.place.waits_for_broker():
        raise ValueError("refused")
    waiting.broker.is_busy = False
    await waiting.clock.advance(10)

    assert waiting.released == []
