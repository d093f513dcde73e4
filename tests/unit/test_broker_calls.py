"""Calls over a few channels: who waits for whom. Virtual time, and channels that answer when the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.loop import SimulatedLoop
from workqueue_operator.broker.channel import Calls, ChannelLostError

CHANNELS = 4
SECONDS = 2.0


class Connection:
    """A connection whose channels are open at once."""

    params = SimpleNamespace(channel_max=2047)

    def __init__(self) -> None:
        self.opened = 0

    def channel(self, on_open_callback: Callable[[Any], None]) -> Any:
        """Open a channel."""
        self.opened += 1
        channel: Any = SimpleNamespace(
            add_on_close_callback=lambda _: None, close=lambda: None, is_closing=False, is_closed=False
        )
        asyncio.get_running_loop().call_soon(on_open_callback, channel)
        return channel


def answering(after: float) -> Callable[[Any, Callable[[Any], None]], None]:
    """A call that the broker answers after some seconds."""

    def send(_channel: Any, done: Callable[[Any], None]) -> None:
        asyncio.get_running_loop().call_later(after, done, "counts")

    return send


@pytest.fixture
def loop() -> Iterator[SimulatedLoop]:
    made = SimulatedLoop()
    yield made
    made.close()


@pytest.fixture
def calls() -> Calls:
    made: Any = Connection()
    return Calls(made, SECONDS, CHANNELS)


def outcome(loop: SimulatedLoop, work: Awaitable[list[Any]]) -> list[Any]:
    """What each call came to."""
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(work)


def test_more_calls_than_channels_wait_as_long_as_others_are_answered(
    loop: SimulatedLoop, calls: Calls
) -> None:
    """A thousand at 10 ms take longer than one may take."""

    async def many() -> list[Any]:
        begun = loop.time()
        said = await asyncio.gather(*(calls.call(f"q{number}", answering(0.01)) for number in range(1000)))
        assert loop.time() - begun > SECONDS
        return said

    assert outcome(loop, many()) == ["counts"] * 1000


def test_call_behind_others_without_answers_fails_in_time(loop: SimulatedLoop, calls: Calls) -> None:
    async def behind() -> list[Any]:
        silent = [loop.create_task(calls.begin(answering(3600.0))) for _ in range(300)]
        await asyncio.sleep(30.0)
        begun = loop.time()
        said = await asyncio.gather(calls.call("jobs", answering(0.01)), return_exceptions=True)
        assert loop.time() - begun == pytest.approx(SECONDS)
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)
        return said

    [error] = outcome(loop, behind())
    assert isinstance(error, ChannelLostError)
    assert "no call was answered within 2 s" in str(error)


def test_cancelled_wait_gives_its_turn_to_the_next(loop: SimulatedLoop, calls: Calls) -> None:
    async def cancelled() -> list[Any]:
        first = [loop.create_task(calls.call(f"q{number}", answering(0.1))) for number in range(CHANNELS)]
        second = [loop.create_task(calls.call(f"r{number}", answering(0.1))) for number in range(CHANNELS)]
        await asyncio.sleep(0.05)
        for task in second:
            task.cancel()
        third = [loop.create_task(calls.call(f"s{number}", answering(0.1))) for number in range(CHANNELS)]
        await asyncio.gather(*first, *second, return_exceptions=True)
        begun = loop.time()
        said = await asyncio.gather(*third)
        assert loop.time() - begun == pytest.approx(0.1, abs=0.001)
        return said

    assert outcome(loop, cancelled()) == ["counts"] * CHANNELS
