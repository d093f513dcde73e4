"""Handlers for our own worker, which is started as everybody starts it: `workqueue run`."""

from __future__ import annotations

import asyncio
import os
import time

from hack.bench.worker.consumers import tally
from workqueue.message import Message

tick = tally.asked().tick
SECONDS = float(os.environ["WORKQUEUE_BENCH_SECONDS"])


def thread(_message: Message) -> None:
    """A plain function."""
    tick()
    if SECONDS:
        time.sleep(SECONDS)


async def task(_message: Message) -> None:
    """A coroutine function."""
    tick()
    if SECONDS:
        await asyncio.sleep(SECONDS)
