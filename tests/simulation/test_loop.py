"""The loop of the simulation: virtual time, killed and frozen processes, and one order for each seed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.simulation.loop import DeadlockError, Process, SimulatedLoop, Stream


@pytest.fixture
def loop() -> Iterator[SimulatedLoop]:
    made = SimulatedLoop()
    asyncio.set_event_loop(made)
    yield made
    asyncio.set_event_loop(None)
    made.close()


def test_hour_passes_at_once(loop: SimulatedLoop) -> None:
    begun = loop.time()

    loop.run_until_complete(asyncio.sleep(3600))

    assert loop.time() - begun == pytest.approx(3600)


def test_wait_that_nothing_ends_is_an_error(loop: SimulatedLoop) -> None:
    with pytest.raises(DeadlockError):
        loop.run_until_complete(loop.create_future())


def test_killed_process_runs_nothing_more(loop: SimulatedLoop) -> None:
    heard: list[str] = []
    process = Process(loop, "victim")

    async def work() -> None:
        while True:
            await asyncio.sleep(1)
            heard.append("works")

    process.start(work(), "work")
    loop.run_until_complete(asyncio.sleep(2.5))
    process.kill()
    loop.run_until_complete(asyncio.sleep(10))

    assert heard == ["works", "works"]


def test_frozen_process_goes_on_later(loop: SimulatedLoop) -> None:
    heard: list[float] = []
    process, begun = Process(loop, "sleeper"), loop.time()

    async def work() -> None:
        await asyncio.sleep(1)
        heard.append(loop.time() - begun)

    process.start(work(), "work")
    process.freeze(5)
    loop.run_until_complete(asyncio.sleep(10))

    assert heard == [pytest.approx(6)]


def test_frames_of_one_stream_arrive_in_order(loop: SimulatedLoop) -> None:
    heard: list[int] = []
    stream = Stream(loop)

    for number, seconds in enumerate([3.0, 1.0, 2.0]):
        stream.send(seconds, heard.append, number)
    loop.run_until_complete(asyncio.sleep(5))

    assert heard == [0, 1, 2]
